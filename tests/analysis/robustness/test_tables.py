"""Corruption errors checked against their formula, terminal rows, and merging with an analysis."""

from __future__ import annotations

import json
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import probekit as pk
from probekit.analysis.robustness.tables import corruption_errors
from probekit.errors import DataError, OptionError, ProbekitWarning
from probekit.reports.rows import robustness_rows

TYPES = ["fog", "snow", "saturate"]


def table(accuracy: Any, clean: float, types: list[str] = TYPES) -> xr.Dataset:
    axes = {"corruption": types, "severity": [1, 3, 5]}
    return xr.DataArray(accuracy, axes, name="accuracy").to_dataset().assign(clean_accuracy=clean)


MINE = [[0.9, 0.7, 0.5], [0.8, 0.6, 0.4], [0.7, 0.5, 0.3]]
THEIRS = [[0.7, 0.5, 0.3], [0.6, 0.4, 0.2], [0.5, 0.3, 0.1]]


def test_mce_is_the_published_formula() -> None:
    found = corruption_errors(table(MINE, 0.95), table(THEIRS, 0.9))
    expected, relative = [], []
    for mine, theirs in zip(MINE, THEIRS, strict=True):
        expected.append(sum(1 - a for a in mine) / sum(1 - a for a in theirs))
        relative.append(sum(0.95 - a for a in mine) / sum(0.9 - a for a in theirs))
    assert found["corruption_error"].values == pytest.approx(expected)
    assert found["relative_corruption_error"].values == pytest.approx(relative)
    # Saturate is not one of the 15 standard types.
    assert found["mce"] == pytest.approx(np.mean(expected[:2]))
    assert found["relative_mce"] == pytest.approx(np.mean(relative[:2]))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.0, 0.8), min_size=9, max_size=9), st.floats(0.85, 1.0))
def test_a_model_is_its_own_reference_with_errors_of_one(values: list[float], clean: float) -> None:
    mine = table(np.array(values).reshape(3, 3), clean)
    found = corruption_errors(mine, mine)
    for name in ("mce", "relative_mce"):
        assert found[name] == pytest.approx(1)


def test_extra_types_are_averaged_when_there_are_no_standard_ones() -> None:
    types = ["saturate", "spatter", "gaussian_blur"]
    found = corruption_errors(table(MINE, 0.9, types), table(THEIRS, 0.9, types))
    assert found["mce"] == pytest.approx(found["corruption_error"].values.mean())


def test_a_reference_without_errors_gives_no_ratio() -> None:
    perfect = table(np.ones((3, 3)), 1.0)
    assert np.isnan(corruption_errors(table(MINE, 0.9), perfect)["mce"])


def test_a_reference_may_have_more_conditions_in_another_order() -> None:
    wider = table([*THEIRS, [0.2, 0.2, 0.2]], 0.9, [*TYPES, "frost"])
    wider = wider.isel(corruption=[3, 2, 0, 1], severity=[2, 0, 1])
    found = corruption_errors(table(MINE, 0.9), wider)
    xr.testing.assert_allclose(found, corruption_errors(table(MINE, 0.9), table(THEIRS, 0.9)))


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        (table(THEIRS, 0.9).isel(corruption=[0]), "lacks the corruption snow, saturate"),
        (table(THEIRS, 0.9).isel(severity=[0, 1]), "lacks the severity 5"),
        (table(THEIRS, 0.9).drop_vars("clean_accuracy"), "has accuracy"),
        (xr.Dataset(), "nothing"),
    ],
)
def test_an_incomplete_reference_is_refused(reference: xr.Dataset, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        corruption_errors(table(MINE, 0.9), reference)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 3)
    ).eval()


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(15, 1, 32, 32, generator=generator), torch.arange(15) % 3


def measure(network: nn.Module, images: Any, **options: Any) -> xr.DataTree:
    given: dict[str, Any] = {
        "corruptions": ["fog", "contrast"], "severities": (1, 5), "progress": False,
        "attacks": pk.PGD(steps=2), "epsilons": [1 / 255, 0.5],
    }  # fmt: skip
    return pk.robustness(network, images, **(given | options))


def test_a_reference_is_a_result_or_its_file(
    network: nn.Module, images: Any, tmp_path: Path
) -> None:
    few: dict[str, Any] = {"severities": 5, "attacks": None}
    result = measure(network, images, **few)
    pk.save_result(result, tmp_path / "reference.nc")
    for reference in (result, tmp_path / "reference.nc", result["robustness"].to_dataset()):
        found = measure(network, images, reference=reference, **few)["robustness"]
        assert found["mce"] == pytest.approx(1)
    with pytest.raises(OptionError, match="lacks the corruption snow"):
        measure(network, images, corruptions=["fog", "snow"], reference=result)


def test_rows_contain_the_numbers_of_the_table(network: nn.Module, images: Any) -> None:
    result = measure(network, images)
    rows = robustness_rows(result)
    found = result["robustness"]
    assert [row["perturbation"] for row in rows] == [
        "clean", "fog", "contrast", "mean", "pgd(steps=2)",
    ]  # fmt: skip
    fog, mean, attack = rows[1], rows[3], rows[4]
    assert fog["5"] == found["accuracy"].sel(corruption="fog", severity=5)
    assert mean["mean"] == found["accuracy_mean"]
    assert mean["relative"] == pytest.approx(float(found["accuracy_relative_mean"]))
    assert attack["1/255"] == found["attack_accuracy"].values[0, 0]
    assert attack["0.5"] == found["attack_accuracy"].values[0, 1]
    # Every attack in this test is untargeted, so each image that is no longer classified correctly
    # was fooled.
    n = int(found["n_samples"])
    turned = n * (float(found["clean_accuracy"]) - found["attack_accuracy"].values[0])
    assert attack["newly wrong"] == " ".join(str(round(count)) for count in turned)


def test_rows_of_a_part_of_a_result_have_the_means_of_this_part(
    network: nn.Module, images: Any
) -> None:
    result = measure(network, images).sel(corruption=["contrast"], severity=[5])
    shown = result["robustness"]["accuracy"].item()
    result["robustness"] = xr.DataTree(result["robustness"].to_dataset().transpose())
    _, contrast, mean, _ = robustness_rows(result)
    assert contrast["mean"] == mean["mean"] == mean["5"] == shown


def test_rows_without_attacks_or_corruptions(network: nn.Module, images: Any) -> None:
    only = robustness_rows(measure(network, images, attacks=None))
    assert len(only) == 4
    only = robustness_rows(measure(network, images, corruptions=None))
    assert [row["perturbation"] for row in only] == ["clean", "pgd(steps=2)"]


def test_merging_keeps_the_analysis_and_adds_new_variables(network: nn.Module, images: Any) -> None:
    analysis = pk.analyze(network, images, progress=False)
    result = measure(network, images, batch_size=4)
    joined = pk.merge_results(analysis, result)
    assert {"class_mean", "selectivity", "corruption_change_size"} <= set(joined["units"].data_vars)
    np.testing.assert_array_equal(joined["units"]["selectivity"], analysis["units"]["selectivity"])
    assert {"robustness", "samples"} <= set(joined.children)
    assert "robustness" not in analysis.children
    facts = json.loads(joined.attrs["provenance"])
    assert facts["merged"] == [json.loads(result.attrs["provenance"])]


def test_merging_other_layers_and_refusing_other_models(network: nn.Module, images: Any) -> None:
    analysis = pk.analyze(network, images, layers=["1", "2"], progress=False)
    result = measure(network, images)
    layers = pk.merge_results(analysis, result)["layers"].to_dataset()
    assert set(layers["layer"].values) == {"1", "2", *result["layers"]["layer"].values}
    network[0].weight.data.mul_(2)
    with pytest.raises(DataError, match="different models"):
        pk.merge_results(analysis, measure(network, images))


def test_a_reference_on_other_images_is_reported(network: nn.Module, images: Any) -> None:
    few = measure(network, tuple(part[:12] for part in images), attacks=None)
    with pytest.warns(
        ProbekitWarning, match=r"reference was measured on other images.*samples was 12 and is 15"
    ):
        measure(network, images, attacks=None, reference=few)


def other_first_image(images: Any) -> Any:
    return torch.cat([1 - images[0][:1], images[0][1:]]), images[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda images: images, None),
        (other_first_image, "first_image differs"),
        (lambda images: (images[0], images[1].sort().values), None),  # five of each class
        (
            lambda images: (images[0], torch.arange(15).clamp(max=5) % 3),
            "numbers of samples per class",
        ),
    ],
)
@pytest.mark.parametrize("as_table", [False, True])
def test_a_reference_on_as_many_other_images_is_reported(
    change: Any, words: str | None, as_table: bool, network: nn.Module, images: Any
) -> None:
    few: dict[str, Any] = {"severities": 5, "attacks": None}
    reference: Any = measure(network, change(images), **few)
    if as_table:  # without provenance
        reference = reference["robustness"].to_dataset()
        words = None if words == "first_image differs" else words
    expected = pytest.warns(ProbekitWarning, match=words) if words else nullcontext()
    with expected:
        measure(network, images, reference=reference, **few)


def test_a_reference_on_another_draw_of_the_images_is_reported(
    network: nn.Module, images: Any
) -> None:
    few: dict[str, Any] = {"severities": 5, "attacks": None, "limit": 6}
    reference = measure(network, images, seed=1, **few)
    measure(network, images, seed=1, reference=reference, **few)
    with pytest.warns(ProbekitWarning, match="other images.* seed was 1 and is 0"):
        measure(network, images, reference=reference, **few)


def test_a_reference_on_a_folder_is_compared_by_its_files(tmp_path: Path) -> None:
    found = []
    for number, size in ((0, 32), (0, 48), (1, 32)):
        folder, random = tmp_path / str(number) / "photos", np.random.default_rng(number)
        for place in range(6):
            file = folder / "abc"[place % 3] / f"{place}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)).save(file)
        module = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
        model = pk.ImageModel(module.eval(), input_size=(3, size, size), classes=("a", "b", "c"))
        found.append((model, pk.load_data(folder, model)))
    few: dict[str, Any] = {"severities": 5, "attacks": None, "table": 64}
    reference = measure(*found[0], **few)
    measure(*found[1], reference=reference, **few)
    with pytest.warns(ProbekitWarning, match="other images.* content differs"):
        measure(*found[2], reference=reference, **few)


def test_a_reference_on_tensors_of_another_size_cannot_be_checked() -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)).eval()
    images = torch.rand(15, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    few: dict[str, Any] = {"severities": 5, "attacks": None, "table": 64}
    reference = measure(net, (images, torch.arange(15) % 3), **few)
    with pytest.warns(
        ProbekitWarning, match=r"\[3, 32, 32\] and these \[3, 48, 48\], so it cannot"
    ):
        measure(net, (torch.rand(15, 3, 48, 48), torch.arange(15) % 3), reference=reference, **few)


def test_a_reference_under_other_constants_is_reported(network: nn.Module, images: Any) -> None:
    other = measure(network, images, attacks=None, seed=5)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the reference", ProbekitWarning)
        measure(network, images, attacks=None, reference=other)
    other = measure(network, images, attacks=None, table=64)
    analysis = pk.analyze(network, images, progress=False)
    for reference in (other, pk.merge_results(analysis, other)):
        with pytest.warns(
            ProbekitWarning, match=r"reference .* other corruptions.*contrast at 1 was .*table=64"
        ):
            measure(network, images, attacks=None, reference=reference)


def test_robustness_of_other_images_is_not_merged(network: nn.Module, images: Any) -> None:
    analysis = pk.analyze(network, images, progress=False)
    fewer = measure(network, images, attacks=None, limit=9)
    assert "robustness" in pk.merge_results(analysis, fewer).children
    for other in (
        measure(network, (images[0] / 2, images[1]), attacks=None),
        measure(network, [(images[0] / 2, images[1])], attacks=None),
    ):
        with pytest.raises(DataError, match="of different images"):
            pk.merge_results(analysis, other)
    streams = [[(part, images[1])] for part in (images[0], images[0] / 2)]
    with pytest.raises(DataError, match="of different images"):
        pk.merge_results(*(measure(network, one, attacks=None) for one in streams))
