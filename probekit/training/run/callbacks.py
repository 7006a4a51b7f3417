"""Callbacks that follow training runs, and adapters to experiment trackers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from probekit.errors import OptionError, close_matches, optional
from probekit.results.files import writable
from probekit.training.run.directory import Run


@dataclass(frozen=True)
class StartedRun:
    """A run that a callback follows.

    Attributes:
        folder: Folder of the run.
        options: The fields of the recipe, `alpha_schedule` and `seed`.
        epochs_done: Number of epochs that were trained before, if the run resumes.
    """

    folder: Path
    options: Mapping[str, Any]
    epochs_done: int


class Callback:
    """Follows the runs of `train` and `sweep`; override the methods that you need.

    Under `torchrun`, only the first process calls callbacks. An exception in a callback ends the run,
    which resumes from its last checkpoint. If a run was killed, its last epoch may be reported again
    when it resumes.

    Example:
        >>> class Losses(Callback):
        ...     def on_epoch(self, run, epoch, measures):
        ...         print(run.options["seed"], epoch, measures["loss"] > 1)
        >>> import tempfile
        >>> from probekit import train
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = train("resnet20-digits", out=folder, epochs=1, limit=64, architecture="resnet8",
        ...               device="cpu", progress=False, callbacks=[Losses()])
        0 0 True
    """

    def on_start(self, run: StartedRun) -> None:
        """Called before the first epoch of a run, and when a run resumes."""

    def on_epoch(self, run: StartedRun, epoch: int, measures: Mapping[str, float]) -> None:
        """Called after an epoch (counted from 0) with its numbers.

        Names are those of `log.csv`: `loss`, `validation_accuracy`, `selectivity/LAYER`, ... Numbers
        that are not known are left out.
        """

    def on_end(self, run: StartedRun, finished: Run | None) -> None:
        """Called when a run has finished or, with `finished=None`, stopped with an error."""


class TensorBoard(Callback):
    """Writes event files for TensorBoard to `tensorboard/` in the folder of each run.

    Raises:
        MissingPackageError: (on start) tensorboard is not installed.

    Example:
        >>> import tempfile
        >>> from probekit import train
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = train("resnet20-digits", out=folder, epochs=1, limit=64, architecture="resnet8",
        ...               device="cpu", progress=False, callbacks=[TensorBoard()])
        ...     len(list(Path(folder, "tensorboard").iterdir()))
        1
    """

    def on_start(self, run: StartedRun) -> None:
        with optional("tensorboard", "the callback tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        where, done = str(run.folder / "tensorboard"), run.epochs_done
        self._writer: Any = SummaryWriter(where, purge_step=done or None)

    def on_epoch(self, run: StartedRun, epoch: int, measures: Mapping[str, float]) -> None:
        for name, value in measures.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def on_end(self, run: StartedRun, finished: Run | None) -> None:
        self._writer.close()


class WeightsAndBiases(Callback):
    """Logs to Weights & Biases; a run that resumes continues its log.

    Args:
        project: The project of the runs.
        **options: Further options of `wandb.init`, such as `mode="offline"` or `group`.

    Raises:
        MissingPackageError: (on start) wandb is not installed.

    Example:
        >>> callback = WeightsAndBiases("selectivity", mode="offline")  # train(..., callbacks=[callback])
        >>> callback.options
        {'project': 'selectivity', 'mode': 'offline'}
    """

    def __init__(self, project: str = "probekit", **options: Any) -> None:
        self.options = {"project": project, **options}

    def on_start(self, run: StartedRun) -> None:
        with optional("wandb", "the callback wandb"):
            import wandb
        given = {
            "name": run.folder.name, "dir": str(run.folder), "config": dict(run.options),
            "id": _remembered(run.folder / "wandb.id", lambda: uuid4().hex),
            "resume": "allow", "reinit": "create_new",
        }  # fmt: skip
        self._run: Any = wandb.init(**(given | self.options))

    def on_epoch(self, run: StartedRun, epoch: int, measures: Mapping[str, float]) -> None:
        self._run.log(dict(measures), step=epoch)

    def on_end(self, run: StartedRun, finished: Run | None) -> None:
        self._run.summary.update(_outcome(finished))
        self._run.finish(exit_code=0 if finished else 1)


class MLflow(Callback):
    """Logs to MLflow; a run that resumes continues its log.

    Args:
        experiment: The experiment of the runs; it is created if it does not exist.
        tracking_uri: Where to log, such as `"sqlite:///mlflow.db"` or the address of a server; None uses
            MLflow's own setting.

    Raises:
        MissingPackageError: (on start) mlflow is not installed.

    Example:
        >>> callback = MLflow("selectivity", "sqlite:///mlflow.db")  # train(..., callbacks=[callback])
        >>> callback.experiment, callback.tracking_uri
        ('selectivity', 'sqlite:///mlflow.db')
    """

    def __init__(self, experiment: str = "probekit", tracking_uri: str | None = None) -> None:
        self.experiment, self.tracking_uri = experiment, tracking_uri

    def on_start(self, run: StartedRun) -> None:
        with optional("mlflow", "the callback mlflow"):
            import mlflow
        self._client: Any = mlflow.MlflowClient(self.tracking_uri)
        self._id = _remembered(run.folder / "mlflow.id", lambda: self._created(run))

    def _created(self, run: StartedRun) -> str:
        known = self._client.get_experiment_by_name(self.experiment)
        where = known.experiment_id if known else self._client.create_experiment(self.experiment)
        identity = str(self._client.create_run(where, run_name=run.folder.name).info.run_id)
        for name, value in run.options.items():
            self._client.log_param(identity, name, value)
        return identity

    def on_epoch(self, run: StartedRun, epoch: int, measures: Mapping[str, float]) -> None:
        self._log(measures, epoch)

    def _log(self, measures: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._id, [Metric(*one, now, step) for one in measures.items()])

    def on_end(self, run: StartedRun, finished: Run | None) -> None:
        self._log(_outcome(finished), 0)
        self._client.set_terminated(self._id, "FINISHED" if finished else "FAILED")


_BY_NAME = {"mlflow": MLflow, "tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def chosen_callbacks(callbacks: Sequence[Callback | str]) -> list[Callback]:
    """The callbacks, with each name replaced by its adapter."""
    if isinstance(callbacks, str | Callback):
        callbacks = [callbacks]
    found = []
    for one in callbacks:
        if isinstance(one, str):
            if one not in _BY_NAME:
                near = close_matches(one, _BY_NAME, what="callback")
                raise OptionError(f"there is no callback {one!r}; {near}")
            one = _BY_NAME[one]()
        if not isinstance(one, Callback):
            raise OptionError(
                f"callbacks must be objects of subclasses of Callback, or names "
                f"({', '.join(_BY_NAME)}), not {type(one).__name__}"
            )
        found.append(one)
    return found


def _outcome(finished: Run | None) -> dict[str, float]:
    if finished is None:
        return {}
    return {
        "test_accuracy": finished.test_accuracy,
        "test_selectivity_mean": finished.selectivity_mean,
        "best_epoch": finished.best_epoch,
    }


def _remembered(file: Path, make: Callable[[], str]) -> str:
    """The tracker's identity of a run, which is stored in the folder of the run."""
    if not file.exists():
        identity = make()
        with writable(file):
            file.write_text(identity)
    return file.read_text().strip()
