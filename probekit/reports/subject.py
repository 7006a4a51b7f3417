"""Results as subjects of a report: one a model, with its name, tables and what is derived from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from probekit.errors import DataError, OptionError, some_of
from probekit.results.labels import strings
from probekit.results.merge import merge_results
from probekit.results.trees import open_result

__all__ = ["Subject", "subjects"]


@dataclass(frozen=True)
class Subject:
    """One model in a report.

    Attributes:
        name: What the report calls it.
        result: Its tables, those of a robustness run included where there are any.
        units: `/units`, with `corruption_change`, `attack_change`, both also `_relative`, and
            `mean_activation` and `highest_activation`, where they can be had.
        layers: `/layers`.
        facts: The provenance.
        remark: Why a robustness result is shown as a model of its own, or empty.
    """

    name: str
    result: xr.DataTree
    units: xr.Dataset
    layers: xr.Dataset
    facts: dict[str, Any]
    remark: str = ""

    @property
    def layer_names(self) -> list[str]:
        """The layers in execution order."""
        return [str(name) for name in self.layers["layer"].values]

    @property
    def class_names(self) -> dict[int, str]:
        """The name of each class that a table knows, by label."""
        found: dict[int, str] = {}
        for node in (self.units, self.table("robustness")):
            if "class" in node.coords:
                named = node["class_name"] if "class_name" in node.coords else node["class"]
                pairs = zip(node["class"].values, named.values, strict=True)
                found |= {int(label): str(name) for label, name in pairs}
        return found

    def table(self, node: str) -> xr.Dataset:
        """A table of the result; an empty one where it has none."""
        return self.result[node].to_dataset() if node in self.result.children else xr.Dataset()

    def of_layer(self, number: int) -> Any:
        """Which units are in a layer, as an index."""
        return np.flatnonzero(self.units["layer"].values == self.layer_names[number])


def subjects(results: Any, names: Sequence[str] | None = None) -> list[Subject]:
    """The models that some results are about, robustness runs joined to the analyses of their models.

    Args:
        results: A result, a file of one, or several of these; or a mapping from names.
        names: What to call them; by default what their provenance does.

    Raises:
        OutputError: A file is missing or no result.
        DataError: A tree that has no units and no robustness, or whose tables do not fit.
        OptionError: Another number of names than of models, or no result.
    """
    if isinstance(results, dict):
        names, results = list(results), list(results.values())
    given = list(results) if isinstance(results, list | tuple) else [results]
    if not given:
        raise OptionError("a report needs at least one result")
    trees, remarks = _joined([_opened(one) for one in given])
    called = list(names) if names is not None else _names(trees)
    if len(called) != len(trees):
        raise OptionError(f"{len(trees)} models need as many names, not {len(called)}")
    return [
        _subject(name, tree, remark)
        for name, (tree, _), remark in zip(called, trees, remarks, strict=True)
    ]


def _opened(given: Any) -> tuple[xr.DataTree, str]:
    """A tree, and the name of its file."""
    place = ""
    if not isinstance(given, xr.DataTree):
        if not isinstance(given, str) and not hasattr(given, "__fspath__"):
            raise OptionError(f"a result is a DataTree or a file, not {type(given).__name__}")
        place = Path(given).stem
        given = open_result(given)
    if not {"units", "robustness"} & set(given.children):
        raise DataError(
            f"{place or 'the tree'} has neither units nor robustness; give what analyze or "
            "robustness made"
        )
    return given, place


def _joined(
    opened: list[tuple[xr.DataTree, str]],
) -> tuple[list[tuple[xr.DataTree, str]], list[str]]:
    """Merges each robustness result with the first analysis of its model; a remark says why not."""
    found = [one for one in opened if "robustness" not in one[0].children]
    remarks = [""] * len(found)
    for tree, place in opened:
        if "robustness" not in tree.children:
            continue
        remark = "no analysis of this model was given" if found else ""
        for number, (analysis, name) in enumerate(found):
            if "robustness" in analysis.children:
                continue
            try:
                found[number] = (merge_results(analysis, tree), name)
                break
            except DataError as error:
                remark = str(error)
        else:
            found.append((tree, place))
            remarks.append(remark)
    return found, remarks


def _facts(tree: xr.DataTree) -> dict[str, Any]:
    try:
        facts = json.loads(tree.attrs.get("provenance", "{}"))
    except (TypeError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _names(trees: Sequence[tuple[xr.DataTree, str]]) -> list[str]:
    """The models' own names, with those of the files where several are called the same."""
    own = []
    for tree, place in trees:
        model = _facts(tree).get("model") or {}
        own.append(str(model.get("name") or model.get("type") or place or "model"))
    own = [
        place if own.count(name) > 1 and place else name
        for name, (_, place) in zip(own, trees, strict=True)
    ]
    repeated: dict[str, int] = {}
    for number, name in enumerate(own):
        repeated[name] = repeated.get(name, 0) + 1
        if repeated[name] > 1:
            own[number] = f"{name} ({repeated[name]})"
    return own


def _subject(name: str, tree: xr.DataTree, remark: str) -> Subject:
    empty = xr.Dataset(
        coords={"layer": ("unit", np.empty(0, object)), "channel": ("unit", np.empty(0, int))}
    )
    units = tree["units"].to_dataset() if "units" in tree.children else empty
    for one in ("layer", "channel"):
        if one not in units.coords:
            raise DataError(f"the units of {name!r} have no coordinate {one!r}, as a result has")
    own = list(dict.fromkeys(units["layer"].values.tolist()))
    if "layers" in tree.children:
        layers = tree["layers"].to_dataset()
    else:
        layers = xr.Dataset(coords={"layer": strings(own)})
    if missing := set(own) - set(layers["layer"].values.tolist()):
        raise DataError(
            f"the table of layers of {name!r} lacks {some_of(sorted(map(str, missing)))}, which has "
            "units; give a whole result"
        )
    units = _derived(units)
    return Subject(name, tree, units, _means(layers, units), _facts(tree), remark)


def _derived(units: xr.Dataset) -> xr.Dataset:
    """With what readers ask for and tables hold only implicitly."""
    if "class_mean" in units and "class" in units["class_mean"].dims:
        units = units.assign(mean_activation=units["class_mean"].mean("class"))
    if "top_activation" in units:
        units = units.assign(highest_activation=units["top_activation"].max("rank"))
    for kind in ("corruption", "attack"):
        change = units.get(f"{kind}_change_size")
        if change is None:
            continue
        whole = change.mean([dim for dim in change.dims if dim != "unit"])
        units[f"{kind}_change"] = whole
        if "mean_activation" in units:
            usual = units["mean_activation"]
            units[f"{kind}_change_relative"] = whole / usual.where(usual > 0)
    return units


def _means(layers: xr.Dataset, units: xr.Dataset) -> xr.Dataset:
    """With the means over a layer's units of what was derived for the units."""
    for name in ("corruption_change_relative", "attack_change_relative"):
        if name not in units:
            continue
        values, places = units[name].values, units["layer"].values
        means = []
        for layer in layers["layer"].values:
            known = values[(places == layer) & np.isfinite(values)]
            means.append(float(known.mean()) if len(known) else np.nan)
        layers = layers.assign({f"{name}_mean": ("layer", means)})
    return layers
