import warnings

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from probekit.errors import ProbekitWarning
from probekit.metrics.selectivity.selectivity import class_selectivity
from probekit.statistics.class_means import ClassMeans
from probekit.training.regularizer.batch_selectivity import (
    add_sums,
    batch_selectivity,
    by_layer,
    class_sums,
)

values = st.floats(-100, 100).map(lambda value: round(value, 3))


def sums_of(activations, labels, classes=7):
    return class_sums([activations], labels, classes)


def metric(class_mean, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProbekitWarning)
        return class_selectivity(class_mean, **options).values


@st.composite
def batches(draw):
    rows = draw(st.integers(1, 12))
    activations = draw(hnp.arrays(np.float64, (rows, 3), elements=values))
    labels = draw(hnp.arrays(np.int64, rows, elements=st.integers(0, 6)))
    return torch.from_numpy(activations), torch.from_numpy(labels)


@pytest.mark.parametrize("negative", ["clip", "keep", "shift"])
@given(batch=batches())
@settings(max_examples=30, deadline=None)
def test_the_index_equals_that_of_the_metric(negative, batch):
    activations, labels = batch
    index, enough = batch_selectivity(sums_of(*batch), negative=negative)
    if len(labels.unique()) < 2:
        assert not enough
        assert torch.equal(index, torch.zeros(3, dtype=torch.float64))
        return
    means = ClassMeans()
    means.update(activations, labels)
    reference = metric(means.to_xarray(), negative=negative)
    np.testing.assert_allclose(index.numpy(), reference, rtol=1e-6, atol=1e-9)


def test_the_index_equals_a_manual_calculation():
    activations = torch.tensor([[4.0, 1.0], [8.0, 1.0], [0.0, 1.0], [3.0, 1.0]])
    index, enough = batch_selectivity(sums_of(activations, torch.tensor([0, 0, 2, 5])), eps=0.0)
    assert bool(enough)
    torch.testing.assert_close(index, torch.tensor([(6 - 1.5) / (6 + 1.5), 0.0]))


def test_uneven_classes_count_by_their_means_not_their_sums():
    activations = torch.tensor([[1.0]] * 9 + [[3.0]])
    labels = torch.tensor([0] * 9 + [1])
    index, _ = batch_selectivity(sums_of(activations, labels), eps=0.0)
    assert index.item() == pytest.approx((3 - 1) / (3 + 1))


@pytest.mark.parametrize("negative", ["clip", "shift", "keep"])
def test_gradients_equal_finite_differences(negative):
    torch.manual_seed(0)
    activations = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    if negative == "keep":
        activations = (activations.detach().abs() + 0.1).requires_grad_()
    labels = torch.tensor([0, 1, 2, 4, 0, 1, 2, 4, 4])
    weights = torch.randn(4, dtype=torch.float64)

    def objective(activations):
        return (
            batch_selectivity(sums_of(activations, labels), negative=negative)[0] * weights
        ).sum()

    assert torch.autograd.gradcheck(objective, activations)
    assert torch.autograd.gradgradcheck(objective, activations)


@pytest.mark.parametrize("labels", [[], [3], [3, 3, 3]])
def test_fewer_than_two_classes_give_zero_and_a_finite_gradient(labels):
    activations = torch.rand(len(labels), 2, requires_grad=True)
    index, enough = batch_selectivity(
        sums_of(activations, torch.tensor(labels, dtype=torch.long)), eps=0.0
    )
    index.sum().backward()
    assert not enough
    assert torch.equal(index, torch.zeros(2))
    assert torch.equal(activations.grad, torch.zeros_like(activations))


@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_a_dead_unit_has_no_selectivity_and_no_gradient(eps):
    activations = torch.zeros(4, 1, requires_grad=True)
    index, _ = batch_selectivity(sums_of(activations, torch.tensor([0, 1, 0, 1])), eps=eps)
    index.sum().backward()
    assert index.item() == 0
    assert torch.equal(activations.grad, torch.zeros(4, 1))


@given(batch=batches(), cut=st.integers(0, 12))
@settings(max_examples=25, deadline=None)
def test_sums_of_parts_add_up_to_the_sums_of_the_whole(batch, cut):
    activations, labels = batch
    one = sums_of(activations[:cut], labels[:cut], 5 if (labels[:cut] < 5).all() else 7)
    whole, joined = sums_of(*batch), add_sums(one, sums_of(activations[cut:], labels[cut:]))
    torch.testing.assert_close(joined, whole)


def test_layers_have_equal_weight_for_any_width():
    index = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.5])
    assert by_layer(index, [4, 1]).tolist() == [0.25, 0.5]


def test_the_index_agrees_with_the_metric_on_an_explicit_table():
    means = torch.tensor([[2.0, -1.0], [1.0, 3.0], [-4.0, 0.0]], dtype=torch.float64)
    for negative in ("clip", "keep", "shift"):
        index, _ = batch_selectivity(
            torch.cat([means, torch.ones(3, 1, dtype=torch.float64)], 1),
            eps=1e-3,
            negative=negative,
        )
        table = xr.DataArray(means.T.numpy(), dims=("unit", "class"))
        reference = metric(table, eps=1e-3, negative=negative)
        np.testing.assert_allclose(index.numpy(), reference, rtol=1e-12)
