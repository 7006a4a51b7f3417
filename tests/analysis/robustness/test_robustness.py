"""Robustness results compared with handwritten loops over the same perturbed images."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from torch.utils.data import Dataset

import probekit as pk
from probekit.analysis.robustness.measure import Measurement
from probekit.analysis.robustness.robustness import robustness
from probekit.capture.readouts import Activations
from probekit.capture.stream import PassOptions, find_layers, stream
from probekit.data.batches import Batches
from probekit.data.fitting import fit_to
from probekit.errors import ProbekitWarning
from probekit.models.image_model import ImageModel
from probekit.models.logits import ClassMatch
from robustness_by_hand import (
    AXES,
    EPSILONS,
    LAYERS,
    Data,
    components_by_hand,
    conditions,
    index_by_hand,
    look,
    participation_by_hand,
)


def test_accuracies_match_manual_evaluation_of_the_same_images(
    result: xr.DataTree, trained: ImageModel, images: Data
) -> None:
    x, y = images
    table = result["robustness"]
    clean, _ = look(trained, x)
    right = (clean == y).double()
    assert right.mean() > 0.5
    assert table["clean_accuracy"] == pytest.approx(right.mean().item())
    assert int(table["n_samples"]) == 40
    assert table["samples_by_class"].values.tolist() == [14, 13, 13]
    assert table["class_name"].values.tolist() == ["a", "b", "c"]
    for (kind, name, level), (changed, attacked) in conditions(trained, images).items():
        prediction, _ = look(trained, changed)
        if attacked is not None:
            prediction = attacked.prediction[EPSILONS.index(level)]
        at = dict(zip(AXES[kind], (name, level), strict=True))
        begin = "" if kind == "corruption" else "attack_"
        hits = (prediction == y).double()
        assert table[f"{begin}accuracy"].sel(at) == pytest.approx(hits.mean().item())
        assert table[f"{begin}accuracy_relative"].sel(at) == pytest.approx(
            (hits.mean() / right.mean()).item()
        )
        for c in range(3):
            found = table[f"{begin}accuracy_by_class"].sel({**at, "class": c})
            assert found == pytest.approx(hits[y == c].mean().item())


def test_attacks_count_fooled_images_by_epsilon_and_step(
    result: xr.DataTree, trained: ImageModel, images: Data
) -> None:
    table = result["robustness"]
    for (kind, name, level), (changed, attacked) in conditions(trained, images).items():
        if kind != "attack":
            continue
        number, at = EPSILONS.index(level), {"attack": name, "epsilon": level}
        assert int(table["attack_fooled"].sel(at)) == attacked.n_fooled[number]
        assert int(table["attack_fooled_by_class"].sel(at).sum()) == attacked.n_fooled[number]
        steps = 1 - attacked.success_by_step[number].double().mean(1)
        by_step = table["attack_accuracy_by_step"].sel(at).values
        assert by_step[: len(steps)] == pytest.approx(steps.numpy())
        assert np.isnan(by_step[len(steps) :]).all()
        unmoved = (changed == images[0]).flatten(1).all(1).sum()
        assert int(table["attack_unmoved"].sel(at)) == int(unmoved)


def test_change_of_each_layer_is_the_covariance_of_the_difference(
    result: xr.DataTree, trained: ImageModel, images: Data
) -> None:
    _, clean = look(trained, images[0])
    layers = result["layers"]
    assert layers["layer"].values.tolist() == LAYERS
    for name in LAYERS:
        found = layers["participation_ratio"].sel(layer=name)
        assert found == pytest.approx(participation_by_hand(clean[name]))
    for (kind, which, level), (changed, _) in conditions(trained, images).items():
        _, perturbed = look(trained, changed)
        for name in LAYERS:
            at = {"layer": name, **dict(zip(AXES[kind], (which, level), strict=True))}
            change = clean[name] - perturbed[name]
            ratio = participation_by_hand(change)
            begin = f"{kind}_change_participation_ratio"
            assert layers[begin].sel(at) == pytest.approx(ratio, rel=1e-4)
            units = change.shape[1]
            assert layers[f"{begin}_fraction"].sel(at) == pytest.approx(ratio / units, rel=1e-4)
            for share in (0.9, 0.95, 0.99):
                found = layers[f"{kind}_change_components"].sel(at).sel(variance=share)
                assert int(found) == components_by_hand(change, share)
            size = layers[f"{kind}_change_size_mean"].sel(at)
            assert size == pytest.approx(np.abs(change).mean(), rel=1e-4)


def test_unit_changes_and_selectivity_match_manual_computation(
    result: xr.DataTree, trained: ImageModel, images: Data
) -> None:
    labels = images[1].numpy()
    _, clean = look(trained, images[0])
    units, layers = result["units"].to_dataset(), result["layers"]
    for (kind, which, level), (changed, _) in conditions(trained, images).items():
        _, perturbed = look(trained, changed)
        at = dict(zip(AXES[kind], (which, level), strict=True))
        for name in LAYERS:
            own = units.isel(unit=np.flatnonzero(units["layer"].values == name)).sel(at)
            index, preferred = index_by_hand(clean[name], labels)
            after, preferred_after = index_by_hand(perturbed[name], labels)
            same = np.array(preferred) == np.array(preferred_after)
            size = np.abs(clean[name] - perturbed[name]).mean(0)
            assert own["selectivity"].values == pytest.approx(index, abs=1e-5)
            assert own[f"{kind}_selectivity"].values == pytest.approx(after, abs=1e-5)
            assert own[f"{kind}_selectivity_difference"].values == pytest.approx(
                np.subtract(after, index), abs=1e-5
            )
            assert own[f"{kind}_preferred_class"].values.tolist() == preferred_after
            assert own[f"{kind}_preferred_class_kept"].values.tolist() == same.tolist()
            assert own[f"{kind}_change_size"].values == pytest.approx(size, rel=1e-4)
            alive = np.array(preferred) >= 0
            there = layers.to_dataset().sel(at | {"layer": name})
            assert there[f"{kind}_preferred_class_kept_fraction"] == pytest.approx(
                same[alive].mean()
            )
            if alive.sum() >= 3:
                r = np.corrcoef(np.array(index)[alive], np.array(after)[alive])[0, 1]
                assert there[f"{kind}_selectivity_correlation"] == pytest.approx(r, abs=1e-4)


def test_clean_numbers_equal_those_of_analyze_and_the_tables_join(
    result: xr.DataTree, trained: ImageModel, images: Data
) -> None:
    analysis = pk.analyze(
        trained, images, metrics=["selectivity", "dimensionality"], batch_size=16, progress=False
    )
    for name in ("selectivity", "preferred_class", "dead"):
        np.testing.assert_allclose(result["units"][name], analysis["units"][name], rtol=1e-12)
    for name in ("participation_ratio", "participation_ratio_unbiased", "components", "dead_units"):
        np.testing.assert_allclose(result["layers"][name], analysis["layers"][name], rtol=1e-12)
    both = xr.merge(
        [analysis["units"].to_dataset(), result["units"].to_dataset()],
        compat="no_conflicts",
        join="exact",
    )
    assert {"class_mean", "corruption_change_size"} <= set(both)
    # An error that robustness does not compute must not replace that of the analysis.
    error = "participation_ratio_corrected_error"
    assert np.isfinite(analysis["layers"][error]).all()
    merged = pk.merge_results(result, analysis)["layers"]
    np.testing.assert_array_equal(merged[error], analysis["layers"][error])


def test_batch_size_does_not_matter(result: xr.DataTree, trained: ImageModel, images: Data) -> None:
    again = robustness(
        trained,
        [(images[0][:7], images[1][:7]), (images[0][7:], images[1][7:])],
        ["fog", "gaussian_noise"],
        (1, 5),
        ["fgsm", pk.PGD(steps=4, keep="last")],
        EPSILONS,
        progress=False,
    )
    # The clean accuracy is exact. Rounding in another batch size may flip the sign of a gradient.
    for name in ("accuracy", "clean_accuracy"):
        np.testing.assert_array_equal(again["robustness"][name], result["robustness"][name])
    for name in ("corruption_change_participation_ratio", "corruption_change_size_mean"):
        np.testing.assert_allclose(again["layers"][name], result["layers"][name], rtol=1e-4)


def test_provenance_records_the_model_and_every_condition(
    result: xr.DataTree, trained: ImageModel
) -> None:
    facts = json.loads(result.attrs["provenance"])
    assert facts["model"]["hash"].startswith("sha256:")
    assert facts["model"]["mean"] == [0.3]
    assert facts["data"]["samples"] == 40
    assert "fog at 5 (computed, seed=0)" in facts["conditions"]
    assert any("PGD(steps=4" in one for one in facts["conditions"])


def test_a_result_can_be_written_and_read(result: xr.DataTree, tmp_path: Any) -> None:
    pk.save_result(result, tmp_path / "robustness.nc")
    again = pk.open_result(tmp_path / "robustness.nc")
    xr.testing.assert_equal(again["layers"].to_dataset(), result["layers"].to_dataset())


def test_fewer_conditions_share_a_pass_when_memory_is_limited(
    result: xr.DataTree, trained: ImageModel, images: Data
) -> None:
    # A condition stores 8 (36 + 16 + 64) + 8 * 3 * 18 bytes in addition to 48 * 64: 4432 in total.
    found = robustness(trained, images, ["fog"], (1, 5), memory=4432, batch_size=16, progress=False)
    expected = result["layers"]["corruption_change_participation_ratio"].sel(corruption=["fog"])
    np.testing.assert_allclose(
        found["layers"]["corruption_change_participation_ratio"], expected, rtol=1e-12
    )


@pytest.mark.slow
def test_the_clean_images_run_once_if_their_activations_fit_into_memory(
    trained: ImageModel, images: Data
) -> None:
    def seen(memory: int) -> int:
        counts: list[int] = []
        hook = trained.module.register_forward_hook(lambda *given: counts.append(len(given[2])))
        options = {"severities": (1, 5), "memory": memory, "progress": False}
        robustness(trained, images, ["fog", "contrast"], **options)
        hook.remove()
        return sum(counts)

    clean = 40 * (2 * 2)  # bytes: less than a pass adds
    assert clean < 2**20
    assert seen(4432) - seen(2**30) == 40 * 4  # one clean pass before each of four conditions


def test_the_bundled_network_with_every_type_and_two_attacks() -> None:
    found = pk.robustness(
        "probekit:resnet20-fashion-mnist",
        "fashion-mnist",
        attacks=["fgsm", pk.PGD(steps=3)],
        severities=(1, 5),
        epsilons=[1 / 255, 8 / 255],
        layers="layer[13].2.relu2",
        limit=70,
        table=32,
        progress=False,
    )
    table = found["robustness"]
    assert table["clean_accuracy"] > 0.85
    assert (table["accuracy_by_severity"].diff("severity") < 0).all()
    assert (table["attack_accuracy"].diff("epsilon") < 0).all()
    fgsm, pgd = table["attack_accuracy"].isel(epsilon=1)
    assert float(pgd) < float(fgsm)
    ratio = found["layers"]["corruption_change_participation_ratio"]
    assert (ratio >= 1).all()
    assert (ratio <= found["layers"]["n_units"]).all()


class Knowing(torch.nn.Module):
    """Its output is the brightness of the image in quarters, one-hot."""

    def __init__(self) -> None:
        super().__init__()
        self.act = torch.nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        quarters = (self.act(images).mean((1, 2, 3)) * 4).long().clamp(0, 3)
        return torch.nn.functional.one_hot(quarters, 4).float()


def test_names_of_classes_follow_the_labels_of_the_data() -> None:
    """Also where labels have gaps, and where a mapping gives the output of each label."""

    class Gaps(Dataset[Any]):
        classes: ClassVar = {1: "b", 3: "d"}

        def __len__(self) -> int:
            return 40

        def __getitem__(self, number: int) -> Any:
            label = 1 + 2 * (number % 2)
            return torch.full((1, 32, 32), (label + 0.5) / 4), label

    model = ImageModel(Knowing(), input_size=(1, 32, 32), classes=("w", "x", "y", "z"))
    plain = [(torch.stack([Gaps()[n][0] for n in range(40)]), torch.arange(40) % 2)]
    for data, mapping, names in (
        (Gaps(), {"b": "x", "d": "z"}, ["b", "d"]),
        (plain, {0: 1, 1: 3}, ["x", "z"]),
    ):
        found = robustness(
            model, data, ["contrast"], 1, dimensionality=False, class_map=mapping, progress=False
        )["robustness"]
        assert found["class_name"].values.tolist() == names
        assert float(found["clean_accuracy"]) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_memory_of_clean_activations_is_that_of_their_tables(dtype: torch.dtype) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU()).to(dtype)
    options = PassOptions(progress=False)
    batches = Batches((torch.rand(10, 1, 6, 6), torch.arange(10) % 2), fit=fit_to(model))
    layers = find_layers(model, batches, None, options)
    with stream(model, batches, layers, [Activations()], options) as observed:
        needed = sum(table.nbytes for one in observed for table in one.tables[0].values())
    measurement = Measurement(model, batches, layers, False, False, 2**30, 2, ClassMatch(8))
    assert measurement._bytes_of_clean() == needed == 10 * 8 * 4


def test_few_images_per_class_are_reported() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1800, 2))
    images, labels = torch.rand(25, 1, 32, 32), torch.tensor([0] * 21 + [1] * 4)
    with pytest.warns(ProbekitWarning, match=r"1 of 2 classes .* 20 samples \(the fewest 4\)"):
        result = robustness(network, (images, labels), "contrast", 1, layers="1", progress=False)
    assert "1 of 2 classes have fewer than 20 samples" in result.attrs["notes"]
