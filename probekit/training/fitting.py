"""The training loop of one run, from its last checkpoint to its end."""

from __future__ import annotations

import json
import math
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from probekit.capture.stream import Reading, find_layers
from probekit.data.batches import Batches
from probekit.errors import DataError, OptionError, OutputError, ProbekitError
from probekit.models.architectures import ARCHITECTURES
from probekit.models.image_model import ImageModel, content_hash
from probekit.models.loading import read_weights
from probekit.training.checkpoint import (
    capture_random_state,
    momentum_of,
    read_checkpoint,
    restore_momentum,
    restore_random_state,
    write_checkpoint,
    write_text,
)
from probekit.training.machine import Machine
from probekit.training.measures import Measured, measure
from probekit.training.minibatches import Minibatches, RunData, seeded
from probekit.training.recipes import Recipe, learning_rate
from probekit.training.regularizer import SelectivityRegularizer
from probekit.training.runlog import RunLog
from probekit.training.runs import CARD, LAST
from probekit.training.schedules import AlphaSchedule

__all__ = ["Fitting"]

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_LOOK_EVERY = 100


class Fitting:
    """One run: its network, optimizer, data and place in the schedule.

    Args:
        folder: Of the run.
        recipe: What is done.
        schedule: Alpha over the epochs.
        seed: Of everything random.
        data: The images.
        machine: Where it runs.
        layers: Which layers are regularized.
        checkpoint_minutes: How often to write a checkpoint within an epoch.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        schedule: AlphaSchedule,
        seed: int,
        data: RunData,
        machine: Machine,
        *,
        layers: Any = None,
        checkpoint_minutes: float = 10.0,
    ) -> None:
        self.folder, self.recipe, self.schedule, self.seed = folder, recipe, schedule, seed
        self.data, self.machine = data, machine
        device = machine.device
        if recipe.precision == "float16" and device.type == "cpu":
            raise OptionError(
                "precision='float16' trains on a GPU only; use 'bfloat16' or 'float32'"
            )
        torch.manual_seed(seeded(seed, "initialization").initial_seed())
        self.architecture = {
            "name": recipe.architecture,
            "classes": len(data.classes),
            "channels": recipe.input_size[0],
        }
        options = {name: value for name, value in self.architecture.items() if name != "name"}
        self.module = ARCHITECTURES[recipe.architecture](**options).to(device)
        if recipe.channels_last:
            self.module.to(memory_format=torch.channels_last)
        self.model = ImageModel(
            self.module, recipe.mean, recipe.std, recipe.input_size, data.classes
        )
        self.layers = find_layers(self.model, Batches(data.watched, batch_size=2), None, Reading())
        self.spread = machine.spread(self.module)
        self.optimizer = torch.optim.SGD(
            self.module.parameters(),
            recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
        self.batches = Minibatches(data.train, recipe, seed, device, machine.rank, machine.world)
        alphas = [schedule.alpha(epoch) for epoch in range(recipe.epochs)]
        # At alpha 0 throughout, nothing at all is hooked: that is the papers' baseline.
        self.penalty = (
            SelectivityRegularizer(self.module, 0.0, layers, classes=len(data.classes))
            if any(alphas)
            else None
        )
        self.epoch, self.step = 0, 0
        self.losses = torch.zeros(self.batches.steps, 2, device=device)
        self.hits = torch.zeros((), dtype=torch.int64, device=device)
        self.seconds = 0.0
        self.best: dict[str, Any] = {"epoch": -1, "accuracy": -math.inf}
        self._every = 60 * checkpoint_minutes
        self._written = time.monotonic()

    def close(self) -> None:
        """Takes the hooks off the module."""
        if self.penalty is not None:
            self.penalty.close()

    def run(self, *, tensorboard: bool, progress: bool) -> None:
        """Trains from the last checkpoint to the end, and measures the best epoch on the test split.

        Raises:
            ProbekitError: The loss is no longer finite; or a checkpoint cannot be written.
        """
        self._resume()
        main = self.machine.is_main
        log = RunLog(self.folder, self.epoch, tensorboard=tensorboard) if main else None
        steps = self.batches.steps
        bar = tqdm(
            total=self.recipe.epochs * steps,
            initial=self.epoch * steps + self.step,
            desc=f"train {self.recipe.name}",
            unit="step",
            disable=None if progress and main else True,
        )
        try:
            with bar:
                while self.epoch < self.recipe.epochs:
                    self._train_epoch(bar)
                    self._end_epoch(log, bar)
            self._finish()
        finally:
            if log is not None:
                log.close()

    def _autocast(self) -> AbstractContextManager[object]:
        dtype = _DTYPES.get(self.recipe.precision)
        return nullcontext() if dtype is None else torch.autocast(self.machine.device.type, dtype)

    def _train_epoch(self, bar: Any) -> None:
        self.module.train()
        if self.penalty is not None:
            self.penalty.alpha = self.schedule.alpha(self.epoch)
        start = time.monotonic() - self.seconds
        for step, images, labels in self.batches.epoch(self.epoch, self.step):
            self._train_step(step, images, labels)
            self.step = step + 1
            self.seconds = time.monotonic() - start
            bar.update()
            if self.step % _LOOK_EVERY == 0:
                self._check_finite()
            if self._due() and self.step < self.batches.steps:
                self._check_finite()
                self._save()

    def _train_step(self, step: int, images: Tensor, labels: Tensor) -> None:
        passed = self.epoch * self.batches.steps + step
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, passed, self.batches.steps)
        with self._autocast():
            logits = self.spread(images)
            entropy = functional.cross_entropy(logits.float(), labels)
            added = torch.zeros_like(entropy) if self.penalty is None else self.penalty(labels)
        loss = entropy if self.penalty is None else entropy + added
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.losses[step, 0], self.losses[step, 1] = entropy.detach(), added.detach()
        self.hits += (logits.detach().argmax(1) == labels).sum()

    def _due(self) -> bool:
        return self.machine.agree(time.monotonic() - self._written >= self._every)

    def _check_finite(self) -> None:
        bad = (~torch.isfinite(self.losses[: self.step])).any(1).nonzero()
        if len(bad):
            raise self._diverged(int(bad[0]))

    def _diverged(self, step: int) -> ProbekitError:
        last = (
            f"the last good checkpoint is {str(self.folder / LAST)!r}"
            if (self.folder / LAST).exists()
            else "there is no checkpoint before it"
        )
        return ProbekitError(
            f"the loss is not finite in epoch {self.epoch}, step {step} (both from 0) at alpha "
            f"{self.schedule.alpha(self.epoch):g}; {last}; lower the learning rate or the size of "
            "alpha"
        )

    def _end_epoch(self, log: RunLog | None, bar: Any) -> None:
        self._check_finite()
        if not all(bool(torch.isfinite(one).all()) for one in self.module.state_dict().values()):
            raise self._diverged(self.batches.steps - 1)
        self.machine.share_buffers(self.module)
        measured, held_out = self._measure()
        accuracy = measured.accuracy if held_out else None
        record = self._record(measured, held_out)
        bar.set_postfix(loss=f"{record['loss']:.3f}", validation=accuracy, refresh=False)
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.losses.zero_()
        self.hits.zero_()
        improved = accuracy is None or accuracy > self.best["accuracy"]
        if improved:
            self.best = {"epoch": self.epoch - 1, "accuracy": accuracy}
        if log is None:
            return
        # In this order the checkpoint, the best weights and the log agree whenever it is killed.
        if improved:
            write_checkpoint(self._best_file(), self.module.state_dict(), {"epoch": self.epoch - 1})
        log.add(record)
        self._save()
        if improved:
            self._settle_best()

    def _measure(self) -> tuple[Measured, bool]:
        held_out = len(self.data.validation) > 0
        try:
            measured = measure(
                self.model,
                self.data.watched,
                self.layers,
                self._autocast(),
                self.machine,
            )
        except DataError:
            raise self._diverged(self.batches.steps - 1) from None
        return measured, held_out

    def _record(self, measured: Measured, held_out: bool) -> dict[str, Any]:
        seen = self.batches.steps * self.batches.batch_size
        sums = torch.cat([self.losses.double().sum(0), self.hits.double()[None]])
        sums = self.machine.sum(sums)
        means = sums[:2] / (self.batches.steps * self.machine.world)
        loss, penalty = means.tolist()
        alpha = self.schedule.alpha(self.epoch)
        return {
            "epoch": self.epoch,
            "loss": loss,
            "penalty": penalty,
            "accuracy": float(sums[2]) / seen,
            "validation_loss": measured.loss if held_out else None,
            "validation_accuracy": measured.accuracy if held_out else None,
            "batch_selectivity": -penalty / alpha if alpha else None,
            "selectivity_mean": measured.selectivity_mean,
            "dead_units_total": sum(measured.dead_units.values()),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "alpha": alpha,
            "seconds": self.seconds,
            "images_per_second": seen / self.seconds if self.seconds else None,
            "selectivity": dict(measured.selectivity),
            "dead_units": dict(measured.dead_units),
        }

    def _best_file(self) -> Path:
        return self.folder / f"best-{self.best['epoch']:04d}.safetensors"

    def _save(self) -> None:
        self._written = time.monotonic()
        if not self.machine.is_main:
            return
        tensors = {f"model.{name}": one for name, one in self.module.state_dict().items()}
        for name, one in momentum_of(self.optimizer, self.module).items():
            tensors[f"momentum.{name}"] = one
        for name, one in capture_random_state(self.machine.device).items():
            tensors[f"random.{name}"] = one
        tensors |= {"epoch.losses": self.losses, "epoch.hits": self.hits}
        facts = {
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "scaler": self.scaler.state_dict(),
            "data": self.data.fingerprint,
        }
        write_checkpoint(self.folder / LAST, tensors, facts)

    def _resume(self) -> None:
        path = self.folder / LAST
        if path.exists():
            tensors, facts = read_checkpoint(path)
            if facts["data"] != self.data.fingerprint:
                raise OutputError(
                    f"{str(self.folder)!r} was begun with other training images of "
                    f"{self.recipe.data} than those found now; give the same data_root, or choose "
                    "another folder"
                )
            self._restore(tensors, facts)
        if self.machine.is_main:
            self._settle_best()

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(prefix): one
                for name, one in tensors.items()
                if name.startswith(prefix)
            }

        self.module.load_state_dict(part("model."))
        restore_momentum(self.optimizer, self.module, part("momentum."))
        restore_random_state(part("random."), self.machine.device)
        self.losses.copy_(tensors["epoch.losses"])
        self.hits.copy_(tensors["epoch.hits"])
        self.scaler.load_state_dict(facts["scaler"])
        self.epoch, self.step = facts["epoch"], facts["step"]
        self.seconds, self.best = facts["seconds"], facts["best"]

    def _settle_best(self) -> None:
        """Points the card at the best weights and removes those of other epochs."""
        best = self._best_file()
        if best.exists():
            self._write_card(finished=False)
        for other in self.folder.glob("best-*.safetensors"):
            if other != best:
                other.unlink()

    def _finish(self) -> None:
        """Measures the best epoch on the test split, once, and completes the card."""
        from probekit.analysis import analyze

        final = {name: one.clone() for name, one in self.module.state_dict().items()}
        self.machine.wait()
        self.module.load_state_dict(read_weights(self._best_file()))
        result = analyze(
            self.model, self.data.test, metrics=["selectivity"], batch_size=500, progress=False
        )
        if not self.machine.is_main:
            return
        layers = result["layers"].to_dataset()
        names = layers["layer"].values.tolist()
        write_checkpoint(self.folder / "final.safetensors", final, {"epoch": self.epoch - 1})
        self._write_card(
            finished=True,
            test_accuracy=float(result["accuracy"]),
            selectivity_mean=float(result["selectivity_mean"]),
            selectivity=dict(zip(names, layers["selectivity_mean"].values.tolist(), strict=True)),
            dead_units=dict(zip(names, map(int, layers["dead_units"].values), strict=True)),
            hash=content_hash(self.module),
        )

    def _write_card(self, *, finished: bool, **facts: Any) -> None:
        segments = self.schedule.segments
        constant = len({x for segment in segments for x in (segment.first, segment.last)}) == 1
        card = {
            "name": self.recipe.name,
            "architecture": self.architecture,
            "mean": self.recipe.mean,
            "std": self.recipe.std,
            "input_size": self.recipe.input_size,
            "classes": self.data.classes,
            "weights": self._best_file().name,
            "recipe": self.recipe.facts(),
            "alpha": segments[0].first if constant else None,
            "alpha_schedule": str(self.schedule),
            "seed": self.seed,
            "best_epoch": self.best["epoch"],
            "validation_accuracy": self.best["accuracy"],
            "finished": finished,
            **facts,
        }
        write_text(self.folder / CARD, json.dumps(card, indent=2) + "\n")
