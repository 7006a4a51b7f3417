"""The gallery shows the figures that its code draws, and stays small."""

from __future__ import annotations

import importlib.util
import re
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from probekit import plot

GALLERY = Path(__file__).parents[2] / "docs" / "gallery"
PAGE = GALLERY.with_suffix(".md").read_text()


@pytest.fixture
def make() -> ModuleType:
    """The script that draws the figures."""
    spec = importlib.util.spec_from_file_location("make_gallery", GALLERY / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_picture_exists_and_follows_its_code(make: ModuleType) -> None:
    steps = make.steps(PAGE)
    pictures = [text for kind, text in steps if kind == "picture"]
    assert sorted(pictures) == sorted(path.stem for path in GALLERY.glob("*.png"))
    assert len(pictures) == len(re.findall(r"^!\[", PAGE, re.M))
    for (kind, code), (following, name) in pairwise(steps):
        if following == "picture":
            assert kind == "code", f"{name} follows no code"
            assert re.search(r"^ax = ", code, re.M), f"the code before {name} leaves no ax"


def test_every_figure_has_a_picture() -> None:
    drawn = {name for name in plot.__all__ if f"pk.plot.{name}(" in PAGE}
    assert drawn == set(plot.__all__) - {"alpha_map", "palette"}


def test_the_pictures_are_small() -> None:
    assert sum(path.stat().st_size for path in GALLERY.glob("*.png")) < 2 * 2**20


def test_the_script_draws_the_figures_of_the_page(
    make: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nfrom matplotlib import pyplot as plt\n_, ax = plt.subplots(figsize=(1, 1))\n"
        "ax.set_facecolor('red')\n```\n\n![Red](gallery/red.png)\n\n![Again](gallery/again.png)\n"
    )
    monkeypatch.setattr(make, "PAGE", page)
    monkeypatch.setattr(make, "HERE", tmp_path)
    make.main(["red"])
    assert not (tmp_path / "again.png").exists()
    with Image.open(tmp_path / "red.png") as picture:
        middle = np.asarray(picture.convert("RGB"))[80, 80]
    assert middle.tolist() == [255, 0, 0]
    assert "red.png" in capsys.readouterr().out
