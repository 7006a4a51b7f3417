"""Recipes as data, and their learning rates compared with torch's schedulers."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
import torch

from probekit.data.datasets import list_data
from probekit.errors import OptionError
from probekit.models.architectures import ARCHITECTURES
from probekit.training.run.recipes import Recipe, get_recipe, learning_rate, list_recipes


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_is_consistent(name: str) -> None:
    recipe = get_recipe(name)
    assert recipe.name == name
    assert recipe.data in list_data()
    assert name.startswith(recipe.architecture)
    assert recipe.architecture in ARCHITECTURES
    assert len(recipe.mean) == len(recipe.std) == recipe.input_size[0]
    assert set(recipe.guessed) <= {field.name for field in fields(recipe)}
    assert recipe.source
    assert all(epoch < recipe.epochs for epoch in recipe.milestones)


def test_recipes_are_restored_from_json() -> None:
    recipe = get_recipe("resnet18-tiny-imagenet")
    again = json.loads(json.dumps(recipe.facts()))
    assert again == recipe.facts()
    assert Recipe(**again) == recipe


# The published facts of Leavitt & Morcos 2020.
PAPER: list[tuple[str, dict[str, Any]]] = [
    ("resnet20-cifar10", {"epochs": 200, "batch_size": 256, "learning_rate": 0.1}),
    ("vgg16-cifar10", {"epochs": 200, "learning_rate": 0.01, "milestones": (100, 150)}),
    ("resnet18-tiny-imagenet", {"epochs": 90, "batch_size": 4096, "validation": 200 * 50}),
    ("resnet50-tiny-imagenet", {"batch_size": 1400, "milestones": (35, 50, 65, 80)}),
]


@pytest.mark.parametrize(("name", "values"), PAPER)
def test_recipes_match_the_papers(name: str, values: dict[str, Any]) -> None:
    recipe = get_recipe(name)
    assert {key: getattr(recipe, key) for key in values} == values
    assert (recipe.momentum, recipe.weight_decay, recipe.decay) == (0.9, 1e-4, 0.1)
    assert {"flip", "shift", "weight_decay"} <= set(recipe.guessed)
    assert not {"architecture", "data", "validation"} & set(recipe.guessed)


def _rates(recipe: Recipe, steps: int) -> list[float]:
    return [learning_rate(recipe, step, steps) for step in range(recipe.epochs * steps)]


@pytest.mark.parametrize(("epochs", "steps", "rise"), [(3, 7, 0.2), (5, 4, 0.3), (1, 40, 0.5)])
def test_one_cycle_equals_torchs(epochs: int, steps: int, rise: float) -> None:
    recipe = get_recipe("resnet20-fashion-mnist", epochs=epochs, rise=rise)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, epochs * steps, pct_start=rise, cycle_momentum=False
    )
    expected = []
    for _ in range(epochs * steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert _rates(recipe, steps) == pytest.approx(expected, rel=1e-9)


def test_milestones_equal_torchs() -> None:
    recipe = get_recipe("resnet18-tiny-imagenet")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], recipe.learning_rate)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(recipe.milestones))
    expected = []
    for _ in range(recipe.epochs):
        expected += [optimizer.param_groups[0]["lr"]] * 3
        optimizer.step()
        scheduler.step()
    assert _rates(recipe, 3) == pytest.approx(expected, rel=1e-12)


def test_one_cycle_may_have_a_single_step() -> None:
    recipe = get_recipe("resnet20-digits", epochs=1, rise=1.0)
    assert learning_rate(recipe, 0, 1) == pytest.approx(recipe.learning_rate)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"epochs": 0}, "epochs must be a positive integer"),
    ({"epochs": 1.5}, "epochs"),
    ({"batch_size": 1}, "batch_size must be an integer of at least 2"),
    ({"learning_rate": float("nan")}, "learning_rate must be a non-negative number"),
    ({"learning_rate": "fast"}, "learning_rate must be a non-negative number"),
    ({"momentum": 2.0}, "momentum must be a number from 0 to 1"),
    ({"schedule": "cosine"}, "schedule must be 'milestones' or 'one-cycle'"),
    ({"milestones": (0.5,)}, "every milestone must be a positive integer"),
    ({"precision": "fp8"}, "precision must be .*float32"),
    ({"architecture": "resnet21"}, "close matches: resnet"),
    ({"shift": -1}, "shift"),
    ({"validation": -1}, "validation"),
    ({"epoch": 3}, "no option 'epoch'; close matches: epochs"),
    ({"name": "mine"}, "no option 'name'"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_an_invalid_option_is_reported(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        get_recipe("resnet20-digits", **options)


def test_an_unknown_recipe_lists_close_matches() -> None:
    with pytest.raises(
        OptionError, match=r"no recipe is named 'resnet20-cifar'; close matches: resnet20-cifar10"
    ):
        get_recipe("resnet20-cifar")


def test_user_options_are_not_listed_as_guessed() -> None:
    recipe = get_recipe("resnet20-cifar10", shift=2)
    assert "shift" not in recipe.guessed
    assert "flip" in recipe.guessed
