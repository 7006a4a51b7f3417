"""Draws the pictures of docs/gallery.md: `python docs/gallery/make.py [PICTURE...]`.

The blocks of the page run as one program, in a folder of their own; the figure of `ax` after a block is the
picture that the page shows next.
"""

from __future__ import annotations

import re
import sys
import tempfile
from contextlib import chdir
from pathlib import Path
from typing import Any

import matplotlib as mpl

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "gallery.md"
_STEPS = re.compile(r"^```python\n(.*?)^```$|^!\[[^\]]*\]\(gallery/([\w-]+)\.png\)$", re.M | re.S)
DPI = 160
COLORS = 160


def steps(page: str) -> list[tuple[str, str]]:
    """What a page does in order: `("code", block)` and `("picture", name)`.

    >>> steps("```python\\nax = draw()\\n```\\n\\n![A line](gallery/line.png)\\n")
    [('code', 'ax = draw()\\n'), ('picture', 'line')]
    """
    return [
        ("picture", found[2]) if found[2] else ("code", found[1]) for found in _STEPS.finditer(page)
    ]


def save(figure: Any, file: Path) -> None:
    """Writes a figure with few colors, which makes the file small."""
    from PIL import Image

    figure.savefig(file, dpi=DPI)
    with Image.open(file) as picture:
        picture.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(file, optimize=True)


def main(wanted: list[str]) -> None:
    """Runs the page and writes its pictures, or some of them."""
    from matplotlib import pyplot as plt

    mpl.use("agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        for kind, text in steps(PAGE.read_text()):
            if kind == "code":
                exec(compile(text, str(PAGE), "exec"), names)
            elif not wanted or text in wanted:
                save(names["ax"].figure, HERE / f"{text}.png")
                print(HERE / f"{text}.png")
                plt.close("all")


if __name__ == "__main__":
    main(sys.argv[1:])
