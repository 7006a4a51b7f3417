"""The results of each model in a report: its name, its tables, and derived variables."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr

from probekit.analysis.merge import merge_results
from probekit.errors import DataError, OptionError, some_of
from probekit.reports.rows import by_attribute
from probekit.results.labels import attributes, class_names, strings
from probekit.results.provenance import facts_of
from probekit.results.trees import ResultOrFile, as_tree

Results: TypeAlias = "ResultOrFile | Sequence[ResultOrFile] | Mapping[str, ResultOrFile]"
Opened: TypeAlias = tuple[xr.DataTree, str, str]  # a result, the name of its file, and a remark


@dataclass(frozen=True)
class ModelResults:
    """The results of one model.

    `result` includes the tables of a robustness run, if there is one; `remark` is the reason why it is
    shown as a separate model instead. Derived variables of `units`, if they can be computed, are
    `corruption_change` and `attack_change`, both also with the suffix `_relative`; `mean_activation` and
    `highest_activation`. `layers` has the means of those, and `facts` is the provenance.
    """

    name: str
    result: xr.DataTree
    units: xr.Dataset
    layers: xr.Dataset
    facts: dict[str, Any]
    remark: str = ""

    @property
    def layer_names(self) -> list[str]:
        return [str(name) for name in self.layers["layer"].values]

    @property
    def class_names(self) -> dict[int, str]:
        """The name of each class in the tables, by label."""
        found: dict[int, str] = {}
        for node in (self.units, self.table("robustness")):
            if "class" in node.coords:
                found |= class_names(node)
        return found

    def table(self, node: str) -> xr.Dataset:
        """A table of the result, or an empty dataset if there is none."""
        return self.result[node].to_dataset() if node in self.result.children else xr.Dataset()

    def of_layer(self, number: int) -> npt.NDArray[np.int64]:
        """The positions of the units of a layer."""
        return np.flatnonzero(self.units["layer"].values == self.layer_names[number])


def model_results(results: Results, names: Sequence[str] | None = None) -> list[ModelResults]:
    """Groups results by model: robustness runs are merged with the analyses of their models.

    Each attribute of a result is shown like a model of its own.
    """
    if isinstance(results, dict):
        names, results = list(results), list(results.values())
    given = list(results) if isinstance(results, list | tuple) else [results]
    if not given:
        raise OptionError("a report needs at least one result")
    found = _joined([_opened(one) for one in given])
    names = list(names) if names is not None else _names(found)
    if len(names) != len(found):
        raise OptionError(f"{len(found)} models need as many names, not {len(names)}")
    return [
        _of_model(_attribute_name(name, attribute, len(found)), part, remark)
        for name, (tree, _, remark) in zip(names, found, strict=True)
        for attribute, part in by_attribute(tree).items()
    ]


def _attribute_name(model: str, attribute: str, models: int) -> str:
    """The name of one attribute of a model; that of the model if it has none."""
    return (attribute if models == 1 else f"{model}: {attribute}") if attribute else model


def _opened(given: object) -> Opened:
    tree = as_tree(given)
    place = Path(given).stem if isinstance(given, str | os.PathLike) else ""
    if not {"units", "robustness"} & set(tree.children):
        raise DataError(
            f"{place or 'the tree'} has neither units nor robustness; give a result of analyze or "
            "robustness"
        )
    return tree, place, ""


def _joined(opened: list[Opened]) -> list[Opened]:
    """Merges each robustness result with the first analysis of its model, or adds a remark."""
    found = [one for one in opened if "robustness" not in one[0].children]
    for tree, place, _ in opened:
        if "robustness" not in tree.children:
            continue
        remark = "no analysis of this model was given" if found else ""
        for number, (analysis, name, _) in enumerate(found):
            if "robustness" in analysis.children:
                continue
            try:
                found[number] = merge_results(analysis, tree), name, ""
                break
            except DataError as error:
                remark = str(error)
        else:
            found.append((tree, place, remark))
    return found


def _names(opened: Sequence[Opened]) -> list[str]:
    """The names of the models, or of their files if several models have the same name."""
    names = []
    for tree, place, _ in opened:
        model = facts_of(tree.attrs).get("model") or {}
        names.append(str(model.get("name") or model.get("type") or place or "model"))
    names = [
        place if names.count(name) > 1 and place else name
        for name, (_, place, _) in zip(names, opened, strict=True)
    ]
    before = [names[:at].count(name) for at, name in enumerate(names)]
    return [f"{name} ({n + 1})" if n else name for name, n in zip(names, before, strict=True)]


def _of_model(name: str, tree: xr.DataTree, remark: str) -> ModelResults:
    empty = xr.Dataset(
        coords={"layer": ("unit", np.empty(0, object)), "channel": ("unit", np.empty(0, int))}
    )
    units = tree["units"].to_dataset() if "units" in tree.children else empty
    for one in ("layer", "channel"):
        if one not in units.coords:
            raise DataError(f"the units of {name!r} have no coordinate {one!r}, as a result has")
    own = list(dict.fromkeys(units["layer"].values.tolist()))
    layers = xr.Dataset(coords={"layer": strings(own)})
    if "layers" in tree.children:
        layers = tree["layers"].to_dataset()
    if missing := set(own) - set(layers["layer"].values.tolist()):
        raise DataError(
            f"the table of layers of {name!r} lacks {some_of(sorted(map(str, missing)))}, which has "
            "units; give a whole result"
        )
    units = _with_derived(units)
    return ModelResults(name, tree, units, _with_means(layers, units), facts_of(tree.attrs), remark)


def _with_derived(units: xr.Dataset) -> xr.Dataset:
    """The units with means and maxima of variables that have other dimensions."""
    derived = {}
    if "class_mean" in units and "class" in units["class_mean"].dims:
        mean = units["class_mean"].mean("class")
        about = attributes("mean activation", "Mean over classes of the class means.")
        derived["mean_activation"] = (mean, {**about, "metric": "selectivity"})
    if "top_activation" in units:
        about = attributes(
            "highest activation", "Activation for the top image.", short_name="highest"
        )
        derived["highest_activation"] = units["top_activation"].max("rank"), about
    for kind in ("corruption", "attack"):
        if f"{kind}_change_size" not in units:
            continue
        size = units[f"{kind}_change_size"]
        change = size.mean([dim for dim in size.dims if dim != "unit"])
        text = "Mean |perturbed - clean| activation over all conditions."
        derived[f"{kind}_change"] = change, attributes(f"change under {kind}", text)
        if "mean_activation" in derived:
            usual, _ = derived["mean_activation"]
            relative, name = change / usual.where(usual > 0), f"sensitivity to {kind}"
            text = "Mean |perturbed - clean| activation over the mean activation of the unit."
            about = attributes(name, text, short_name=name)
            derived[f"{kind}_change_relative"] = relative, about
    for name, (_, about) in derived.items():
        if "change" in name:
            about["metric"] = "robustness"
    return units.assign({name: (v.dims, v.values, about) for name, (v, about) in derived.items()})


def _with_means(layers: xr.Dataset, units: xr.Dataset) -> xr.Dataset:
    """The layers with the means over their units of the derived sensitivities."""
    for name in ("corruption_change_relative", "attack_change_relative"):
        if name in units and units.sizes["unit"]:
            means = units[name].groupby(units["layer"]).mean()
            own = means.reindex(layer=layers["layer"].values)
            layers = layers.assign({f"{name}_mean": ("layer", own.values, units[name].attrs)})
    return layers
