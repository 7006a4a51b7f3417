"""Verifies recorded activations against an independent pass that shares no code with the recorder.

The independent pass reads outputs in plain hooks and intercepts functions itself. It computes means in
float64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any
from warnings import catch_warnings

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from probekit.capture.layers import Layer, is_activation_function, runnable, uncompiled, unwrap
from probekit.capture.outputs import tensor_of
from probekit.capture.recorder import Layers, Recorder, Tokens
from probekit.errors import noted
from probekit.models.image_model import Model, as_module
from probekit.models.inputs import KeywordInputs, call

_FUNCTIONS = {
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish",
    "hardswish", "hardsigmoid", "hardtanh", "sigmoid", "tanh", "softplus", "softsign", "tanhshrink",
    "softshrink", "hardshrink", "log_sigmoid", "logsigmoid", "threshold", "glu", "special_expit",
}  # fmt: skip
_SAME = {"log_sigmoid": "logsigmoid", "special_expit": "sigmoid"}
_CLOSE = 1e-5

_Key = tuple[str, str, int]


def verify_layers(
    model: Model,
    images: Tensor | KeywordInputs,
    layers: Sequence[Layer],
    choice: Layers,
    *,
    tokens: Tokens = "all",
    output: int | str | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Compares recorded layers with an independent pass, at two batch sizes and, if possible, image sizes.

    A `choice` of None also checks that no activation function is missing. Returns, for each layer, the
    columns `values`, `axis` and `complete` of `plan`; and its attributes.
    """
    batches = [images[:2], _with_another(images[:2])]
    observed = [_observe(model, batch, layers, tokens, output) for batch in batches]
    recorded = [_recorded(model, batch, layers, tokens, output) for batch in batches]
    other = layers_at_larger_size(model, images[:2], choice, tokens, output)
    shown = [images, *([larger(images)] if other else [])] if isinstance(images, Tensor) else []
    shapes = [of_calls for of_calls, _ in observed]
    calls = Counter(key[:2] for key in shapes[1])
    report = []
    for layer in layers:
        errors = [
            _distance(tables.get(layer.name), means.get(layer.name))
            for (_, means), tables in zip(observed, recorded, strict=True)
        ]
        few, many = (tables.get(layer.name) for tables in recorded)
        if few is not None and many is not None:
            errors.append(_distance(many[:2], few.double()) / 100)
        report.append(
            {
                "values": max(errors) < _CLOSE,
                "axis": _evidence(layer, other.get(layer.name)),
                "complete": calls[layer.module, layer.function] == layer.calls,
            }
        )
    modules = dict(unwrap(as_module(model)).named_modules())
    per_sample = [  # weights and tables do not grow with the number of samples
        key
        for key, shape in shapes[1].items()
        if shape is not None and shapes[0].get(key) not in (None, shape)
    ]
    missing, classifier = _missing(per_sample, layers, modules) if choice is None else ([], "")
    return report, {
        "batch_sizes": [2, 3],
        "image_sizes": [tuple(one.shape[2:]) for one in shown],
        "missing": missing,
        "classifier": classifier,
    }


def _with_another(images: Any) -> Any:
    """Two samples and a third one: the mirror image of the first, or the first again."""
    if isinstance(images, KeywordInputs):
        return images[[0, 1, 0]]
    return torch.cat([images, images[:1].flip(-1)])


def _key(layer: Layer) -> _Key:
    return layer.module, layer.function, layer.call


class _Functions(TorchFunctionMode):
    """Reports the outputs of activation functions."""

    def __init__(self, called: Callable[[str, Any], None]) -> None:
        super().__init__()
        self.called = called

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # The operations of exported models are named like `relu_.default`.
        name = str(getattr(func, "__name__", "")).partition(".")[0].removesuffix("_")
        if name in _FUNCTIONS or _limits(name, args, kwargs or {}):
            self.called(_SAME.get(name, name), result)
        return result


def _limits(name: str, args: Any, kwargs: Any) -> bool:
    """Whether a clamp is a ReLU, or a maximum is taken with a constant."""
    given = list(args[1:])
    if name in ("clamp", "clip", "clamp_min"):
        lower = kwargs["min"] if "min" in kwargs else [*given, None][0]
        upper = kwargs["max"] if "max" in kwargs else [*given, None, None][1]
        if isinstance(lower, Tensor) and upper is None:
            return float(lower.abs().max()) == 0
        constant = not isinstance(lower, Tensor) and not isinstance(upper, Tensor)
        return constant and lower is not None and lower == 0 and upper in (None, 6, float("inf"))
    if name in ("maximum", "max", "fmax"):
        tensors = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
        if len(tensors) != 2 or len(args) + len(kwargs) != 2:
            return False
        few, many = sorted(tensors, key=Tensor.numel)
        if few.shape == many.shape:
            cosine = torch.cosine_similarity(few.double().flatten(), many.double().flatten(), dim=0)
            multiples = abs(float(cosine)) > 1 - 1e-6 and not torch.equal(few, many)
            return multiples or 0 in (float(few.abs().max()), float(many.abs().max()))
        return few.numel() < many.numel() and (
            few.ndim < many.ndim or few.shape[0] != many.shape[0]
        )
    return False


def _observe(
    model: Model, images: Any, layers: Sequence[Layer], tokens: Tokens, output: int | str | None
) -> tuple[dict[_Key, torch.Size | None], dict[str, Tensor]]:
    """The shapes of the outputs of all calls of modules and activation functions, and the layers' means."""
    module = unwrap(as_module(model))
    names = {child: name for name, child in module.named_modules()}
    sites = {_key(layer): layer for layer in layers}
    shapes: dict[_Key, torch.Size | None] = {}
    means: dict[str, Tensor] = {}
    calls: Counter[tuple[str, str]] = Counter()
    running = [module]

    def keep(name: str, function: str, result: object) -> None:
        tensor = tensor_of(result, output)
        key = name, function, calls[name, function]
        calls[name, function] += 1
        shapes[key] = None if tensor is None else tensor.shape
        if tensor is not None and (layer := sites.get(key)):
            means[layer.name] = _pooled(layer, tensor, images, tokens)

    def before(child: nn.Module, args: object) -> None:
        running.append(child)

    def after(child: nn.Module, args: object, result: object) -> None:
        running.pop()
        keep(names[child], "", result)

    def called(function: str, result: object) -> None:
        if not any(map(is_activation_function, running)):
            keep(names[running[-1]], function, result)

    with ExitStack() as stack, torch.no_grad(), uncompiled(), _Functions(called):
        for child in names:
            stack.callback(child.register_forward_pre_hook(before).remove)
            stack.callback(child.register_forward_hook(after).remove)
        call(runnable(model), images)
    return shapes, means


def layers_at_larger_size(
    model: Model,
    images: Tensor | KeywordInputs,
    choice: Layers,
    tokens: Tokens,
    output: int | str | None,
) -> dict[str, Layer]:
    """The same layers at a larger image size by name; empty if the model does not accept one."""
    if not isinstance(images, Tensor) or images.ndim != 4:
        return {}
    recorder = Recorder(model, choice, tokens=tokens, output=output)
    try:
        with noted(), catch_warnings(action="ignore"), torch.no_grad(), recorder:
            recorder(larger(images))
    except Exception:  # a model for a single size may raise any exception
        return {}
    return {layer.name: layer for layer in recorder.layers}


def larger(images: Tensor) -> Tensor:
    """Images (batch, channels, height, width) with more rows and columns, and another aspect ratio."""
    height, width = images.shape[2:]
    size = height + 32, width + 64
    return torch.nn.functional.interpolate(images.float(), size).to(images.dtype)


def _recorded(
    model: Model, images: Any, layers: Sequence[Layer], tokens: Tokens, output: int | str | None
) -> dict[str, Tensor]:
    with torch.no_grad(), Recorder(model, list(layers), tokens=tokens, output=output) as recorder:
        recorder(images)
    return recorder.activations


def _pooled(layer: Layer, result: Tensor, images: Any, tokens: Tokens) -> Tensor:
    """The mean over positions and windows of each sample, without padding, in float64."""
    batch = len(images)
    result = result.double().movedim(layer.batch_axis, 0)
    if layer.outer > 1:
        result = torch.stack(result.chunk(layer.outer), 1).reshape(result.shape)
    if result.ndim == 1:
        return result.reshape(batch, -1).mean(1, keepdim=True)
    axes = [axis + (axis < layer.batch_axis) for axis in (layer.unit_axis, *layer.split)]
    rest = [axis for axis in range(1, result.ndim) if axis not in axes]
    rows = result.permute(0, *rest, *axes).reshape(batch, -1, layer.units)
    if tokens == "class" and layer.class_token is not None:
        return rows[:, layer.class_token]
    if tokens == "patch" and (layer.prefix or layer.suffix):
        rows = rows[:, layer.prefix : rows.shape[1] - layer.suffix]
    mask = images.tensors.get("attention_mask") if isinstance(images, KeywordInputs) else None
    if mask is not None and mask.shape == rows.shape[:2]:
        return torch.stack([row[real != 0].mean(0) for row, real in zip(rows, mask, strict=True)])
    return rows.mean(1)


def _distance(found: Tensor | None, expected: Tensor | None) -> float:
    """The largest difference relative to the largest value."""
    if found is None or expected is None or found.shape != expected.shape:
        return float("inf")
    difference = float((found.double() - expected).abs().max())
    return difference / (float(expected.abs().max()) + 1e-12) if difference else 0.0


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


def _missing(
    outputs: Sequence[_Key], layers: Sequence[Layer], modules: dict[str, nn.Module]
) -> tuple[list[str], str]:
    """Activation functions that ran but are not layers; the last one, of the classifier, separately."""
    known = {_key(layer) for layer in layers}
    recorded = [layer.module for layer in layers if not layer.function]
    ran = [
        key for key in outputs if key in known or key[1] or is_activation_function(modules[key[0]])
    ]
    missing = {
        (name, function, call): ".".join(filter(None, (name, function)))
        for name, function, call in ran
        if (name, function, call) not in known
        and not any(name.startswith(f"{one}.") or (function and name == one) for one in recorded)
    }
    classifier = missing.pop(ran[-1], "") if ran else ""
    return list(missing.values()), classifier
