"""Projection-weighted CCA: a distance between representations that is independent of their axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from probekit.checks import one_of
from probekit.errors import DataError, warn
from probekit.results.labels import strings
from probekit.statistics.decompositions import singular_vectors
from probekit.statistics.feeding import split_by_layer

Array: TypeAlias = npt.NDArray[np.float64]
Table: TypeAlias = "npt.ArrayLike | xr.DataArray | xr.Dataset"
Weights: TypeAlias = Literal["fewer", "first", "second", "uniform"]
# With fewer rows per dimension, canonical correlations are high by chance alone.
_ROWS_A_DIMENSION = 2


def pwcca_distance(
    first: Table,
    second: Table,
    *,
    weights: Weights | Sequence[Weights] = "fewer",
    tolerance: float = 1e-6,
) -> xr.DataArray:
    """One minus the projection-weighted mean of the canonical correlations of two representations.

    The distance is 0 if one representation is a linear map of the other, and 1 if they have nothing in
    common. With X and Y centered, the canonical variates h_i of the weighted side are orthonormal over
    samples, and rho_i are the correlations. The weight of rho_i is sum_j |<h_i, x_j>| over the units
    x_j of the same side; the weights are normalized to add up to one. Computations are in float64.

    An invertible linear map of the side that is not weighted does not change the distance. Such a map
    of the weighted side keeps the correlations but changes their weights, as in the paper's
    definition; with `weights="uniform"` the distance does not change.

    The code published with the paper weights by the side with fewer dimensions. If that is the second
    side, it applies the second side's coefficients to the first side's activations. Here, variates and
    units are always those of the same side.

    Args:
        first: Activations (sample, unit): an array or a recording. Each layer of a recording is
            compared with the layer of the same name in the second recording.
        second: Activations of other units for the same samples in the same order.
        weights: The side whose units define the weights: `"fewer"`, the side that varies in fewer
            dimensions (the first if they are equal); `"first"`; `"second"`; or `"uniform"`, the
            unweighted mean of the correlations. A sequence adds the dimension `weights` to the result.
            Projection weights mostly follow the spectrum of the weighted side, so report the uniform
            distance too.
        tolerance: Directions whose singular value is below this fraction of the largest are excluded,
            as are dead units.

    Returns:
        A scalar, or (layer) for recordings. NaN if a side does not vary at all.

    Warns:
        ProbekitWarning: There are fewer than two samples per dimension, so distances are too low.

    Raises:
        DataError: The samples differ, no layer is in both recordings, or there is NaN.
        OptionError: A choice of weights is unknown.

    Source:
        Morcos, Raghu & Bengio 2018 (arXiv 1806.05759), equation 6.

    Example:
        >>> import probekit as pk
        >>> models = ("probekit:resnet20-fashion-mnist", "probekit:resnet20-fashion-mnist-a1")
        >>> first, second = (
        ...     pk.record(model, "fashion-mnist", "layer1.2.relu2", limit=200) for model in models)
        >>> round(pwcca_distance(first, second).item(), 2)
        0.22
    """
    choices = (weights,) if isinstance(weights, str) else tuple(weights)
    for choice in choices or ("none",):
        one_of("weights", choice, get_args(Weights))
    if isinstance(first, xr.Dataset) and isinstance(second, xr.Dataset):
        found = _by_layer(first, second, choices, tolerance)
    else:
        distances = _distances(_table(first), _table(second), choices, tolerance)
        coords = {"weights": strings(choices)}
        found = xr.DataArray(distances, coords, "weights", "pwcca_distance")
    return found.isel(weights=0, drop=True) if isinstance(weights, str) else found


def pwcca_ratio(
    regularized: Sequence[Table],
    unregularized: Sequence[Table],
    *,
    weights: Weights | Sequence[Weights] = "fewer",
    tolerance: float = 1e-6,
) -> xr.Dataset:
    """The distance between regularized and unregularized networks relative to that within each kind.

    If a regularizer only rotates the representation, networks are as far apart as replicates, and the
    ratio is about 1. Replicates of the regularized networks can be farther apart than those of the
    unregularized networks. In that case a ratio above 1 relative to the unregularized replicates alone
    is not evidence of a different representation, so `ratio_within` compares with both. Two networks
    at the same place in the sequences share a seed and therefore their initial weights. They are not
    compared, just as a replicate is not compared with itself.

    Args:
        regularized: Activations or recordings of networks with the regularizer, by seed.
        unregularized: Those of networks without it, for the same seeds in the same order.
        weights: As for `pwcca_distance`; `("fewer", "uniform")` returns both along `weights`.
        tolerance: As for `pwcca_distance`.

    Returns:
        A dataset of distances (replicate, other): `distance`, of each regularized network from the
        unregularized networks of the other seeds; `baseline`, between the unregularized networks;
        `within`, between the regularized networks. It also contains ratios: `ratio_within_by_replicate`
        (replicate), the mean distance divided by the mean of `baseline` and `within`, and its mean,
        `ratio_within`; `ratio_by_replicate` and `ratio`, relative to the mean of `baseline` alone.
        For recordings, all variables also have the dimension `layer`. Replicates share the baseline and
        the networks that they are compared with, so that the spread of a ratio over replicates can
        understate its error.

    Raises:
        DataError: There are fewer than two seeds; see also `pwcca_distance`.

    Source:
        The comparison with unregularized replicates is our interpretation of Leavitt & Morcos 2020
        (arXiv 2003.01262); the comparison with both is probekit's.

    Example:
        >>> draws = np.random.default_rng(0)
        >>> networks = [draws.normal(size=(300, 4)) for _ in range(3)]
        >>> turned = [x @ draws.normal(size=(4, 4)) for x in networks]
        >>> found = pwcca_ratio(turned, networks, weights="uniform")
        >>> round(found["ratio"].item(), 6), round(found["ratio_within"].item(), 6)
        (1.0, 1.0)
    """
    seeds = len(unregularized)
    if seeds < 2 or len(regularized) != seeds:
        raise DataError(
            "the ratio needs two or more seeds and the same ones on both sides, not "
            f"{len(regularized)} and {seeds}"
        )
    options: dict[str, Any] = {"weights": weights, "tolerance": tolerance}
    distance, baseline, within = (
        xr.concat([_from_others(some, others, i, **options) for i in range(seeds)], "replicate")
        for some, others in (
            (regularized, unregularized),
            (unregularized, unregularized),
            (regularized, regularized),
        )
    )
    pairs = ["replicate", "other"]
    ratio = distance.mean("other") / baseline.mean(pairs)
    both = distance.mean("other") / ((baseline.mean(pairs) + within.mean(pairs)) / 2)
    return xr.Dataset(
        {
            "distance": distance,
            "baseline": baseline,
            "within": within,
            "ratio_by_replicate": ratio,
            "ratio": ratio.mean("replicate"),
            "ratio_within_by_replicate": both,
            "ratio_within": both.mean("replicate"),
        }
    )


def _from_others(
    networks: Sequence[Table], others: Sequence[Table], place: int, **options: Any
) -> xr.DataArray:
    """Distances (other, ...) of one network from the others, except the one with the same seed."""
    found = [
        pwcca_distance(networks[place], other, **options)
        for number, other in enumerate(others)
        if number != place
    ]
    bare = [one.drop_vars(set(one.coords) - set(one.dims)) for one in found]
    return xr.concat(bare, "other")


def _by_layer(
    first: xr.Dataset, second: xr.Dataset, choices: tuple[Weights, ...], tolerance: float
) -> xr.DataArray:
    for recording in (first, second):
        if "activation" not in recording or "layer" not in recording.coords:
            raise DataError(
                "a recording must have activation(sample, unit) with the coordinate layer(unit)"
            )
    # Other data of the same size has the same indices, but rarely the same labels.
    for name in ("sample", "label"):
        own, other = (x[name].values if name in x.variables else None for x in (first, second))
        if not np.array_equal(own, other):  # type: ignore[arg-type]  # None is an array too
            raise DataError(
                f"the two recordings are of different samples ({name}); record the same ones"
            )
    parts, others = split_by_layer(first), split_by_layer(second)
    names = [name for name in parts if name in others]
    if not names:
        raise DataError("the two recordings have no layer of the same name")
    tables = [[_table(one[name]["activation"]) for one in (parts, others)] for name in names]
    found = [_distances(mine, theirs, choices, tolerance) for mine, theirs in tables]
    coords = {"layer": strings(names), "weights": strings(choices)}
    return xr.DataArray(found, coords, ("layer", "weights"), "pwcca_distance")


def _table(given: Table) -> Array:
    if isinstance(given, xr.DataArray) and {"sample", "unit"} == set(given.dims):
        given = given.transpose("sample", "unit")
    table = np.asarray(given, dtype=np.float64)
    if table.ndim != 2 or len(table) < 2:
        raise DataError(
            f"activations must be (sample, unit) of two or more samples, not {table.shape}"
        )
    if not np.isfinite(table).all():
        raise DataError("the activations contain NaN or infinity, so they have no distance")
    return table


def _distances(
    first: Array, second: Array, choices: Sequence[Weights], tolerance: float
) -> list[float]:
    """The distance for each choice of weights."""
    if len(first) != len(second):
        raise DataError(
            f"both sides need the same samples, and they have {len(first)} and {len(second)}"
        )
    tables = [table - table.mean(0) for table in (first, second)]
    bases = [_basis(table, tolerance) for table in tables]
    dimensions = [basis.shape[1] for basis in bases]
    if not min(dimensions):
        return [float("nan")] * len(choices)
    if len(first) < _ROWS_A_DIMENSION * sum(dimensions):
        warn(
            f"{len(first)} samples are few for {dimensions[0]} and {dimensions[1]} dimensions: the "
            "distance is too low"
        )
    left, correlations, right = _svd(bases[0].T @ bases[1])
    correlations = correlations.clip(0, 1)
    fewer = "first" if dimensions[0] <= dimensions[1] else "second"
    weight = {
        "first": np.abs(tables[0].T @ (bases[0] @ left)).sum(0),
        "second": np.abs(tables[1].T @ (bases[1] @ right.T)).sum(0),
        "uniform": np.ones(len(correlations)),
    }
    weight["fewer"] = weight[fewer]
    return [
        float(1 - (weight[choice] * correlations).sum() / weight[choice].sum())
        for choice in choices
    ]


def _basis(table: Array, tolerance: float) -> Array:
    """An orthonormal basis, over samples, of the space that the units span."""
    left, values, _ = _svd(table)
    return left[:, values > tolerance * values[:1]]


def _svd(matrix: Array) -> list[Array]:
    return [part.numpy() for part in singular_vectors(torch.tensor(matrix))]
