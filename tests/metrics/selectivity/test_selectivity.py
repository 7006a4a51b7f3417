"""The class selectivity index compared with plain numpy, and transformations that must not change it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from probekit.analysis.analyze import analyze
from probekit.capture.record import record
from probekit.errors import DataError, OptionError, ProbekitWarning
from probekit.metrics.selectivity.selectivity import Selectivity, class_selectivity
from probekit.statistics.class_means import ClassMeans

MEANS = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 5), st.integers(2, 6)),
    elements=st.floats(0, 1e3).map(lambda value: value if value > 1e-3 else 0.0),
)


def table(means: Any) -> xr.DataArray:
    return xr.DataArray(np.asarray(means, float), dims=("unit", "class"))


def by_hand(means: np.ndarray, eps: float = 1e-6) -> list[float]:
    """The formula, one unit and one class at a time."""
    found = []
    for unit in means:
        highest = max(unit)
        others = list(unit)
        others.remove(highest)
        rest = sum(others) / len(others)
        total = highest + rest + eps
        found.append((highest - rest) / total if total else 0.0)
    return found


@settings(deadline=None, max_examples=40)
@given(means=MEANS, eps=st.sampled_from([0.0, 1e-6, 0.1]))
def test_the_index_equals_the_formula_by_hand(means: np.ndarray, eps: float) -> None:
    found = class_selectivity(table(means), eps=eps).values
    np.testing.assert_allclose(found, by_hand(means, eps), rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(means=MEANS, scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_scale_and_order_of_classes_change_nothing_without_epsilon(
    means: np.ndarray, scale: float, seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(means.shape[1])
    one = class_selectivity(table(means), eps=0)
    other = class_selectivity(table(means[:, order] * scale), eps=0)
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(means=MEANS)
def test_the_index_is_between_zero_and_one_and_epsilon_only_lowers_it(means: np.ndarray) -> None:
    bare = class_selectivity(table(means), eps=0).values
    assert ((bare >= -1e-12) & (bare <= 1 + 1e-12)).all()
    for eps in (1e-9, 1e-3):
        found = class_selectivity(table(means), eps=eps).values
        assert (found <= bare + 1e-12).all()
    np.testing.assert_allclose(class_selectivity(table(means), eps=1e-9), bare, atol=1e-5)


@pytest.mark.parametrize(
    ("means", "index"),
    [
        ([1, 0, 0], 1.0),
        ([2, 2, 2], 0.0),
        ([3, 1, 1], 0.5),
        ([0, 0, 0], 0.0),
        ([3, 1], 0.5),
        ([5, 5, 0], 1 / 3),
    ],
)
def test_known_values(means: list[float], index: float) -> None:
    assert class_selectivity(table([means]), eps=0).item() == pytest.approx(index)


@pytest.mark.parametrize(
    ("negative", "means", "index"),
    [
        ("clip", [3.0, 1.0, -5.0], (3 - 0.5) / (3 + 0.5)),
        ("keep", [3.0, 1.0, -5.0], (3 + 2) / (3 - 2)),
        ("shift", [3.0, 1.0, -5.0], (8 - 3) / (8 + 3)),
        ("nan", [3.0, 1.0, -5.0], np.nan),
        ("clip", [-1.0, -2.0, -3.0], 0.0),
        ("shift", [-1.0, -2.0, -3.0], (2 - 0.5) / (2 + 0.5)),
        *((policy, [3.0, 1.0, 1.0], 0.5) for policy in ("clip", "keep", "shift", "nan")),
    ],
)
def test_policies_for_negative_means(negative: Any, means: Any, index: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProbekitWarning)
        found = class_selectivity(table([means]), eps=0, negative=negative).item()
    assert found == pytest.approx(index, nan_ok=True)


@settings(deadline=None, max_examples=25)
@given(data=st.data(), size=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_batches_order_and_merging_change_nothing(
    data: st.DataObject, size: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = torch.from_numpy(rng.exponential(size=(40, 3)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(0, 4, 40))
    order = torch.tensor(data.draw(st.permutations(range(40))))
    merged = ClassMeans()
    for part in order.split(size):
        one = ClassMeans()
        one.update(rows[part], labels[part])
        merged.merge(one)
    means = np.stack(
        [rows.double().numpy()[labels == label].mean(0) for label in labels.unique()], 1
    )
    found = class_selectivity(merged.to_xarray()).values
    np.testing.assert_allclose(found, by_hand(means), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("means", "options", "error", "words"),
    [
        ([[1.0]], {}, DataError, "needs samples of at least two classes"),
        ([[1.0, np.nan]], {}, DataError, "NaN or infinity"),
        ([[1.0, np.inf]], {}, DataError, "NaN or infinity"),
        ([[1.0, 0.0]], {"eps": -1}, OptionError, "eps"),
        ([[1.0, 0.0]], {"eps": np.nan}, OptionError, "eps"),
        ([[1.0, 0.0]], {"negative": "abs"}, OptionError, "'clip', 'keep', 'shift' or 'nan'"),
    ],
)
def test_mistakes_are_reported(means: Any, options: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        class_selectivity(table(means), **options)


def test_invalid_tables_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(unit, class\)"):
        class_selectivity(xr.DataArray([1.0], dims="unit"))
    with pytest.raises(DataError, match="not a dataset of other"):
        class_selectivity(xr.Dataset({"other": 1}))


class TestInAnAnalysis:
    def test_equals_numpy_on_recorded_activations(self, network: nn.Module, labeled: Any) -> None:
        network.eval()
        result = analyze(network, labeled, batch_size=7, progress=False)
        images, labels = labeled
        with torch.no_grad():
            after, expected = images, {}
            for number, layer in enumerate(network):
                after = layer(after)
                if isinstance(layer, nn.ReLU):
                    pooled = after.flatten(2).mean(2) if after.ndim > 2 else after
                    expected[str(number)] = pooled.double().numpy()
        units = result["units"].to_dataset()
        for name, rows in expected.items():
            means = np.stack([rows[labels.numpy() == label].mean(0) for label in range(3)], 1)
            found = units.isel(unit=units["layer"].values == name)
            np.testing.assert_allclose(found["class_mean"], means, rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(found["selectivity"], by_hand(means), atol=1e-5)
            alive = means.max(1) > 0
            preferred = np.where(alive, means.argmax(1), -1)
            np.testing.assert_array_equal(found["preferred_class"], preferred)
            np.testing.assert_array_equal(found["dead"], ~alive)
        np.testing.assert_allclose(
            result["layers"]["selectivity_mean"],
            [units["selectivity"][units["layer"].values == name].mean() for name in expected],
        )

    def test_equals_the_index_of_a_recording(self, network: nn.Module, labeled: Any) -> None:
        network.eval()
        result = analyze(network, labeled, progress=False)
        recording = record(network, labeled, progress=False)
        for table_of in (recording, recording.chunk(sample=11)):
            np.testing.assert_allclose(
                class_selectivity(table_of), result["units"]["selectivity"], rtol=1e-5, atol=1e-7
            )

    def test_dead_units_have_no_selectivity_and_no_preference(self, labeled: Any) -> None:
        net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 3))
        with torch.no_grad():
            net[0].weight[0] = 0
            net[0].bias.fill_(-0.0).add_(torch.tensor([-1.0, 5.0, 5.0]))
        result = analyze(net, labeled, progress=False)
        units = result["units"].to_dataset()
        assert units["dead"].values.tolist() == [True, False, False]
        assert units["selectivity"].values[0] == 0
        assert units["preferred_class"].values[0] == -1
        assert result["layers"]["dead_units"].item() == 1

    def test_absent_classes_do_not_count(self, network: nn.Module, labeled: Any) -> None:
        network.eval()
        images, labels = labeled
        shifted = analyze(network, [(images, labels * 5)], progress=False)["units"].to_dataset()
        plain = analyze(network, [(images, labels)], progress=False)["units"].to_dataset()
        assert shifted["class"].values.tolist() == [0, 5, 10]
        np.testing.assert_array_equal(shifted["selectivity"], plain["selectivity"])
        alive = ~plain["dead"].values
        np.testing.assert_array_equal(
            shifted["preferred_class"][alive], plain["preferred_class"][alive] * 5
        )

    @pytest.mark.parametrize("negative", ["clip", "keep", "shift", "nan"])
    def test_means_below_zero_are_counted_and_reported(self, labeled: Any, negative: Any) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.GELU(), nn.Flatten(), nn.Linear(108, 3))
        with torch.no_grad():
            net[0].bias.copy_(torch.tensor([-1.0, 5.0, 5.0]))
        with pytest.warns(ProbekitWarning, match="1 units have class means below zero, in 1"):
            result = analyze(net, labeled, metrics=Selectivity(negative=negative), progress=False)
        assert result["layers"]["negative_units"].item() == 1
        assert result["units"]["negative_class_mean"].values.tolist() == [True, False, False]
        assert np.isnan(result["units"]["selectivity"].values[0]) == (negative == "nan")
