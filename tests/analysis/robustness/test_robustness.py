"""Robustness results compared with handwritten loops over the same perturbed images."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import probekit as pk
from probekit.analysis.robustness.robustness import robustness
from probekit.errors import DataError, LayerError, ModelError, OptionError, ProbekitWarning
from probekit.models.image_model import ImageModel
from probekit.perturbations.attacks.attack import Attack, Batch, Candidates
from probekit.perturbations.attacks.balls import Ball, Norm
from probekit.perturbations.attacks.goals import Loss
from probekit.perturbations.corruptions.corruption import CORRUPTIONS

LAYERS = ["2", "4", "7"]
EPSILONS = [2 / 255, 16 / 255]
Array = np.ndarray[Any, Any]
Data = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def images() -> Data:
    """40 images of 32 px in three classes, each with its own bright region."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(40) % 3
    images = torch.rand(40, 1, 32, 32, generator=generator) * 0.8
    for number, label in enumerate(labels.tolist()):
        images[number, :, 10 * label : 10 * label + 10] += 0.15
    return images, labels


@pytest.fixture(scope="module")
def learned(images: Data) -> nn.Module:
    """Three nonlinearities on 32 px gray images, trained briefly on these images."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 4, 3, stride=4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 64, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )
    x, y = images
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(12):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net((x - 0.3) / 0.5), y, label_smoothing=0.2).backward()
        optimizer.step()
    optimizer.zero_grad()
    return net


@pytest.fixture
def net(learned: nn.Module) -> nn.Module:
    """An independent copy of the network."""
    return deepcopy(learned)


@pytest.fixture
def trained(net: nn.Module) -> ImageModel:
    """The same network as an image model."""
    return ImageModel(net, (0.3,), (0.5,), (1, 32, 32), ("a", "b", "c"))


def look(model: ImageModel, images: Tensor) -> tuple[Tensor, dict[str, Array]]:
    """Predictions, and activations pooled over positions, from plain hooks."""
    kept: dict[str, Array] = {}
    modes = {part: part.training for part in model.module.modules()}
    model.module.eval()
    handles = [
        model.module[int(name)].register_forward_hook(
            lambda m, i, out, name=name: kept.__setitem__(name, out.clone().double().numpy())
        )
        for name in LAYERS
    ]
    with torch.no_grad():
        prediction = model(images).argmax(1)
    for handle in handles:
        handle.remove()
    for part, mode in modes.items():
        part.training = mode
    return prediction, {
        name: maps.reshape(*maps.shape[:2], -1).mean(2) for name, maps in kept.items()
    }


def index_by_hand(table: Array, labels: Array) -> tuple[list[float], list[int]]:
    """Selectivity index and preferred class of each unit; 0 and -1 where it is dead."""
    index, preferred = [], []
    for unit in range(table.shape[1]):
        means = [table[labels == c, unit].mean() for c in range(3)]
        best = int(np.argmax(means))
        rest = (sum(means) - means[best]) / 2
        index.append((means[best] - rest) / (means[best] + rest + 1e-6))
        preferred.append(best if max(means) > 0 else -1)
    return index, preferred


def participation_by_hand(table: Array) -> float:
    values = np.linalg.eigvalsh(np.atleast_2d(np.cov(table.T)))
    return float(values.sum() ** 2 / (values**2).sum()) if values.any() else 0.0


def components_by_hand(table: Array, share: float) -> int:
    values = np.sort(np.linalg.eigvalsh(np.atleast_2d(np.cov(table.T))))[::-1].clip(min=0)
    explained = np.cumsum(values) / values.sum() if values.sum() else np.ones(1)
    return int(np.argmax(explained >= share - 1e-12)) + 1 if values.sum() else 0


@pytest.fixture(scope="module")
def result(learned: nn.Module, images: Data) -> xr.DataTree:
    return robustness(
        ImageModel(learned, (0.3,), (0.5,), (1, 32, 32), ("a", "b", "c")),
        images,
        ["fog", "gaussian_noise"],
        (1, 5),
        ["fgsm", pk.PGD(steps=4, keep="last")],
        EPSILONS,
        batch_size=16,
        progress=False,
    )


def conditions(model: ImageModel, data: Data) -> dict[tuple[str, str, float], tuple[Tensor, Any]]:
    """The images of every condition, and the result that the attack itself reports."""
    x, y = data
    found: dict[tuple[str, str, float], tuple[Tensor, Any]] = {}
    for name in ("fog", "gaussian_noise"):
        for severity in (1, 5):
            found["corruption", name, severity] = (pk.corrupt(x, name, severity), None)
    for label, attack in (
        ("fgsm", pk.FGSM()),
        ("pgd(steps=4, keep=last)", pk.PGD(steps=4, keep="last")),
    ):
        attacked = attack.run(model, x, y, EPSILONS, check=False)
        for number, epsilon in enumerate(EPSILONS):
            found["attack", label, epsilon] = (attacked.images[number], attacked)
    return found


AXES = {"corruption": ("corruption", "severity"), "attack": ("attack", "epsilon")}


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

    def search(self, batch: Batch, ball: Ball, epsilon: float) -> Candidates:
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


def test_the_model_is_restored(trained: ImageModel, images: Data) -> None:
    module = trained.module.train()
    module[1].eval()
    module[3].weight.requires_grad_(False)
    before = {name: values.clone() for name, values in module.state_dict().items()}
    robustness(trained, images, "fog", 1, "fgsm", 0.01, progress=False)
    assert all(torch.equal(values, before[name]) for name, values in module.state_dict().items())
    assert [part.training for part in module] == [True, False, *[True] * 7]
    wanted = [parameter.requires_grad for parameter in module.parameters()]
    assert wanted == [True, True, True, True, False, True, True, True, True, True]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_plain_module_and_a_loader_are_accepted(trained: ImageModel, images: Data) -> None:
    loader = DataLoader(TensorDataset(*images), batch_size=10)
    found = robustness(trained.module, loader, "fog", 1, progress=False)
    clean = pk.analyze(trained.module, loader, progress=False)
    np.testing.assert_array_equal(found["units"]["selectivity"], clean["units"]["selectivity"])


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


class Detached(nn.Module):
    """Logits that autograd cannot follow."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images.detach())
        return logits.detach()


REFUSED = [
    ({"corruptions": "fgo"}, OptionError, "close matches: fog"),
    ({"corruptions": ["fog", "no"]}, OptionError, "'no'"),
    ({"corruptions": None}, OptionError, "neither corruptions nor attacks"),
    ({"severities": 6}, OptionError, "severity must be .* not 6"),
    ({"severities": ()}, OptionError, "none was given"),
    ({"attacks": "fgms"}, OptionError, "close matches: fgsm"),
    ({"attacks": ["fgsm", "fgsm"]}, OptionError, "twice"),
    ({"attacks": "fgsm", "epsilons": 8}, OptionError, "8/255"),
    ({"attacks": "fgsm", "epsilons": {"pgd": 0.1}}, OptionError, "no epsilons are given"),
    ({"attacks": "fgsm", "epsilons": {"fgsm": 0.1, "pg": 0.1}}, OptionError, "'pg'"),
    ({"layers": "8.no"}, LayerError, "8.no"),
    ({"memory": 4431}, OptionError, "memory=4431"),
    ({"reference": 3}, OptionError, "int"),
]


@pytest.mark.parametrize(("options", "error", "words"), REFUSED)
def test_mistakes_are_reported_before_anything_runs(
    options: dict[str, Any],
    error: type[Exception],
    words: str,
    trained: ImageModel,
    images: Data,
    tmp_path: Any,
) -> None:
    given = {"corruptions": "fog", "severities": 1} | options
    with pytest.raises(error, match=words.replace("(", r"\(")) as caught:
        robustness(trained, images, **given, progress=False)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:images lie from:probekit.errors.ProbekitWarning")
@pytest.mark.parametrize(
    ("scale", "shift", "words"), [(255, 0, "divide"), (1, -0.5, "normalization")]
)
@pytest.mark.parametrize("options", [{"corruptions": "fog"}, {"attacks": "fgsm"}])
def test_images_out_of_range_are_refused(
    scale: float, shift: float, words: str, options: Any, net: nn.Module, images: Data
) -> None:
    data = [(images[0] * scale + shift, images[1])]
    with pytest.raises(DataError, match=words):
        robustness(net.eval(), data, **{"corruptions": None, **options}, progress=False)


def test_bytes_are_accepted_by_an_image_model_and_refused_for_a_module(
    trained: ImageModel, images: Data
) -> None:
    pixels = (images[0] * 255).to(torch.uint8)
    found = robustness(trained, [(pixels, images[1])], "fog", 1, progress=False)
    expected = robustness(trained, [(pixels / 255, images[1])], "fog", 1, progress=False)
    xr.testing.assert_equal(found["robustness"].to_dataset(), expected["robustness"].to_dataset())
    with pytest.raises(DataError, match=r"uint8.*\.float\(\) / 255"):
        robustness(trained.module, [(pixels, images[1])], "fog", progress=False)


def test_a_model_without_gradients_cannot_be_attacked(trained: ImageModel, images: Data) -> None:
    model = ImageModel(Detached(trained.module), (0.3,), (0.5,), (1, 32, 32))
    with pytest.raises(ModelError, match="no gradient"):
        robustness(model, images, None, attacks="fgsm", progress=False)
    assert robustness(model, images, "fog", 1, progress=False)["robustness"]["accuracy"].size == 1


def test_data_that_can_be_iterated_only_once_is_refused(trained: ImageModel, images: Data) -> None:
    with pytest.raises(DataError, match="once"):
        robustness(trained, iter([images]), "fog", progress=False)


def test_a_loader_that_shuffles_gives_the_same_images_under_every_condition(
    trained: ImageModel, images: Data
) -> None:
    loader = DataLoader(TensorDataset(*images), batch_size=10, shuffle=True)
    found = robustness(trained, loader, "fog", 1, progress=False)
    expected = robustness(trained, images, "fog", 1, batch_size=10, progress=False)
    xr.testing.assert_allclose(found["layers"].to_dataset(), expected["layers"].to_dataset())


def test_labels_that_do_not_match_the_model_are_refused(trained: ImageModel, images: Data) -> None:
    with pytest.raises(DataError, match="label 3 is beyond the model's 3 outputs"):
        robustness(trained, [(images[0], images[1] + 1)], "fog", 1, progress=False)


def test_an_output_that_is_not_logits_is_refused(trained: ImageModel, images: Data) -> None:
    with pytest.raises(ModelError, match="logits"):
        robustness(trained.module[:5], images, "fog", 1, layers=["2"], progress=False)


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
def test_the_bundled_network_with_every_type_and_two_attacks() -> None:
    found = pk.robustness(
        "probekit:resnet20-fashion-mnist",
        "fashion-mnist",
        attacks=["fgsm", pk.PGD(steps=5)],
        severities=(1, 5),
        epsilons=[1 / 255, 8 / 255],
        limit=200,
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
