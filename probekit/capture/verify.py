"""Verifies recorded activations against an independent pass that shares no code with the recorder.

The independent pass clones outputs in plain hooks and intercepts functions itself. It computes means
in float64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from probekit.capture.layers import Layer, is_activation_function, uncompiled, unwrap
from probekit.capture.outputs import tensor_of
from probekit.capture.recorder import Layers, Recorder, Tokens
from probekit.models.image_model import as_module

__all__ = ["verify_layers"]

_FUNCTIONS = {
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish",
    "hardswish", "hardsigmoid", "hardtanh", "sigmoid", "tanh", "softplus", "softsign", "tanhshrink",
    "softshrink", "hardshrink", "log_sigmoid", "logsigmoid", "threshold", "glu", "special_expit",
}  # fmt: skip
_SAME = {"log_sigmoid": "logsigmoid", "special_expit": "sigmoid"}
_CLOSE = 1e-5

_Key = tuple[str, str, int]


def verify_layers(
    model: Any,
    images: Tensor,
    layers: Sequence[Layer],
    choice: Layers,
    *,
    tokens: Tokens = "all",
    output: int | str | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Compares recorded layers with an independent pass, at two batch sizes and, if possible, image sizes.

    Args:
        model: A module or an `ImageModel`, in eval mode.
        images: At least two inputs, on the model's device.
        layers: The layers to verify.
        choice: The selection of the layers; None checks that no activation function is missing.
        tokens: As for `Recorder`.
        output: As for `Recorder`.

    Returns:
        For each layer, `values` (whether the recorded values equal those of the independent pass), `axis`
        (what makes the unit axis certain, or that it is uncertain) and `complete` (whether all calls
        were recorded). Then `batch_sizes`, `image_sizes`, `missing` (activation functions that are not
        layers) and `classifier` (the last activation function, if it is not a layer).
    """
    passes = [images[:2], torch.cat([images[:2], images[:1].flip(-1)])]
    worst: dict[str, float] = {}
    rows: list[dict[str, Tensor]] = []
    both: list[dict[_Key, Any]] = []
    for batch in passes:
        seen = _observe(model, batch, output)
        both.append(seen)
        found = _recorded(model, batch, layers, tokens, output)
        for layer in layers:
            expected = _pooled(layer, seen.get(_key(layer)), len(batch), tokens)
            error = _distance(found.get(layer.name), expected)
            worst[layer.name] = max(worst.get(layer.name, 0.0), error)
        rows.append(found)
    for layer in layers:
        if layer.name in rows[0] and layer.name in rows[1]:
            apart = _distance(rows[1][layer.name][:2], rows[0][layer.name].double())
            worst[layer.name] = max(worst[layer.name], apart / 100)
    other, sizes = _other_size(model, images[:2], layers, choice, tokens, output)
    calls = Counter(key[:2] for key in seen)
    modules = dict(unwrap(as_module(model)).named_modules())
    report = [
        {
            "values": worst[layer.name] < _CLOSE,
            "axis": _evidence(layer, other.get(layer.name)),
            "complete": calls[layer.module, layer.function] == layer.calls,
        }
        for layer in layers
    ]
    of_samples = {key: one for key, one in seen.items() if _grows(both[0].get(key), one)}
    missing, classifier = _missing(of_samples, layers, modules) if choice is None else ([], "")
    return report, {
        "batch_sizes": [2, 3], "image_sizes": sizes, "missing": missing, "classifier": classifier
    }  # fmt: skip


def _key(layer: Layer) -> _Key:
    return layer.module, layer.function, layer.call


class _Functions(TorchFunctionMode):
    """Clones the outputs of activation functions, under the innermost running module."""

    def __init__(self, running: list[str], keep: Any) -> None:
        super().__init__()
        self.running, self.keep = running, keep

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(getattr(func, "__name__", "")).removesuffix("_")
        if name in _FUNCTIONS or _limits(name, args, kwargs or {}):
            self.keep(self.running[-1], _SAME.get(name, name), result)
        return result


def _limits(name: str, args: Any, kwargs: Any) -> bool:
    """Whether a clamp is a ReLU, or a maximum is taken with a constant."""
    given = list(args[1:])
    if name in ("clamp", "clip", "clamp_min"):
        lower = kwargs["min"] if "min" in kwargs else [*given, None][0]
        upper = kwargs["max"] if "max" in kwargs else [*given, None, None][1]
        constant = not isinstance(lower, Tensor) and not isinstance(upper, Tensor)
        return constant and lower is not None and lower == 0 and upper in (None, 6, float("inf"))
    if name in ("maximum", "max"):
        tensors = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
        if len(tensors) != 2 or len(args) + len(kwargs) != 2:
            return False
        few, many = sorted(tensors, key=Tensor.numel)
        return few.numel() < many.numel() and (
            few.ndim < many.ndim or few.shape[0] != many.shape[0]
        )
    return False


def _observe(model: Any, images: Tensor, output: int | str | None) -> dict[_Key, Any]:
    """Clones of the outputs of every call of every module and activation function."""
    module = unwrap(as_module(model))
    seen: dict[_Key, Any] = {}
    calls: Counter[tuple[str, str]] = Counter()
    running: list[str] = [""]
    inside: list[str] = []

    def keep(name: str, function: str, result: Any) -> None:
        if function and inside:
            return
        tensor = tensor_of(result, output)
        seen[name, function, calls[name, function]] = None if tensor is None else tensor.clone()
        calls[name, function] += 1

    handles = []
    for name, child in module.named_modules():
        known = is_activation_function(child)

        def before(one: nn.Module, args: Any, name: str = name, known: bool = known) -> None:
            running.append(name)
            if known:
                inside.append(name)

        def after(
            one: nn.Module, args: Any, out: Any, name: str = name, known: bool = known
        ) -> None:
            running.pop()
            if known:
                inside.pop()
            keep(name, "", out)

        handles.append(child.register_forward_pre_hook(before))
        handles.append(child.register_forward_hook(after))
    try:
        with torch.no_grad(), uncompiled(), _Functions(running, keep):
            (module if isinstance(model, nn.Module) else model)(images)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _recorded(
    model: Any,
    images: Tensor,
    layers: Sequence[Layer],
    tokens: Tokens,
    output: int | str | None,
) -> dict[str, Tensor]:
    with torch.no_grad(), Recorder(model, list(layers), tokens=tokens, output=output) as recorder:
        recorder(images)
    return recorder.activations


def _pooled(layer: Layer, result: Tensor | None, batch: int, tokens: Tokens) -> Tensor | None:
    """The mean over positions and windows of each sample, in float64."""
    if result is None:
        return None
    result = result.double().movedim(layer.batch_axis, 0)
    if result.ndim == 1:
        return result.reshape(batch, -1).mean(1, keepdim=True)
    axes = [axis + (axis < layer.batch_axis) for axis in (layer.unit_axis, *layer.split)]
    rest = [axis for axis in range(1, result.ndim) if axis not in axes]
    rows = result.permute(0, *rest, *axes).reshape(batch, -1, layer.units)
    if tokens == "class" and layer.class_token is not None:
        return rows[:, layer.class_token]
    if tokens == "patch" and (layer.prefix or layer.suffix):
        rows = rows[:, layer.prefix : rows.shape[1] - layer.suffix]
    return rows.mean(1)


def _distance(found: Tensor | None, expected: Tensor | None) -> float:
    """The largest difference relative to the largest value."""
    if found is None or expected is None or found.shape != expected.shape:
        return float("inf")
    difference = float((found.double() - expected).abs().max())
    return difference / (float(expected.abs().max()) + 1e-12) if difference else 0.0


def _other_size(
    model: Any,
    images: Tensor,
    layers: Sequence[Layer],
    choice: Layers,
    tokens: Tokens,
    output: int | str | None,
) -> tuple[dict[str, Layer], list[tuple[int, ...]]]:
    """The same layers at another image size, if the model accepts one."""
    sizes = [tuple(images.shape[2:])]
    if images.ndim != 4:
        return {}, sizes
    larger = tuple(size + grown for size, grown in zip(sizes[0], (32, 64), strict=True))
    resized = torch.nn.functional.interpolate(images.float(), larger).to(images.dtype)
    try:
        with torch.no_grad(), Recorder(model, choice, tokens=tokens, output=output) as recorder:
            recorder(resized)
    except Exception:  # a model for a single size may raise any exception
        return {}, sizes
    return {layer.name: layer for layer in recorder.layers}, [*sizes, larger]


def _evidence(layer: Layer, other: Layer | None) -> str:
    """What makes the unit axis certain, or that it is uncertain."""
    if len(layer.shape) == 1:
        return "only axis"
    if other is not None and len(other.shape) == len(layer.shape):
        if other.units != layer.units or other.unit_axis != layer.unit_axis:
            return "uncertain: not the same at another image size"
        same = [one == two for one, two in zip(layer.shape, other.shape, strict=True)]
        place = layer.unit_axis - (layer.unit_axis > layer.batch_axis)
        if sum(same) == 1 and same[place]:
            return "image size"
    return layer.evidence if layer.certain else f"uncertain: {layer.evidence}"


def _grows(few: Tensor | None, many: Tensor | None) -> bool:
    """Whether an output grows with the number of samples; weights and tables do not."""
    return few is not None and many is not None and few.shape != many.shape


def _missing(
    seen: dict[_Key, Any], layers: Sequence[Layer], modules: dict[str, nn.Module]
) -> tuple[list[str], str]:
    """Activation functions that ran but are not layers; the last one, of the classifier, separately."""
    known = {_key(layer) for layer in layers}
    inside = [layer.module for layer in layers if not layer.function]
    ran = [
        (name, function, call)
        for name, function, call in seen
        if (name, function, call) in known or function or is_activation_function(modules[name])
    ]
    missing = {
        (name, function, call): ".".join(filter(None, (name, function)))
        for name, function, call in ran
        if (name, function, call) not in known
        and not any(name.startswith(f"{one}.") or (function and name == one) for one in inside)
    }
    classifier = missing.pop(ran[-1], "") if ran else ""
    return list(missing.values()), classifier
