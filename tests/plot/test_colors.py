"""Colors are distinguishable for readers with any of the three types of color blindness."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from probekit.plot.colors import alpha_map, alpha_norm, palette, shades
from probekit.plot.data import Array
from probekit.plot.series import alpha_colors

# Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protan": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deutan": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritan": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def seen(color: str, blindness: str) -> Array:
    """CIE L*a*b* of a color as perceived."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = (BLINDNESS[blindness] @ linear).clip(0, 1)
    xyz = TO_XYZ @ linear / (TO_XYZ @ np.ones(3))
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def apart(colors: list[str], blindness: str) -> float:
    """The smallest distance between any two colors; a distance of about 2 is just noticeable."""
    points = [seen(color, blindness) for color in colors]
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(points, 2))


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_colors_of_names_are_distinguishable(blindness: str) -> None:
    assert apart(palette(4), blindness) > 15
    assert apart(palette(7), blindness) > 8


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_colors_of_alphas_of_both_signs_are_distinguishable(blindness: str) -> None:
    alphas = [-2, -1, -0.7, -0.4, -0.2, 0, 0.2, 0.4, 0.7, 1, 2]
    colors = alpha_colors(alphas)
    assert apart(colors, blindness) > 4
    for less, more in zip(colors[:5], reversed(colors[6:]), strict=True):
        assert apart([less, more], blindness) > 12


def test_the_distance_detects_indistinguishable_colors() -> None:
    assert apart(["#b03030", "#5a6b00"], "deutan") < 0.5 * apart(["#b03030", "#5a6b00"], "none")


@pytest.mark.parametrize("color", [*palette(7), *shades(9), *alpha_colors([-2, -1, 0, 1, 2])])
def test_lines_contrast_with_white(color: str) -> None:
    assert seen(color, "none")[0] < 80


@pytest.mark.parametrize("alphas", [[-1, 0, 1], [-100, -0.1, 0, 0.1, 100], [0.0], [-5, 2]])
def test_zero_is_black_in_the_center(alphas: list[float]) -> None:
    norm = alpha_norm(alphas)
    assert norm(0.0) == pytest.approx(0.5)
    assert norm(max(map(abs, alphas)) or 1.0) == pytest.approx(1.0)
    assert alpha_colors([*alphas, 0.0])[-1] == "#101010"
    assert sum(alpha_map()(norm(-1e-9))[:3]) < 0.3


def test_additional_names_get_shades() -> None:
    assert len(set(palette(20))) == 20
