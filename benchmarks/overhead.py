"""Cost of a selectivity analysis, relative to bare forward passes.

python benchmarks/overhead.py [--quick]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from harness import Case, Contender, Question, Row, Run, Setting, always, cost, main, versus
from networks import (
    bare_loop,
    bundled,
    gray_resnet20,
    plain_hooks,
    random_batches,
    timm_model,
    torchvision_googlenet,
)
from torch import Tensor, nn
from watched import QUIET, WatchedBatch

from probekit.analysis.analyze import analyze
from probekit.capture.layers import Layer
from probekit.capture.stream import find_layers
from probekit.data.batches import Batches

BOUND = 1.05
BOUND_OF_FUNCTIONS = 1.10  # for networks whose activation functions are calls such as F.relu
# A function that creates the network, the batch size, and the shape of an image.
MODELS: dict[str, tuple[Callable[[str], nn.Module], int, tuple[int, int, int]]] = {
    "resnet18": (partial(timm_model, "resnet18"), 16, (3, 224, 224)),
    "resnet20": (gray_resnet20, 256, (1, 28, 28)),
    "vit_tiny_patch16_224": (partial(timm_model, "vit_tiny_patch16_224"), 16, (3, 224, 224)),
    "tf_efficientnet_lite0": (partial(timm_model, "tf_efficientnet_lite0"), 16, (3, 224, 224)),
    "googlenet": (torchvision_googlenet, 16, (3, 224, 224)),
}


def cases(setting: Setting) -> Iterator[Case]:
    for name, (_, batch, shape) in MODELS.items():
        yield Case(f"{name}, {shape[1]} px, batch {batch}", partial(one_batch, name, setting))
    yield Case("bundled ResNet20, 10,000 images, whole call", partial(whole_call, setting))


def one_batch(name: str, setting: Setting) -> Iterator[Row]:
    """The time of one batch of an analysis, relative to its bare forward pass."""
    make, size, shape = MODELS[name]
    net = make(setting.device)
    batches = random_batches(*[setting.size(size, 2)] * 2, shape, setting.device)
    watched = WatchedBatch(net, *batches[0], ["selectivity"])
    bare = partial(bare_loop, net, batches)
    times = setting.take_turns(
        {
            "bare forward pass": always(bare, warm=True),
            "hooks that take the mean": Contender(partial(hooked, net, watched.layers, bare)),
            "pk.analyze, a batch": Contender(watched.opened),
        }
    )
    times = times.plus("pk.analyze, a batch", watched.share_of_update(setting))
    whole = setting.seconds(lambda: analyze(net, batches, progress=False))
    once = whole - times.median("bare forward pass")
    note = f"finding the layers and assembling the result took {once:.2f} s more, once per call"
    floor = {"bare forward pass": cost()}
    yield from versus(times, "hooks that take the mean", floor)
    functions = any(layer.function for layer in watched.layers)
    bound = BOUND_OF_FUNCTIONS if functions else BOUND
    asked = {"bare forward pass": cost(bound), "hooks that take the mean": cost()}
    yield from versus(times, "pk.analyze, a batch", asked, note)


@contextmanager
def hooked(model: nn.Module, layers: list[Layer], run: Run) -> Iterator[Run]:
    """The minimum work of any recording method: hooks that read each layer's output once."""
    axis_of = {layer.module: layer.unit_axis for layer in layers}
    kept: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, args: object, output: Tensor) -> None:
        positions = [axis for axis in range(1, output.ndim) if axis != axis_of[name]]
        kept[name] = output.mean(positions) if positions else output.clone()

    with plain_hooks({name: model.get_submodule(name) for name in axis_of}, keep):
        run()
        yield run


def whole_call(setting: Setting) -> Iterator[Row]:
    """The time of a whole analysis, relative to a forward loop over the same images."""
    model, batches = bundled(setting.size(10_000, 20), setting.size(256, 10), setting.device)
    times = setting.take_turns(
        {
            "bare forward loop": always(lambda: bare_loop(model, batches)),
            "pk.analyze": always(lambda: analyze(model, batches, progress=False)),
        }
    )
    note = once_per_call(model, batches, setting)
    yield from versus(times, "pk.analyze", {"bare forward loop": cost(BOUND)}, note)


def once_per_call(model: Any, batches: Sequence[tuple[Tensor, Tensor]], setting: Setting) -> str:
    """The duration of the parts of an analysis that do not depend on the number of images."""
    few = [(images[:2], labels[:2]) for images, labels in batches[:1]]
    finding = setting.seconds(lambda: find_layers(model, Batches(few), None, QUIET))
    tables = setting.seconds(lambda: analyze(model, few, progress=False)) - finding
    return (
        f"besides the batches, a call takes {finding:.2f} s to find the layers and {tables:.2f} s for "
        "the tables, the model's hash and threads"
    )


QUESTION = Question(
    "overhead",
    "What does class selectivity of all layers cost?",
    "Each batch is timed bare and inside `pk.analyze`, which records all activation functions: the "
    "forward pass with its hooks, the check for NaN, and the batch's share of updating the class means. "
    "Hooks that only compute the mean of each map show the unavoidable cost of reading the maps once. "
    "Networks have random weights, and images are in memory, so loading does not hide any cost. All "
    "activation functions of googlenet are calls of `F.relu`, which must be intercepted. The row of a "
    "whole call includes one-time work.",
    cases,
)

if __name__ == "__main__":
    sys.exit(main([QUESTION]))
