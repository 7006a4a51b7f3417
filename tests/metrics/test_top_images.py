"""Top images by name in an analysis: the same as sorting a recording, in any batches, and on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import probekit as pk
from probekit.models.image_model import ImageModel


def test_the_top_images_equal_a_sorted_recording(model: ImageModel, labeled: tuple) -> None:
    result = pk.analyze(model, labeled, metrics=["selectivity", "top_images"], batch_size=7)
    units = result["units"].to_dataset()
    recording = pk.record(model, labeled)
    activation = recording["activation"].transpose("unit", "sample").values.astype(np.float64)
    order = np.argsort(-activation, axis=1, kind="stable")[:, :9]
    np.testing.assert_array_equal(units["top_sample"], order)
    found = np.take_along_axis(activation, order, 1)
    np.testing.assert_allclose(units["top_activation"], found, rtol=1e-6)
    np.testing.assert_array_equal(units["top_label"], labeled[1].numpy()[order])
    drawn = activation[:, units["drawn"].values]
    np.testing.assert_allclose(units["drawn_activation"], drawn, rtol=1e-6)


def test_a_sample_drawn_by_limit_keeps_its_index_in_the_data(
    model: ImageModel, labeled: tuple
) -> None:
    result = pk.analyze(model, labeled, metrics=pk.TopImages(top=2), limit=10, batch_size=4)
    units = result["units"].to_dataset()
    assert set(units["top_sample"].values.flat) <= set(result["samples"]["sample"].values)
    images, labels = pk.images_at(labeled, units["top_sample"].values[:, 0])
    with pk.Recorder(model.module.eval()) as recorder, torch.no_grad():
        model(images)
    again = torch.cat(list(recorder.activations.values()), 1).diagonal()
    np.testing.assert_allclose(again.numpy(), units["top_activation"].values[:, 0], atol=1e-6)
    assert labels.tolist() == units["top_label"].values[:, 0].tolist()


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_top_images_are_saved_and_reopened(
    model: ImageModel, labeled: tuple, tmp_path: Path, suffix: str
) -> None:
    result = pk.analyze(model, labeled, metrics="top_images")
    again = pk.open_result(pk.save_result(result, tmp_path / f"r{suffix}"))
    assert again["units"].to_dataset().identical(result["units"].to_dataset())


def test_options_are_recorded_in_the_provenance(network: nn.Module, labeled: tuple) -> None:
    result = pk.analyze(network, [labeled], metrics=pk.TopImages(3, 2, 7))
    assert '"top_images": {"top": 3, "drawn": 2, "seed": 7}' in result.attrs["provenance"]
    assert result["units"].sizes["rank"] == 3
