"""The identity of a model: weights, structure, options of its modules, normalization."""

from __future__ import annotations

import dis
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import lru_cache, partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probekit.models.image_model import Model, as_module, content_hash

_LIBRARIES = ("torch", "torchvision", "timm")
_INTERNAL = frozenset(vars(nn.Module())) | {"_hf_hook"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_DEEPEST = 4
_MUTATORS = ("add", "append", "extend", "insert", "pop", "setdefault", "update")


def model_identity(model: Model) -> dict[str, Any]:
    """Returns what identifies a model, as plain values, without file locations.

    The identity includes the values of the weights; the names, types and options of modules; the names
    of forward hooks; and the normalization of an `ImageModel`. Options are attributes that are plain
    values, tensors, functions or objects of these, and that only `__init__` assigns. Functions are
    identified by their name, default arguments and closure, and lambdas, which have no name, by their code.
    """
    module = as_module(model)
    digest = hashlib.sha256()
    for name, child in module.named_modules(remove_duplicate=False):
        digest.update(f"{name}|{type(child).__module__}.{type(child).__qualname__}|".encode())
        for part in _parts_of(child):
            digest.update(part.encode())
    options = {
        name: list(getattr(model, name)) for name in ("mean", "std") if hasattr(model, "std")
    }
    return {
        "type": type(module).__name__,
        "hash": content_hash(module),
        "modules": f"sha256:{digest.hexdigest()}",
        **options,
    }


def describe(model: Model) -> dict[str, Any]:
    """Describes a model for a result's provenance: its identity, and its origin if known."""
    identity = model_identity(model)
    known = dict(getattr(model, "provenance", None) or {})
    return identity | known | {"hash": identity["hash"]}


def options_of(value: object) -> dict[str, Any]:
    """The options of an object, its fields or attributes; values that JSON cannot represent as text."""
    named = (
        {field.name: getattr(value, field.name) for field in fields(value)}
        if is_dataclass(value)
        else vars(value)
    )
    return {name: one if _is_json(one) else text_of(one) for name, one in named.items()}


def own_code(value: object) -> str:
    """A hash of the code of a function, or of the methods of an object; empty for those of this package."""
    methods = [value] if isinstance(value, FunctionType) else _own_methods(type(value))
    own = [one for one in methods if not one.__module__.startswith("probekit.")]
    text = "".join(text_of(one) + _code(one.__code__) for one in own)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" if own else ""


def _is_json(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_json(one) for key, one in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    return isinstance(value, str | int | float | bool | None)


def _parts_of(module: nn.Module) -> Iterator[str]:
    saved = set(module.state_dict(keep_vars=True))
    for name, buffer in module.named_buffers(recurse=False):
        if name not in saved:
            yield f"{name}={text_of(buffer)}|"
    written, mutated = _written(tuple(_own_methods(type(module))))
    for name, value in sorted(vars(module).items()):
        state = name in written or (mutated and isinstance(value, list | dict | set))
        if name not in _INTERNAL and not state:
            yield f"{name}={text_of(value)}|"
    loader = getattr(module, "_hf_hook", None)  # of accelerate, for offloaded weights
    for one in getattr(loader, "hooks", [loader]):
        stored = getattr(one, "weights_map", None)
        for name, weight in module.named_parameters(recurse=False):
            if stored is not None and weight.is_meta:
                yield f"{name}={text_of(stored[name])}|"
    for hooks in _HOOKS:
        for hook in getattr(module, hooks).values():
            yield f"{hooks}:{text_of(hook)}|"


def _own_methods(kind: type) -> list[FunctionType]:
    """The methods of a class that a library does not define."""
    return [
        method
        for one in kind.__mro__
        if one is not object and one.__module__.split(".")[0] not in _LIBRARIES
        for _, method in sorted(vars(one).items())
        if isinstance(method, FunctionType)
    ]


@lru_cache(maxsize=1000)  # a network has many modules of one class
def _written(methods: tuple[FunctionType, ...]) -> tuple[set[str], bool]:
    """The attributes that methods assign, which are state rather than options, and whether lists change."""
    names: set[str] = set()
    mutated = False
    for method in methods:
        if method.__name__ == "__init__":
            continue
        for step in dis.get_instructions(method):
            if step.opname == "STORE_ATTR":
                names.add(step.argval)
            mutated |= step.opname == "STORE_SUBSCR" or step.argval in _MUTATORS
    return names, mutated


def text_of(value: object, depth: int = 0) -> str:
    """A text for a value that is equal in every process; an object by its type and attributes.

    >>> text_of(max), text_of([1, 0.5])
    ('builtins.max', "['1', '0.5']")
    """
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | Enum):
        return repr(value)
    if isinstance(value, torch.dtype | torch.Size | type):
        return str(value)
    if isinstance(value, Tensor | np.ndarray):
        array = value.detach().cpu().double().numpy() if isinstance(value, Tensor) else value
        return f"{array.dtype}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()}"
    if depth > _DEEPEST or isinstance(value, nn.Module):
        return type(value).__qualname__
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, Mapping):
        return str(
            [(text_of(key, depth + 1), text_of(item, depth + 1)) for key, item in value.items()]
        )
    if isinstance(value, list | tuple):
        return str([text_of(item, depth + 1) for item in value])
    if isinstance(value, set | frozenset):
        return str(sorted(text_of(item, depth + 1) for item in value))
    if isinstance(value, partial):
        return text_of((value.func, value.args, value.keywords), depth + 1)
    if isinstance(value, MethodType):
        return text_of(value.__func__, depth + 1)
    if isinstance(value, FunctionType):
        closure = [_content(cell) for cell in value.__closure__ or ()]
        options = text_of((value.__defaults__, value.__kwdefaults__, closure), depth + 1)
        code = _code(value.__code__) if value.__name__ == "<lambda>" else ""
        return f"{value.__module__}.{value.__qualname__}{options}{code}"
    name = getattr(value, "__qualname__", None)
    if isinstance(name, str):
        return f"{getattr(value, '__module__', '')}.{name}"
    attributes = getattr(value, "__dict__", {})
    return f"{type(value).__qualname__}{text_of(attributes, depth + 1)}"


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _code(code: CodeType) -> str:
    constants = [_code(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts]
    text = f"{code.co_code.hex()}{code.co_names}{constants}"
    return hashlib.sha256(text.encode()).hexdigest()
