"""Merges several results of one model."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import xarray as xr

from probekit.analysis.compare import option_differences
from probekit.errors import DataError, OptionError, keep_notes, warn
from probekit.results.provenance import facts_of, json_text, model_differences, same_images
from probekit.results.trees import as_tree

Key = TypeVar("Key", bound=Hashable)

# The coordinates that identify an element of a dimension.
_KEYS = {"unit": ("layer", "channel"), "layer": ("layer",)}


@keep_notes
def merge_results(
    *results: xr.DataTree | str | Path | Sequence[xr.DataTree | str | Path],
) -> xr.DataTree:
    """Merges results of one model with different metrics or layers, or from `robustness`.

    The merged result contains the units and layers of all results. If a result did not measure a unit
    or a layer, its numbers there are NaN (counts and flags become floats) and its text is empty. If
    several results have the same variable for the same unit, the value of the first result is used.
    Layers keep the order of the first result; layers of later results come before the next layer that
    both have, or at the end. Values for the whole network that differ because the layers differ are
    omitted.

    Args:
        *results: At least two results or their files, or one list of them; the provenance of the first
            is extended.

    Returns:
        One result. The provenance has the metrics of all results and, under `merged`, the provenance of
        each result after the first.

    Warns:
        ProbekitWarning: The results were measured with different options.

    Raises:
        OptionError: There are fewer than two results.
        DataError: The results are of different models; of different images, as far as their samples and
            hashes show it; or tables have different classes, severities or ranks.
        OutputError: A file is missing or is not a result.

    Example:
        >>> import probekit as pk
        >>> model = pk.load_model("probekit:resnet20-fashion-mnist")
        >>> data = pk.load_data("fashion-mnist", model)
        >>> one = pk.analyze(model, data, "layer3.1.relu2", "selectivity", limit=100)
        >>> other = pk.analyze(model, data, "layer3.2.relu2", "dimensionality", limit=100)
        >>> merged = pk.merge_results(one, other)["layers"]
        >>> merged["layer"].values.tolist(), merged["participation_ratio"].isnull().values.tolist()
        (['layer3.1.relu2', 'layer3.2.relu2'], [True, False])
    """
    given: Any = (
        results[0] if len(results) == 1 and isinstance(results[0], list | tuple) else results
    )
    if len(given) < 2:
        raise OptionError(f"merging needs at least two results, not {len(given)}")
    trees = [as_tree(one) for one in given]
    merged = trees[0]
    for other in trees[1:]:
        if differing := option_differences(merged, other):
            warn(
                "the results were measured with different options, so columns of both hold numbers of "
                f"both: {'; '.join(differing)}"
            )
        merged = _merge_two(merged, other)
    return merged


def _merge_two(first: xr.DataTree, second: xr.DataTree) -> xr.DataTree:
    _check_same_model(first, second)
    _check_same_samples(first, second)
    tables = {
        name: node.to_dataset(inherit=False)
        for tree in (second, first)
        for name, node in tree.children.items()
    }
    for name in first.children.keys() & second.children.keys():
        tables[name] = _merge_tables(
            name, *(tree.children[name].to_dataset(inherit=False) for tree in (first, second))
        )
    root = _merge_root(first, second)
    return xr.DataTree.from_dict({"/": root, **tables})


def _facts(tree: xr.DataTree) -> dict[str, Any]:
    facts = facts_of(tree.attrs)
    if not facts:
        raise DataError(
            "a result without provenance cannot be merged, as its model is unknown; give results of analyze "
            "or robustness"
        )
    return facts


def _check_same_model(first: xr.DataTree, second: xr.DataTree) -> None:
    models = [_facts(one).get("model") or {} for one in (first, second)]
    hashes = [str(one.get("hash")) for one in models]
    if hashes[0] != hashes[1] or hashes[0] == "None":
        raise DataError(
            f"the results are of different models: the weights are {hashes[0][:19]} and "
            f"{hashes[1][:19]}; merge results of one model"
        )
    if differing := model_differences(*models):
        raise DataError(
            f"the results are of different models: their weights are equal, but {', '.join(differing)} "
            "differ; merge results of one model"
        )


def _check_same_samples(first: xr.DataTree, second: xr.DataTree) -> None:
    """Checks the samples of two results; those of robustness are not listed and may be a subset."""
    facts = [_facts(one) for one in (first, second)]
    data = [one.get("data") or {} for one in facts]
    if all("samples" in one.children for one in (first, second)):
        same = same_images(first, second)
    else:
        prints = {one.get("fingerprint") or "unknown" for one in data} - {"unknown"}
        subsets = [
            one.get("limit") and (one["limit"], whole.get("seed"))
            for one, whole in zip(data, facts, strict=True)
        ]
        images = {one["first_image"] for one in data if one.get("first_image")}
        same = len(prints) < 2 and (subsets[0] != subsets[1] or len(images) < 2)
    if not same:
        sizes = " and ".join(str(one.get("seen", one.get("samples"))) for one in data)
        raise DataError(
            f"the results are of different images ({sizes} samples); analyze the same images with the "
            "same limit and seed, then merge"
        )


def _merge_root(first: xr.DataTree, second: xr.DataTree) -> xr.Dataset:
    mine, other = (one.to_dataset(inherit=False) for one in (first, second))
    merged = mine.merge(other.drop_vars([name for name in other if name in mine]))
    layers = [_facts(one).get("layers") for one in (first, second)]
    if layers[0] != layers[1]:
        changed = [name for name in mine if name in other and not mine[name].equals(other[name])]
        for own, tree in ((mine, second), (other, first)):  # robustness has no means over layers
            theirs: Any = tree.children.get("layers", {})
            changed += [name for name in own if name in theirs and name not in tree.data_vars]
        merged = merged.drop_vars(changed)
    facts, more = _facts(first), _facts(second)
    facts["metrics"] = {**(more.get("metrics") or {}), **(facts.get("metrics") or {})}
    if layers[0] and layers[1]:
        facts["layers"] = _merge_order(layers[0], layers[1])
    facts["merged"] = [*facts.get("merged", []), more]
    notes = [line for one in (mine, other) for line in one.attrs.get("notes", "").splitlines()]
    merged.attrs = mine.attrs | {"provenance": json_text(facts)}
    return merged.assign_attrs({"notes": "\n".join(dict.fromkeys(notes))} if notes else {})


def _merge_tables(node: str, first: xr.Dataset, second: xr.Dataset) -> xr.Dataset:
    """A table with the variables of both, over the units or layers of both."""
    if "component" in first.dims and "component" in second.dims:
        longest = max((first, second), key=lambda table: int(table.sizes["component"]))
        first, second = (one.reindex(component=longest["component"]) for one in (first, second))
    along = next((dim for dim in _KEYS if dim in first.dims and dim in second.dims), None)
    for dim in first.dims:
        if dim in second.dims and dim != along and not _same_labels(first, second, dim):
            raise DataError(
                f"the tables {node!r} of the results have different labels along {str(dim)!r}; "
                "measure both in the same way, then merge"
            )
    tables = (first, second)
    if along is None:
        new = [name for name in second.variables if name not in first.variables]
        return first.merge(second[new], compat="override", join="override")
    columns = [[table[name].values.tolist() for name in _KEYS[along]] for table in tables]
    keys = [list(zip(*parts, strict=True)) for parts in columns]
    order = _merge_order(*keys) if along == "layer" else _unit_order(*keys)
    place = {key: number for number, key in enumerate(order)}
    positions = [np.array([place[key] for key in known], np.int64) for known in keys]
    names = list(dict.fromkeys([*first.variables, *second.variables]))
    merged = {name: _merge_variable(name, along, tables, positions, len(order)) for name in names}
    coords = [name for name in names if any(name in table.coords for table in tables)]
    return xr.Dataset(merged, attrs=second.attrs | first.attrs).set_coords(coords)


def _merge_variable(
    name: Hashable,
    along: str,
    tables: Sequence[xr.Dataset],
    positions: Sequence[npt.NDArray[np.int64]],
    size: int,
) -> xr.Variable:
    """One variable over the merged dimension: the first table's values before the second's."""
    pairs = zip(tables, positions, strict=True)
    having = [(table, at) for table, at in pairs if name in table.variables]
    found = [(table[name].variable, at) for table, at in having]
    first, _ = found[0]
    if along not in first.dims:
        return first
    if any(one.dims != first.dims for one, _ in found):
        raise DataError(
            f"{str(name)!r} is measured along {first.dims} in one result and {found[1][0].dims} in the "
            "other; measure both in the same way, then merge"
        )
    axis = first.dims.index(along)
    shape = (*first.shape[:axis], size, *first.shape[axis + 1 :])
    complete = len(np.unique(np.concatenate([at for _, at in found]))) == size
    if first.dtype.kind in "OUT":
        values = np.full(shape, "", object)
    else:
        kinds = [one.dtype for one, _ in found]  # of an earlier merge, with NaN
        kind = np.result_type(*kinds, *([] if complete else [np.float64]))
        values = np.full(shape, np.nan if kind.kind == "f" else 0, kind)
    rows = np.moveaxis(values, axis, 0)
    for table, at in reversed(having):
        known = _is_measured(table, name, along)
        rows[at[known]] = np.moveaxis(table[name].values, axis, 0)[known]
    return xr.Variable(first.dims, values, first.attrs)


def _is_measured(table: xr.Dataset, name: Hashable, along: str) -> npt.NDArray[np.bool_]:
    """Where a variable was measured: an earlier merge left all variables of its metric empty elsewhere."""
    metric = table[name].attrs.get("metric")
    own = [one for one in table.variables.values() if metric and one.attrs.get("metric") == metric]
    known = np.zeros(table.sizes[along], bool)
    for one in own or [table[name].variable]:
        if along in one.dims:
            values = one.transpose(along, ...).values.reshape(len(known), -1)
            known |= (values != "" if values.dtype.kind in "OUT" else ~np.isnan(values)).any(1)
    return known


def _same_labels(first: xr.Dataset, second: xr.Dataset, dim: Hashable) -> bool:
    if first.sizes[dim] != second.sizes[dim]:
        return False
    names = [
        name for name in (dim, f"{dim}_name") if name in first.coords and name in second.coords
    ]
    return all(np.array_equal(first[name].values, second[name].values) for name in names)


def _merge_order(first: Sequence[Key], second: Sequence[Key]) -> list[Key]:
    """Merges two sequences in the order of the first; new elements come before the next common one.

    >>> _merge_order(["a", "c", "e"], ["b", "c", "d"])
    ['a', 'b', 'c', 'e', 'd']
    """
    merged, known, waiting = list(first), set(first), []
    for one in second:
        if one not in known:
            waiting.append(one)
        elif waiting:
            at = merged.index(one)
            merged[at:at] = waiting
            waiting = []
    return merged + waiting


def _unit_order(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """The units of both, layer by layer in the merged order of the layers."""
    layers = _merge_order(
        *(list(dict.fromkeys(layer for layer, _ in one)) for one in (first, second))
    )
    place = {layer: number for number, layer in enumerate(layers)}
    return sorted(dict.fromkeys([*first, *second]), key=lambda unit: (place[unit[0]], unit[1]))
