"""Analysis of a folder of photographs, compared with decoding alone and forward passes alone.

python benchmarks/folder.py [--quick]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from harness import Case, Question, Row, Setting, always, cost, main, versus
from networks import bare_loop, timm_model

import probekit as pk
from probekit.data.batches import Batches

OURS = "pk.analyze"
DECODING, FORWARD = "decoding alone", "forward passes alone"
LARGER, BOTH = "the larger of both", "one after the other"
BATCH = 32


def cases(setting: Setting) -> Iterator[Case]:
    for name in ("resnet18", "tf_efficientnet_lite0"):
        yield Case(f"{name}, 1,000 photographs", partial(compared, name, setting))


def compared(name: str, setting: Setting) -> Iterator[Row]:
    net = timm_model(name, setting.device)
    model = pk.ImageModel(net, mean=(0.5,) * 3, std=(0.25,) * 3, crop_pct=0.875)
    with TemporaryDirectory() as place:
        write_photographs(Path(place), setting.size(1000, 8))
        data = pk.load_data(place, model)
        batches = [(x.images, x.labels) for x in Batches(data, batch_size=BATCH)]
        batches = [tuple(one.to(setting.device) for one in pair) for pair in batches]
        times = setting.take_turns(
            {
                DECODING: always(lambda: list(Batches(data, batch_size=BATCH))),
                FORWARD: always(lambda: bare_loop(model, batches)),
                OURS: always(lambda: pk.analyze(model, data, batch_size=BATCH, progress=False)),
            }
        )
    rounds = [
        {
            **taken,
            LARGER: max(taken[DECODING], taken[FORWARD]),
            BOTH: taken[DECODING] + taken[FORWARD],
        }
        for taken in times.rounds
    ]
    times = replace(times, rounds=rounds)
    parts = (
        f"{part}: {sum(map(len, (y for _, y in batches))) / times.median(part):.0f}"
        for part in (DECODING, FORWARD, OURS)
    )
    note = f"images per second: {', '.join(parts)}"
    yield from versus(times, OURS, {LARGER: cost(1.1), BOTH: cost()}, note)


def write_photographs(root: Path, count: int) -> None:
    """Crops of a photograph as JPEG files of 500 x 375 pixels, in two class folders."""
    from PIL import Image
    from skimage import data

    whole = Image.fromarray(data.astronaut())
    corners = np.random.default_rng(0).integers(0, 128, (count, 2))
    for number, (x, y) in enumerate(corners):
        folder = root / f"class {number % 2}"
        folder.mkdir(exist_ok=True)
        crop = whole.crop((x, y, x + 384, y + 288)).resize((500, 375))
        crop.save(folder / f"{number}.jpg", quality=90)


QUESTION = Question(
    "folder",
    "What does an analysis of a folder of photographs cost?",
    "JPEG files of 500 x 375 pixels, resized and cropped to 224 pixels: `pk.analyze` of the folder, "
    "compared with decoding alone by the same threads, and with forward passes alone over images in memory. "
    "On a CPU both share the cores, so an analysis cannot be much faster than one after the other; "
    "on a GPU, it should take as long as the larger of both.",
    cases,
)

if __name__ == "__main__":
    sys.exit(main([QUESTION]))
