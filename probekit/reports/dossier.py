"""The dossier of a unit as a figure: what it responds to, where it looks, how it stands in its layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from probekit.errors import DataError, LayerError, OptionError, close_matches
from probekit.extras import optional
from probekit.reports.page.measures import measure_of, number
from probekit.reports.subject import Subject, subjects

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["dossier"]

Array = npt.NDArray[Any]

_ACCENT, _SOFT, _GREY = "#17628f", "#a9c6d8", "#8a867e"
_STANDING = ("selectivity", "gradient_norm_cv", "corruption_change_relative")
_MOST_CLASSES = 15


def dossier(
    result: Any,
    layer: str,
    channel: int,
    *,
    data: Any = None,
    model: Any = None,
    images: Array | None = None,
    saliency: Array | None = None,
    shown: int = 6,
    **options: Any,
) -> Figure:
    """Draws everything that a result knows of one unit.

    Its class means, highest first; its best images with their labels, where the result has the metric
    `top_images`, and which pixels they owe their effect to; and its place in its layer by
    selectivity, variability of its gradient and sensitivity to corruption.

    Args:
        result: A result of `analyze`, one of `robustness`, or a list of both; or their files.
        layer: The unit's layer.
        channel: The unit's number in it.
        data: The data that was analysed, for the images; what `images_at` takes.
        model: The model, for their saliency.
        images: (n, channels, height, width), instead of those from `data`.
        saliency: The same shape, signed, instead of what `unit_saliency` makes with `model`.
        shown: At most so many images.
        **options: As for `unit_saliency`.

    Returns:
        The figure, which is neither shown nor saved.

    Raises:
        LayerError: No such unit.
        OptionError: Results of several models, or saliency without images.
        DataError: The data is not that of the result.

    Example:
        >>> import probekit as pk
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4), torch.nn.ReLU())
        >>> batches = [(torch.rand(8, 1, 4, 4), torch.arange(8) % 2)]
        >>> result = pk.analyze(net, batches, layers="2", metrics=["selectivity", "top_images"])
        >>> figure = pk.dossier(result, "2", 3, data=batches, model=net)
        >>> figure.axes[0].get_title(loc="left")
        'tuning'
    """
    subject = _one_subject(result)
    unit = _unit(subject, layer, channel)
    here = subject.units.isel(unit=unit)
    if images is None and data is not None and "top_sample" in here:
        images = _best_images(here, data, model, shown)
    if saliency is None and model is not None and images is not None:
        saliency = _saliency(model, images[:shown], layer, channel, options)
    if saliency is not None and (images is None or saliency.shape[0] > len(images)):
        raise OptionError("saliency is of images: give as many of them, as images or through data")
    return _draw(subject, unit, images, saliency, shown)


def _one_subject(result: Any) -> Subject:
    found = subjects(result)
    if len(found) != 1:
        raise OptionError(
            f"a dossier is of a unit of one model, and the results are of {len(found)}: "
            f"{', '.join(one.name for one in found)}"
        )
    return found[0]


def _unit(subject: Subject, layer: str, channel: int) -> int:
    if layer not in subject.layer_names:
        near = close_matches(layer, subject.layer_names, what="layer")
        raise LayerError(f"the result has no layer {layer!r}; {near}")
    units = subject.units
    there = (units["layer"].values == layer) & (units["channel"].values == channel)
    if not there.any():
        known = int((units["layer"].values == layer).sum())
        raise LayerError(f"layer {layer!r} has {known} units, and none is number {channel}")
    return int(np.flatnonzero(there)[0])


def _best_images(here: xr.Dataset, data: Any, model: Any, shown: int) -> Array:
    from probekit.data.lookup import images_at

    numbers = here["top_sample"].values[:shown]
    found, labels = images_at(data, numbers, model)
    if "top_label" in here and labels.tolist() != here["top_label"].values[:shown].tolist():
        raise DataError(
            f"the data is not that of the result: samples {numbers.tolist()} have the labels "
            f"{labels.tolist()} in it; give the data that was analysed"
        )
    return found.numpy(force=True)


def _saliency(model: Any, images: Array, layer: str, channel: int, options: Any) -> Array:
    from probekit.analysis import saliency

    found: Array = saliency.of_array(model, images, layer, channel, **options)
    return found


def _draw(
    subject: Subject, unit: int, images: Array | None, saliency: Array | None, shown: int
) -> Figure:
    with optional("matplotlib", "the figure of a dossier"):
        import matplotlib as mpl
        from matplotlib import pyplot as plt

    from probekit.plot.canvas import style

    here = subject.units.isel(unit=unit)
    columns = 0 if images is None else min(shown, len(images))
    rows = 0 if images is None else 1 if saliency is None else 2
    standing = [name for name in _STANDING if name in here and np.isfinite(float(here[name]))]
    with mpl.rc_context(style()):
        right_width = max(0.92 * columns, 4.2)
        classes = min(here.sizes.get("class", 6), _MOST_CLASSES)
        height = max(0.9 + 0.2 * classes, 0.4 + 1.1 * rows + 0.62 * len(standing))
        figure = plt.figure(figsize=(3.2 + right_width, height), layout="constrained")
        plt.close(figure)
        halves: Any = figure.subfigures(1, 2, width_ratios=[3.0, right_width + 0.2])
        left, right = halves
        _tuning(left.subplots(), here, subject)
        parts = [
            part for part in ("images" if rows else "", "standing" if standing else "") if part
        ]
        if parts:
            ratios = [1.1 * rows if part == "images" else 0.62 * len(standing) for part in parts]
            boxes = right.subfigures(len(parts), 1, height_ratios=ratios, squeeze=False)[:, 0]
            places = dict(zip(parts, boxes, strict=True))
            if images is not None and columns:
                tight = {"hspace": 0.0, "wspace": 0.04}
                grid = places["images"].subplots(rows, columns, squeeze=False, gridspec_kw=tight)
                _photographs(grid, images, saliency, here, subject)
                if saliency is not None:
                    key = "saliency: red adds to the activation, blue takes from it"
                    places["images"].supxlabel(key, x=0.02, ha="left", fontsize=7)
            if standing:
                axes = places["standing"].subplots(len(standing), 1, squeeze=False)[:, 0]
                for ax, name in zip(axes, standing, strict=True):
                    _standing(ax, subject, unit, name)
        figure.suptitle(
            f"{here['layer'].item()}, unit {int(here['channel'])}", x=0.01, ha="left", fontsize=11
        )
    return figure


def _tuning(ax: Axes, here: xr.Dataset, subject: Subject) -> None:
    ax.set_title("tuning", loc="left")
    if "class_mean" not in here:
        ax.text(0.5, 0.5, "class means were not measured", ha="center", transform=ax.transAxes)
        ax.set_axis_off()
        return
    means = here["class_mean"].values
    order = np.argsort(-means, kind="stable")[:_MOST_CLASSES]
    labels = here["class"].values[order]
    names = [_plain(subject.class_names.get(int(label), str(label)), 18) for label in labels]
    colours = [_ACCENT if at == 0 else _SOFT for at in range(len(order))]
    places = np.arange(len(order))
    ax.barh(places, means[order], color=colours, height=0.72)
    ax.set_yticks(places, names)
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(bool((means < 0).any()))
    more = len(means) - len(order)
    ax.set_xlabel(
        "mean activation" + (f" (the {len(order)} highest of {len(means)})" if more else "")
    )


def _photographs(
    grid: Array, images: Array, saliency: Array | None, here: xr.Dataset, subject: Subject
) -> None:
    for ax in grid.ravel():
        ax.set_xticks([])
        ax.set_yticks([])
        for side in ax.spines.values():
            side.set_visible(False)
    own = _captions(here, subject)
    for at, ax in enumerate(grid[0]):
        ax.imshow(_picture(images[at]), cmap="gray", vmin=0, vmax=1)
        if at < len(own):
            ax.set_title(own[at], loc="center", fontsize=6.5, pad=2.5)
    if saliency is None:
        return
    for at, ax in enumerate(grid[1][: len(saliency)]):
        signed = saliency[at].sum(0)
        most = float(np.quantile(np.abs(signed), 0.995)) or 1.0
        ax.imshow(
            _picture(images[at]).reshape(*signed.shape, -1).mean(-1), cmap="Greys", alpha=0.25
        )
        ax.imshow(signed, cmap="RdBu_r", vmin=-most, vmax=most, alpha=0.85)


def _captions(here: xr.Dataset, subject: Subject) -> Sequence[str]:
    if "top_label" not in here:
        return ()
    pairs = zip(here["top_label"].values, here["top_activation"].values, strict=True)
    return [
        f"{_plain(subject.class_names.get(int(label), str(label)), 13)}\n{number(value, 2)}"
        for label, value in pairs
    ]


def _picture(image: Array) -> Array:
    """An image as matplotlib draws it: (height, width) or (height, width, 3), in [0, 1]."""
    low, high = min(float(image.min()), 0.0), max(float(image.max()), 1.0)
    scaled = (image - low) / (high - low)
    return scaled.transpose(1, 2, 0) if image.shape[0] == 3 else scaled.mean(0)


def _standing(ax: Axes, subject: Subject, unit: int, name: str) -> None:
    """The unit among the units of its layer, on a line."""
    units = subject.units
    own = units["layer"].values == units["layer"].values[unit]
    values = units[name].values[own]
    value = float(units[name].values[unit])
    ax.plot(values, np.zeros(len(values)), "|", color=_GREY, markersize=7, alpha=0.6)
    ax.plot([value], [0], "o", color=_ACCENT, markersize=5)
    ax.set_ylim(-1, 1)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    if measure_of(name).kind == "share":
        ax.set_xlim(min(0.0, float(np.nanmin(values))), max(1.0, float(np.nanmax(values))))
    ends = [f"{name}_low", f"{name}_high"]
    sure = ""
    if all(end in units for end in ends):
        low, high = (float(units[end].values[unit]) for end in ends)
        ax.plot([low, high], [0, 0], color=_ACCENT, linewidth=2.5, alpha=0.45)
        sure = f" ({number(low)} to {number(high)})"
    place = 1 + int((values > value).sum())
    text = f"{measure_of(name).label} {number(value)}{sure}, number {place} of {len(values)} in its layer"
    ax.set_title(text, loc="left", fontsize=7.5)


def _plain(name: str, most: int) -> str:
    """A name that matplotlib does not take for a formula, of at most so many characters."""
    cut = name if len(name) <= most else f"{name[: most - 1]}…"
    return cut.replace("$", r"\$")
