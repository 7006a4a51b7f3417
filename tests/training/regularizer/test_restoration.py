"""The regularizer restores the model, and refuses invalid labels, options and passes."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch.nn import functional

import probekit as pk
from probekit.errors import DataError, LayerError, OptionError
from regularized_network import batch, hooks, small


def test_the_model_is_restored():
    model, (x, y) = small(), batch()
    before, names = hooks(model), list(model.state_dict())
    members = set(vars(model))
    penalty = pk.SelectivityRegularizer(model, -1.0)
    assert hooks(model) != before
    model(x)
    penalty(y)
    assert list(model.state_dict()) == names
    assert set(vars(model)) == members
    penalty.close()
    penalty.close()
    assert hooks(model) == before
    with pytest.raises(LayerError, match="closed"):
        penalty(y)


def test_a_deleted_regularizer_restores_the_model_and_frees_its_memory():
    model, (x, y) = small(), batch()
    before = hooks(model)
    penalty = pk.SelectivityRegularizer(model, -1.0)
    model(x)
    term = penalty(y)
    gone = [weakref.ref(penalty), weakref.ref(term)]
    del penalty, term
    gc.collect()
    assert hooks(model) == before
    assert [reference() for reference in gone] == [None, None]


def test_an_exception_in_a_with_block_removes_the_hooks():
    model = small()
    before = hooks(model)
    with pytest.raises(ZeroDivisionError), pk.SelectivityRegularizer(model, -1.0):
        raise ZeroDivisionError
    assert hooks(model) == before


def test_copies_and_pickles_of_a_regularized_model_contain_only_the_model():
    model, (x, y) = small(), batch()
    with pk.SelectivityRegularizer(model, -1.0) as penalty:
        model(x)
        twin = copy.deepcopy(model)
        stored = io.BytesIO()
        torch.save(model, stored)
        stored.seek(0)
        copies = [
            twin,
            torch.load(stored, weights_only=False),
            pickle.loads(pickle.dumps(model)),
            torch.optim.swa_utils.AveragedModel(model).module,
        ]
        expected = penalty(y).item()
        model(x)
        for other in copies:
            assert torch.equal(other(x[:5]), model(x[:5]))
            other(torch.zeros_like(x))
        model(x)
        assert penalty(y).item() == expected


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.rand(12, 3), "soft, as mixup"),
        (torch.rand(12), "soft"),
        (functional.one_hot(torch.arange(12) % 3), "soft"),
        (torch.zeros(11, dtype=torch.long), "12 samples need one integer each"),
        (torch.zeros(12, dtype=torch.bool), "12 samples need"),
        (torch.full((12,), -100), "from 0, not -100"),
        ([0] * 12, "not list"),
    ],
)
def test_invalid_labels_are_refused(labels, message):
    model, (x, _) = small(), batch()
    with pk.SelectivityRegularizer(model, -1.0) as penalty:
        model(x)
        with pytest.raises(DataError, match=message):
            penalty(labels)


def test_a_label_beyond_the_classes_is_refused():
    model, (x, y) = small(), batch()
    with pk.SelectivityRegularizer(model, -1.0, classes=2) as penalty:
        model(x)
        with pytest.raises(DataError, match="from 0 to 1, not 2"):
            penalty(y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": "1"}, "not '1'"),
        ({"alpha": float("nan")}, "not nan"),
        ({"alpha": True}, "not True"),
        ({"eps": -1}, "eps"),
        ({"negative": "nan"}, "negative must be 'clip', 'keep' or 'shift'"),
        ({"classes": 1}, "classes must be an integer of at least 2"),
        ({"accumulation": "add"}, "'refuse' or 'each'"),
        ({"layers": "first:0"}, "a positive integer"),
        ({"layers": "nowhere"}, "no layer is named"),
    ],
)
def test_invalid_options_are_refused_and_leave_no_hook(options, message):
    model = small()
    before = hooks(model)
    with pytest.raises((OptionError, LayerError), match=message):
        pk.SelectivityRegularizer(model, **{"alpha": -1.0, **options})
    assert hooks(model) == before


def test_each_penalty_requires_its_own_forward_pass():
    model, (x, y) = small(), batch()
    with pk.SelectivityRegularizer(model, -1.0) as penalty:
        with pytest.raises(LayerError, match="no forward pass with gradients"):
            penalty(y)
        model(x)
        penalty(y)
        with pytest.raises(LayerError, match="once before each"):
            penalty(y)


def test_an_explicit_number_of_classes_changes_nothing():
    model, (x, y) = small(), batch()
    terms = []
    for classes in (None, 3, 50):
        with pk.SelectivityRegularizer(model, -1.0, classes=classes) as penalty:
            model(x)
            terms.append(penalty(y.int() if classes == 3 else y).item())
    assert terms == pytest.approx([terms[0]] * 3, rel=1e-12)
