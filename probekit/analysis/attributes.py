"""Combines the tables of several attributes of the same samples into one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from probekit.results.labels import class_names, strings

Attributes: TypeAlias = "Sequence[str] | Mapping[str, Any] | None"


def by_attribute(tables: Sequence[xr.Dataset], attributes: Sequence[str]) -> xr.Dataset:
    """Concatenates tables of one attribute each along the dimension `attribute`.

    Attributes may have different values; `class` is their union. A value that an attribute does not
    have gets no samples (`count` 0), no name and a NaN mean. `preferred_value` is the name of the
    preferred class, or its number as text; it is empty for a dead unit.
    """
    tables = [_with_preferred_value(table) for table in tables]
    same = [name for name in tables[0].coords if name not in ("count", "class_name")]
    joined = xr.concat(
        [table.drop_vars([name for name in table.coords if name not in same]) for table in tables],
        "attribute",
        join="outer",
        coords="minimal",
        compat="override",
    )
    joined = joined.assign_coords(attribute=strings(attributes))
    joined = joined.transpose("unit", "layer", "attribute", ..., missing_dims="ignore")
    for name, missing in (("count", 0), ("class_name", "")):
        if any(name in table.coords for table in tables):
            joined = joined.assign_coords({name: _labels(tables, joined, name, missing)})
    return joined


def _with_preferred_value(table: xr.Dataset) -> xr.Dataset:
    if "preferred_class" not in table:
        return table
    names = class_names(table)
    values = [names.get(label, "") for label in table["preferred_class"].values.tolist()]
    long_name = {"long_name": "value with the highest mean"}
    return table.assign(preferred_value=("unit", strings(values), long_name))


def _labels(
    tables: Sequence[xr.Dataset], joined: xr.Dataset, name: str, missing: str | int
) -> tuple[tuple[str, str], np.ndarray[Any, Any]]:
    """A class coordinate for each attribute, with a fill value for classes the attribute lacks."""
    rows = []
    for table in tables:
        values = table[name].values.tolist() if name in table.coords else []
        known = dict(zip(table["class"].values.tolist(), values, strict=False))
        rows.append([known.get(label, missing) for label in joined["class"].values.tolist()])
    kind = object if isinstance(missing, str) else np.int64
    return ("attribute", "class"), np.array(rows, dtype=kind)
