"""Checkpoints: tensors and plain data in one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from probekit.errors import OutputError, foreign_file
from probekit.results.files import whole

__all__ = [
    "capture_random_state",
    "damaged",
    "momentum_of",
    "read_checkpoint",
    "restore_momentum",
    "restore_random_state",
    "write_checkpoint",
    "write_text",
    "write_whole",
]


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Writes a file so that, whenever the process dies, the old or the new one is there, whole.

    Raises:
        OutputError: It cannot be written (disk full, say); the old file is as it was.
    """
    try:
        with whole(path) as draft, draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(path.parent)
    except OSError as error:
        kept = "; the file that was there is whole" if path.exists() else ""
        raise OutputError(
            f"{str(path)!r} cannot be written ({error.strerror}){kept}; make room and start again "
            "with the same options, which goes on from the last checkpoint"
        ) from None


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable, where a folder can be opened at all."""
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def write_text(path: Path, text: str) -> None:
    """`write_whole` for text."""
    write_whole(path, text.encode())


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Writes tensors, and plain data in the file's header, as one safetensors file.

    Raises:
        OutputError: It cannot be written; the old file is as it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "last.safetensors")
        ...     write_checkpoint(path, {"model.w": torch.ones(2)}, {"epoch": 3})
        ...     read_checkpoint(path)
        ({'model.w': tensor([1., 1.])}, {'epoch': 3})
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(plain, {"facts": json.dumps(dict(facts))}))


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the plain data of a checkpoint.

    Raises:
        OutputError: It is missing, damaged, or was not written by `write_checkpoint`.
    """
    with damaged(path), safe_open(path, framework="pt") as file:
        facts = dict(json.loads((file.metadata() or {})["facts"]))
        return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118


def damaged(path: Path) -> AbstractContextManager[None]:
    """Makes one sentence of whatever is wrong with a checkpoint."""
    advice = "; move the run's folder away to begin anew"
    return foreign_file(f"checkpoint {str(path)!r} cannot be read", OutputError, advice)


def momentum_of(optimizer: torch.optim.SGD, module: nn.Module) -> dict[str, Tensor]:
    """The momentum of every parameter that has one, by the parameter's name."""
    return {
        name: optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in module.named_parameters()
        if optimizer.state.get(parameter, {}).get("momentum_buffer") is not None
    }


def restore_momentum(
    optimizer: torch.optim.SGD, module: nn.Module, momentum: Mapping[str, Tensor]
) -> None:
    """Gives an optimizer the momentum of `momentum_of`, in the layout of the parameters."""
    for name, parameter in module.named_parameters():
        if name in momentum:
            buffer = torch.empty_like(parameter, requires_grad=False)
            optimizer.state[parameter]["momentum_buffer"] = buffer.copy_(momentum[name])


def capture_random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's global generators: the CPU's, and the device's if it has its own."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_state(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Sets torch's global generators to what `capture_random_state` found."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
