"""Training runs: the files that they write, and that interruptions lose nothing."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import probekit as pk
from probekit.errors import (
    DataError,
    LayerError,
    ModelError,
    OptionError,
    OutputError,
    ProbekitError,
)
from probekit.models.architectures import ARCHITECTURES
from probekit.results.folders import locked
from probekit.runtime.randomness import key
from probekit.training.run.directory import read_checkpoint, read_run, write_checkpoint
from probekit.training.run.log import read_log
from probekit.training.run.loop import TrainingLoop
from probekit.training.run.minibatches import Minibatches, hold_out, load_run_data, stream_name
from probekit.training.run.recipes import get_recipe

QUICK: dict[str, Any] = {
    "epochs": 2,
    "architecture": "resnet8",
    "limit": 96,
    "batch_size": 32,
    "device": "cpu",
    "progress": False,
}
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def quick(out: Path, alpha: float = 0.0, seed: int = 0, **options: Any) -> Any:
    return pk.train("resnet20-digits", alpha, seed, out, **{**QUICK, **options})


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "final.safetensors")


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def timeless(folder: Path) -> list[dict[str, Any]]:
    clocks = ("seconds", "images_per_second")
    return [
        {name: value for name, value in record.items() if name not in clocks}
        for record in read_log(folder / "log.jsonl")
    ]


@pytest.fixture(scope="module")
def baseline(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return quick(tmp_path_factory.mktemp("runs") / "baseline")


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
    assert best == log["validation_accuracy"].max() == baseline.validation_accuracy
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


def _cut_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Interrupts the training loop after the given number of steps."""
    step = TrainingLoop._train_step
    left = [steps]

    def counted(self: Any, *args: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        step(self, *args)

    monkeypatch.setattr(TrainingLoop, "_train_step", counted)


@pytest.mark.parametrize(
    ("alpha", "minutes", "cuts"),
    [(0.0, 10.0, (2, 4)), (-1.0, 0.0, (1, 1, 2)), (-1.0, 10.0, (3, 0))],
)
def test_an_interrupted_run_ends_bitwise_equal_to_an_uninterrupted_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    baseline: Any,
    alpha: float,
    minutes: float,
    cuts: tuple[int, ...],
) -> None:
    whole = baseline if alpha == 0 else quick(tmp_path / "whole", alpha)
    for cut in cuts:
        with monkeypatch.context() as patch:
            _cut_after(patch, cut)
            with pytest.raises(KeyboardInterrupt):
                quick(tmp_path / "cut", alpha, checkpoint_minutes=minutes)
    run = quick(tmp_path / "cut", alpha, checkpoint_minutes=minutes)
    assert same(weights(run.folder), weights(whole.folder))
    assert timeless(run.folder) == timeless(whole.folder)
    assert (run.best_epoch, run.test_accuracy) == (whole.best_epoch, whole.test_accuracy)
    last, plain = (read_checkpoint(r.folder / "last.safetensors")[0] for r in (run, whole))
    assert same(last, plain)


@pytest.mark.slow
def test_a_run_that_fails_at_any_write_resumes_without_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, baseline: Any
) -> None:
    replace = os.replace
    number, deadly = 0, 0

    def dying(*args: Any) -> None:
        nonlocal number
        number += 1
        if number == deadly:
            raise KeyboardInterrupt
        replace(*args)

    monkeypatch.setattr(os, "replace", dying)
    quick(tmp_path / "counted")
    writes = number
    assert writes >= 8
    for deadly in range(1, writes + 1):
        out, number = tmp_path / f"{deadly}", 0
        with pytest.raises(KeyboardInterrupt):
            quick(out)
        if (out / "model.json").exists():
            pk.load_model(out)
        number = -1000
        run = quick(out)
        assert same(weights(out), weights(baseline.folder)), deadly
        assert timeless(out) == timeless(baseline.folder), deadly
        assert (run.best_epoch, run.selectivity) == (baseline.best_epoch, baseline.selectivity)
        files = {path.name for path in out.iterdir()}
        assert files == {path.name for path in baseline.folder.iterdir()}, deadly


LONG = {**QUICK, "epochs": 3, "limit": 128, "checkpoint_minutes": 0.0}


def _start(processes: Any, out: Path) -> Any:
    process = processes.Process(
        target=pk.train, args=("resnet20-digits", -1.0, 0, out), kwargs=LONG, daemon=True
    )
    process.start()
    return process


def _wait_for_checkpoints(process: Any, out: Path, count: int) -> None:
    """Waits until a run has written `count` more checkpoints."""
    file, seen, number = out / "last.safetensors", 0, None
    while process.is_alive() and seen < count:
        try:
            found = file.stat().st_ino
        except OSError:
            found = None
        seen += found is not None and found != number and number is not None
        number = found if found is not None else 0
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kills and limits processes as Linux does")
def test_a_repeatedly_killed_run_ends_bitwise_equal(tmp_path: Path, processes: Any) -> None:
    whole = _start(processes, tmp_path / "whole")
    chance = random.Random(0)
    kills = 0
    out = tmp_path / "killed"
    for attempt in range(5):
        process = _start(processes, out)
        _wait_for_checkpoints(process, out, 1 + (attempt == 2))
        time.sleep(chance.random() * 0.05)
        process.kill()
        process.join()
        kills += process.exitcode == -9
    assert kills >= 4
    assert read_run(out) is None
    for process in (whole, _start(processes, out)):
        process.join()
        assert process.exitcode == 0
    assert same(weights(out), weights(tmp_path / "whole"))
    assert timeless(out) == timeless(tmp_path / "whole")
    assert not list(out.glob(".draft-*"))
    run, other = read_run(out), read_run(tmp_path / "whole")
    assert run is not None
    assert other is not None
    assert (run.best_epoch, run.selectivity) == (other.best_epoch, other.selectivity)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kills and limits processes as Linux does")
def test_a_full_disk_keeps_the_old_checkpoint_complete(tmp_path: Path, processes: Any) -> None:
    out = tmp_path / "run"
    process = _start(processes, out)
    _wait_for_checkpoints(process, out, 2)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, 4096))
    process.join()
    assert process.exitcode == 1
    _, facts = read_checkpoint(out / "last.safetensors")
    assert facts["place"]["epoch"] * 4 + facts["place"]["step"] >= 2
    assert not list(out.glob(".draft-*"))
    process = _start(processes, out)
    process.join()
    assert process.exitcode == 0
    finished = read_run(out)
    assert finished is not None
    assert len(finished.log) == 3


def test_divergence_names_epoch_step_and_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        ProbekitError, match=r"not finite in epoch 0, step \d.*there is no checkpoint"
    ):
        quick(tmp_path / "at once", alpha=1e38)
    out = tmp_path / "later"
    with pytest.raises(ProbekitError, match=r"epoch 1, step \d.*last\.safetensors'") as caught:
        quick(out, alpha_schedule="0*1 1e38")
    assert "alpha 1e+38" in str(caught.value)
    tensors, facts = read_checkpoint(out / "last.safetensors")
    assert facts["place"]["epoch"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert len(read_log(out / "log.jsonl")) == 1
    assert pk.load_model(out).classes[3] == "3"


def test_weights_that_diverge_in_the_last_step_are_detected(tmp_path: Path) -> None:
    with pytest.raises(ProbekitError, match="not finite in epoch 0, step 0"):
        quick(tmp_path / "run", learning_rate=3e38, epochs=1, limit=32, rise=1.0)


OTHER: list[tuple[dict[str, Any], str]] = [
    ({"seed": 1}, "seed 0, not 1"),
    ({"alpha": -1.0}, "alpha_schedule '0', not '-1'"),
    ({"epochs": 3}, "epochs 2, not 3"),
    ({"layers": "layer1.*"}, "layers None, not"),
    ({"weight_decay": 0.0}, r"weight_decay 0\.0005, not 0\.0"),
    ({"precision": "bfloat16"}, "precision 'float32', not 'bfloat16'"),
]


@pytest.mark.parametrize(("options", "message"), OTHER)
def test_the_folder_of_another_run_is_refused(
    baseline: Any, options: dict[str, Any], message: str
) -> None:
    before = sorted((path.name, path.stat().st_mtime_ns) for path in baseline.folder.iterdir())
    with pytest.raises(OutputError, match=f"holds a run with {message}"):
        quick(baseline.folder, **options)
    after = sorted((path.name, path.stat().st_mtime_ns) for path in baseline.folder.iterdir())
    assert before == after


def test_the_folder_of_another_recipe_is_refused(baseline: Any) -> None:
    with pytest.raises(OutputError, match=r"recipe name 'resnet20-digits', not 'vgg16-cifar10'"):
        pk.train("vgg16-cifar10", out=baseline.folder)


def test_a_folder_with_unrelated_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"no training run and not empty \(it holds thesis"):
        quick(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(OutputError, match="cannot be written: Not a directory"):
        quick(tmp_path / "thesis.tex" / "run")


def test_a_finished_run_is_returned_immediately(
    baseline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("a finished run needs no data")

    monkeypatch.setattr("probekit.training.run.train.load_run_data", never)
    assert quick(baseline.folder) == baseline


def test_two_processes_cannot_share_a_folder(baseline: Any) -> None:
    with (
        locked(baseline.folder / "run.json"),
        pytest.raises(OutputError, match="is being written by another process"),
    ):
        quick(baseline.folder)


def test_resuming_with_other_images_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _cut_after(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            quick(tmp_path / "run")
    path = tmp_path / "run" / "last.safetensors"
    tensors, facts = read_checkpoint(path)
    write_checkpoint(path, tensors, {**facts, "data": "sha256:of other images"})
    with pytest.raises(OutputError, match="begun with other training images"):
        quick(tmp_path / "run")


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")]
)
def test_an_out_of_memory_error_says_what_to_reduce(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*args: Any) -> None:
        raise error

    monkeypatch.setattr(TrainingLoop, "_train_step", full)
    with pytest.raises(ProbekitError, match=r"batch_size=32.*lower batch_size, or use precision"):
        quick(tmp_path / "run")


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"alpha": float("nan")}, OptionError, "alpha must be a finite number"),
    ({"alpha": "low"}, OptionError, "alpha must be a finite number"),
    ({"alpha": True}, OptionError, "alpha must be a finite number"),
    ({"seed": -1}, OptionError, "seed must be an integer from 0"),
    ({"seed": 0.5}, OptionError, "seed must be an integer from 0"),
    ({"workers": -1}, OptionError, "workers must be an integer from 0"),
    ({"checkpoint_minutes": -1.0}, OptionError, "checkpoint_minutes"),
    ({"alpha": 1.0, "alpha_schedule": "0*1 -1"}, OptionError, "exclude each other"),
    ({"alpha_schedule": "0*1 minus"}, OptionError, "'minus' in the alpha schedule"),
    ({"layers": [nn.ReLU]}, OptionError, "names or globs"),
    ({"layers": "layr1", "alpha": 1.0}, LayerError, "no layer is named 'layr1'"),
    ({"device": "gpu0"}, ModelError, "device 'gpu0' cannot be used here"),
    ({"precision": "float16"}, OptionError, "trains on a GPU only"),
    ({"validation": 1437}, OptionError, "leaves nothing to train on"),
    ({"validation": 15, "stratified": True}, OptionError, "not a multiple of the 10 classes"),
    ({"batchsize": 4}, OptionError, "no option 'batchsize'; close matches: batch_size"),
    ({"input_size": (3, 8, 8)}, OptionError, "one number for each of 3 channels"),
    ({"input_size": (1, 16, 16)}, DataError, "is for images of"),
    ({"data": "digit"}, DataError, "close matches: digits"),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD)
def test_an_invalid_option_is_reported(
    tmp_path: Path, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        quick(tmp_path / "run", **options)


def test_a_missing_data_file_is_named_before_training(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cifar10 is not in .*data_batch_1"):
        pk.train("resnet20-cifar10", out=tmp_path / "run", data_root=tmp_path, device="cpu")


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
        for name, grey in (("dark", 40), ("light", 180)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = chance.integers(grey, grey + 40, (8, 8)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_folder_of_images_trains_the_same_with_any_number_of_workers(tmp_path: Path) -> None:
    _write_folder(tmp_path / "images")
    options = {"data": str(tmp_path / "images"), "validation": 8, "batch_size": 16}
    runs = [quick(tmp_path / f"{n}", workers=n, **options) for n in (0, 1, 8)]
    assert all(same(weights(run.folder), weights(runs[0].folder)) for run in runs)
    assert len(pk.load_model(runs[0].folder).classes) == 2


def test_tensorboard_receives_the_log(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = quick(tmp_path / "run", tensorboard=True)
    events = accumulator.EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(run.log["loss"])


def test_validation_images_differ_between_seeds() -> None:
    labels = torch.arange(10).repeat(40)
    recipe = get_recipe("resnet20-digits", validation=50, stratified=True, limit=None)
    kept, held = hold_out(labels, recipe, 0)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(400))
    assert torch.bincount(labels[held]).tolist() == [5] * 10
    assert set(hold_out(labels, recipe, 1)[1].tolist()) != set(held.tolist())
    plain, few = hold_out(labels, recipe.with_options(stratified=False, limit=7), 0)
    assert (len(plain), len(few)) == (7, 50)
    assert torch.bincount(labels[few]).tolist() != [5] * 10


@pytest.mark.parametrize("world", [2, 4])
def test_processes_split_the_steps_of_one_process(world: int) -> None:
    recipe = get_recipe("resnet20-digits", batch_size=16, limit=70)
    data = load_run_data(recipe, 0, None, 0).train
    alone = [(x, y) for _, x, y in Minibatches(data, recipe, 0, CPU).epoch(3)]
    shares = [
        [(x, y) for _, x, y in Minibatches(data, recipe, 0, CPU, rank, world).epoch(3)]
        for rank in range(world)
    ]
    for step, (images, labels) in enumerate(alone):
        assert torch.equal(torch.cat([share[step][0] for share in shares]), images)
        assert torch.equal(torch.cat([share[step][1] for share in shares]), labels)
    with pytest.raises(OptionError, match="multiple of the 3 processes"):
        Minibatches(data, recipe, 0, CPU, 0, 3)


def test_steps_are_reordered_each_epoch_and_can_start_anywhere() -> None:
    recipe = get_recipe("resnet20-digits", batch_size=16, limit=70)
    batches = Minibatches(load_run_data(recipe, 0, None, 0).train, recipe, 0, CPU)
    first, second = list(batches.epoch(0)), list(batches.epoch(1))
    assert batches.steps == len(first) == 4
    assert not torch.equal(first[0][2], second[0][2])
    for (step, images, _), (again, same_images, _) in zip(
        first[2:], batches.epoch(0, 2), strict=True
    ):
        assert step == again
        assert torch.equal(images, same_images)


_TWO = """
import json, sys, torch
torch.set_num_threads(1)
import probekit as pk
pk.train("resnet20-digits", -1.0, 0, sys.argv[1], **json.loads(sys.argv[2]))
"""


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(_TWO)
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--master-port=29653", str(script), str(out), json.dumps(QUICK)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
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
