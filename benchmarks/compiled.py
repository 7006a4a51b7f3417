"""Cost of an analysis with `compile=True`, relative to eager bare forward passes.

python benchmarks/compiled.py [--quick]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from copy import deepcopy
from functools import partial

import torch
from harness import Case, Question, Row, Setting, always, cost, main, versus
from networks import bare_loop, random_batches, timm_model
from watched import WatchedBatch

from probekit.capture.stream import PassOptions

EAGER, COMPILED = "bare forward pass", "compiled bare forward pass"
OURS = "pk.analyze, a compiled batch"
BATCH = 16
NETWORKS = ("resnet18", "resnet50", "efficientnet_lite0", "vit_tiny_patch16_224")


def cases(setting: Setting) -> Iterator[Case]:
    for name in NETWORKS:
        yield Case(f"{name}, 224 px, batch {BATCH}", partial(compared, name, setting))


def compared(name: str, setting: Setting) -> Iterator[Row]:
    net = timm_model(name, setting.device)
    batches = random_batches(*[setting.size(BATCH, 2)] * 2, (3, 224, 224), setting.device)
    compiled = torch.compile(net, dynamic=False)
    reading = PassOptions(progress=False, compile=True)
    watched = WatchedBatch(
        deepcopy(net), *batches[0], ["selectivity"], reading
    )  # hooked throughout
    with watched.opened() as step:  # compiled once for all rounds
        times = setting.take_turns(
            {
                EAGER: always(lambda: bare_loop(net, batches), warm=True),
                COMPILED: always(lambda: bare_loop(compiled, batches), warm=True),
                OURS: always(step, warm=True),
            }
        )
    times = times.plus(OURS, watched.share_of_update(setting))
    yield from versus(times, OURS, {EAGER: cost(0.8), COMPILED: cost()})


QUESTION = Question(
    "compiled",
    "What does an analysis with `compile=True` cost?",
    "Each batch is timed as for selectivity, after compilation, with the model and the recording hooks "
    "compiled together. It is compared with the bare forward pass of the model as it is, and with that "
    "of the model compiled without hooks, which shows the unavoidable cost. Compiling takes minutes per "
    "network, so this question is measured only if it is named.",
    cases,
    slow=True,
)

if __name__ == "__main__":
    sys.exit(main([QUESTION]))
