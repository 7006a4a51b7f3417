"""The choice of corruptions, attacks, epsilons and measures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import xarray as xr

import probekit as pk
from probekit.analysis.robustness.robustness import robustness
from probekit.errors import OptionError, ProbekitWarning
from probekit.models.image_model import ImageModel
from probekit.perturbations.attacks.attack import Attack, AttackBatch, Candidates
from probekit.perturbations.attacks.balls import Ball, Norm
from probekit.perturbations.attacks.goals import Loss
from probekit.perturbations.corruptions.corruption import CORRUPTIONS
from robustness_by_hand import EPSILONS, Data


def test_pgd_that_stops_early_measures_the_change_after_all_steps(
    trained: ImageModel, images: Data
) -> None:
    both = robustness(
        trained,
        images,
        None,
        attacks=[pk.PGD(steps=4), pk.PGD(steps=4, keep="last")],
        epsilons=EPSILONS,
        progress=False,
    )
    change = both["layers"]["attack_change_participation_ratio"]
    np.testing.assert_array_equal(change.isel(attack=0), change.isel(attack=1))
    assert int(both["robustness"]["attack_unmoved"].sum()) == 0
    stopped = pk.PGD(steps=4).run(trained, *images, EPSILONS, check=False)
    assert both["robustness"]["attack_fooled"].values[0].tolist() == list(stopped.n_fooled)


@dataclass(frozen=True)
class Idle(Attack):
    """An attack that does nothing."""

    norm: Norm = "linf"
    steps: int = field(default=0, init=False)
    targeted: bool = field(default=False, init=False)
    loss: Loss = field(default="cross_entropy", init=False)

    name: ClassVar[str] = "idle"

    def search(self, batch: AttackBatch, ball: Ball, epsilon: float) -> Candidates:
        return Candidates.clean(batch, self.steps)


def test_an_attack_that_moves_few_images_warns(trained: ImageModel, images: Data) -> None:
    options: dict[str, Any] = {"layers": ["7"], "progress": False}
    with pytest.warns(ProbekitWarning, match="idle left up to 40 of 40 images"):
        found = robustness(trained, images, None, attacks=Idle(), epsilons=[0.0, 0.1], **options)
    assert found["robustness"]["attack_unmoved"].values.tolist() == [[40, 40]]
    assert "attack_accuracy_by_step" not in found["robustness"]
    assert (found["layers"]["attack_change_participation_ratio"] == 0).all()
    robustness(trained, images, None, attacks="fgsm", epsilons=0.0, **options)


def test_each_attack_can_have_its_own_epsilons(trained: ImageModel, images: Data) -> None:
    found = robustness(
        trained,
        images,
        None,
        attacks=["fgsm", pk.PGD(steps=2, norm="l2")],
        epsilons={"fgsm": [0.1], "pgd": [0.5, 2.0]},
        progress=False,
    )
    accuracy = found["robustness"]["attack_accuracy"]
    assert accuracy.isnull().values.tolist() == [[False, True, True], [True, False, False]]
    kept = found["units"]["attack_preferred_class_kept"]
    assert kept.dtype == float
    assert kept.isel(unit=0).isnull().values.tolist() == accuracy.isnull().values.tolist()


def test_a_targeted_attack_counts_images_that_reach_their_target(
    trained: ImageModel, images: Data
) -> None:
    attack = pk.PGD(steps=3, targeted=True)
    found = robustness(
        trained, images, None, attacks=attack, epsilons=0.5, layers=["7"], progress=False
    )["robustness"]
    attacked = attack.run(trained, *images, 0.5, check=False)
    assert found["attack_fooled"].values.item() == attacked.n_fooled[0]
    assert "attack_accuracy_by_step" not in found


def test_without_layers_only_outcomes_are_measured(
    result: xr.DataTree, trained: ImageModel, images: Data
) -> None:
    found = robustness(
        trained,
        images,
        ["fog"],
        (1, 5),
        dimensionality=False,
        selectivity=False,
        progress=False,
    )
    assert set(found.children) == {"robustness"}
    expected = result["robustness"]["accuracy"].sel(corruption=["fog"])
    np.testing.assert_array_equal(found["robustness"]["accuracy"], expected)


@pytest.mark.parametrize(
    ("options", "there", "absent"),
    [
        ({"dimensionality": False}, "corruption_selectivity_mean", "participation_ratio"),
        (
            {"selectivity": False},
            "corruption_change_participation_ratio",
            "corruption_selectivity_mean",
        ),
    ],
)
def test_parts_can_be_omitted(
    options: dict[str, bool], there: str, absent: str, trained: ImageModel, images: Data
) -> None:
    found = robustness(trained, images, "fog", 3, **options, progress=False)  # type: ignore[arg-type]
    assert there in found["layers"]
    assert absent not in found["layers"]
    assert "corruption_change_size" in found["units"]


def test_means_are_over_the_standard_types(trained: ImageModel, images: Data) -> None:
    found = robustness(
        trained, images, ["fog", "contrast", "saturate"], (2, 4), selectivity=False, layers=["7"],
        progress=False,
    )["robustness"]  # fmt: skip
    accuracy = found["accuracy"].values
    assert found["accuracy_mean"] == pytest.approx(accuracy[:2].mean())
    assert found["accuracy_by_corruption"].values == pytest.approx(accuracy.mean(1))
    assert found["accuracy_by_severity"].values == pytest.approx(accuracy[:2].mean(0))
    assert found["accuracy_relative_mean"] == pytest.approx(
        accuracy[:2].mean() / float(found["clean_accuracy"])
    )


def test_all_selects_the_fifteen_types_and_extra_the_other_four(
    trained: ImageModel, images: Data
) -> None:
    options: dict[str, Any] = {
        "severities": 1, "selectivity": False, "dimensionality": False, "limit": 4,
    }  # fmt: skip
    x, y = images
    found = robustness(trained, (x, y), ["all", "extra"], **options, progress=False)
    names = found["robustness"]["corruption"].values.tolist()
    assert names[:15] == list(CORRUPTIONS)
    assert names[15:] == ["speckle_noise", "gaussian_blur", "spatter", "saturate"]


def test_an_unlisted_image_size_uses_the_nearest_table_and_warns(
    model: ImageModel, images: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probekit.perturbations.corruptions.corruption._sizes_reported", set())
    small = (images[0][:, :, :8, :8].clone(), images[1])
    options: dict[str, Any] = {"layers": ["4"], "progress": False}
    with pytest.warns(ProbekitWarning, match="those for 32 are used"):
        nearest = robustness(model, small, "contrast", 1, **options)
    other, same = (
        robustness(model, small, "contrast", 1, table=table, **options) for table in (64, 32)
    )
    sizes = [one["units"]["corruption_change_size"].values for one in (nearest, same, other)]
    assert (sizes[0] == sizes[1]).all()
    assert (sizes[1] != sizes[2]).any()
    with pytest.raises(OptionError, match="table must be 32, 64 or 224, not 48"):
        robustness(model, small, "contrast", 1, table=48, **options)


def test_missing_frost_is_omitted_from_all_but_refused_by_name(
    trained: ImageModel, images: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> None:
        raise OptionError("frost photographs are not installed")

    from probekit.perturbations.corruptions import weather

    weather.frost_photographs.cache_clear()
    monkeypatch.setattr("probekit.perturbations.corruptions.weather._frost_files", absent)
    options: dict[str, Any] = {"severities": 1, "layers": ["7"], "limit": 4, "progress": False}
    with pytest.warns(ProbekitWarning, match="frost is left out"):
        found = robustness(trained, images, "all", dimensionality=False, **options)
    assert found["robustness"].sizes["corruption"] == 14
    with pytest.raises(OptionError, match="not installed"):
        robustness(trained, images, "frost", **options)
