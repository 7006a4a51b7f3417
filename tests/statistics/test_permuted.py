"""Class means under permuted labels: exact permutations, streaming, and refused input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from probekit.capture.layers import Layer
from probekit.errors import DataError, OptionError
from probekit.statistics.permuted import PermutedClassMeans
from probekit.statistics.testing import check_statistic

LABELS = torch.tensor([0, 0, 0, 2, 2, 1] * 8)


def expecting(labels: torch.Tensor, **options: object) -> PermutedClassMeans:
    means = PermutedClassMeans(**options)  # type: ignore[arg-type]
    means.expect(labels)
    return means


@pytest.mark.parametrize(
    "statistic",
    [
        expecting(torch.arange(24) % 3, permutations=5),
        PermutedClassMeans(5, class_counts=(8, 8, 8)),
        expecting(torch.arange(24) % 12, permutations=4),
    ],
    ids=["exact", "drawn", "more classes than samples in a batch"],
)
def test_satisfies_the_statistic_contract(statistic: PermutedClassMeans) -> None:
    check_statistic(statistic)


def test_means_equal_those_of_labels_permuted_by_hand() -> None:
    table = torch.rand(48, 4, generator=torch.Generator().manual_seed(0))
    means = expecting(LABELS, permutations=6, seed=2)
    for rows in torch.arange(48).split(11):
        means.update(table[rows], LABELS[rows], rows)
    relabeled = means.relabeling.labels("permuted 2", 6, torch.arange(48)).numpy()
    found = means.to_xarray()
    for permutation, labels in enumerate(relabeled):
        assert np.array_equal(np.bincount(labels), LABELS.bincount().numpy())
        for label in range(3):
            expected = table.numpy().astype(np.float64)[labels == label].mean(0)
            got = found.sel({"class": label})[permutation]
            np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert len({tuple(labels) for labels in relabeled}) == 6


def test_more_classes_than_samples_per_batch_give_the_same_means() -> None:
    labels = torch.arange(60) % 20
    table = torch.rand(60, 3, generator=torch.Generator().manual_seed(0))
    whole, parts = (expecting(labels, permutations=3) for _ in range(2))
    whole.update(table, labels, torch.arange(60))
    for rows in torch.arange(60).split(7):
        parts.update(table[rows], labels[rows], rows)
    np.testing.assert_allclose(whole.to_xarray(), parts.to_xarray(), rtol=1e-12)


def test_a_subset_is_permuted_within_itself() -> None:
    index = torch.tensor([3, 10, 11, 40, 90, 91])
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    means = PermutedClassMeans(50)
    means.expect(labels, index)
    means.update(torch.rand(6, 2), labels, index)
    assert (means.state["count"] == torch.tensor([3.0, 2.0, 1.0])).all()
    with pytest.raises(DataError, match="do not include all of the samples 4 to 4"):
        means.update(torch.rand(1, 2), labels[:1], torch.tensor([4]))


def test_any_sample_may_get_any_label_and_pairs_are_exchangeable() -> None:
    means = expecting(LABELS, permutations=4000)
    drawn = means.relabeling.labels("permuted 0", 4000, torch.tensor([0, 5]))
    counts = (drawn[:, 0] * 3 + drawn[:, 1]).bincount(minlength=9).numpy()
    sizes = LABELS.bincount().numpy()
    expected = (np.outer(sizes, sizes) - np.diag(sizes)) / (48 * 47) * 4000
    assert stats.chisquare(counts, expected.flatten()).pvalue > 1e-3


def test_drawn_labels_have_the_given_probabilities() -> None:
    means = PermutedClassMeans(500, class_counts=(30, 0, 10))
    drawn = means.relabeling.labels("permuted 0", 500, torch.arange(40)).flatten()
    counts = drawn.bincount(minlength=3).numpy()
    assert counts[1] == 0
    assert stats.binomtest(int(counts[0]), 20_000, 0.75).pvalue > 1e-3


def test_data_without_labels_in_advance_requires_class_counts() -> None:
    rows = torch.arange(2)
    with pytest.raises(OptionError, match="pass class_counts"):
        PermutedClassMeans(3).update(torch.rand(2, 2), rows, rows)
    means = expecting(LABELS, permutations=3)
    means.expect(None)
    with pytest.raises(OptionError, match="pass class_counts"):
        means.update(torch.rand(2, 2), rows, rows)


def test_more_samples_than_announced_are_refused() -> None:
    means = expecting(LABELS, permutations=3)
    with pytest.raises(DataError, match="labels of 48 samples were given before the pass"):
        means.update(torch.rand(1, 2), LABELS[:1], torch.tensor([48]))


def test_memory_is_checked_before_and_during_the_pass() -> None:
    layer = Layer("a", "a", 0, "ReLU", (50,), 1, 50)
    means = PermutedClassMeans(memory=8 * 3 * 50 * 20)
    with pytest.raises(OptionError, match=r"permutations=200 for 50 units and 3 classes.*to 20"):
        means.expect(LABELS, None, [layer])
    means = PermutedClassMeans(class_counts=(2, 2), memory=100)
    with pytest.raises(OptionError, match="one alone needs 800 bytes"):
        means.update(torch.rand(2, 50), torch.arange(2), torch.arange(2))


@pytest.mark.parametrize(
    "options",
    [
        {"permutations": 0},
        {"class_counts": (3,)},
        {"class_counts": (1.5, 2)},
        {"class_counts": (-1, 2)},
    ],
)
def test_invalid_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        PermutedClassMeans(**options)  # type: ignore[arg-type]
