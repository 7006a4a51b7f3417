"""Training runs: the files that they write, and equality with a plain loop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

import probekit as pk
from children import Child, launched
from probekit.errors import ProbekitWarning
from probekit.models.architectures import ARCHITECTURES
from probekit.runtime.randomness import key
from probekit.training.run.directory import read_log, read_run
from probekit.training.run.minibatches import Minibatches, load_run_data, stream_name
from probekit.training.run.recipes import get_recipe
from quick_runs import CPU, QUICK, quick, same, timeless, weights


def test_a_run_writes_a_model_that_loads(baseline: Any) -> None:
    model = pk.load_model(baseline.folder)
    data = pk.load_data("digits", split="test")
    with torch.no_grad():
        logits = model(data.images / 255)
    accuracy = float((logits.argmax(1) == data.labels).double().mean())
    assert baseline.test_accuracy == pytest.approx(accuracy, abs=1e-12)
    assert model.classes == data.classes
    assert model.provenance["recipe"]["limit"] == 96


def test_selectivity_is_that_of_the_best_epoch_on_the_test_split(baseline: Any) -> None:
    model = pk.load_model(baseline.folder)
    data = pk.load_data("digits", split="test")
    maps: dict[str, np.ndarray] = {}
    for name, module in model.module.named_modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(
                lambda _m, _i, output, name=name: maps.update(
                    {name: output.double().numpy().copy()}
                )
            )
    with torch.no_grad():
        model(data.images / 255)
    assert list(baseline.selectivity) == list(maps)
    for name, activation in maps.items():
        pooled = activation.mean((2, 3))
        means = np.array([pooled[data.labels.numpy() == label].mean(0) for label in range(10)])
        highest = means.max(0)
        rest = (means.sum(0) - highest) / 9
        index = (highest - rest) / (highest + rest + 1e-6)
        assert baseline.selectivity[name] == pytest.approx(index.mean(), abs=1e-5)
        assert baseline.dead_units[name] == (means == 0).all(0).sum()
    mean = np.mean(list(baseline.selectivity.values()))
    assert baseline.selectivity_mean == pytest.approx(mean)


def test_the_log_has_one_record_per_epoch(baseline: Any) -> None:
    log = baseline.log
    assert log["epoch"].tolist() == [0, 1]
    assert (log[["loss", "seconds", "images_per_second"]] > 0).all(axis=None)
    assert (log["alpha"] == 0).all()
    assert log["batch_selectivity"].isna().all()
    layers = [name for name in log if name.startswith("selectivity/")]
    assert len(layers) == 7
    assert log[layers].mean(axis=1).to_numpy() == pytest.approx(log["selectivity_mean"].to_numpy())
    best = log.loc[baseline.best_epoch, "validation_accuracy"]
    assert best == log["validation_accuracy"].max()
    assert best == pytest.approx(
        baseline.validation_accuracy, rel=1e-14
    )  # pandas 2 reads 16 digits
    assert len(list(baseline.folder.glob("best-*.safetensors"))) == 1


def _by_hand(alpha: float, seed: int) -> dict[str, Tensor]:
    """A textbook training loop with the same images in the same order."""
    options = {name: x for name, x in QUICK.items() if name not in ("device", "progress")}
    recipe = get_recipe("resnet20-digits", **options)
    data = load_run_data(recipe, seed, None, 0)
    torch.manual_seed(key(stream_name(seed, "initialization")) % 2**63)
    network = ARCHITECTURES["resnet8"](classes=10, channels=1)
    batches = Minibatches(data.train, recipe, seed, CPU)
    optimizer = torch.optim.SGD(
        network.parameters(), recipe.learning_rate, momentum=0.9, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, 2 * batches.steps, pct_start=0.2, cycle_momentum=False
    )
    penalty = pk.SelectivityRegularizer(network, alpha) if alpha else None
    for epoch in range(2):
        network.train()
        for _, images, labels in batches.epoch(epoch):
            loss = functional.cross_entropy(network(images), labels)
            if penalty is not None:
                loss = loss + penalty(labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    if penalty is not None:
        penalty.close()
    return network.state_dict()


@pytest.mark.parametrize("alpha", [0.0, -2.0])
def test_training_equals_the_plain_loop(tmp_path: Path, alpha: float) -> None:
    quick(tmp_path / "run", alpha, seed=3)
    found, expected = weights(tmp_path / "run"), _by_hand(alpha, 3)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


def test_the_seed_determines_everything(tmp_path: Path, baseline: Any) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = quick(tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), before)
    assert same(weights(again.folder), weights(baseline.folder))
    assert timeless(again.folder) == timeless(baseline.folder)
    other = quick(tmp_path / "other", seed=1)
    assert not same(weights(other.folder), weights(baseline.folder))


def test_alpha_changes_selectivity(tmp_path: Path) -> None:
    options = {"epochs": 3, "limit": 512, "batch_size": 64}
    low, high = (quick(tmp_path / f"{a}", alpha=a, **options) for a in (-20.0, 20.0))
    assert low.selectivity_mean < high.selectivity_mean - 0.05
    assert low.log["batch_selectivity"].iloc[-1] < high.log["batch_selectivity"].iloc[-1]


def test_without_validation_the_last_epoch_is_stored(tmp_path: Path) -> None:
    run = quick(tmp_path / "run", validation=0, precision="bfloat16", channels_last=True, alpha=1.0)
    assert (run.best_epoch, run.validation_accuracy) == (1, None)
    best = load_file(tmp_path / "run" / "best-0001.safetensors")
    assert same(best, weights(tmp_path / "run"))
    assert all(tensor.dtype != torch.bfloat16 for tensor in best.values())
    assert run.log["selectivity_mean"].notna().all()
    assert run.log["validation_accuracy"].isna().all()


def test_the_precision_of_accelerate_launch_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    for name, asked, found in (("a", None, "bfloat16"), ("b", "float32", "float32")):
        run = quick(tmp_path / name, precision=asked, epochs=1)
        assert json.loads((run.folder / "model.json").read_text())["recipe"]["precision"] == found


@pytest.mark.parametrize(("processor", "found"), [("AVX512", "bfloat16"), ("AVX2", "float32")])
def test_the_processor_determines_the_precision_of_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processor: str, found: str
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    run = quick(tmp_path, precision="auto", epochs=1)
    assert json.loads((run.folder / "model.json").read_text())["recipe"]["precision"] == found
    assert get_recipe("resnet20-cifar10-short").on(torch.device("cpu")).precision == found


def test_alpha_follows_its_schedule(tmp_path: Path) -> None:
    run = quick(tmp_path / "run", alpha_schedule="0*1 -20*15", layers=["last:3"], epochs=3)
    assert run.log["alpha"].tolist() == [0, -20, -20]
    assert run.alpha is None
    assert run.alpha_schedule == "0*1 -20*15"
    assert run.log["batch_selectivity"].isna().tolist() == [True, False, False]


def _write_folder(root: Path) -> None:
    chance = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 5)):
        for name, gray in (("dark", 40), ("light", 180)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = chance.integers(gray, gray + 40, (8, 8)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_folder_of_images_trains_the_same_with_any_number_of_workers(tmp_path: Path) -> None:
    _write_folder(tmp_path / "images")
    options = {"data": str(tmp_path / "images"), "validation": 8, "batch_size": 16}
    runs = [quick(tmp_path / f"{n}", workers=n, **options) for n in (0, 1, 8)]
    assert all(same(weights(run.folder), weights(runs[0].folder)) for run in runs)
    assert len(pk.load_model(runs[0].folder).classes) == 2


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path: Path, start: Callable[..., Child]) -> None:
    out = tmp_path / "run"
    code = f"import probekit as pk\npk.train('resnet20-digits', -1.0, 0, {str(out)!r}, **{QUICK!r})"
    for child in [start(code=code, environment=one) for one in launched(2)]:
        status, printed, errors = child.wait()
        assert status == 0, printed + errors
    run = read_run(out)
    assert run is not None
    assert run.log["epoch"].tolist() == [0, 1]
    assert run.log["batch_selectivity"].between(0, 1).all()
    model = pk.load_model(out)
    test = pk.load_data("digits", split="test")
    validation = load_run_data(get_recipe("resnet20-digits", limit=96), 0, None, 0).validation
    for data, told in ((test, run.test_accuracy), (validation, run.validation_accuracy)):
        with torch.no_grad():
            hits = model(data.images / 255).argmax(1) == data.labels
        assert float(hits.double().mean()) == pytest.approx(told, abs=1e-9)
    selectivity = pk.analyze(model, validation, progress=False)["layers"]["selectivity_mean"]
    logged = read_log(out / "log.jsonl")[run.best_epoch]["selectivity"]
    assert selectivity.values == pytest.approx(list(logged.values()), abs=1e-6)


def test_unfinished_runs_and_other_weights_are_reported(tmp_path: Path, baseline: Any) -> None:
    folder = Path(shutil.copytree(baseline.folder, tmp_path / "run"))
    (best,) = folder.glob("best-*.safetensors")
    save_file({name: 2 * value for name, value in load_file(best).items()}, best)
    with pytest.warns(ProbekitWarning, match="are not those that model.json describes"):
        pk.load_model(folder)
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**card, "finished": False}))
    with pytest.warns(ProbekitWarning, match="has not ended; these are the weights of its best"):
        pk.load_model(folder)
