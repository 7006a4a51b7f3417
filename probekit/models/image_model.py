"""A network with its preprocessing, and helpers that use a model temporarily."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from probekit.errors import ModelError
from probekit.models.hooks import Hook
from probekit.models.inputs import taking_images
from probekit.models.nested import all_tensors
from probekit.models.state import State
from probekit.runtime.processes import usable_device

_MOST = 2**30


class Wrapper(Protocol):
    """A model that runs a module after preprocessing of its own, such as an `ImageModel`."""

    @property
    def module(self) -> nn.Module:
        """The module."""

    def __call__(self, images: Tensor, /) -> Any:
        """The output of the module for images."""


Model: TypeAlias = "nn.Module | Wrapper"
ModelOrName: TypeAlias = "Model | str | os.PathLike[str]"


@dataclass(frozen=True, eq=False, repr=False)
class ImageModel:
    """A network that takes images in [0, 1] and normalizes them.

    Attributes:
        module: The bare network, which expects normalized images.
        mean: Mean of each channel, of images in [0, 1].
        std: Standard deviation of each channel, of images in [0, 1].
        input_size: (channels, height, width) that the network expects.
        classes: The names of its outputs, in order; empty if unknown.
        crop_pct: Share of a resized photograph that the center crop keeps.
        interpolation: How photographs are resized: nearest, bilinear, bicubic or lanczos.
        crop_mode: `center` preserves the aspect ratio of photographs, `squash` does not, as for some models
            of timm and transformers.
        provenance: The origin of the network, as plain data.

    Example:
        >>> model = ImageModel(nn.Flatten(), mean=(0.5,), std=(0.5,), input_size=(1, 2, 2))
        >>> model(torch.ones(1, 1, 2, 2))
        tensor([[1., 1., 1., 1.]])
    """

    module: nn.Module
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    input_size: tuple[int, int, int] = (3, 224, 224)
    classes: tuple[str, ...] = ()
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    crop_mode: str = "center"
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            numbers = [value] if isinstance(value, int | float) else value
            object.__setattr__(self, name, tuple(map(float, numbers)))
        if len(self.mean) != len(self.std) or any(value <= 0 for value in self.std):
            raise ModelError(f"mean {self.mean} needs one positive std per channel, not {self.std}")
        if len(self.input_size) != 3 or min(self.input_size) < 1 or prod(self.input_size) > _MOST:
            raise ModelError(
                "input_size must be (channels, height, width), three positive integers, not "
                f"{self.input_size}"
            )

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            # Called only for attributes that an ImageModel lacks.
            module = self.__dict__.get("module")
            there = f"; its module has: use .module.{name}" if hasattr(module, name) else ""
            raise AttributeError(f"an ImageModel has no attribute {name!r}{there}")

    def __repr__(self) -> str:
        name = self.provenance.get("name", type(self.module).__name__)
        return (
            f"ImageModel({name}, input_size={self.input_size}, mean={self.mean}, std={self.std}, "
            f"{len(self.classes)} classes)"
        )

    def normalize(self, images: Tensor) -> Tensor:
        """Normalizes images (batch, channels, height, width) in [0, 1] for the network."""
        shape = (-1, 1, 1)
        mean = torch.tensor(self.mean, dtype=images.dtype, device=images.device).view(shape)
        std = torch.tensor(self.std, dtype=images.dtype, device=images.device).view(shape)
        return (images - mean) / std

    def __call__(self, images: Tensor) -> Any:
        """Returns the network's output for images in [0, 1], converted to the type of its parameters."""
        normalized = self.normalize(images)
        first = next(self.module.parameters(), None)
        if first is not None and first.is_floating_point():
            normalized = normalized.to(first.dtype)
        return taking_images(self.module)(normalized)


def module_of(model: object) -> nn.Module | None:
    """Returns the bare module of an `ImageModel`, or a module unchanged; None for others."""
    module = model if isinstance(model, nn.Module) else getattr(model, "module", None)
    return module if isinstance(module, nn.Module) else None


def as_module(model: Model) -> nn.Module:
    """As `module_of`; raises `ModelError` for others."""
    module = module_of(model)
    if module is None:
        advice = ""
        if isinstance(model, str | os.PathLike):
            advice = f"; load it first, with pk.load_model({os.fspath(model)!r})"
        elif isinstance(getattr(model, "model", None), nn.Module):
            advice = "; give its attribute 'model'"
        raise ModelError(
            "a model must be a torch.nn.Module, an ImageModel or a name to load, not "
            f"{type(model).__name__}{advice}"
        )
    return module


def check_differentiable(module: nn.Module) -> None:
    """Raises `ModelError` if gradients cannot be computed through the weights.

    This is the case if they were created inside `torch.inference_mode()`, or are distributed over processes.
    """
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if hasattr(tensor, "to_local"):
            raise ModelError(
                f"gradients were requested, and {name!r} of the model is a {type(tensor).__name__}, "
                "distributed over processes; pass a model with full weights (full_tensor())"
            )
        if tensor.is_inference():
            raise ModelError(
                f"gradients were requested, and {name!r} of the model was created inside "
                "torch.inference_mode(), which autograd does not support; load the model outside of "
                "it, or pass copy.deepcopy(model) created outside"
            )


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's first parameter or buffer that has values; the CPU if it has none.

    Offloaded weights are on the device `meta`, without values, until their module runs.
    """
    tensors = (*module.parameters(), *module.buffers())
    devices = (tensor.device for tensor in tensors if tensor.device.type != "meta")
    return next(devices, torch.device("cpu"))


def check_weights(module: nn.Module) -> None:
    """Raises `ModelError` if a lazy module has not had its first input, or weights have no values.

    Weights on the device `meta` may be loaded by a hook or by a method of their module when it runs,
    as accelerate does. In a model without hooks, they never have values.
    """
    loads = any(
        "forward" in vars(one)
        or not all(isinstance(hook, Hook) for hook in one._forward_pre_hooks.values())
        for one in module.modules()
    )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise ModelError(
                f"{name!r} of the model has no shape before its first input; call the model on a batch "
                "once"
            )
        if tensor.is_meta and not loads:
            raise ModelError(
                f"{name!r} of the model has no values (it is on the device 'meta'); load the weights "
                "first, or let hooks load them when the model runs"
            )


@contextmanager
def borrow(model: Model, device: str | torch.device | None = None) -> Iterator[torch.device]:
    """Puts a model in eval mode on a device, and restores it at exit, also after an exception.

    Yields:
        The device for the images.
    """
    module = as_module(model)
    home = device_of(module)
    check_weights(module)
    target = home if device is None else usable_device(device)
    if target.type == "meta":
        raise ModelError("device 'meta' stores no values, so nothing can be computed on it")
    modes = {  # frozen TorchScript has none
        child: child.training for child in module.modules() if hasattr(child, "training")
    }
    state = State(module)
    try:
        with suppress(NotImplementedError):  # an exported program has only one mode
            module.eval()
        if target != home:
            module.to(target)
        yield target
    finally:
        if target != home:
            module.to(home)
        for child, training in modes.items():
            if child.training != training:
                child.train(training)  # which user-defined modules may override
        state.restore()
        for child, training in modes.items():
            child.training = training


def content_hash(module: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and values of a module's state, as `sha256:...`."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        for tensor in all_tensors(value):  # quantized layers store tuples
            digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            digest.update(bytes_of(tensor))
    return f"sha256:{digest.hexdigest()}"


def bytes_of(tensor: Tensor) -> Any:
    """The bytes of the values of a tensor of any layout; empty on the device `meta`, which has no values."""
    tensor = tensor.detach()
    if hasattr(tensor, "to_local"):  # a DTensor: the local part of this process
        tensor = tensor.to_local()
    if tensor.is_meta:
        return b""
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    flat = tensor.cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""
