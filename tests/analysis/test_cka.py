"""Linear CKA equals its definition on whole kernel matrices, however the samples are split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import probekit as pk
from probekit.cli.app import app
from probekit.errors import DataError, ModelError, OptionError
from probekit.statistics.hsic import LinearHSIC


def hsic(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> float:
    """Equation 5 of Song et al. 2012, computed from the kernel matrices."""
    n = len(x)
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    one = np.ones(n)
    whole = np.trace(k @ m) + one @ k @ one * (one @ m @ one) / (n - 1) / (n - 2)
    return float((whole - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3)))


def reference(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> float:
    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


def network(seed: int, width: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, 5, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(80, 3),
    )  # fmt: skip


IMAGES = torch.rand(90, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(90) % 3


def batches(size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(IMAGES.split(size), LABELS.split(size), strict=True))


def layer_tables(model: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    with torch.no_grad():
        first = model[1](model[0](IMAGES))
        second = model[3](model[2](first))
    return {
        "1": first.mean((2, 3), dtype=torch.float32).double().numpy(),
        "3": second.mean((2, 3), dtype=torch.float32).double().numpy(),
    }


@pytest.mark.parametrize("size", [90, 7])
def test_two_models_equal_the_definition_in_memory(size: int) -> None:
    one, other = network(0), network(1, width=4)
    found = pk.cka(one, other, batches(size))
    tables = layer_tables(one), layer_tables(other)
    for a, x in tables[0].items():
        for b, y in tables[1].items():
            value = found["cka"].sel(layer=a, other_layer=b).item()
            assert value == pytest.approx(reference(x, y), abs=2e-5)  # activations are float32


def test_the_streamed_value_equals_that_of_the_recording_to_ten_digits() -> None:
    model = network(0).double()
    data = [(images.double(), labels) for images, labels in batches(11)]
    found = pk.cka(model, data=data)["cka"]
    with torch.no_grad():
        first = model[1](model[0](IMAGES.double()))
        tables = {"1": first.mean((2, 3)), "3": model[3](model[2](first)).mean((2, 3))}
    for a, x in tables.items():
        for b, y in tables.items():
            value = found.sel(layer=a, other_layer=b).item()
            assert value == pytest.approx(reference(x.numpy(), y.numpy()), abs=1e-10)


def test_cka_ignores_rotation_scale_and_shift_and_is_zero_for_noise() -> None:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(400, 5, generator=draw).double()
    turn = torch.linalg.qr(torch.randn(5, 5, generator=draw).double()).Q
    both = LinearHSIC((5, 4), (5,))
    noise = torch.randn(400, 4, generator=draw).double()
    turned = 3 * x @ turn + 100
    both.update(torch.cat([x, noise], 1), turned, torch.arange(400))
    estimates = both.estimates()[0, :, 0]
    own = [hsic(one.numpy(), one.numpy()) for one in (x, turned, noise)]
    assert estimates[0] / np.sqrt(own[0] * own[1]) == pytest.approx(1, abs=1e-9)
    assert abs(estimates[1] / np.sqrt(own[1] * own[2])) < 0.05


def test_parts_with_different_origins_merge_to_the_whole() -> None:
    draw = torch.Generator().manual_seed(4)
    x, y = (torch.randn(120, width, generator=draw).double() + 5 for width in (7, 4))
    whole, parts = LinearHSIC((3, 4), (2, 2)), [LinearHSIC((3, 4), (2, 2)) for _ in range(3)]
    whole.update(x, y, torch.arange(120))
    for number, part in enumerate(parts):
        rows = slice(40 * number, 40 * number + 40)
        part.update(x[rows], y[rows], torch.arange(120)[rows])
    merged = parts[0].fresh()
    for part in (parts[2], parts[0], parts[1]):
        merged.merge(part)
    np.testing.assert_allclose(merged.estimates(), whole.estimates(), atol=1e-12)
    expected = [
        [hsic(a.numpy(), b.numpy()) for b in y.split([2, 2], 1)] for a in x.split([3, 4], 1)
    ]
    np.testing.assert_allclose(whole.estimates()[0], expected, atol=1e-12)


def test_the_jackknife_error_is_the_standard_deviation_over_repeated_samples() -> None:
    draw = torch.Generator().manual_seed(5)
    values, errors = [], []
    for _ in range(60):
        x = torch.randn(150, 3, generator=draw).double()
        y = x + torch.randn(150, 3, generator=draw).double()
        sums = [LinearHSIC((3,), (3,)) for _ in range(3)]
        for one, (a, b) in zip(sums, ((x, y), (x, x), (y, y)), strict=True):
            one.update(a, b, torch.arange(150))
        found = [one.estimates()[:, 0, 0] for one in sums]
        whole, *left_out = found[0] / np.sqrt(found[1] * found[2])
        values.append(whole)
        errors.append(np.sqrt(0.9 * ((left_out - np.mean(left_out)) ** 2).sum()))
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.35)


def test_the_interval_contains_the_estimate_and_narrows_with_samples() -> None:
    model = network(0)
    wide, narrow = (pk.cka(model, network(1), batches(30)[:n]) for n in (1, 3))
    for found in (wide, narrow):
        assert bool(
            ((found["cka_low"] <= found["cka"]) & (found["cka"] <= found["cka_high"])).all()
        )
    assert float(narrow["cka_error"].mean()) < float(wide["cka_error"].mean())


def test_arrays_are_not_taken_for_models() -> None:
    with pytest.raises(ModelError, match="not ndarray"):
        pk.cka(np.zeros((20, 3)), np.zeros((20, 4)))  # type: ignore[arg-type]


def test_invalid_comparisons_are_refused() -> None:
    with pytest.raises(DataError, match="at least 4 samples"):
        pk.cka(network(0), data=[(IMAGES[:4], LABELS[:4])])
    with pytest.raises(DataError, match="read only once"):
        pk.cka(network(0), network(1), iter(batches(30)))
    with pytest.raises(OptionError, match="CKA of 2 with 2 layers needs"):
        pk.cka(network(0), network(1), batches(30), memory=100)


def test_the_command_writes_a_table_and_a_figure(tmp_path: Path) -> None:
    names = ["probekit:resnet20-fashion-mnist", "probekit:resnet20-fashion-mnist-a2"]
    files = [str(tmp_path / "cka.nc"), str(tmp_path / "cka.png")]
    options = ["--layers", "layer3.[12].relu2", "--limit", "60"]
    done = CliRunner().invoke(
        app, ["cka", *names, "fashion-mnist", "-o", files[0], "-o", files[1], *options]
    )
    assert done.exit_code == 0, done.output
    models = [pk.load_model(name) for name in names]
    expected = pk.cka(*models, "fashion-mnist", "layer3.[12].relu2", limit=60)
    found = pk.open_result(files[0]).to_dataset()
    np.testing.assert_allclose(found["cka"].values, expected["cka"].values, atol=1e-12)
    best = expected["cka"].sel(layer="layer3.1.relu2").idxmax("other_layer").item()
    row = next(line for line in done.stdout.splitlines() if line.startswith("layer3.1.relu2"))
    assert row.split()[1] == best
    assert Path(files[1]).stat().st_size > 1000
    again = CliRunner().invoke(app, ["cka", *names, "fashion-mnist", "-o", files[0]])
    assert again.exit_code == 2


class Shuffled:
    """An iterable that yields the samples in another order each time."""

    def __init__(self, labels: bool) -> None:
        self.labels, self.generator = labels, torch.Generator().manual_seed(0)

    def __iter__(self) -> Any:
        for some in torch.randperm(90, generator=self.generator).split(30):
            yield IMAGES[some], LABELS[some] if self.labels else None


@pytest.mark.parametrize("labels", [True, False])
def test_data_that_differs_for_the_two_models_is_refused(labels: bool) -> None:
    with pytest.raises(DataError, match="different samples for the two models"):
        pk.cka(network(0), network(0), Shuffled(labels), "3", progress=False)
