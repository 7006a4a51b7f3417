"""How many runs of a sweep to train at the same time on this machine, by measurement."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import torch
from torch.nn import functional

from probekit.models.architectures import ARCHITECTURES
from probekit.runtime.processes import Machine
from probekit.training.run.minibatches import load_run_data
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
    images = len(load_run_data(recipe, 0, root, workers).train)
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
            steps = [_step(recipe) for _ in range(several)]
            for _ in range(3):
                start = time.perf_counter()
                list(pool.map(lambda step: step(), steps))
                taken.append(time.perf_counter() - start)
        return min(taken)
    finally:
        torch.set_num_threads(before)


def _step(recipe: Recipe) -> Callable[[], None]:
    """Forward and backward pass of a new network with random images of a recipe's size."""
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    classes, batch = 10, min(recipe.batch_size, _LARGEST_BATCH)
    network = ARCHITECTURES[recipe.architecture](classes=classes, channels=recipe.input_size[0])
    network.to(memory_format=layout)
    images = torch.rand(batch, *recipe.input_size).to(memory_format=layout)
    labels = torch.arange(batch) % classes

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            loss = functional.cross_entropy(network(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch

    return step
