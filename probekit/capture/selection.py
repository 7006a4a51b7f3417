"""Choosing layers: by dotted name, glob, module type or predicate."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from torch import nn

from probekit.capture.calls import Call
from probekit.capture.functions import FUNCTION_NAMES
from probekit.errors import LayerError, OptionError, close_matches, some_of

LayerChoice: TypeAlias = "str | nn.Module | type[nn.Module] | Callable[[str, nn.Module], bool]"

_NUMBERED = re.compile(r"(.+)_[1-9]\d*")
_MOST_CALLS = 200


class Selection:
    """The selected layers: names, globs, modules, module types or predicates, one or several of them.

    A string that begins with `!` excludes what it matches. `None` selects every activation function,
    whether a module or a function. Names and globs match modules under any of their names, and
    activation functions that a module calls, such as `block.relu`. Other choices match modules.
    The constructor checks that each choice can match something, before any forward pass.
    """

    def __init__(
        self, module: nn.Module, layers: LayerChoice | Sequence[LayerChoice] | None = None
    ) -> None:
        named = module.named_modules(remove_duplicate=False)
        self._names = {name: child for name, child in named if name}
        self.exact: set[str] = set()
        self._without: list[str] = []
        self._with: list[LayerChoice] = []
        if layers is None:
            choices: Sequence[LayerChoice] = ()
        elif isinstance(layers, Sequence) and not isinstance(layers, str):
            choices = layers
        else:
            choices = [layers]
        for choice in choices:
            if not isinstance(choice, str | nn.Module) and not callable(choice):
                raise LayerError(
                    "a layer must be a name, a glob, a module, a module type or a function of "
                    f"(name, module), not {type(choice).__name__}"
                )
            if not isinstance(choice, str):
                self._with.append(choice)
            elif choice.startswith("!"):
                self._without.append(choice[1:])
            elif choice not in self._names and any(mark in choice for mark in "*?["):
                self._with.append(choice)
            else:
                self.exact.add(choice)
        if layers is not None and not choices:
            raise LayerError("layers is empty: name at least one layer, or pass None for all")
        self.default = not self.exact and not self._with
        self._check()

    @property
    def only(self) -> set[str] | None:
        """The selected layers if each was selected by name, otherwise None."""
        return None if self._with or self.default else self.exact

    @property
    def kinds(self) -> list[str]:
        """The types of the model's modules."""
        return sorted({type(child).__name__ for child in self._names.values()})

    def wants(self, call: Call, activation: bool) -> bool:
        """Whether a call that has just returned may be a selected layer."""
        if {call.name, call.numbered} & self.exact:
            return True
        if self._excludes(call):
            return False
        if self.default:
            return activation
        return any(_matches(choice, call) for choice in self._with)

    def _excludes(self, call: Call) -> bool:
        return any(fnmatch.fnmatchcase(call.name, pattern) for pattern in self._without)

    def chosen(self, calls: Sequence[Call]) -> dict[str, str]:
        """The requested name of each call that the selection matches, once all calls are known.

        A name or glob matches calls under that name. If there are none, it matches calls whose
        numbered name, based on the first name of their module, is that name.
        """
        if self.default:
            return {call.name: call.name for call in calls}
        without = {call.name for call in calls if self._excludes(call)}
        found: dict[str, str] = {}
        for choice in self._with:
            found |= {name: name for name in _matching_calls(choice, calls) - without}
        named = {call.name for call in calls}
        for asked in sorted(self.exact):
            if asked in named:
                found[asked] = asked
                continue
            for call in calls:
                if call.numbered == asked:
                    found.setdefault(call.name, asked)
        return found

    def check_reached(self, calls: Sequence[Call]) -> None:
        """Raises `LayerError` for selected layers that a forward pass with these calls did not reach."""
        made = {name for call in calls for name in (call.name, call.numbered)}
        for name in sorted(self.exact - made):
            raise LayerError(self._not_reached(name, calls))
        for choice in self._with:
            if not _matching_calls(choice, calls):
                raise LayerError(self._unmatched(choice, calls))

    def _unmatched(self, choice: LayerChoice, calls: Sequence[Call]) -> str:
        asked = _format_choice(choice)
        names = [
            name for name, child in self._names.items() if _matches_module(choice, name, child)
        ]
        if not names:
            return f"no call in the forward pass matches {asked}: {_some_functions(calls)}"
        others = f" (nor is any other of the {len(names)} that match {asked})"
        return self._never_called(names[0], calls, others if len(names) > 1 else "")

    def first_of_several(self, calls: Sequence[Call]) -> list[str]:
        """Messages about requested names that refer to the first of several calls."""
        named = {call.name for call in calls}
        series: dict[tuple[str, ...], list[str]] = {}
        # All calls of a module or function, the first one by the first name of its module.
        aliases: dict[tuple[str, ...], list[str]] = {}
        for call in calls:
            series.setdefault((call.series, call.module, call.function), []).append(call.name)
            other = aliases.setdefault((call.module, call.function), [])
            other.append(call.name if other else call.numbered)
        unnamed = (one for one in aliases.values() if one[0] not in named)
        only, found = self.only or set(), []
        for first, *others in (*series.values(), *unnamed):
            if others and only & {first, *others} == {first}:
                glob = f", and the glob '{first}*' matches all of them" if first in named else ""
                found.append(
                    f"layer {first!r} is the first of {len(others) + 1} calls in a forward pass; the "
                    f"others are {some_of(others)}{glob}"
                )
        return found

    def _not_reached(self, name: str, calls: Sequence[Call]) -> str:
        series = name if any(call.series == name for call in calls) else _base(name)
        called = [call.name for call in calls if call.series == series]
        if called:
            return (
                f"layer {name!r} was not reached: {series!r} is called {len(called)} "
                f"time{'s' if len(called) > 1 else ''} in a forward pass, as {', '.join(called)}"
            )
        module = next((one for one in (name, _base(name)) if one in self._names), None)
        if module is None:
            return f"layer {name!r} was not reached: {_some_functions(calls)}"
        others = {
            call.name
            for call in calls
            if self._names.get(call.module) is self._names[module] and not call.function
        }
        if others:
            return (
                f"layer {name!r} was not reached under this name; the same module was called as "
                f"{some_of(sorted(others))}"
            )
        return self._never_called(module, calls)

    def _never_called(self, name: str, calls: Sequence[Call], others: str = "") -> str:
        called = {one for call in calls if call.called for one in (call.name, call.numbered)}
        parent = name
        while parent and parent not in called:
            parent = parent.rpartition(".")[0]
        nearest = f"its nearest parent that is called is {parent!r}: record that instead"
        return (
            f"layer {name!r} ({type(self._names[name]).__name__}) exists but its forward is never "
            f"called{others}, as with fused attention, a functional call or a part that this input "
            f"does not use; {nearest if parent else 'no parent of it is called'}"
        )

    def _check(self) -> None:
        """Checks, before any forward pass, that every choice can match a layer."""
        for name in self.exact:
            if not self._can_be_layer(name):
                near = close_matches(name, self._names, what="module")
                raise LayerError(f"no layer is named {name!r}; {near}")
        for choice in self._with:
            if not self._can_match(choice):
                near = f"the model has modules of the types {', '.join(self.kinds[:20]) or 'none'}"
                if isinstance(choice, str):
                    near = close_matches(choice.strip("*."), self._names, what="module")
                raise LayerError(f"no layer matches {_format_choice(choice)}; {near}")

    def _can_be_layer(self, name: str) -> bool:
        base = _base(name)
        parent, _, last = base.rpartition(".")
        if {name, base} & self._names.keys():
            return True
        if isinstance(self._names.get(parent), nn.ModuleList | nn.ModuleDict):
            return False
        return last in FUNCTION_NAMES and (not parent or parent in self._names)

    def _can_match(self, choice: LayerChoice) -> bool:
        if any(_matches_module(choice, name, child) for name, child in self._names.items()):
            return True
        if not isinstance(choice, str):
            return False
        head, _, tail = choice.rpartition(".")
        if _matches_call(choice, self._names):
            return True
        in_module = not head or any(fnmatch.fnmatchcase(name, head) for name in self._names)
        functions = fnmatch.filter(FUNCTION_NAMES, tail)
        return in_module and (bool(functions) or _matches_call(tail, FUNCTION_NAMES))


def _base(name: str) -> str:
    match = _NUMBERED.fullmatch(name)
    return match[1] if match else name


def _matches_call(pattern: str, names: Iterable[str]) -> bool:
    """Whether a glob matches the second or a later call of any name."""
    numbered = (f"{name}_{call}" for name in names for call in range(1, _MOST_CALLS))
    return any(map(re.compile(fnmatch.translate(pattern)).match, numbered))


def _some_functions(calls: Sequence[Call]) -> str:
    names = [call.name for call in calls if call.function]
    if not names:
        return "no activation function is called as a function, such as F.relu"
    return f"the activation functions that are called as functions are {some_of(names)}"


def _matching_calls(choice: LayerChoice, calls: Sequence[Call]) -> set[str]:
    found = {call.name for call in calls if _matches(choice, call)}
    if isinstance(choice, str):
        return {name for name in found if fnmatch.fnmatchcase(name, choice)} or found
    return found


def _matches(choice: LayerChoice, call: Call) -> bool:
    if isinstance(choice, str):
        return call.is_named(choice)
    return call.called is not None and _matches_module(choice, call.name, call.called)


def _matches_module(choice: LayerChoice, name: str, module: nn.Module) -> bool:
    if isinstance(choice, str):
        return fnmatch.fnmatchcase(name, choice)
    if isinstance(choice, type):
        return isinstance(module, choice)
    return module is choice if isinstance(choice, nn.Module) else bool(choice(name, module))


def _format_choice(choice: LayerChoice) -> str:
    return repr(choice) if isinstance(choice, str) else str(getattr(choice, "__name__", choice))


def layer_names(layers: object, what: str) -> list[str] | None:
    """A selection of layers as names and globs, which can be written to the folder of `what`."""
    if layers is None:
        return None
    chosen = layers if isinstance(layers, list | tuple) else [layers]
    names = [name for name in chosen if isinstance(name, str)]
    if len(names) < len(chosen):
        raise OptionError(
            f"layers of {what} must be names or globs, which can be written to its folder, not {layers!r}"
        )
    return names
