"""The plot style applies only while a figure is drawn."""

from __future__ import annotations

import os
import subprocess
import sys

import matplotlib as mpl
import pytest
import xarray as xr
from matplotlib import pyplot as plt

from probekit import plot


def test_settings_are_restored_after_an_error_too(result: xr.DataTree) -> None:
    before = dict(mpl.rcParams)
    with pytest.raises(Exception, match="coordinate along"):
        plot.layer_profile({"a": result}, "components")
    assert dict(mpl.rcParams) == before


def test_given_axes_are_drawn_on_and_returned(result: xr.DataTree) -> None:
    figure, (left, right) = plt.subplots(1, 2)
    assert plot.layer_profile(result, ax=left) is left
    assert plot.unit_distribution(result, ax=right) is right
    assert plt.get_fignums() == [figure.number]
    assert left.spines["top"].get_visible(), "the axes' own frame is the caller's"


def test_no_figure_is_shown(result: xr.DataTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plt, "show", lambda *_: pytest.fail("a figure was shown"))
    assert plot.layer_profile(result).figure.number in plt.get_fignums()


def test_ticks_created_later_have_the_style(result: xr.DataTree) -> None:
    with mpl.rc_context({"xtick.labelsize": 30, "ytick.labelsize": 30}):
        ax = plot.layer_profile(result)
        ax.set_ylim(0, 5)
        ax.figure.canvas.draw()
    sizes = {text.get_fontsize() for text in [*ax.get_xticklabels(), *ax.get_yticklabels()]}
    assert sizes == {7.0}


def test_the_font_of_the_user_is_used(result: xr.DataTree) -> None:
    with mpl.rc_context({"font.family": "DejaVu Serif"}):
        ax = plot.layer_profile(result)
    assert ax.yaxis.label.get_fontfamily() == ["DejaVu Serif"]


def test_figures_of_results_need_no_torch() -> None:
    code = (
        "import sys, xarray as xr, probekit as pk\n"
        "layers = xr.Dataset({'n_units': ('layer', [1, 2])}, {'layer': ['a', 'b']})\n"
        "pk.plot.layer_profile(layers, 'n_units'); [getattr(pk.plot, n) for n in pk.plot.__all__]\n"
        "sys.exit('torch' in sys.modules)"
    )
    env = {**os.environ, "MPLBACKEND": "agg"}
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0


def test_matplotlib_is_imported_only_when_a_figure_is_drawn() -> None:
    code = (
        "import sys, probekit as pk, probekit.cli.app; pk.plot; dir(pk.plot); "
        "sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", plot.__all__)
def test_every_name_exists_and_is_documented(name: str) -> None:
    found = getattr(plot, name)
    assert callable(found), "a module of that name stands in the way"
    assert found.__doc__
    assert f"`{name}" in (plot.__doc__ or "")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="attribute nonsense"):
        _ = plot.nonsense
