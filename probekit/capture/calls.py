"""The calls of modules and of activation functions in a forward pass, and their names."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from probekit.capture.functions import is_called_from_variable
from probekit.capture.layers import site_names

_Access: TypeAlias = "tuple[nn.Module, nn.Module, str]"  # a module, its parent, and its name there


@dataclass(frozen=True)
class Call:
    """One call of a module, or of an activation function inside a module (`function`).

    Attributes:
        name: The name under which it was called, with the suffix `_1`, `_2`, ... from the second call on.
        series: The same name without the suffix.
        numbered: For a module, the first of its names with the number of the call; otherwise `name`.
        module: The first name of the module that is called, or that calls the function.
        number: Index of the call of the module, or of this function in the module, starting at 0.
    """

    name: str
    series: str
    numbered: str
    module: str
    number: int
    function: str = ""
    called: nn.Module | None = None

    @property
    def type(self) -> str:
        """The class of the module that is called, or the name of the function."""
        return self.function if self.called is None else type(self.called).__name__

    def is_named(self, pattern: str) -> bool:
        """Whether a glob matches one of the names of the call."""
        return any(fnmatch.fnmatchcase(name, pattern) for name in (self.name, self.numbered))


class Calls:
    """Tracks the nesting of running modules and names each call.

    A module registered under several names gets, in each call, the name under which it was accessed:
    `block2.act` if block 2 called `self.act`, whatever its other names are. `exchanged` are the modules
    whose names may be exchanged, because their calls cannot be told apart.
    """

    def __init__(self, root: nn.Module) -> None:
        self.stack: list[_Running] = []
        self._root = root
        self._numbers: Counter[tuple[str, str]] = Counter()
        self._series: dict[tuple[str, bool], Iterator[str]] = {}
        self._numbered: dict[str, Iterator[str]] = {}
        self._names: dict[nn.Module, list[str]] = {}
        for name, module in root.named_modules(remove_duplicate=False):
            self._names.setdefault(module, []).append(name)
        self._taken = {name for names in self._names.values() for name in names}
        self._given: set[str] = set()
        self._accesses: list[_Access] = []  # without a call so far
        self._last: dict[nn.Module, _Access] = {}
        self._in_order = False
        self.exchanged: set[str] = set()
        self._lent: list[tuple[nn.Module, dict[str, Any]]] = []

    def watch_names(self) -> None:
        """Tracks, until `forget_names`, the name under which a module with several names is accessed."""
        for module in self._root.modules():
            if any(len(self._names[child]) > 1 for child in module.children()):
                usual = module._modules
                module.__dict__["_modules"] = _Watched(usual, module, self._accesses)
                self._lent.append((module, usual))

    def forget_names(self) -> None:
        while self._lent:
            module, usual = self._lent.pop()
            now = module._modules
            if isinstance(now, _Watched):
                inside = list(dict.items(now))
                usual.clear()
                usual.update(inside)
                module.__dict__["_modules"] = usual

    def enter(self, module: nn.Module, layers: int = 0) -> None:
        """Records that a module starts to run, with the number of layers so far."""
        self.stack.append(_Running(module, self._called_as(module), layers))

    def leave(self, module: nn.Module) -> tuple[Call, int]:
        """Records that a module has run, and drops modules that it called and that failed.

        Returns the call, and the number of layers when it started.
        """
        running = self.stack.pop()
        while running.module is not module:
            running = self.stack.pop()
        self._accesses[:] = [one for one in self._accesses if one[1] is not module]
        return self._made(running.name, module), running.layers

    def canonical(self, module: nn.Module) -> str:
        """The first name of a module."""
        return self._names[module][0]

    def function(self, name: str) -> Call:
        """Records that the running module has called an activation function."""
        running = self.stack[-1]
        series = f"{running.name}.{name}" if running.name else name
        return self._made(series, running.module, name)

    def _made(self, series: str, target: nn.Module, function: str = "") -> Call:
        module = self._names[target][0]
        key = series, bool(function)
        names = self._series.setdefault(key, site_names(series, self._taken))
        name = next(
            one for one in names if one not in self._given and not (function and one in self._taken)
        )
        self._given.add(name)
        number = self._numbers[module, function]
        self._numbers[module, function] += 1
        if function:
            return Call(name, series, name, module, number, function)
        numbered = self._numbered.setdefault(module, site_names(module, self._taken))
        return Call(name, series, next(numbered), module, number, called=target)

    def _called_as(self, module: nn.Module) -> str:
        """The name under which a module is currently called."""
        names = self._names[module]
        access = self._accessed(module)
        if len(names) == 1:
            return names[0]
        if access is not None:
            _, parent, key = access
            running = next((one.name for one in self.stack[::-1] if one.module is parent), None)
            above = self._names[parent][0] if running is None else running
            return f"{above}.{key}" if above else key
        inside = f"{self.stack[-1].name}." if self.stack and self.stack[-1].name else ""
        return next((name for name in names if name.startswith(inside)), names[0])

    def _accessed(self, module: nn.Module) -> _Access | None:
        """The access to a module that led to its call, or to the one before if it is called again.

        It is the last one, as in `self.b(self.conv(self.a(x)))`, unless modules are called in the order in
        which they were accessed, as in `for layer in [self.a, self.conv, self.b]`. Variables, as in
        `p, q = self.a, self.b`, are assumed to be called in this order.
        """
        places = [i for i, one in enumerate(self._accesses) if one[0] is module]
        if places:
            several = len({self._accesses[place][2] for place in places}) > 1
            if several and not self._in_order and is_called_from_variable(module):
                self._in_order = True
                self.exchanged.add(self.canonical(module))
            place = places[0 if self._in_order else -1]
            self._in_order = place < len(self._accesses) - 1
            self._last[module] = self._accesses.pop(place)
        last = self._last.get(module)
        again = last is not None and self.stack and self.stack[-1].module is last[1]
        return last if places or again else None


@dataclass(frozen=True)
class _Running:
    """A module whose forward is running, the name of the call, and the number of layers before it."""

    module: nn.Module
    name: str
    layers: int


class _Watched(dict[str, Any]):
    """The submodules of a module, as a dictionary that tracks which ones are accessed."""

    def __init__(self, usual: dict[str, Any], parent: nn.Module, accesses: list[_Access]) -> None:
        super().__init__(usual)
        self._parent = parent
        self._accesses = accesses

    def __getitem__(self, key: str) -> Any:
        module = super().__getitem__(key)
        self._accesses.append((module, self._parent, key))
        return module

    def values(self) -> Any:
        return (module for _, module in self.items())

    def items(self) -> Any:
        for key, module in super().items():
            access = (module, self._parent, key)
            self._accesses.append(access)
            yield key, module
            if any(one is access for one in self._accesses):  # not called, only iterated over
                self._accesses[:] = [one for one in self._accesses if one is not access]
