"""A robustness result joined to the analysis of the same model."""

from __future__ import annotations

import json

import xarray as xr

from probekit.errors import DataError

__all__ = ["join_results"]


def join_results(analysis: xr.DataTree, robustness: xr.DataTree) -> xr.DataTree:
    """One result of both: the tables of an analysis, with what perturbations do to the same units.

    Args:
        analysis: What `analyze` gives.
        robustness: What `robustness` gives for the same model and layers.

    Returns:
        The analysis with `/robustness`, its `/units` and `/layers` with the variables of both, where
        a variable of the analysis stands before one of the same name.

    Raises:
        DataError: They are of different models or layers.
    """
    models = [
        json.loads(one.attrs["provenance"])["model"]["hash"] for one in (analysis, robustness)
    ]
    if models[0] != models[1]:
        raise DataError(
            f"the analysis is of the model {models[0][:19]} and the robustness of {models[1][:19]}; "
            "join results of one model"
        )
    joined = analysis.copy()
    for name, same in (("units", ("layer", "channel")), ("layers", ("layer",))):
        if name not in robustness.children or name not in analysis.children:
            continue
        mine, other = (
            one.children[name].to_dataset(inherit=False) for one in (analysis, robustness)
        )
        if any(mine[one].values.tolist() != other[one].values.tolist() for one in same):
            raise DataError(
                "the analysis and the robustness have different layers; measure both with the same "
                "layers"
            )
        new = other.drop_vars([variable for variable in other if variable in mine])
        joined[name] = xr.DataTree(mine.merge(new, compat="override"))
    joined["robustness"] = robustness["robustness"].copy()
    joined.attrs["provenance_robustness"] = robustness.attrs["provenance"]
    return joined
