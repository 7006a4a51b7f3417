"""The attributes that describe a variable, named by the CF conventions as in xarray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import xarray as xr

Attributes: TypeAlias = dict[str, Any]


def attributes(
    long_name: str,
    description: str = "",
    *,
    short_name: str = "",
    units: str = "",
    share: bool = False,
) -> Attributes:
    """Attributes of a variable, used in figures, in the terminal and in HTML reports.

    `description` is one sentence on what it measures, `short_name` its column heading in summary tables. If
    some variables of a metric have one, the tables show only these; otherwise, they show all variables.
    A `share` is a value in [0, 1], which tables show with a bar (`valid_range`).
    """
    texts = {
        "long_name": long_name,
        "units": units,
        "description": description,
        "short_name": short_name,
    }
    given: Attributes = {name: text for name, text in texts.items() if text}
    return given | ({"valid_range": [0.0, 1.0]} if share else {})


def label(variable: xr.DataArray) -> str:
    """The `long_name` of a variable and its units, as on xarray's axes; its name without a `long_name`.

    >>> label(xr.DataArray(0, attrs={"long_name": "firing rate", "units": "Hz"}))
    'firing rate [Hz]'
    >>> label(xr.DataArray(0, name="my_metric"))
    'my metric'
    """
    name = _text(variable, "long_name")
    units = _text(variable, "units")
    return (f"{name} [{units}]" if units else name) or str(variable.name).replace("_", " ")


def heading(variable: xr.DataArray) -> str:
    """The column heading of a variable in tables: its `short_name`, otherwise its label."""
    return _text(variable, "short_name") or label(variable)


def is_share(variable: xr.DataArray) -> bool:
    """Whether the values of a variable are shares in [0, 1]."""
    return [float(end) for end in variable.attrs.get("valid_range", ())] == [0.0, 1.0]


def ends(table: Mapping[Any, Any], name: str) -> tuple[Any, Any] | None:
    """The ends of the interval of a variable, `NAME_low` and `NAME_high`, if a table has them."""
    low, high = table.get(f"{name}_low"), table.get(f"{name}_high")
    return None if low is None or high is None else (low, high)


def in_context(variable: xr.DataArray, context: str) -> xr.DataArray:
    """The variable with a context added to its `long_name`, such as "under corruption".

    >>> in_context(xr.DataArray(0, attrs={"long_name": "accuracy"}), "under attack").attrs
    {'long_name': 'accuracy under attack'}
    """
    long_name = _text(variable, "long_name") or str(variable.name).replace("_", " ")
    changed = variable.assign_attrs(long_name=f"{long_name} {context}")
    for attribute in ("short_name", "metric"):
        changed.attrs.pop(attribute, None)
    return changed


def _text(variable: xr.DataArray, attribute: str) -> str:
    found = variable.attrs.get(attribute)
    return found if isinstance(found, str) else ""


def summary_variables(table: xr.Dataset) -> dict[str, list[str]]:
    """The variables of each metric in summary tables: those with a `short_name`, otherwise all.

    Variables that no metric returned, and those in files of older versions, are under `""`.

    >>> table = xr.Dataset({"mean": 1.0, "error": 0.1, "n": 3})
    >>> table["mean"].attrs = {"metric": "size", "short_name": "mean size"}
    >>> table["error"].attrs = {"metric": "size"}
    >>> summary_variables(table)
    {'size': ['mean'], '': ['n']}
    """
    groups: dict[str, list[str]] = {}
    for name, values in table.data_vars.items():
        groups.setdefault(_text(values, "metric"), []).append(str(name))
    return {
        metric: [name for name in names if _text(table[name], "short_name")] or names
        for metric, names in groups.items()
    }
