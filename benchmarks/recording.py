"""Recording activations, compared with torchvision's feature extraction and plain hooks.

python benchmarks/recording.py [--quick]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from tempfile import TemporaryDirectory
from typing import Any

import torch
from harness import Case, Question, Row, Setting, Spread, always, cost, gain, main, versus
from harness.peak import peak_of
from networks import Batches, bare_loop, plain_hooks, random_batches, torchvision_resnet18
from torch import Tensor, nn

import probekit as pk

OURS = "pk.record"
STORED = "pk.record, to zarr"
BARE = "bare forward loop"
EXTRACTOR = "torchvision feature extractor, pooled"
KNOWN = "the same extractor, built before"
# torchvision's names are ours.
LAYERS = ["relu"] + [
    f"layer{stage}.{block}.{call}"
    for stage in (1, 2, 3, 4)
    for block in (0, 1)
    for call in ("relu", "relu_1")
]


def cases(setting: Setting) -> Iterator[Case]:
    network = "resnet18, 224 px, 17 layers"
    yield Case(f"{network}, 64 images, time", partial(timed, 64, setting))
    yield Case(f"{network}, 256 images, time", partial(timed, 256, setting))
    yield Case(f"{network}, 64 images, peak memory", partial(peaks, setting))


def timed(images: int, setting: Setting) -> Iterator[Row]:
    model, batches = subject(setting.quick, setting.device, images)
    runs = ways(model, batches)
    tables = {name: runs[name]() for name in runs if name != BARE}
    apart = max(float((table - tables[OURS]).abs().max()) for table in tables.values())
    times = setting.take_turns({name: always(run) for name, run in runs.items()})
    others = {name: gain(1) for name in runs if name not in (OURS, STORED, BARE, KNOWN)}
    note = (
        f"all record the same pooled activations, up to {apart:.0e}; `pk.record` finds the layers in "
        "each call, with 10 images, and torchvision builds its extractor except where it was built before"
    )
    yield from versus(times, OURS, {BARE: cost(), **others, KNOWN: gain()}, note)
    yield from versus(times, STORED, {EXTRACTOR: gain(1)})


def peaks(setting: Setting) -> Iterator[Row]:
    """The growth of memory while recording, each method in a separate process."""
    found = {
        name: peak_of(way, name, int(setting.quick), setting.threads).grown
        for name in ways(nn.Identity(), [])
        if name not in (STORED, KNOWN)
    }
    for other, value in found.items():
        if other != OURS:
            ratio = Spread.of([found[OURS] / value])
            yield Row(OURS, other, "cost", value=found[OURS], ratio=ratio, unit="MiB")


def subject(quick: bool, device: str, images: int = 64) -> tuple[nn.Module, Batches]:
    """A network and images, smaller if quick."""
    images, batch, size = (4, 2, 64) if quick else (images, 16, 224)
    batches = random_batches(images, batch, (3, size, size), device)
    return torchvision_resnet18(device), batches


def way(name: str, quick: str, threads: str) -> Callable[[], object]:
    """One of the methods on the CPU, for use in a separate process."""
    torch.set_num_threads(int(threads))
    model, batches = subject(bool(int(quick)), "cpu")
    # Imports on first use are not part of recording.
    ways(model, random_batches(2, 2, (3, 64, 64), "cpu"))[name]()
    return ways(model, batches)[name]


def ways(model: nn.Module, batches: Batches) -> Mapping[str, Any]:
    """The methods to get a table (images, units) of all activation functions."""
    built = cache(lambda: extractor(model))
    return {
        OURS: partial(recorded, model, batches),
        BARE: partial(bare_loop, model, batches),
        STORED: partial(stored, model, batches),
        EXTRACTOR: lambda: extracted(extractor(model), batches),
        KNOWN: lambda: extracted(built(), batches),
        "hooks that keep whole maps": partial(hooked, model, batches),
    }


def recorded(model: nn.Module, batches: Batches) -> Tensor:
    found = pk.record(model, batches, progress=False)
    return torch.from_numpy(found["activation"].values)


def stored(model: nn.Module, batches: Batches) -> Tensor:
    with TemporaryDirectory() as folder:
        found = pk.record(model, batches, store=f"{folder}/recording.zarr", progress=False)
        return torch.from_numpy(found["activation"].values)


def extractor(model: nn.Module) -> nn.Module:
    """torchvision's extractor of whole maps of all activation functions."""
    from torchvision.models.feature_extraction import create_feature_extractor

    return create_feature_extractor(model, LAYERS)


def extracted(maps_of: nn.Module, batches: Batches) -> Tensor:
    """Whole maps, pooled batch by batch."""
    rows = []
    with torch.no_grad():
        for images, _ in batches:
            maps = maps_of(images).values()
            rows.append(torch.cat([one.mean((2, 3)) for one in maps], 1).cpu())
    return torch.cat(rows)


def hooked(model: nn.Module, batches: Batches) -> Tensor:
    """Hooks that store all maps and pool them at the end."""
    maps: dict[str, list[Tensor]] = {}
    calls: dict[str, int] = {}

    def keep(name: str, module: nn.Module, args: object, output: Tensor) -> None:
        number = calls[name] = calls.get(name, -1) + 1
        maps.setdefault(f"{name}_{number}" if number else name, []).append(output.clone())

    modules = {name: one for name, one in model.named_modules() if isinstance(one, nn.ReLU)}
    with plain_hooks(modules, keep), torch.no_grad():
        for images, _ in batches:
            calls.clear()
            model(images)
    return torch.cat([torch.cat(parts).mean((2, 3)) for parts in maps.values()], 1).cpu()


QUESTION = Question(
    "recording",
    "What does a recording cost compared with other ways to get activations?",
    "Pooled activations of all activation functions of torchvision's resnet18 as one table: with "
    "`pk.record`, with torchvision's `create_feature_extractor` and pooling batch by batch, and with "
    "hooks that store the maps and pool them at the end. Peak memory is the growth of the process "
    "while recording, without the network and the images.",
    cases,
)

if __name__ == "__main__":
    sys.exit(main([QUESTION]))
