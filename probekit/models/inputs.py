"""Inputs of a model, which may modify them in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from inspect import signature
from typing import Any, TypeVar, get_origin

import torch
from torch import Tensor, nn

from probekit.errors import DataError, ModelError, first_line

T = TypeVar("T")

IMAGE_KEYS = ("image", "images", "pixel_values", "img", "jpg", "jpeg", "png", "webp")
"""Names of images in mappings."""

FAILURES = (RuntimeError, ValueError, AssertionError, LookupError, TypeError)
"""What models raise for inputs that they do not accept."""


class KeywordInputs:
    """Inputs that a model takes by keyword, such as `input_ids` and `attention_mask`.

    They are tensors (samples, ...) by name, and indexed by sample like a tensor of images.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)
        rows = {name: len(one) if one.ndim else 0 for name, one in self.tensors.items()}
        if len(set(rows.values())) != 1:
            raise DataError(f"named inputs must have the same number of samples, not {rows}")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: Any) -> KeywordInputs:
        return self.map(lambda one: one[rows])

    def __repr__(self) -> str:
        return f"KeywordInputs({', '.join(self.tensors)}, {len(self)} samples)"

    def map(self, change: Callable[[Tensor], Tensor]) -> KeywordInputs:
        return KeywordInputs({name: change(one) for name, one in self.tensors.items()})

    def to(self, *where: Any, **options: Any) -> KeywordInputs:
        return self.map(lambda one: one.to(*where, **options))

    def detach(self) -> KeywordInputs:
        return self.map(Tensor.detach)

    def pin_memory(self) -> KeywordInputs:
        return self.map(lambda one: one.pin_memory())


def without_padding(sample: Tensor | KeywordInputs) -> Tensor | KeywordInputs:
    """One sample without the tokens that its `attention_mask` hides, which depend on its batch."""
    mask = sample.tensors.get("attention_mask") if isinstance(sample, KeywordInputs) else None
    if not isinstance(sample, KeywordInputs) or mask is None or mask.ndim != 2:
        return sample
    kept = mask[0] != 0
    return sample.map(lambda one: one[:, kept] if one.shape[1:2] == kept.shape else one)


def tensors_of(inputs: Tensor | KeywordInputs) -> list[Tensor]:
    return list(inputs.tensors.values()) if isinstance(inputs, KeywordInputs) else [inputs]


def not_finite(tensors: Sequence[Tensor]) -> list[int]:
    """The positions of tensors that hold NaN or infinity; the device is synchronized once.

    Every tensor is summed first, which is twenty times as fast as looking at each number.
    """
    if not tensors:
        return []
    sums = torch.stack([one.sum(dtype=torch.float32) for one in tensors])
    if bool(sums.isfinite().all()):
        return []
    return [place for place, one in enumerate(tensors) if not bool(one.isfinite().all())]


def one_tensor(inputs: object, asker: str) -> Tensor:
    """Returns inputs that must be one tensor of images; raises `DataError` for others, such as tokens."""
    if isinstance(inputs, Tensor):
        return inputs
    raise DataError(
        f"{asker} needs inputs that are one tensor of images, and the data contains {inputs!r}; wrap "
        "the model in a module that takes one tensor"
    )


def call(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a model with a copy of its inputs; named inputs are passed by keyword."""
    first = args[0] if len(args) == 1 else None
    if isinstance(first, KeywordInputs):
        args, kwargs = (), {**first.tensors, **kwargs}
    return model(*copied(args), **copied(kwargs))


def taking_images(module: nn.Module) -> Callable[..., Any]:
    """A module that is called with images; by keyword if `pixel_values` is not its first argument.

    A module whose first argument is annotated as a mapping receives one, with the images under each of
    `IMAGE_KEYS`, or with all named inputs.

    Example:
        >>> class Late(nn.Module):
        ...     def forward(self, *, labels=None, pixel_values=None):
        ...         return pixel_values.flatten(1)
        >>> taking_images(Late())(torch.ones(1, 1, 2, 2))
        tensor([[1., 1., 1., 1.]])
    """
    try:
        names = list(signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # not written in Python
        return module
    if names and names[0].kind is not names[0].KEYWORD_ONLY and _is_mapping(names[0].annotation):

        def take(*args: Any, **kwargs: Any) -> Any:
            if args and isinstance(args[0], Tensor):
                args = (dict.fromkeys(IMAGE_KEYS, args[0]), *args[1:])
            return module(*args, **kwargs) if args else module(kwargs)

        return take
    late = names if names and names[0].kind is names[0].KEYWORD_ONLY else names[1:]
    if "pixel_values" not in [one.name for one in late]:
        return module

    def run(*args: Any, **kwargs: Any) -> Any:
        if len(args) != 1:
            return module(*args, **kwargs)
        return module(pixel_values=args[0], **kwargs)

    return run


def _is_mapping(annotation: object) -> bool:
    """Whether an annotation, evaluated or not, is a mapping, such as `dict[str, Tensor]`."""
    if isinstance(annotation, str):
        name = annotation.partition("[")[0].rpartition(".")[2]
        return name in ("dict", "Dict", "Mapping", "MutableMapping")
    kind = get_origin(annotation) or annotation
    return isinstance(kind, type) and issubclass(kind, Mapping)


def copied(inputs: T) -> T:
    """Copies inputs, so that the model may modify them.

    A model that normalizes its images in place (`x.sub_(mean)`, `F.relu(x, inplace=True)`) would
    otherwise change the images of the user and of every later pass. In autograd, the copy propagates
    the gradient and is not a leaf, which operations must not modify in place. Anything but tensors in
    tuples, lists and mappings is returned unchanged.
    """
    if isinstance(inputs, Tensor):
        return inputs.clone()  # type: ignore[return-value]  # a tensor for a tensor
    if isinstance(inputs, Mapping):
        twin = copy(inputs)  # keeps the type of the mapping, such as BatchEncoding
        for key, value in inputs.items():
            twin[key] = copied(value)  # type: ignore[index]  # the mappings are mutable
        return twin
    if isinstance(inputs, tuple) and hasattr(inputs, "_fields"):
        return type(inputs)(*map(copied, inputs))
    if isinstance(inputs, list | tuple):
        return type(inputs)(map(copied, inputs))
    return inputs


def check_pixels(images: Tensor, asker: str) -> None:
    """Raises `DataError` unless images are floating-point numbers in [0, 1]."""
    if not images.is_floating_point():
        raise DataError(
            f"{asker} needs floating-point images in [0, 1], and these are {images.dtype}; "
            "for values from 0 to 255 pass images.float() / 255"
        )
    low, high = map(float, images.detach().aminmax()) if images.numel() else (0.0, 1.0)
    if low != low:
        raise DataError(f"{asker} needs images in [0, 1], and these hold NaN")
    if low < 0 or high > 1:
        fix = (
            "for values from 0 to 255 divide by 255"
            if low >= 0 and high > 2
            else "pass images before normalization and let the model normalize (an ImageModel does), or "
            "clamp them to [0, 1]"
        )
        raise DataError(
            f"{asker} needs images in [0, 1], and these run from {low:.4g} to {high:.4g}; {fix}"
        )


def check_continuous(inputs: Tensor) -> None:
    """Raises `DataError` if the inputs are integers, such as tokens, which have no gradients."""
    if not inputs.is_floating_point():
        raise DataError(
            f"gradients with respect to the inputs were requested, and the inputs are {inputs.dtype}; "
            "use floating-point inputs, or a model that starts after its embedding"
        )


@contextmanager
def reported_refusal() -> Iterator[None]:
    """Reports operations that have no gradient, such as flex_attention on a CPU, as a `ModelError`."""
    try:
        yield
    except NotImplementedError as error:
        raise ModelError(f"the model cannot be differentiated: {first_line(error)}") from error


@contextmanager
def explained_failure(images: object) -> Iterator[None]:
    """Adds a description of the images to errors of the model."""
    try:
        yield
    except FAILURES as error:
        if not isinstance(images, Tensor):
            misnamed = isinstance(error, TypeError) and "unexpected keyword argument" in str(error)
            advice = f"; name the inputs as its arguments; {_MAPPING}" if misnamed else ""
            raise DataError(
                f"the model fails on {images!r}: {first_line(error)}{advice}"
            ) from error
        if images.dtype in (torch.uint8, torch.bool):
            raise DataError(
                f"the images are {images.dtype}, which the model does not accept; use floats as it was "
                "trained on (images / 255, normalized), or wrap it in an ImageModel"
            ) from error
        raise DataError(
            f"the model fails on images of the shape {tuple(images.shape[1:])} ({images.dtype}, "
            f"{len(images)} samples): {first_line(error)}; "
            f"{_advice(tuple(images.shape[1:]), isinstance(error, LookupError))}"
        ) from error


_MAPPING = "a model that takes a mapping must be annotated so, as in forward(self, batch: dict)"


def _advice(shape: tuple[int, ...], lookup: bool) -> str:
    """What to do about images that the model does not accept."""
    if lookup:
        return (
            f"give images of the shape that it takes; {_MAPPING}, and find its images under one of "
            f"{', '.join(IMAGE_KEYS)}"
        )
    wrapped = "or wrap the model in an ImageModel, which does so"
    if len(shape) == 3 and shape[2] in (1, 3) and shape[0] not in (1, 3):
        return (
            f"they look like (height, width, channels): give images.permute(0, 3, 1, 2), {wrapped}"
        )
    if len(shape) == 3 and shape[0] == 1:
        return f"if it takes RGB, repeat gray images (images.repeat(1, 3, 1, 1)), {wrapped}"
    return "give images of the shape that it takes"
