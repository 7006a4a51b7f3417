"""Cost of selectivity and dimensionality in one pass, relative to bare forward passes.

python benchmarks/dimensionality.py [--quick]
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from harness import Case, Contender, Question, Row, Setting, always, cost, main, versus
from networks import Batches, bare_loop, plain_hooks, random_batches, torchvision_resnet18
from torch import Tensor, nn
from watched import WatchedBatch

import probekit as pk
from probekit.capture.plan import scout_layers

BOUND = 1.15
TWO: Sequence[Any] = ("selectivity", "dimensionality")
POSITIONS_BOUND = 1.6
POSITIONS: Sequence[Any] = (pk.Dimensionality(spatial="positions"),)
FLOOR = "bare forward loop"
PRODUCTS = "hooks that multiply"


def cases(setting: Setting) -> Iterator[Case]:
    yield Case("resnet18, 224 px, batch 16", partial(one_batch, setting))
    yield Case("resnet18, 224 px, 128 images, whole call", partial(whole_call, 128, TWO, setting))
    for images in (32, 128):
        yield Case(
            f"resnet18, 224 px, {images} images, whole call, positions",
            partial(whole_call, images, POSITIONS, setting),
        )


def one_batch(setting: Setting) -> Iterator[Row]:
    model, batches = subject(setting, 16)
    watched = WatchedBatch(model, *batches[0], TWO)
    times = setting.take_turns(
        {
            "bare forward pass": always(lambda: bare_loop(model, batches), warm=True),
            "both metrics, a batch": Contender(watched.opened),
        }
    ).plus("both metrics, a batch", watched.share_of_update(setting))
    yield from versus(times, "both metrics, a batch", {"bare forward pass": cost(BOUND)})


def whole_call(images: int, metrics: Sequence[Any], setting: Setting) -> Iterator[Row]:
    """A whole call, including one-time work: finding the layers, and all eigenvalues."""
    model, batches = subject(setting, images)
    ours = "both metrics" if metrics == TWO else "dimensionality of positions"
    call = partial(pk.analyze, model, batches, metrics=metrics, progress=False)
    bare = partial(bare_loop, model, batches)
    times = setting.take_turns(
        {
            FLOOR: always(bare),
            PRODUCTS: Contender(partial(multiplying, model, batches, bare, metrics == POSITIONS)),
            ours: always(call),
        }
    )
    bound = BOUND if metrics == TWO else POSITIONS_BOUND
    yield from versus(times, PRODUCTS, {FLOOR: cost()})
    yield from versus(times, ours, {FLOOR: cost(bound), PRODUCTS: cost()})


@contextmanager
def multiplying(
    model: nn.Module, batches: Batches, run: Callable[[], object], positions: bool
) -> Iterator[Callable[[], object]]:
    """The minimum work of any covariance: a product of each batch with itself, and the eigenvalues."""
    layers, _ = scout_layers(model, batches[0][0][:2])
    axis_of = {layer.module: layer.unit_axis for layer in layers}
    sums: dict[str, Tensor | float] = defaultdict(float)

    def multiply(name: str, module: nn.Module, args: object, output: Tensor) -> None:
        rows = output.movedim(axis_of[name], -1).flatten(1, -2)
        table = rows.flatten(0, 1) if positions else rows.mean(1)
        sums[name] += (table.T @ table).double()

    def whole() -> None:
        sums.clear()
        run()
        for total in sums.values():
            torch.linalg.eigvalsh(total)

    with plain_hooks({name: model.get_submodule(name) for name in axis_of}, multiply):
        yield whole


def subject(setting: Setting, images: int) -> Any:
    size = setting.size(224, 32)
    batches = random_batches(
        setting.size(images, 4), setting.size(16, 4), (3, size, size), setting.device
    )
    return torchvision_resnet18(setting.device), batches


QUESTION = Question(
    "dimensionality",
    "What do selectivity and dimensionality cost together?",
    "Class means and covariances of all activation functions of torchvision's resnet18, in one pass. A "
    "batch is timed as for selectivity. The whole call includes work that does not depend on the number "
    "of images, mostly the eigenvalues of each layer's covariance. Treating positions as samples "
    "gives many more rows: 12,544 per image in the first layer. Hooks that multiply each batch of a layer "
    "with itself, and compute the eigenvalues of the sum, show the unavoidable cost.",
    cases,
)

if __name__ == "__main__":
    sys.exit(main([QUESTION]))
