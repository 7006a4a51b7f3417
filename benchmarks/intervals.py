"""Cost of chance levels, intervals and split halves, relative to the plain index.

python benchmarks/intervals.py [--quick]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from harness import Case, Contender, Question, Row, Setting, always, cost, main, versus
from networks import bare_loop, bundled
from overhead import hooked, once_per_call

import probekit as pk
from probekit.capture.plan import scout_layers

BARE = "bare forward loop"
PLAIN = "selectivity alone"
HOOKS = "hooks that take the mean"

BOUNDS = {PLAIN: 1.1, "all of these": 1.5}


def cases(setting: Setting) -> Iterator[Case]:
    yield Case("bundled ResNet20, 2,500 images, whole call", partial(compared, setting))


def compared(setting: Setting) -> Iterator[Row]:
    model, batches = bundled(setting.size(2_500, 100), setting.size(250, 50), setting.device)
    counts = tuple(torch.cat([labels for _, labels in batches]).bincount(minlength=10).tolist())
    many = setting.size(200, 20)
    extras: dict[str, Any] = {
        f"{many} permutations": pk.SelectivityChance(many, class_counts=counts),
        f"{many} bootstrap replicates": pk.SelectivityInterval(many),
        "20 split halves": pk.SplitHalf(),
    }
    calls: dict[str, list[Any]] = {PLAIN: ["selectivity"]}
    calls |= {name: ["selectivity", metric] for name, metric in extras.items()}
    calls["all of these"] = ["selectivity", *extras.values()]
    layers, _ = scout_layers(model, batches[0][0][:2])
    bare = partial(bare_loop, model, batches)
    times = setting.take_turns(
        {
            BARE: always(bare),
            HOOKS: Contender(partial(hooked, model.module, layers, bare)),
            **{
                name: always(partial(pk.analyze, model, batches, metrics=metrics, progress=False))
                for name, metrics in calls.items()
            },
        }
    )
    note = once_per_call(model, batches, setting)
    yield from versus(times, HOOKS, {BARE: cost()})
    for name in calls:
        floors = (BARE,) if name == PLAIN else (BARE, PLAIN)
        asked = dict.fromkeys(floors, cost()) | {BARE: cost(BOUNDS.get(name))}
        yield from versus(times, name, asked, note)


QUESTION = Question(
    "intervals",
    "What do confidence intervals of the index cost?",
    "Whole calls of `pk.analyze` on the bundled network and images in memory. Each metric that measures "
    "the uncertainty of the index is compared with the plain index in the same pass. "
    "docs/uncertainty.md explains these metrics.",
    cases,
)

if __name__ == "__main__":
    sys.exit(main([QUESTION]))
