"""Short training runs and what two of them have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import probekit as pk
from probekit.training.run.directory import read_log
from probekit.training.run.loop import TrainingLoop

QUICK: dict[str, Any] = {
    "epochs": 2,
    "architecture": "resnet8",
    "limit": 96,
    "batch_size": 32,
    "device": "cpu",
    "progress": False,
}
CPU = torch.device("cpu")


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


def cut_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Interrupts the training loop after the given number of steps."""
    step = TrainingLoop._train_step
    left = [steps]

    def counted(self: Any, *args: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        step(self, *args)

    monkeypatch.setattr(TrainingLoop, "_train_step", counted)
