"""Robustness to all corruptions, compared with bare forward passes and the corruptions alone.

python benchmarks/robustness.py [--quick]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from harness import Case, Question, Row, Setting, always, cost, main, versus
from networks import Batches, bare_loop, bundled

import probekit as pk
from probekit.data.decoding import resize
from probekit.errors import OptionError
from probekit.perturbations.corruptions.corruption import CORRUPTIONS, Corruption

OURS, FLOOR = "pk.robustness", "bare passes and corruptions alone"
SEVERITIES = (1, 2, 3, 4, 5)


def cases(setting: Setting) -> Iterator[Case]:
    yield Case("bundled ResNet20, 1,000 images of 32 px", partial(compared, setting))


def compared(setting: Setting) -> Iterator[Row]:
    model, batches = bundled(setting.size(1000, 20), setting.size(100, 10), setting.device)
    batches = [(resize(images, (1, 32, 32)), labels) for images, labels in batches]
    names = [name for name in CORRUPTIONS if available(name, batches[0][0])]
    # A third of them, so that a round takes a minute; one-time work then counts three times as much.
    names = names[:: setting.size(3, 8)]
    call = partial(pk.robustness, model, batches, names, SEVERITIES, progress=False)
    passes = 1 + len(names) * len(SEVERITIES)
    times = setting.take_turns(
        {FLOOR: always(lambda: bare_passes(model, batches, names)), OURS: always(call)}
    )
    clean = setting.seconds(lambda: bare_loop(model, batches))
    share = len(names) * clean / times.median(FLOOR)
    note = (
        f"{passes} passes, for {len(names)} corruptions at 5 severities; another clean pass for each "
        f"corruption, which is needed if the clean activations do not fit into memory, would add "
        f"{share:.0%} of the floor"
    )
    yield from versus(times, OURS, {FLOOR: cost(1.1)}, note)


def available(name: str, images: torch.Tensor) -> bool:
    """Whether a corruption is installed; frost needs photographs."""
    try:
        Corruption(name, 1)(images[:1], [0])
    except OptionError:
        return False
    return True


def bare_passes(model: Any, batches: Batches, names: list[str]) -> None:
    """The work that cannot be avoided: a pass over clean images, and one for each condition."""
    bare_loop(model, batches)
    for name in names:
        for severity in SEVERITIES:
            corrupt, start = Corruption(name, severity), 0
            for images, labels in batches:
                index = torch.arange(start, start := start + len(images))
                bare_loop(model, [(corrupt(images, index), labels)])


QUESTION = Question(
    "robustness",
    "What does robustness to corruptions cost?",
    "Accuracy, class selectivity and the change of every layer under every third corruption at five "
    "severities, compared with the forward passes and corruptions that it needs: one pass over clean "
    "images and one for each condition, without recording anything.",
    cases,
)

if __name__ == "__main__":
    sys.exit(main([QUESTION]))
