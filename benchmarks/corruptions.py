"""Time of the corruptions on 1,000 images of 64 px, beside imagecorruptions in a loop.

    python benchmarks/corruptions.py [--threads 1] [--images 1000] [NAME]...

Both use the same constants (ImageNet-C's, the only ones that imagecorruptions has) and may use the
same number of threads; probekit gets batches of 100, as a loader would give them. Each takes turns
with the other, on a share of the images for the slow one, and medians are compared. Needs
imagecorruptions-imaug with opencv and numba.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import cv2
import imagecorruptions
import numpy as np
import torch
from PIL import Image
from skimage import data

from probekit.robustness.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupt

BATCH = 100


def photographs(n: int) -> np.ndarray:
    """Different crops of a photograph, uint8 (n, 64, 64, 3)."""
    whole = Image.fromarray(data.astronaut())
    corners = np.random.default_rng(0).integers(0, 256, (n, 2))
    return np.stack(
        [np.asarray(whole.crop((x, y, x + 256, y + 256)).resize((64, 64))) for x, y in corners]
    )


def seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    work()
    return clock() - start


def compare(
    name: str, severity: int, pictures: np.ndarray, turns: int, clock: Callable[[], float]
) -> tuple[float, float]:
    """Median milliseconds for an image: theirs, ours."""
    batches = (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255).contiguous().split(BATCH)
    few = pictures[: 10 if name in ("frost", "zoom_blur") else 50]

    def theirs() -> None:
        for picture in few:
            imagecorruptions.corrupt(picture, severity, name)

    def ours() -> None:
        for start, images in enumerate(batches):
            index = range(start * BATCH, start * BATCH + len(images))
            corrupt(images, name, severity, index=index, table=224)

    imagecorruptions.corrupt(pictures[0], severity, name)
    corrupt(batches[0], name, severity, table=224)
    times = [(seconds(theirs, clock), seconds(ours, clock)) for _ in range(turns)]
    their_time, our_time = (statistics.median(column) for column in zip(*times, strict=True))
    return 1e3 * their_time / len(few), 1e3 * our_time / len(pictures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=CORRUPTIONS + EXTRA_CORRUPTIONS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--severities", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count processor time, which other work on the machine disturbs less",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    pictures = photographs(options.images)
    print(f"{options.threads} threads, {torch.__version__=!s}")
    print(f"{'':20} {'severity':>8} {'imagecorruptions':>17} {'probekit':>10} {'ratio':>6}")
    for name in options.names:
        for severity in options.severities:
            their_time, our_time = compare(name, severity, pictures, options.turns, clock)
            ratio = their_time / our_time
            print(f"{name:20} {severity:8} {their_time:14.3f} ms {our_time:7.4f} ms {ratio:6.1f}")


if __name__ == "__main__":
    main()
