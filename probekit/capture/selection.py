"""Choosing layers: by dotted name, glob, module type or predicate, resolved before any forward pass."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import TypeAlias

from torch import nn

from probekit.capture.layers import is_activation_function, site_names
from probekit.errors import LayerError, close_matches

__all__ = ["LayerChoice", "Selection"]

LayerChoice: TypeAlias = "str | type[nn.Module] | Callable[[str, nn.Module], bool]"


class Selection:
    """Which layers are wanted: names, globs, module types, predicates, each or several of them.

    A string that begins with `!` takes out what matches. `None` is every activation function.
    Names are resolved when the selection is made, before any forward pass.

    Raises:
        LayerError: A name that no module has, or a pattern that matches none.
    """

    def __init__(
        self, module: nn.Module, layers: LayerChoice | Sequence[LayerChoice] | None = None
    ) -> None:
        self.modules = {name: child for name, child in module.named_modules() if name}
        self.exact: set[str] = set()
        self._without: list[str] = []
        self._with: list[LayerChoice] = []
        if layers is None:
            choices: Sequence[LayerChoice] = ()
        elif isinstance(layers, Sequence) and not isinstance(layers, str):
            choices = layers
        else:
            choices = [layers]
        canonical = {child: name for name, child in self.modules.items()}
        aliases = dict(module.named_modules(remove_duplicate=False))
        for choice in choices:
            if not isinstance(choice, str):
                self._with.append(choice)
            elif choice.startswith("!"):
                self._without.append(choice[1:])
            elif any(mark in choice for mark in "*?["):
                self._with.append(choice)
            elif choice and choice in aliases:
                self.exact.add(canonical[aliases[choice]])
            else:
                self.exact.add(self._later_call(choice))
        if layers is not None and not choices:
            raise LayerError("layers is empty: name at least one layer, or pass None for all")
        self.default = not self.exact and not self._with
        self._check()

    @property
    def only(self) -> set[str] | None:
        """The wanted layers where each was asked for by its name, otherwise None."""
        return None if self._with or self.default else self.exact

    def wants(self, site: str, child: nn.Module) -> bool:
        """Whether a call that has just happened is a wanted layer."""
        if site in self.exact:
            return True
        if any(fnmatch.fnmatchcase(site, pattern) for pattern in self._without):
            return False
        if self.default:
            return is_activation_function(child)
        return any(_matches(choice, site, child) for choice in self._with)

    def explain_silence(self, calls: Mapping[str, int]) -> None:
        """Raises for the wanted layers that a forward pass did not reach.

        Args:
            calls: How often each module was called.

        Raises:
            LayerError: A named layer was not reached, or nothing that a pattern means was.
        """
        for name in sorted(self.exact):
            base = self._base(name) or name
            fired = list(islice(site_names(base, self.modules), calls.get(base, 0)))
            if fired and name not in fired:
                raise LayerError(
                    f"layer {name!r} was not reached: {base!r} is called {len(fired)} "
                    f"time{'s' if len(fired) > 1 else ''} in a forward pass, as {', '.join(fired)}"
                )
            if not fired:
                raise LayerError(self._silent(base, calls))
        for choice in self._with or ([_default] if self.default else []):
            means = self._meant_by(choice)
            if not any(calls.get(name) for name in means):
                others = f" (nor is any other of the {len(means)} that match {_shown(choice)})"
                raise LayerError(self._silent(means[0], calls, others if means[1:] else ""))

    def _silent(self, name: str, calls: Mapping[str, int], others: str = "") -> str:
        parent = name
        while parent and not calls.get(parent):
            parent = parent.rpartition(".")[0]
        nearest = (
            f"its nearest parent that does is {parent!r}: record that instead"
            if parent
            else "no parent of it does"
        )
        return (
            f"layer {name!r} ({type(self.modules[name]).__name__}) exists but its forward is never "
            f"called{others}, as with fused attention, a functional call or a part that this input "
            f"does not use; {nearest}"
        )

    def _later_call(self, name: str) -> str:
        if self._base(name) is None:
            raise LayerError(
                f"no layer is named {name!r}; {close_matches(name, self.modules, what='module')}"
            )
        return name

    def _base(self, site: str) -> str | None:
        """The module whose call a name such as `relu` or `relu_1` can mean."""
        if site in self.modules:
            return site
        match = re.fullmatch(r"(.+)_[1-9]\d*", site)
        return str(match[1]) if match and match[1] in self.modules else None

    def _check(self) -> None:
        """Judges, before any forward pass, that every choice can mean a layer."""
        kinds = ", ".join(sorted({type(child).__name__ for child in self.modules.values()})[:20])
        for choice in self._with:
            if not self._meant_by(choice):
                near = (
                    close_matches(choice.strip("*."), self.modules, what="module")
                    if isinstance(choice, str)
                    else f"the model has modules of the types {kinds or 'none'}"
                )
                raise LayerError(f"no layer matches {_shown(choice)}; {near}")
        if self.default and not self._meant_by(_default):
            raise LayerError(
                "the model has no activation-function modules (a functional call such as F.relu is "
                f"not a module and cannot be hooked); name layers, or a type among {kinds or 'none'}"
            )

    def _meant_by(self, choice: LayerChoice) -> list[str]:
        """The modules of which a call could match a choice."""
        return [name for name, child in self.modules.items() if _may_match(choice, name, child)]


def _default(site: str, child: nn.Module) -> bool:
    return is_activation_function(child)


def _matches(choice: LayerChoice, site: str, child: nn.Module) -> bool:
    if isinstance(choice, str):
        return fnmatch.fnmatchcase(site, choice)
    if isinstance(choice, type):
        return isinstance(child, choice)
    return bool(choice(site, child))


def _may_match(choice: LayerChoice, name: str, child: nn.Module) -> bool:
    """Whether a call of a module could match: its first, or for a glob one of the nine after it."""
    if isinstance(choice, str):
        sites = (name, *(f"{name}_{call}" for call in range(1, 10)))
        return any(fnmatch.fnmatchcase(site, choice) for site in sites)
    return _matches(choice, name, child)


def _shown(choice: LayerChoice) -> str:
    if choice is _default:
        return "activation functions"
    return repr(choice) if isinstance(choice, str) else str(getattr(choice, "__name__", choice))
