"""Small synthetic results, so that figures can be drawn without a network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

try:
    import matplotlib as mpl
except ModuleNotFoundError:
    collect_ignore_glob = ["test_*.py"]
else:
    mpl.use("agg")

LAYERS = ("relu", "layer1.0.relu", "layer1.0.relu_1", "layer2.0.relu", "layer2.0.relu_1")
UNITS = (16, 24, 6, 40, 60)
CLASSES = ("boot", "bag", "coat", "dress", "shirt", "sneaker")


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    """Closes the figures of a test, and checks that matplotlib's settings are unchanged."""
    from matplotlib import pyplot as plt

    before = dict(mpl.rcParams)
    yield
    plt.close("all")
    assert dict(mpl.rcParams) == before


def made_result(shift: float = 0.0) -> xr.DataTree:
    """An analysis with every metric that figures support; `shift` simulates another network."""
    random = np.random.default_rng(7)
    depth = np.repeat(np.linspace(0.25, 0.7, len(LAYERS)) + shift, UNITS)
    count = len(depth)
    selectivity = np.clip(depth + 0.12 * random.standard_normal(count), 0, 1)
    preferred = random.integers(0, len(CLASSES), count)
    means = 0.3 + 0.2 * random.random((count, len(CLASSES)))
    means[np.arange(count), preferred] *= (1 + selectivity) / (1 - 0.9 * selectivity)
    dead = np.zeros(count, dtype=bool)
    dead[[3, 50]] = True
    means[dead] = 0
    cv = 0.4 + 0.5 * selectivity + 0.05 * random.standard_normal(count)
    units = xr.Dataset(
        {
            "selectivity": ("unit", np.where(dead, 0, selectivity)),
            "preferred_class": ("unit", np.where(dead, -1, preferred)),
            "dead": ("unit", dead),
            "class_mean": (("unit", "class"), means),
            "gradient_norm_cv": ("unit", np.where(dead, np.nan, cv)),
            "corruption_selectivity": (
                ("unit", "corruption", "severity"),
                selectivity[:, None, None] * np.array([[0.9, 0.6], [0.8, 0.4]]),
            ),
        },
        coords={
            "layer": ("unit", np.repeat(np.array(LAYERS, dtype=object), UNITS)),
            "channel": ("unit", np.concatenate([np.arange(size) for size in UNITS])),
            "class": np.arange(len(CLASSES)),
            "class_name": ("class", np.array(CLASSES, dtype=object)),
            "corruption": np.array(["fog", "contrast"], dtype=object),
            "severity": [1, 5],
        },
    )
    by_layer = np.split(units["selectivity"].values, np.cumsum(UNITS)[:-1])
    mean = np.array([one.mean() for one in by_layer])
    cv_mean = np.array([np.nanmean(one) for one in np.split(cv, np.cumsum(UNITS)[:-1])])
    steepness = np.array([[2.0], [1.6], [1.2], [1.0], [0.8]]) + 3 * shift
    spectrum = np.arange(1, 33) ** -steepness * 5
    ratio = spectrum.sum(1) ** 2 / (spectrum**2).sum(1)
    layers = xr.Dataset(
        {
            "n_units": ("layer", np.array(UNITS)),
            "selectivity_mean": ("layer", mean),
            "selectivity_mean_low": ("layer", mean - 0.03),
            "selectivity_mean_high": ("layer", mean + 0.02),
            "gradient_norm_cv_mean": ("layer", cv_mean),
            "gradient_norm_cv_across_units": ("layer", 0.6 * cv_mean),
            "participation_ratio": ("layer", ratio),
            "components": (("layer", "variance"), np.outer([3, 5, 4, 9, 12], [1, 2 - 4 * shift])),
            "eigenvalue": (("layer", "component"), spectrum),
        },
        coords={
            "layer": np.array(LAYERS, dtype=object),
            "variance": [0.9, 0.99],
            "component": np.arange(32),
        },
    )
    return xr.DataTree.from_dict({"units": units, "layers": layers})


def made_robustness(shift: float = 0.0) -> xr.DataTree:
    """Accuracies under four corruptions and two attacks."""
    steps = np.arange(11)
    epsilon = np.array([1, 2, 4, 8]) / 255
    harm = np.array([[1.0], [1.6], [2.2], [0.4]]) * np.array([[0.05, 0.12, 0.25]])
    accuracy = 0.9 + shift - harm
    attack = np.stack([0.8 - 60 * epsilon / 4, 0.7 - 80 * epsilon / 4]).clip(0.02) + shift
    falling = 0.9 - 25 * epsilon[:, None] * (1 - np.exp(-steps / 3))
    by_step = np.stack([np.full((4, 11), np.nan), falling + shift])
    by_step[0, :, :2] = falling[:, :2]
    table = xr.Dataset(
        {
            "clean_accuracy": 0.9 + shift,
            "accuracy": (("corruption", "severity"), accuracy),
            "accuracy_relative": (("corruption", "severity"), accuracy / (0.9 + shift)),
            "accuracy_by_severity": ("severity", accuracy.mean(0)),
            "attack_accuracy": (("attack", "epsilon"), attack),
            "attack_accuracy_by_step": (("attack", "epsilon", "step"), by_step),
        },
        coords={
            "corruption": np.array(["gaussian_noise", "fog", "contrast", "pixelate"], dtype=object),
            "severity": [1, 3, 5],
            "attack": np.array(["fgsm", "pgd"], dtype=object),
            "epsilon": epsilon,
            "step": steps,
        },
    )
    return xr.DataTree.from_dict({"robustness": table})


def made_sweep() -> xr.Dataset:
    """Eleven alphas, four seeds, five layers, with a shape similar to the papers' sweeps."""
    alphas = np.array([-2, -1, -0.7, -0.4, -0.2, 0, 0.2, 0.4, 0.7, 1, 2])
    noise = np.random.default_rng(3).standard_normal((len(alphas), 4))
    mean = 0.35 + 0.35 * np.tanh(alphas)
    accuracy = 0.93 - 0.05 * np.maximum(alphas, 0) - 0.008 * np.minimum(alphas, 0) ** 2
    by_layer = mean[:, None, None] * np.linspace(0.7, 1.2, 5) + 0.01 * noise[:, :, None]
    return xr.Dataset(
        {
            "test_accuracy": (("alpha", "seed"), accuracy[:, None] + 0.01 * noise),
            "selectivity_mean": (("alpha", "seed"), mean[:, None] + 0.012 * noise[:, ::-1]),
            "selectivity": (("alpha", "seed", "layer"), by_layer),
            "failure": (("alpha", "seed"), np.full(noise.shape, "", dtype=object)),
        },
        coords={"alpha": alphas, "seed": np.arange(4), "layer": np.array(LAYERS, dtype=object)},
    )


def made_log(folder: Path, shift: float = 0.0) -> Path:
    """The folder of a run of eight epochs, in the format that training writes."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for epoch in range(8):
        learned = 1 - np.exp(-(epoch + 1) / 2)
        record = {
            "epoch": epoch,
            "loss": 2.3 * (1 - 0.9 * learned) - shift,
            "accuracy": 0.1 + 0.88 * learned,
            "validation_accuracy": 0.1 + 0.8 * learned + shift,
            "selectivity_mean": 0.2 + 0.2 * learned,
            "alpha": -1.0,
            "batch_selectivity": None,
            "selectivity": {layer: 0.2 + 0.05 * at * learned for at, layer in enumerate(LAYERS)},
        }
        lines.append(json.dumps(record))
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@dataclass(frozen=True)
class World:
    """All objects that can be drawn."""

    result: xr.DataTree
    other: xr.DataTree
    robust: xr.DataTree
    weaker: xr.DataTree
    swept: xr.Dataset
    run: Path


@pytest.fixture
def world(tmp_path: Path) -> World:
    """The results shown in the stored pictures."""
    return World(
        made_result(),
        made_result(0.15),
        made_robustness(),
        made_robustness(-0.1),
        made_sweep(),
        made_log(tmp_path / "run"),
    )


@pytest.fixture
def changed(tmp_path: Path) -> World:
    """The same results with different numbers, whose pictures must not match the stored ones."""
    swept = made_sweep()
    return World(
        made_result(-0.15),
        made_result(0.05),
        made_robustness(-0.25),
        made_robustness(-0.3),
        swept.assign({name: swept[name] ** 2 for name in swept if name != "failure"}),
        made_log(tmp_path / "changed", -0.15),
    )


@pytest.fixture
def result() -> xr.DataTree:
    return made_result()


@pytest.fixture
def other() -> xr.DataTree:
    return made_result(0.15)


@pytest.fixture
def robust() -> xr.DataTree:
    return made_robustness()


@pytest.fixture
def swept() -> xr.Dataset:
    return made_sweep()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return made_log(tmp_path / "run")
