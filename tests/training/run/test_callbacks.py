"""Callbacks of training runs, and the adapters to experiment trackers."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import probekit as pk
from probekit.errors import MissingPackageError, OptionError
from probekit.training.run.callbacks import StartedRun
from probekit.training.run.directory import Run

SMALL: dict[str, Any] = {
    "epochs": 2, "limit": 64, "architecture": "resnet8", "device": "cpu", "progress": False,
}  # fmt: skip


class Followed(pk.Callback):
    """Keeps what it is called with; may stop the run after an epoch."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.calls: list[Any] = []

    def on_start(self, run: StartedRun) -> None:
        self.calls.append(("start", run.epochs_done, run.options["seed"]))

    def on_epoch(self, run: StartedRun, epoch: int, measures: Mapping[str, float]) -> None:
        self.calls.append((epoch, dict(measures)))
        if epoch == self.stop_after:
            raise KeyboardInterrupt

    def on_end(self, run: StartedRun, finished: Run | None) -> None:
        self.calls.append(finished)


def train(folder: Path, *callbacks: Any, **options: Any) -> Run:
    return pk.train("resnet20-digits", out=folder, callbacks=callbacks, **(SMALL | options))


def test_callbacks_receive_the_numbers_of_the_log(tmp_path: Path) -> None:
    followed = Followed()
    run = train(tmp_path, followed, seed=3, alpha=-1.0)
    start, *epochs, end = followed.calls
    assert start == ("start", 0, 3)
    assert end == run
    log = run.log.set_index("epoch")
    assert [epoch for epoch, _ in epochs] == log.index.tolist() == [0, 1]
    for epoch, measures in epochs:
        assert measures == pytest.approx(log.loc[epoch].dropna().to_dict())
        assert {"loss", "selectivity_mean", "selectivity/relu"} <= set(measures)


def test_an_interrupted_run_ends_its_callbacks_and_resumes(tmp_path: Path) -> None:
    first, second = Followed(stop_after=0), Followed()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, first)
    assert first.calls[-1] is None
    run = train(tmp_path, second)
    assert second.calls[0] == ("start", 0, 0)  # the epoch had no checkpoint yet
    assert [call[0] for call in second.calls[1:-1]] == [0, 1]
    assert second.calls[-1] == run


def test_a_sweep_reports_each_of_its_runs(tmp_path: Path) -> None:
    followed = Followed()
    pk.sweep("resnet20-digits", [0.0], [0, 1], tmp_path, callbacks=[followed], **SMALL)
    starts = [call for call in followed.calls if isinstance(call, tuple) and call[0] == "start"]
    assert starts == [("start", 0, 0), ("start", 0, 1)]
    assert sum(isinstance(call, Run) for call in followed.calls) == 2


@pytest.mark.parametrize(
    ("callback", "message"),
    [("tensorbord", "close matches: tensorboard"), (3, "subclasses of Callback, or names")],
)
def test_wrong_callbacks_are_refused(callback: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        train(tmp_path / "run", callback)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_tracker_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    for module in [one for one in sys.modules if one.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(MissingPackageError, match=rf'pip install "probekit\[{name}\]"'):
        train(tmp_path, name)


def test_tensorboard_receives_the_log(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train(tmp_path, "tensorboard")
    found = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("loss", "selectivity/relu"):
        assert [one.value for one in found.Scalars(name)] == pytest.approx(run.log[name].tolist())
        assert [one.step for one in found.Scalars(name)] == [0, 1]


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format (blocks of 32 KiB), as wandb writes offline."""
    at, parts = 7, b""  # after the header of the file
    while at + 7 <= len(content):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield parts
            parts = b""


@pytest.mark.slow
def test_wandb_receives_the_log_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_SILENT", "true")
    run = train(tmp_path, pk.WeightsAndBiases(project="p", mode="offline"), seed=4)
    # The end of a run does not wait for wandb's service, which writes its buffer when it closes the file.
    wandb.teardown()
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    history: list[dict[str, str]] = []
    config: dict[str, str] = {}
    summary: dict[str, str] = {}
    for data in leveldb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            history.append({one.nested_key[0] if one.nested_key else one.key: one.value_json
                            for one in record.history.item})  # fmt: skip
        for one in record.run.config.update:
            config[one.key] = one.value_json
        for one in record.summary.update:
            summary[one.nested_key[0] if one.nested_key else one.key] = one.value_json
    assert [float(row["loss"]) for row in history] == pytest.approx(run.log["loss"].tolist())
    assert [int(row["_step"]) for row in history] == [0, 1]
    assert config["seed"] == "4"
    assert float(summary["test_accuracy"]) == pytest.approx(run.test_accuracy)


@pytest.mark.slow
def test_mlflow_receives_the_log_in_a_local_store(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("alembic", reason="MLflow's local store needs it")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    callback = pk.MLflow("some experiment", uri)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", callback, Followed(stop_after=1), seed=5)
    client = mlflow.MlflowClient(uri)
    where = client.get_experiment_by_name("some experiment").experiment_id
    (stopped,) = client.search_runs([where])
    assert stopped.info.status == "FAILED"
    run = train(tmp_path / "run", callback, seed=5)
    (found,) = client.search_runs([where])  # the run that resumed goes on in the same one
    assert found.info.status == "FINISHED"
    history = {one.step: one.value for one in client.get_metric_history(found.info.run_id, "loss")}
    assert [history[epoch] for epoch in (0, 1)] == pytest.approx(run.log["loss"].tolist())
    assert found.data.params["seed"] == "5"
    assert found.data.metrics["selectivity/relu"] == pytest.approx(
        run.log["selectivity/relu"].iloc[-1]
    )
    assert found.data.metrics["test_accuracy"] == pytest.approx(run.test_accuracy)
