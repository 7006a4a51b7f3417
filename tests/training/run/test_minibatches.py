"""The order of minibatches, their shares in several processes, and the held-out images."""

from __future__ import annotations

import pytest
import torch

from probekit.errors import (
    OptionError,
)
from probekit.training.run.minibatches import Minibatches, hold_out, load_run_data
from probekit.training.run.recipes import get_recipe
from quick_runs import CPU


def test_validation_images_differ_between_seeds() -> None:
    labels = torch.arange(10).repeat(40)
    recipe = get_recipe("resnet20-digits", validation=50, stratified=True, limit=None)
    kept, held = hold_out(labels, recipe, 0)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(400))
    assert torch.bincount(labels[held]).tolist() == [5] * 10
    assert set(hold_out(labels, recipe, 1)[1].tolist()) != set(held.tolist())
    plain, few = hold_out(labels, recipe.with_options(stratified=False, limit=7), 0)
    assert (len(plain), len(few)) == (7, 50)
    assert torch.bincount(labels[few]).tolist() != [5] * 10


@pytest.mark.parametrize("world", [2, 4])
def test_processes_split_the_steps_of_one_process(world: int) -> None:
    recipe = get_recipe("resnet20-digits", batch_size=16, limit=70)
    data = load_run_data(recipe, 0, None, 0).train
    alone = [(x, y) for _, x, y in Minibatches(data, recipe, 0, CPU).epoch(3)]
    shares = [
        [(x, y) for _, x, y in Minibatches(data, recipe, 0, CPU, rank, world).epoch(3)]
        for rank in range(world)
    ]
    for step, (images, labels) in enumerate(alone):
        assert torch.equal(torch.cat([share[step][0] for share in shares]), images)
        assert torch.equal(torch.cat([share[step][1] for share in shares]), labels)
    with pytest.raises(OptionError, match="multiple of the 3 processes"):
        Minibatches(data, recipe, 0, CPU, 0, 3)


def test_steps_are_reordered_each_epoch_and_can_start_anywhere() -> None:
    recipe = get_recipe("resnet20-digits", batch_size=16, limit=70)
    batches = Minibatches(load_run_data(recipe, 0, None, 0).train, recipe, 0, CPU)
    first, second = list(batches.epoch(0)), list(batches.epoch(1))
    assert batches.steps == len(first) == 4
    assert not torch.equal(first[0][2], second[0][2])
    for (step, images, _), (again, same_images, _) in zip(
        first[2:], batches.epoch(0, 2), strict=True
    ):
        assert step == again
        assert torch.equal(images, same_images)


def test_images_of_one_class_cannot_be_watched() -> None:
    recipe = get_recipe("resnet20-digits", validation=1, stratified=False)
    with pytest.raises(OptionError, match=r"the 1 images .* are of one class"):
        load_run_data(recipe, 0, None, 0)
