"""The dossier of a unit as a figure: its class means, its top images and its rank in its layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from probekit.errors import DataError, LayerError, OptionError, close_matches, optional
from probekit.models.image_model import Model
from probekit.reports.model_results import ModelResults, Results, model_results
from probekit.reports.page.payload import in_unit_range
from probekit.reports.page.svg import number
from probekit.results.labels import ends, heading, is_share, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]

_ACCENT, _SOFT, _GRAY = "#17628f", "#a9c6d8", "#8a867e"
_RANKED = ("selectivity", "gradient_norm_cv", "corruption_change_relative")
_MOST_CLASSES = 15


def dossier(
    result: Results,
    layer: str,
    channel: int,
    *,
    data: Any = None,
    model: Model | None = None,
    images: Array | None = None,
    saliency: Array | None = None,
    shown: int = 6,
    **options: Any,
) -> Figure:
    """Draws all information about one unit in a result.

    The figure shows the class means of the unit, highest first; its top images with their labels, if
    the result contains the metric `top_images`, and their saliency; and the rank of the unit in its
    layer by selectivity, gradient variability and sensitivity to corruption.

    Args:
        result: A result of `analyze`, a result of `robustness`, a list of both, or their files.
        layer: The unit's layer.
        channel: The unit's channel in the layer.
        data: The analyzed data, used for the images, as for `images_at`.
        model: The model, used for the saliency.
        images: Images (n, channels, height, width) to show instead of those from `data`.
        saliency: Signed saliency maps of the same shape, instead of those that `unit_saliency` computes
            with `model`.
        shown: Maximum number of images.
        **options: As for `unit_saliency`.

    Returns:
        The figure, neither shown nor saved.

    Raises:
        LayerError: There is no such unit.
        OptionError: The results are of several models, or there is saliency without images.
        DataError: The data does not match the result.

    Example:
        >>> import probekit as pk
        >>> model = pk.load_model("probekit:resnet20-fashion-mnist")
        >>> data = pk.load_data("fashion-mnist", model)
        >>> metrics = ["selectivity", "top_images"]
        >>> result = pk.analyze(model, data, "layer3.2.relu2", metrics, limit=100)
        >>> figure = pk.dossier(result, "layer3.2.relu2", 4, data=data, model=model)
        >>> figure.axes[0].get_title(loc="left")
        'tuning'
    """
    results, *others = model_results(result)
    if others:
        raise OptionError(
            f"a dossier shows a unit of one model, but there are results of {len(others) + 1} models: "
            f"{', '.join(one.name for one in (results, *others))}"
        )
    unit = _unit(results, layer, channel)
    here = results.units.isel(unit=unit)
    if images is None and data is not None and _has(here, "top_sample"):
        images = _best_images(here, data, model, shown)
    if saliency is None and model is not None and images is not None:
        import torch

        from probekit.analysis.saliency import unit_saliency

        pixels = torch.from_numpy(images[:shown])
        saliency = unit_saliency(model, pixels, layer, channel, **options).numpy()
    if saliency is not None and (images is None or saliency.shape[0] > len(images)):
        raise OptionError("saliency needs its images: pass as many images, or data")
    return _draw(results, unit, images, saliency, shown)


def _unit(results: ModelResults, layer: str, channel: int) -> int:
    if layer not in results.layer_names:
        near = close_matches(layer, results.layer_names, what="layer")
        raise LayerError(f"the result has no layer {layer!r}; {near}")
    units = results.units
    there = (units["layer"].values == layer) & (units["channel"].values == channel)
    if not there.any():
        known = int((units["layer"].values == layer).sum())
        raise LayerError(f"layer {layer!r} has {known} units, but no unit {channel}")
    return int(np.flatnonzero(there)[0])


def _has(here: xr.Dataset, name: str) -> bool:
    """Whether a variable of the unit is known; a merged result may lack it."""
    return name in here and bool(here[name].notnull().all())


def _best_images(here: xr.Dataset, data: Any, model: Model | None, shown: int) -> Array:
    from probekit.data.lookup import images_at

    numbers = here["top_sample"].values[:shown]
    found, labels = images_at(data, numbers, model)
    known = here["top_label"].values[:shown].tolist() if "top_label" in here else []
    # Results of data with several attributes store the label -1.
    if labels.ndim == 1 and known and labels.tolist() != known:
        raise DataError(
            f"the data is not that of the result: samples {numbers.tolist()} have the labels "
            f"{labels.tolist()} in it; give the data that was analyzed"
        )
    return found.numpy(force=True)


def _draw(
    results: ModelResults, unit: int, images: Array | None, saliency: Array | None, shown: int
) -> Figure:
    with optional("matplotlib", "the figure of a dossier"):
        import matplotlib as mpl
        from matplotlib import pyplot as plt

    from probekit.plot.canvas import style

    here = results.units.isel(unit=unit)
    columns = 0 if images is None else min(shown, len(images))
    rows = 0 if images is None else 1 if saliency is None else 2
    ranked = [name for name in _RANKED if name in here and np.isfinite(float(here[name]))]
    with mpl.rc_context(style()):
        right_width = max(0.92 * columns, 4.2)
        classes = min(here.sizes.get("class", 6), _MOST_CLASSES)
        height = max(0.9 + 0.2 * classes, 0.4 + 1.1 * rows + 0.62 * len(ranked))
        figure = plt.figure(figsize=(3.2 + right_width, height), layout="constrained")
        plt.close(figure)
        halves: Any = figure.subfigures(1, 2, width_ratios=[3.0, right_width + 0.2])
        left, right = halves
        _draw_tuning(left.subplots(), here, results)
        heights = {"images": 1.1 * rows, "ranked": 0.62 * len(ranked)}
        heights = {part: size for part, size in heights.items() if size}
        if heights:
            ratios = list(heights.values())
            boxes = right.subfigures(len(heights), 1, height_ratios=ratios, squeeze=False)[:, 0]
            places = dict(zip(heights, boxes, strict=True))
            if images is not None and columns:
                tight = {"hspace": 0.0, "wspace": 0.04}
                grid = places["images"].subplots(rows, columns, squeeze=False, gridspec_kw=tight)
                _draw_images(grid, images, saliency, here, results)
                if saliency is not None:
                    key = "saliency: red increases the activation, blue decreases it"
                    places["images"].supxlabel(key, x=0.02, ha="left", fontsize=7)
            if ranked:
                axes = places["ranked"].subplots(len(ranked), 1, squeeze=False)[:, 0]
                for ax, name in zip(axes, ranked, strict=True):
                    _draw_rank(ax, results, unit, name)
        figure.suptitle(
            f"{here['layer'].item()}, unit {int(here['channel'])}", x=0.01, ha="left", fontsize=11
        )
    return figure


def _draw_tuning(ax: Axes, here: xr.Dataset, results: ModelResults) -> None:
    ax.set_title("tuning", loc="left")
    if not _has(here, "class_mean"):
        ax.text(0.5, 0.5, "class means were not measured", ha="center", transform=ax.transAxes)
        ax.set_axis_off()
        return
    means = here["class_mean"].values
    order = np.argsort(-means, kind="stable")[:_MOST_CLASSES]
    labels = here["class"].values[order]
    names = [shorten(results.class_names.get(int(label), str(label)), 18) for label in labels]
    colors = [_ACCENT if at == 0 else _SOFT for at in range(len(order))]
    places = np.arange(len(order))
    ax.barh(places, means[order], color=colors, height=0.72)
    ax.set_yticks(places, names, parse_math=False)
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(bool((means < 0).any()))
    more = f" (the {len(order)} highest of {len(means)})" if len(order) < len(means) else ""
    ax.set_xlabel(f"mean activation{more}")


def _draw_images(
    grid: Array, images: Array, saliency: Array | None, here: xr.Dataset, results: ModelResults
) -> None:
    for ax in grid.ravel():
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
    own = _captions(here, results)
    for at, ax in enumerate(grid[0]):
        ax.imshow(_pixels(images[at]), cmap="gray", vmin=0, vmax=1)
        if at < len(own):
            title = ax.set_title(own[at], loc="center", fontsize=6.5, pad=2.5)
            title.set_parse_math(False)
    if saliency is None:
        return
    for at, ax in enumerate(grid[1][: len(saliency)]):
        signed = saliency[at].sum(0)
        most = float(np.quantile(np.abs(signed), 0.995)) or 1.0
        ax.imshow(_pixels(images[at]).reshape(*signed.shape, -1).mean(-1), cmap="Greys", alpha=0.25)
        ax.imshow(signed, cmap="RdBu_r", vmin=-most, vmax=most, alpha=0.85)


def _captions(here: xr.Dataset, results: ModelResults) -> Sequence[str]:
    if not _has(here, "top_label"):
        return ()
    names = [results.class_names.get(int(label), str(label)) for label in here["top_label"].values]
    pairs = zip(names, here["top_activation"].values, strict=True)
    return [f"{shorten(name, 13)}\n{number(value, 2)}" for name, value in pairs]


def _pixels(image: Array) -> Array:
    """An image as matplotlib draws it: (height, width) or (height, width, 3), in [0, 1]."""
    scaled = in_unit_range(image)
    return scaled.transpose(1, 2, 0) if image.shape[0] == 3 else scaled.mean(0)


def _draw_rank(ax: Axes, results: ModelResults, unit: int, name: str) -> None:
    """Draws the unit among the units of its layer on one axis."""
    units = results.units
    own = units["layer"].values == units["layer"].values[unit]
    values = units[name].values[own]
    value = float(units[name].values[unit])
    ax.plot(values, np.zeros(len(values)), "|", color=_GRAY, markersize=7, alpha=0.6)
    ax.plot([value], [0], "o", color=_ACCENT, markersize=5)
    ax.set_ylim(-1, 1)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    if is_share(units[name]):
        ax.set_xlim(min(0.0, float(np.nanmin(values))), max(1.0, float(np.nanmax(values))))
    interval = ""
    if found := ends(units, name):
        low, high = (float(end.values[unit]) for end in found)
        ax.plot([low, high], [0, 0], color=_ACCENT, linewidth=2.5, alpha=0.45)
        interval = f" ({number(low)} to {number(high)})"
    rank = 1 + int((values > value).sum())
    text = f"{heading(units[name])} {number(value)}{interval}, rank {rank} of {len(values)} in its layer"
    ax.set_title(text, loc="left", fontsize=7.5)
