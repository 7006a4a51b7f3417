"""How many runs of a sweep to train at the same time on this machine, by measurement."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import torch
from torch.nn import functional

from probekit.data.datasets import load_data
from probekit.models.architectures import ARCHITECTURES
from probekit.runtime.machine import Machine
from probekit.training.run.recipes import Recipe

_WORTH_STARTING = 120.0
_LARGEST_BATCH = 128


def runs_at_once(
    recipe: Recipe, runs: int, device: str | None, root: str | None, workers: int
) -> int:
    """The number of runs to train at once: one, or one per core if that is measured to be faster.

    It is one on a GPU, without the package distributed, and for less than two minutes of training.
    """
    threads = torch.get_num_threads()
    several, machine = min(runs, threads), Machine.here(device)
    if several < 2 or find_spec("distributed") is None or machine.device.type != "cpu":
        return 1
    recipe = recipe.on(machine.device)
    alone = _seconds(recipe, 1, threads)
    images = recipe.limit or (
        len(load_data(recipe.data, root=root, split="train", workers=workers)) - recipe.validation
    )
    batches = images / min(recipe.batch_size, _LARGEST_BATCH)
    if alone * batches * recipe.epochs * runs < _WORTH_STARTING:
        return 1
    return several if _seconds(recipe, several, threads // several) < several * alone else 1


def _seconds(recipe: Recipe, several: int, threads: int) -> float:
    """The time of one step, with this number of threads, of several networks at the same time."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    taken = []
    try:
        with ThreadPoolExecutor(several) as pool, torch.random.fork_rng(devices=[]):
            steps = [_Step(recipe) for _ in range(several)]
            for _ in range(3):
                start = time.perf_counter()
                list(pool.map(_Step.__call__, steps))
                taken.append(time.perf_counter() - start)
        return min(taken)
    finally:
        torch.set_num_threads(before)


class _Step:
    """Forward and backward pass of a new network with random images of a recipe's size."""

    def __init__(self, recipe: Recipe) -> None:
        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        classes, batch = 10, min(recipe.batch_size, _LARGEST_BATCH)
        network = ARCHITECTURES[recipe.architecture](classes=classes, channels=recipe.input_size[0])
        self._network = network.to(memory_format=layout)
        self._images = torch.rand(batch, *recipe.input_size).to(memory_format=layout)
        self._labels = torch.arange(batch) % classes
        self._half = recipe.precision == "bfloat16"

    def __call__(self) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._half):
            loss = functional.cross_entropy(self._network(self._images), self._labels)
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
