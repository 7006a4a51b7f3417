"""Which model output corresponds to each class of the data, and which outputs are not logits."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from probekit.errors import DataError, ModelError, OptionError
from probekit.models.image_model import ImageModel
from probekit.models.logits import ClassMatch, correct, logits_of, match_classes, predicted

ANIMALS = ("tench, Tinca tinca", "Great_White shark", "crane", "crane, machine", "hen")


@dataclass
class Output:
    logits: Tensor
    pooled: Tensor


Pair = namedtuple("Pair", ["pooled", "logits"])
LOGITS, POOLED, MAPS = torch.rand(4, 3), torch.rand(4, 8), torch.rand(4, 8, 2, 2)


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"logits": LOGITS, "pooled": POOLED},
        {"pooled": POOLED, "logits": LOGITS},
        Output(LOGITS, POOLED),
        Pair(POOLED, LOGITS),
        (MAPS, LOGITS),
        [LOGITS, MAPS],
        {"maps": MAPS, "scores": LOGITS},
    ],
)
def test_logits_are_found_in_model_outputs(output: Any) -> None:
    assert logits_of(output, 4) is LOGITS


@pytest.mark.parametrize(
    "output",
    [
        MAPS,
        POOLED[:2],
        torch.rand(4, 1),
        torch.rand(4),
        torch.ones(4, 3, dtype=torch.int64),
        (LOGITS, POOLED),
        {"pooled": POOLED, "scores": LOGITS},
        {"logits": MAPS, "scores": LOGITS},
        {"last_hidden_state": MAPS, "pooler_output": LOGITS},
        {},
        None,
        "text",
    ],
)
def test_ambiguous_outputs_and_non_logits_are_none(output: Any) -> None:
    assert logits_of(output, 4) is None


def test_the_output_with_a_matching_number_of_classes_is_chosen() -> None:
    assert logits_of((POOLED, LOGITS), 4, classes=3) is LOGITS
    assert logits_of((LOGITS, LOGITS), 4, classes=3) is None


def named(names: tuple[str, ...]) -> ImageModel:
    return ImageModel(nn.Identity(), classes=names)


def outputs_of(match: ClassMatch) -> tuple[int, ...] | None:
    return None if match.order is None else tuple(match.order.values())


@pytest.mark.parametrize(
    ("names", "classes", "order", "by"),
    [
        (("a", "b"), ("a", "b"), None, "position"),
        ((), ("a", "b", "c", "d", "e"), None, "position"),
        (("b", "a"), ("a", "b"), (1, 0), "name"),
        (ANIMALS, ("hen", "tench"), (4, 0), "name"),
        (ANIMALS, ("TINCA-TINCA", "great white_shark"), (0, 1), "name"),
        (ANIMALS, ("machine",), (3,), "name"),
        ((), ("4", "0"), (4, 0), "index"),
    ],
)
def test_classes_are_matched_to_outputs(
    names: tuple[str, ...], classes: tuple[str, ...], order: Any, by: str
) -> None:
    found = match_classes(named(names), classes, len(names) or 5)
    assert (outputs_of(found), found.by, found.why_not, found.guess) == (order, by, "", "")


@pytest.mark.parametrize(
    ("names", "classes", "outputs", "why"),
    [
        (("a", "b"), ("a", "c"), 2, "no class, or several, by the name of c"),
        (ANIMALS, ("crane",), 5, "no class, or several, by the name of crane"),
        (("a", "b"), ("a", "b", "c"), 2, "the data has 3 classes and the model 2 outputs"),
        ((), ("a", "b", "c"), 384, "384 outputs without names, which may be an embedding"),
        (("a", "b", "c"), ("a", "b"), 384, "names 3 classes and has 384 outputs"),
        (("0", "1"), ("1", "2"), 2, "no class, or several, by the name of 2"),
        ((), ("5", "0"), 5, "may be an embedding"),
    ],
)
def test_classes_that_cannot_be_matched_give_a_reason(
    names: tuple[str, ...], classes: tuple[str, ...], outputs: int, why: str
) -> None:
    assert why in match_classes(named(names), classes, outputs).why_not


def test_wordnet_ids_are_matched_to_imagenet_outputs() -> None:
    # ILSVRC 2012 in its usual order: 0 is the tench, 217 the English springer, 574 the golf ball.
    ids = ("n03445777", "n01440764", "n02102040")
    for model in (nn.Linear(2, 1000), timm.create_model("resnet10t", pretrained=False)):
        found = match_classes(model, ids, 1000)
        assert (outputs_of(found), found.by) == ((574, 0, 217), "WordNet id")
    assert match_classes(nn.Linear(2, 3), ids, 3).by == "position"
    assert match_classes(nn.Linear(2, 40), ids, 40).why_not
    assert match_classes(nn.Linear(2, 1000), (*ids, "n00000001"), 1000).why_not


def test_a_model_that_declares_no_classes_has_no_logits() -> None:
    model = timm.create_model("resnet10t", pretrained=False, num_classes=0)
    assert "num_classes is 0" in match_classes(model, (), 512, torch.arange(3)).why_not
    assert "num_classes is 0" in match_classes(model, tuple(map(str, range(512))), 512).why_not


@pytest.mark.parametrize(
    ("labels", "outputs", "left_out", "guess"),
    [
        (torch.arange(60) % 3, 3, False, False),
        (torch.arange(10), 10, False, False),
        (torch.arange(60) % 3, 384, True, False),
        (torch.arange(30) % 3, 4, True, False),  # 0.75 ** 30 < 0.01
        (torch.arange(12) % 3, 4, False, True),  # 0.75 ** 12 > 0.01
        (torch.arange(97), 100, False, True),
    ],
)
def test_labels_without_names(labels: Tensor, outputs: int, left_out: bool, guess: bool) -> None:
    found = match_classes(nn.Identity(), (), outputs, labels)
    assert (bool(found.why_not), bool(found.guess)) == (left_out, guess)
    declared = nn.Identity()
    declared.num_classes = outputs
    certain = match_classes(declared, (), outputs, labels)
    assert (certain.why_not, certain.guess) == ("", "")


def test_labels_beyond_the_outputs_or_starting_at_one_are_detected() -> None:
    assert "label 3 is beyond" in match_classes(nn.Identity(), (), 3, torch.arange(4)).why_not
    from_one = torch.arange(30) % 3 + 1
    assert "counted from 0" in match_classes(nn.Identity(), (), 3, from_one).why_not
    declared = nn.Identity()
    declared.num_classes = 4
    assert "no sample has label 0" in match_classes(declared, (), 4, from_one).guess


def test_a_class_map_takes_precedence() -> None:
    model = named(ANIMALS)
    assert match_classes(model, ("x", "y"), 5, class_map={"x": "hen", "y": 2}).order == {0: 4, 1: 2}
    assert match_classes(model, ("x", "y"), 5, class_map={1: 0, 0: 1}).order == {0: 1, 1: 0}
    assert match_classes(nn.Identity(), (), 5, torch.tensor([0, 1]), {0: 3, 1: 4}).order == {
        0: 3,
        1: 4,
    }
    assert match_classes(nn.Identity(), ("a", "b"), 384, class_map="index").order is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"x": 0}, "no output for y"),
        ({"x": 0, "y": 1, "z": 2}, "'z', which the data does not have"),
        ({"x": 0, "y": 0}, "same output to several"),
        ({"x": 0, "y": 5}, "output 5 of 5"),
        ({"x": 0, "y": "heron"}, "no class of the model; close matches: hen"),
        ({"x": 0, "y": True}, "output True"),
        ("name", "a mapping or 'index', not 'name'"),
        (3, "a mapping or 'index', not int"),
    ],
)
def test_an_invalid_class_map_is_refused(given: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        match_classes(named(ANIMALS), ("x", "y"), 5, class_map=given)


def test_logits_in_data_order_are_followed_by_all_others() -> None:
    match = ClassMatch(4, {0: 2, 1: 0})
    logits = torch.tensor([[0.0, 10.0, 20.0, 30.0]])
    assert match.arrange(logits).tolist() == [[20, 0, 10, 30]]
    assert match.labels(torch.tensor([0, 1, 2, 3])).tolist() == [1, -1, 0, -1]
    right = correct(torch.eye(4), torch.tensor([1, 0, 0, 1]), "it", match)
    assert right.tolist() == [True, False, True, False]


def test_names_of_sparse_labels_keep_their_labels() -> None:
    match = match_classes(named(("a", "b", "c", "d")), {3: "a", 1: "c"}, 4)
    assert match.order == {3: 0, 1: 2}
    logits = torch.tensor([[0.0, 10.0, 20.0, 30.0]])
    assert match.arrange(logits).tolist() == [[10, 20, 30, 0]]
    assert match.labels(torch.arange(4)).tolist() == [3, -1, 1, -1]
    assert "label 9 is beyond" in match_classes(named(("a", "b")), {9: "a"}, 2).why_not


def test_correct_reports_what_is_wrong() -> None:
    with pytest.raises(
        ModelError, match=r"it needs logits .*, and the model returns \(4, 8, 2, 2\)"
    ):
        correct(MAPS, torch.zeros(4, dtype=torch.int64), "it")
    with pytest.raises(DataError, match="label 3 is out of range"):
        correct(LOGITS, torch.full((4,), 3), "it")


def test_an_order_that_numbers_would_change_is_a_guess() -> None:
    folders = sorted(f"class{number}" for number in range(12))
    found = match_classes(nn.Identity(), folders, 12)
    assert found.order is None
    assert "'class10' is class 2, not 'class2'" in found.guess
    for certain in (sorted("abc"), [str(number) for number in range(12)], ["b2", "a10"]):
        assert not match_classes(nn.Identity(), certain, len(certain)).guess
    assert not match_classes(named(tuple(folders)), folders, 12).guess


def test_integers_in_a_class_map_are_labels() -> None:
    by_label = match_classes(nn.Identity(), ("1", "0"), 2, class_map={0: 0, 1: 1})
    by_name = match_classes(nn.Identity(), ("1", "0"), 2, class_map={"0": 0, "1": 1})
    assert (by_label.order, by_name.order) == ({0: 0, 1: 1}, {0: 1, 1: 0})
    assert by_name.names(["x", "y"]) == {0: "y", 1: "x"}


def test_an_output_that_is_not_a_number_is_no_prediction() -> None:
    assert predicted(torch.tensor([[0.0, -float("inf")], [1.0, 2.0]])).tolist() == [0, 1]
    with pytest.raises(DataError, match="NaN for 1 of 2 samples"):
        predicted(torch.tensor([[0.0, float("nan")], [1.0, 2.0]]))
