"""The dossier figure shows the values of the result, the data and the saliency."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib import pyplot as plt

import probekit as pk
from probekit.data.images import TensorImages
from probekit.errors import DataError, LayerError, OptionError
from probekit.models.image_model import ImageModel

mpl.use("Agg")


@pytest.fixture
def measured(model: ImageModel) -> tuple[xr.DataTree, TensorImages]:
    """A network analyzed on 24 images."""
    generator = torch.Generator().manual_seed(0)
    data = TensorImages(torch.rand(24, 1, 8, 8, generator=generator), torch.arange(24) % 3, "abc")
    return pk.analyze(model, data, metrics=["selectivity", "top_images"]), data


def test_shows_tuning_images_and_saliency(
    model: ImageModel, measured: tuple[xr.DataTree, TensorImages]
) -> None:
    result, data = measured
    figure = pk.dossier(result, "4", 2, data=data, model=model, shown=4, method="gradient")
    units = result["units"].to_dataset()
    here = units.isel(
        unit=(units["layer"].values == "4") & (units["channel"].values == 2)
    ).squeeze()
    tuning, *others = figure.axes
    widths = [bar.get_width() for bar in tuning.patches]
    np.testing.assert_allclose(widths, -np.sort(-here["class_mean"].values))
    names = [label.get_text() for label in tuning.get_yticklabels()]
    order = np.argsort(-here["class_mean"].values, kind="stable")
    assert names == [str(here["class_name"].values[at]) for at in order]
    samples = here["top_sample"].values[:4]
    photographs = others[:4]
    for ax, sample in zip(photographs, samples, strict=True):
        np.testing.assert_allclose(ax.images[0].get_array(), data[int(sample)][0][0], atol=1e-6)
        assert ax.get_title().startswith("abc"[int(sample) % 3])
    maps = pk.unit_saliency(model, pk.images_at(data, samples)[0], "4", 2, method="gradient")
    for ax, expected in zip(others[4:8], maps, strict=True):
        np.testing.assert_allclose(ax.images[-1].get_array(), expected.sum(0), rtol=1e-5)
    assert others[8].get_title(loc="left").startswith("selectivity ")
    assert plt.get_fignums() == []


def test_requires_neither_data_nor_model(result: xr.DataTree) -> None:
    figure = pk.dossier(result, "block1.relu", 3)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles[0] == "tuning"
    value = float(result["units"]["selectivity"].values[23])
    assert titles[1].startswith(f"selectivity {value:.3f}, rank ")
    assert titles[2].startswith("gradient CV ")


def test_what_a_merged_result_lacks_of_a_unit_is_omitted(
    partly_measured: tuple[xr.DataTree, TensorImages],
) -> None:
    result, data = partly_measured
    (ax,) = pk.dossier(result, "1", 2, data=data).axes
    assert [text.get_text() for text in ax.texts] == ["class means were not measured"]
    tuning, *photographs = pk.dossier(result, "4", 2, data=data).axes
    assert len(tuning.patches) == 3
    assert len(photographs) > 6


def test_names_are_not_parsed_as_formulas(make_result: Any, tmp_path: Any) -> None:
    bad = make_result(classes=("$\\frac{", "a_b^c$", "x" * 300))
    pk.dossier(bad, "stem.relu", 1).savefig(tmp_path / "dossier.png")
    assert (tmp_path / "dossier.png").stat().st_size > 1000


def test_settings_are_unchanged(result: xr.DataTree) -> None:
    before = dict(mpl.rcParams)
    pk.dossier(result, "stem.relu", 1)
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("layer", "channel", "words"),
    [("stem", 0, "no layer 'stem'; close matches: stem.relu"), ("stem.relu", 20, "has 20 units")],
)
def test_a_missing_unit_is_refused(
    result: xr.DataTree, layer: str, channel: int, words: str
) -> None:
    with pytest.raises(LayerError, match=words):
        pk.dossier(result, layer, channel)


def test_inconsistent_inputs_are_refused(
    result: xr.DataTree, make_result: Any, images: TensorImages
) -> None:
    with pytest.raises(OptionError, match="results of 2 models: toy, toy"):
        pk.dossier([result, make_result(seed=1)], "stem.relu", 0)
    with pytest.raises(OptionError, match="saliency needs its images"):
        pk.dossier(result, "stem.relu", 0, saliency=np.zeros((2, 1, 4, 4)))
    other = TensorImages(images.images, (images.labels + 1) % 4)
    with pytest.raises(DataError, match="not that of the result"):
        pk.dossier(result, "stem.relu", 0, data=other)
