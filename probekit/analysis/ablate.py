"""Cumulative ablation: accuracy as more and more units are held at a fixed value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from probekit.analysis.classes import compared_classes
from probekit.capture.layers import Layer, unit_coordinates
from probekit.capture.readouts import Activations, clamped
from probekit.capture.recorder import Layers
from probekit.capture.stream import PassOptions, explore, open_model_and_data, stream
from probekit.checks import non_negative_int, one_of
from probekit.errors import DataError, OptionError, keep_notes
from probekit.models.identity import describe
from probekit.models.image_model import ModelOrName
from probekit.models.logits import ClassMap, ClassMatch, correct
from probekit.results.labels import strings
from probekit.results.provenance import provenance
from probekit.runtime.progress import hidden
from probekit.runtime.randomness import shuffled
from probekit.runtime.settings import in_own_settings
from probekit.statistics.base import merged
from probekit.statistics.class_means import ClassMeans

Value: TypeAlias = Literal["zero", "mean"]
Order: TypeAlias = npt.NDArray[np.int64]
Run: TypeAlias = Callable[..., Any]  # `stream` of the model and the data, with other readouts
_TENTHS = tuple(tenth / 10 for tenth in range(11))


@in_own_settings
@keep_notes
def ablate(
    model: ModelOrName,
    data: Any,
    by: xr.DataArray | Mapping[str, xr.DataArray],
    layers: Layers = None,
    *,
    fractions: Sequence[float] = _TENTHS,
    random: int = 5,
    value: Value = "zero",
    batch_size: int = 64,
    limit: int | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: bool = True,
    class_map: ClassMap = None,
) -> xr.Dataset:
    """Measures accuracy while units are ablated one after another, in given and in random orders.

    An ablated unit is held at a fixed value at every position, for every image. Each order ranks the
    units of all chosen layers together. The model runs once over the data for each order and fraction,
    and is not changed.

    Args:
        model: A module, an `ImageModel` or a name, as for `analyze`.
        data: Labeled images, as for `analyze`, that can be read several times.
        by: A variable (unit) of a result, with the coordinates `layer` and `channel`, or a mapping from
            names to such variables. Units with the highest values are ablated first (negate the
            variable to start with the lowest). Ties are broken at random; NaN comes last.
        layers: As for `Recorder`; only the units of these layers are ablated.
        fractions: Fractions of all units to ablate, from 0 to 1, in increasing order.
        random: Number of random orders to compare with.
        value: The value of ablated units: `"zero"`, or their `"mean"` over the data.
        seed: Seed of the random orders, of ties, and of the sample that `limit` draws.
        batch_size, limit, device, progress, class_map: As for `analyze`.

    Returns:
        `accuracy` (order, fraction), where the orders are the names in `by` and `random_0`, ...;
        `area` (order), the area under each curve over the range of the fractions; `ablated`
        (fraction), the number of ablated units. The attributes include the provenance.

    Raises:
        OptionError: Invalid fractions, orders or value.
        ModelError: The model does not return logits (batch, classes).
        LayerError: As for `Recorder`, or the output of a layer is not a single tensor.

    Source:
        Morcos et al. 2018 (arXiv 1803.06959), who clamp feature maps to zero.

    Example:
        >>> import probekit as pk
        >>> model = pk.load_model("probekit:resnet20-fashion-mnist")
        >>> data = pk.load_data("fashion-mnist", model)
        >>> units = pk.analyze(model, data, "layer3.2.relu2", limit=50)["units"]
        >>> curves = pk.ablate(
        ...     model, data, units["selectivity"], "layer3.2.relu2", fractions=(0, 0.5), random=2, limit=50)
        >>> curves["order"].values.tolist(), curves["ablated"].values
        (['selectivity', 'random_0', 'random_1'], array([ 0, 32]))
    """
    shares = _checked_fractions(fractions)
    non_negative_int("random", random)
    one_of("value", value, get_args(Value))
    model, batches = open_model_and_data(model, data, batch_size=batch_size, limit=limit, seed=seed)
    options = PassOptions(device=device, progress=False)
    found, output = explore(model, batches, layers, options)
    match = compared_classes(model, output, batches, class_map, "ablation")
    run = partial(stream, model, batches, found, options=options)
    orders = _orders(found, by, random, seed)
    held_at = _means(run, found) if value == "mean" else {}
    units = sum(layer.units for layer in found)
    counts = np.round(shares * units).astype(np.int64)
    table = np.empty((len(orders), len(counts)))
    known: dict[bytes, float] = {}
    bar = tqdm(total=table.size, desc="ablate", unit="pass", disable=hidden(progress))
    with bar:
        for row, order in enumerate(orders.values()):
            for column, count in enumerate(counts):
                held = np.isin(np.arange(units), order[:count])
                key = held.tobytes()
                if key not in known:  # ablating no units or all units is the same in every order
                    known[key] = _accuracy(run, found, torch.from_numpy(held), held_at, match)
                table[row, column] = known[key]
                bar.update()
    result = xr.Dataset(
        {
            "accuracy": (("order", "fraction"), table),
            "area": ("order", np.trapezoid(table, shares, axis=1) / np.ptp(shares)),
            "ablated": ("fraction", counts),
        },
        coords={"order": strings(list(orders)), "fraction": shares},
    )
    result.attrs["provenance"] = provenance(
        model=describe(model),
        data=batches.provenance(),
        layers=[layer.name for layer in found],
        value=value,
        seed=seed,
        classes=match.describe(),
    )
    return result


def _orders(layers: Sequence[Layer], by: object, random: int, seed: int) -> dict[str, Order]:
    """The unit numbers in order of ablation, by the name of the order."""
    if not isinstance(by, xr.DataArray | Mapping):
        raise OptionError(
            "by must be a variable of units, such as result['units']['selectivity'], or several as a "
            f"mapping, not {type(by).__name__}"
        )
    named = dict(by) if isinstance(by, Mapping) else {str(by.name or "variable"): by}
    units = sum(layer.units for layer in layers)
    found: dict[str, Order] = {}
    for name, variable in named.items():
        values = _aligned(variable, layers)
        values = np.where(np.isnan(values), -np.inf, values)
        ties = shuffled(f"ties of {name}, seed {seed}", units).numpy()
        found[name] = np.lexsort((ties, -values))
    for number in range(random):
        order = shuffled(f"order {number} of ablation, seed {seed}", units)
        found[f"random_{number}"] = order.numpy()
    if not found:
        raise OptionError("there is no order of ablation; give a variable, or random orders")
    return found


def _aligned(variable: xr.DataArray, layers: Sequence[Layer]) -> npt.NDArray[np.float64]:
    """A variable's values in the order of the units of these layers."""
    if not {"layer", "channel"} <= set(variable.coords) or variable.dims != ("unit",):
        raise OptionError(
            "by must be a variable (unit) with the coordinates layer and channel, not one of the "
            f"dimensions {variable.dims} with the coordinates "
            f"{', '.join(map(str, variable.coords)) or 'none'}"
        )
    pairs = zip(variable["layer"].values, variable["channel"].values, strict=True)
    known = dict(zip(pairs, variable.values.astype(np.float64), strict=True))
    own = unit_coordinates(layers)
    wanted = list(zip(own["layer"][1], own["channel"][1], strict=True))
    if missing := [place for place in wanted if place not in known]:
        raise OptionError(
            f"{variable.name} has no value for {len(missing)} of {len(wanted)} units, such as "
            f"channel {missing[0][1]} of {missing[0][0]!r}; analyze the same layers, or ablate "
            "fewer (layers=...)"
        )
    return np.array([known[place] for place in wanted])


def _means(run: Run, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """The mean activation of every unit over the data."""
    means = {layer.name: ClassMeans() for layer in layers}
    with run([Activations()]) as observed:
        for observation in observed:
            for name, table in observation.tables[0].items():
                means[name].update(table, torch.zeros(len(table), dtype=torch.int64))
    return {
        name: one.state["sum"][0] / one.state["count"][0] for name, one in merged(means).items()
    }


def _accuracy(
    run: Run, layers: Sequence[Layer], held: Tensor, values: Mapping[str, Tensor], match: ClassMatch
) -> float:
    """Fraction of correct predictions while some of the units (units,) are held."""
    parts = torch.split(held, [layer.units for layer in layers])
    by_layer = {layer.name: part for layer, part in zip(layers, parts, strict=True)}
    outcomes = ClassMeans()
    with run([clamped(by_layer, values)]) as observed:
        for observation in observed:
            right = correct(observation.output, observation.batch.labels, "ablation", match)
            outcomes.update(right[:, None], observation.batch.labels)
    state = merged({"correct": outcomes})["correct"].state
    if not state:
        raise DataError("the data yielded no samples the second time")
    return float(state["sum"].sum() / state["count"].sum())


def _checked_fractions(fractions: Sequence[float]) -> npt.NDArray[np.float64]:
    try:
        shares = np.asarray(fractions, dtype=np.float64)
    except (TypeError, ValueError):  # not numbers
        shares = np.empty(0)
    rising = shares.ndim == 1 and len(shares) > 1 and bool((np.diff(shares) > 0).all())
    if not rising or shares[0] < 0 or shares[-1] > 1:
        raise OptionError(
            f"fractions must be two or more numbers that rise from 0 to 1, not {fractions!r}"
        )
    return shares
