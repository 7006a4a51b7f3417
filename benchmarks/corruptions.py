"""All corruptions on 1,000 images of 64 px, compared with a loop over imagecorruptions-imaug.

python benchmarks/corruptions.py [--quick]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from harness import Case, Missing, Question, Row, Setting, always, gain, main, peer, versus

from probekit.errors import OptionError
from probekit.perturbations.corruptions.corruption import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupt

BATCH = 100
SEVERITIES = (1, 5)
# These must be at least four times as fast as the peer; the others must not be slower than it.
FOURFOLD = (
    "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "brightness", "contrast", "fog",
    "glass_blur", "zoom_blur",
)  # fmt: skip
# For the slow types, the peer gets fewer images; its time per image is constant.
SLOW = ("frost", "glass_blur", "zoom_blur")


def cases(setting: Setting) -> Iterator[Case]:
    for name in CORRUPTIONS + EXTRA_CORRUPTIONS:
        yield Case(name.replace("_", " "), partial(compared, name, setting))


def compared(name: str, setting: Setting) -> Iterator[Row]:
    """The severity with the lowest gain; the note lists the gains at the others."""
    rows = {}
    for severity in setting.size(SEVERITIES, (3,)):
        rows[severity] = one_severity(name, severity, setting)
        if rows[severity].ratio is None:
            yield rows[severity]
            return
    gains = {severity: row.ratio.middle for severity, row in rows.items() if row.ratio}
    least = min(gains, key=lambda severity: gains[severity])
    others = ", ".join(
        f"{gains[one]:.1f} at severity {one}" for one in sorted(gains) if one != least
    )
    note = f"at severity {least}" + (f"; {others}" if others else "") + "; times are for an image"
    yield replace(rows[least], note=note)


def one_severity(name: str, severity: int, setting: Setting) -> Row:
    pictures = photographs(setting.size(1000, 4))
    whole = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    batches = whole.contiguous().to(setting.device).split(BATCH)
    few = pictures[: setting.size(10 if name in SLOW else 50, 1)]

    def ours() -> None:
        for start, images in enumerate(batches):
            index = range(start * BATCH, start * BATCH + len(images))
            corrupt(images, name, severity, index=index, table=224)

    def theirs(library: Any) -> Any:
        import cv2

        cv2.setNumThreads(setting.threads)
        return always(
            lambda: [library.corrupt(picture, severity, name) for picture in few], per=len(few)
        )

    mine: Any = always(ours, per=len(pictures))
    try:
        corrupt(batches[0][:1], name, severity, table=224)
    except OptionError as error:
        mine = Missing(str(error))
    contenders = {"pk.corrupt": mine, "imagecorruptions": peer("imagecorruptions", theirs)}
    times = setting.take_turns(contenders, seconds=1)
    bound = gain(4 if name in FOURFOLD else 1)
    return next(versus(times, "pk.corrupt", {"imagecorruptions": bound}))


@cache
def photographs(n: int) -> np.ndarray:
    """Different crops of a photograph, uint8 (n, 64, 64, 3)."""
    from PIL import Image
    from skimage import data

    whole = Image.fromarray(data.astronaut())
    corners = np.random.default_rng(0).integers(0, 256, (n, 2))
    return np.stack(
        [np.asarray(whole.crop((x, y, x + 256, y + 256)).resize((64, 64))) for x, y in corners]
    )


QUESTION = Question(
    "corruptions",
    "What do corruptions cost compared with imagecorruptions?",
    "1,000 color images of 64 px: `pk.corrupt` in batches of 100, and imagecorruptions-imaug in a loop "
    "over images, with the same number of threads. Both use the constants of ImageNet-C, the only ones "
    "that the peer has. Severities 1 and 5 are timed; a row shows the severity with the smallest "
    "gain.",
    cases,
)

if __name__ == "__main__":
    sys.exit(main([QUESTION]))
