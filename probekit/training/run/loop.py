"""The training loop of one run, from its last checkpoint to its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from probekit.capture.stream import PassOptions, find_layers
from probekit.data.batches import Batches
from probekit.errors import DataError, OptionError, ProbekitError
from probekit.models.architectures import ARCHITECTURES
from probekit.models.image_model import ImageModel, content_hash
from probekit.models.loading import read_weights
from probekit.models.logits import required_logits
from probekit.runtime.processes import Machine
from probekit.runtime.progress import hidden
from probekit.runtime.randomness import key
from probekit.training.regularizer.regularizer import SelectivityRegularizer
from probekit.training.regularizer.schedule import AlphaSchedule
from probekit.training.run.callbacks import Callback, StartedRun
from probekit.training.run.captured import CapturedGradients, can_capture
from probekit.training.run.directory import (
    RunDirectory,
    RunLog,
    TrainingState,
    measures_of,
    read_run,
    write_checkpoint,
)
from probekit.training.run.evaluation import EpochMetrics, evaluate
from probekit.training.run.minibatches import Minibatches, RunData, stream_name
from probekit.training.run.recipes import Recipe, learning_rate

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# Number of steps between synchronizations with the device, such as to check that the loss is finite.
_CHECK_EVERY = 100


class TrainingLoop:
    """One run: its network, optimizer, data and progress."""

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        schedule: AlphaSchedule,
        seed: int,
        data: RunData,
        machine: Machine,
        *,
        data_root: str | None,
        layers: Any,
        checkpoint_minutes: float,
        cuda_graph: bool,
    ) -> None:
        device = machine.device
        if recipe.precision == "float16" and device.type == "cpu":
            raise OptionError(
                "precision='float16' trains on a GPU only; use 'bfloat16' or 'float32'"
            )
        self.recipe, self.schedule = recipe, schedule
        self.data, self.machine = data, machine
        torch.manual_seed(key(stream_name(seed, "initialization")) % 2**63)
        self.module = ARCHITECTURES[recipe.architecture](
            classes=len(data.classes), channels=recipe.input_size[0]
        ).to(device)
        if recipe.channels_last:
            self.module.to(memory_format=torch.channels_last)
        self.model = ImageModel(
            self.module, recipe.mean, recipe.std, recipe.input_size, data.classes
        )
        self.seed, self.adversary = seed, recipe.adversary
        self.layers = find_layers(
            self.model, Batches(data.watched, batch_size=2), None, PassOptions()
        )
        self.spread = machine.spread(self.module)
        self.batches = Minibatches(data.train, recipe, seed, device, machine.rank, machine.world)
        self.penalty = self._regularizer(layers)
        self.state = self._initial_state()
        facts = _card(recipe, schedule, seed, data) | {"data_root": data_root}
        self.directory = RunDirectory(folder, facts, data.fingerprint)
        self._cuda_graph = cuda_graph and can_capture(device, machine.world, recipe.precision)
        self.gradients = self._gradients()
        self._every = 60 * checkpoint_minutes
        self._written = time.monotonic()

    def _regularizer(self, layers: Any) -> SelectivityRegularizer | None:
        """The regularizer; None, without hooks, for the baseline of the papers, whose alpha is always 0."""
        # Constructed in any case, which checks the layers.
        penalty = SelectivityRegularizer(self.module, 0.0, layers, classes=len(self.data.classes))
        if any(self.schedule.alpha(epoch) for epoch in range(self.recipe.epochs)):
            return penalty
        penalty.close()
        return None

    def _initial_state(self) -> TrainingState:
        recipe, device = self.recipe, self.machine.device
        options = {x: getattr(recipe, x) for x in ("momentum", "weight_decay", "nesterov")}
        optimizer = torch.optim.SGD(self.module.parameters(), recipe.learning_rate, **options)
        scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
        losses = torch.zeros(self.batches.steps, 2, device=device)
        hits = torch.zeros((), dtype=torch.int64, device=device)
        return TrainingState(self.module, optimizer, scaler, device, losses, hits)

    def close(self) -> None:
        if self.penalty is not None:
            self.penalty.close()

    def run(self, callbacks: Sequence[Callback], *, progress: bool) -> None:
        """Trains from the last checkpoint to the end, and evaluates the best epoch on the test split."""
        main, state, steps = self.machine.is_main, self.state, self.batches.steps
        self.directory.restore(state)
        if main:
            self.directory.point_to_best(state)
        folder = self.directory.folder
        log = RunLog(folder, state.epoch) if main else None
        self.callbacks = list(callbacks) if main else []
        options = self.recipe.facts() | {"alpha_schedule": str(self.schedule), "seed": self.seed}
        self.started = StartedRun(folder, options, state.epoch)
        bar = tqdm(
            total=self.recipe.epochs * steps,
            initial=state.epoch * steps + state.step,
            desc=f"train {self.recipe.name} ({self.recipe.precision})",
            unit="step",
            disable=hidden(progress and main),
        )
        with ExitStack() as stack:
            for callback in self.callbacks:
                callback.on_start(self.started)
                stack.callback(self._end, callback)
            with bar:
                while state.epoch < self.recipe.epochs:
                    self._train_epoch(bar)
                    self._end_epoch(log, bar)
            self._finish()

    def _end(self, callback: Callback) -> None:
        callback.on_end(self.started, read_run(self.started.folder))

    def _gradients(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        if self._cuda_graph:
            return CapturedGradients(self._set_gradients, self.module)
        return self._set_gradients

    def _autocast(self) -> AbstractContextManager[object]:
        dtype = _DTYPES.get(self.recipe.precision)
        return nullcontext() if dtype is None else torch.autocast(self.machine.device.type, dtype)

    def _train_epoch(self, bar: Any) -> None:
        state = self.state
        self.module.train()
        if self.penalty is not None:
            alpha = self.schedule.alpha(state.epoch)
            if alpha != self.penalty.alpha:
                self.penalty.alpha = alpha
                # A CUDA graph always uses the alpha with which it was captured.
                self.gradients = self._gradients()
        start = time.monotonic() - state.seconds
        for step, images, labels in self.batches.epoch(state.epoch, state.step):
            self._train_step(step, images, labels)
            state.step = step + 1
            state.seconds = time.monotonic() - start
            bar.update()
            due = self._due() and state.step < self.batches.steps
            if due or state.step % _CHECK_EVERY == 0:
                self._check_finite()
            if due:
                self._save()

    def _train_step(self, step: int, images: Tensor, labels: Tensor) -> None:
        optimizer, scaler = self.state.optimizer, self.state.scaler
        passed = self.state.epoch * self.batches.steps + step
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, passed, self.batches.steps)
        if self.adversary is not None:
            seed = key(stream_name(self.seed, "adversary", passed, self.machine.rank))
            with self._autocast():
                images = self.adversary(self.model, images, labels, seed)
        losses, hits = self.gradients(images, labels)
        scaler.step(optimizer)
        scaler.update()
        self.state.losses[step] = losses
        self.state.hits += hits

    def _set_gradients(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Sets the gradients of one batch; returns [cross-entropy, penalty] and the correct count."""
        with self._autocast():
            logits = required_logits(self.spread(images), len(images), "training")
            entropy = functional.cross_entropy(logits.float(), labels)
            added = torch.zeros_like(entropy) if self.penalty is None else self.penalty(labels)
        loss = entropy if self.penalty is None else entropy + added
        self.state.optimizer.zero_grad()
        self.state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # untyped in torch
        losses = torch.stack([entropy.detach(), added.detach()])
        return losses, (logits.detach().argmax(1) == labels).sum()

    def _due(self) -> bool:
        # The first process decides. Asking it synchronizes all processes, so it is not done at every step.
        if self.machine.world > 1 and self.state.step % _CHECK_EVERY:
            return False
        return self.machine.gather(time.monotonic() - self._written >= self._every)[0]

    def _save(self) -> None:
        self._written = time.monotonic()
        if self.machine.is_main:
            self.directory.save(self.state)

    def _check_finite(self) -> None:
        bad = (~torch.isfinite(self.state.losses[: self.state.step])).any(1).nonzero()
        if len(bad):
            raise self._diverged(int(bad[0]))

    def _diverged(self, step: int) -> ProbekitError:
        path = self.directory.checkpoint
        found = f"the last good checkpoint is {str(path)!r}"
        last = found if path.exists() else "there is no checkpoint before it"
        return ProbekitError(
            f"the loss is not finite in epoch {self.state.epoch}, step {step} (both from 0) at alpha "
            f"{self.schedule.alpha(self.state.epoch):g}; {last}; lower the learning rate or the "
            "absolute value of alpha"
        )

    def _end_epoch(self, log: RunLog | None, bar: Any) -> None:
        state = self.state
        self.machine.share_buffers(self.module)
        metrics = self._evaluate()
        accuracy = metrics.accuracy if len(self.data.validation) else None
        record = self._record(metrics, accuracy)
        bar.set_postfix(loss=f"{record['loss']:.3f}", validation=accuracy, refresh=False)
        improved = accuracy is None or state.best_accuracy is None or accuracy > state.best_accuracy
        if improved:
            state.best_epoch, state.best_accuracy = state.epoch, accuracy
            if log is not None:
                best = self.directory.best_weights(state)
                write_checkpoint(best, self.module.state_dict(), {"epoch": state.epoch})
        if log is not None:
            log.add(record)
        for callback in self.callbacks:
            callback.on_epoch(self.started, state.epoch, measures_of(record))
        state.next_epoch()
        self._save()
        if improved and log is not None:
            self.directory.point_to_best(state)

    def _evaluate(self) -> EpochMetrics:
        """The metrics of the network after this epoch; raises if its weights are not finite."""
        self._check_finite()
        weights = self.module.state_dict().values()
        if not all(bool(torch.isfinite(tensor).all()) for tensor in weights):
            raise self._diverged(self.batches.steps - 1)
        try:
            return evaluate(self.model, self.data.watched, self.layers, self.recipe.precision)
        except DataError:
            raise self._diverged(self.batches.steps - 1) from None

    def _record(self, metrics: EpochMetrics, accuracy: float | None) -> dict[str, Any]:
        state, steps = self.state, self.batches.steps
        images = steps * self.batches.batch_size
        sums = torch.cat([state.losses.double().sum(0), state.hits.double()[None]])
        loss, penalty, hits = torch.stack(self.machine.gather(sums.cpu())).sum(0).tolist()
        loss, penalty = (total / (steps * self.machine.world) for total in (loss, penalty))
        alpha = self.schedule.alpha(state.epoch)
        return {
            "epoch": state.epoch,
            "loss": loss,
            "penalty": penalty,
            "accuracy": hits / images,
            "validation_loss": None if accuracy is None else metrics.loss,
            "validation_accuracy": accuracy,
            "batch_selectivity": -penalty / alpha if alpha else None,
            "selectivity_mean": metrics.selectivity_mean,
            "dead_units_total": sum(metrics.dead_units.values()),
            "learning_rate": self.state.optimizer.param_groups[0]["lr"],
            "alpha": alpha,
            "seconds": state.seconds,
            "images_per_second": images / state.seconds if state.seconds else None,
            "selectivity": dict(metrics.selectivity),
            "dead_units": dict(metrics.dead_units),
        }

    def _finish(self) -> None:
        """Evaluates the best epoch on the test split, once, and completes the card."""
        if self.machine.is_main:
            final = self.directory.folder / "final.safetensors"
            write_checkpoint(final, self.module.state_dict(), {"epoch": self.state.epoch - 1})
        # Other processes must not read the best weights before the first process has written them.
        self.machine.wait()
        self.module.load_state_dict(read_weights(self.directory.best_weights(self.state)))
        metrics = evaluate(self.model, self.data.test, self.layers, "float32")
        if self.machine.is_main:
            self.directory.write_card(
                self.state,
                finished=True,
                test_accuracy=metrics.accuracy,
                selectivity_mean=metrics.selectivity_mean,
                selectivity=metrics.selectivity,
                dead_units=metrics.dead_units,
                hash=content_hash(self.module),
            )


def _card(recipe: Recipe, schedule: AlphaSchedule, seed: int, data: RunData) -> dict[str, Any]:
    """The initial contents of a run's card."""
    values = {value for segment in schedule.segments for value in (segment.first, segment.last)}
    return {
        "name": recipe.name,
        "architecture": {
            "name": recipe.architecture,
            "classes": len(data.classes),
            "channels": recipe.input_size[0],
        },
        "mean": recipe.mean,
        "std": recipe.std,
        "input_size": recipe.input_size,
        "classes": data.classes,
        "recipe": recipe.facts(),
        "alpha": values.pop() if len(values) == 1 else None,
        "alpha_schedule": str(schedule),
        "seed": seed,
        "data": data.fingerprint,
    }
