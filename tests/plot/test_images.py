"""Every figure compared with its stored picture.

`PROBEKIT_REMAKE_BASELINES=1 python -m pytest tests/plot/test_images.py` redraws the pictures. Inspect
them before you commit them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.axes import Axes
from packaging.version import Version
from PIL import Image

from probekit import plot

BASELINES = Path(__file__).parent / "baselines"
REMAKE = bool(os.environ.get("PROBEKIT_REMAKE_BASELINES"))
# Another version of the font renderer moves letters by fractions of a pixel, which block averages absorb.
# Different numbers move lines and areas by whole blocks.
BLOCK = 4
TOLERANCE = 0.02

FIGURES: dict[str, Callable[[Any], Axes]] = {
    "alpha_curve": lambda world: plot.alpha_curve(world.swept),
    "alpha_profile": lambda world: plot.alpha_profile(world.swept),
    "alpha_trade_off": lambda world: plot.alpha_trade_off(world.swept),
    "attack_epsilon": lambda world: plot.attack_accuracy(world.robust),
    "attack_epsilon_alphas": lambda world: plot.attack_accuracy(
        {-1.0: world.weaker, 0.0: [world.robust, world.weaker]}, attack="pgd"
    ),
    "attack_steps": lambda world: plot.attack_accuracy(world.robust, over="step"),
    "class_means": lambda world: plot.class_means(world.result, "layer2.0.relu"),
    "class_means_compared": lambda world: plot.class_means(
        {"one": world.result, "two": world.other}, "relu"
    ),
    "corruption_map": lambda world: plot.corruption_accuracy(world.robust),
    "corruption_rows": lambda world: plot.corruption_accuracy(
        {"plain": world.robust, "weaker": world.weaker}
    ),
    "eigenspectrum": lambda world: plot.eigenspectrum(world.result),
    "gradient_cv": lambda world: plot.gradient_cv(world.result),
    "profile_confidence": lambda world: plot.layer_profile(world.result),
    "profile_components": lambda world: plot.layer_profile(world.result, "components"),
    "profile_compared": lambda world: plot.layer_profile(
        {"one": world.result, "two": world.other}, "participation_ratio"
    ),
    "scatter": lambda world: plot.unit_scatter(world.result),
    "training": lambda world: plot.training_curves(world.run),
    "tuning": lambda world: plot.unit_tuning(world.result, "layer2.0.relu_1", 5),
    "distribution_ridge": lambda world: plot.unit_distribution(world.result, kind="ridge"),
    "distribution_violin": lambda world: plot.unit_distribution(world.result),
    "distribution_compared": lambda world: plot.unit_distribution(
        {"one": world.result, "two": world.other}, "gradient_norm_cv"
    ),
}


def picture(draw: Callable[[Any], Axes], world: Any) -> npt.NDArray[np.uint8]:
    """The pixels of a figure, in matplotlib's own font and at low resolution for storage."""
    with mpl.rc_context({"font.family": "DejaVu Sans"}):
        figure = draw(world).figure
        figure.set_dpi(80)
        figure.canvas.draw()
        return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def difference(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    """Root mean square difference of block averages; 1 is the difference between black and white."""
    if one.shape != other.shape:
        return 1.0
    height, width = (size // BLOCK * BLOCK for size in one.shape[:2])
    blocks = [
        pixels[:height, :width]
        .reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK, 3)
        .mean((1, 3))
        for pixels in (one.astype(np.float64), other.astype(np.float64))
    ]
    return float(np.sqrt(np.mean((blocks[0] - blocks[1]) ** 2))) / 255


def stored(name: str) -> npt.NDArray[np.uint8]:
    with Image.open(BASELINES / f"{name}.png") as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.skipif(
    Version(mpl.__version__) < Version("3.11"), reason="older versions place axes otherwise"
)
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_matches_its_stored_picture(name: str, world: Any, changed: Any) -> None:
    drawn = picture(FIGURES[name], world)
    if REMAKE:
        BASELINES.mkdir(exist_ok=True)
        Image.fromarray(drawn).quantize(128).save(BASELINES / f"{name}.png", optimize=True)
    baseline = stored(name)
    assert difference(drawn, baseline) < TOLERANCE
    assert difference(picture(FIGURES[name], changed), baseline) > 1.5 * TOLERANCE, (
        "other numbers must make another picture"
    )


def test_no_stored_picture_is_unused() -> None:
    assert {path.stem for path in BASELINES.iterdir()} == set(FIGURES)


def test_subpixel_text_shifts_are_ignored_and_line_shifts_detected() -> None:
    from matplotlib import pyplot as plt

    def drawn(shift: float, height: float) -> npt.NDArray[np.uint8]:
        def draw(_: Any) -> Axes:
            _, ax = plt.subplots(figsize=(3, 2))
            ax.plot([0, 1], [height, height])
            ax.text(0.1 + shift, 0.6, "text that moves", transform=ax.transAxes)
            ax.set_ylim(0, 1)
            return ax

        return picture(draw, None)

    half = 0.5 / (3 * 80 * 0.775)
    assert difference(drawn(0, 0.5), drawn(half, 0.5)) < TOLERANCE
    assert difference(drawn(0, 0.5), drawn(0, 0.35)) > 1.5 * TOLERANCE
