"""Options and arguments shared by several commands, and the parsing of their values."""

from __future__ import annotations

import json
from ast import literal_eval
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from probekit.errors import OptionError, close_matches

if TYPE_CHECKING:
    from probekit.data.images import LabeledImages
    from probekit.metrics.metric import Metric
    from probekit.models.image_model import ImageModel


Number = TypeVar("Number", int, float)

Model = Annotated[
    str | None,
    typer.Argument(
        help="A timm name, hf-hub:..., torchvision:NAME, hf:NAME (transformers), probekit:NAME, a "
        "run's folder, or MODULE:FUNCTION."
    ),
]
Data = Annotated[
    str | None,
    typer.Argument(
        help="A folder with one folder per class, a table or array file, or the name of a data set."
    ),
]
LayerGlobs = Annotated[
    list[str] | None,
    typer.Option(
        "--layers",
        help="Names or globs of layers, separated by commas or repeated; !GLOB excludes.",
        callback=lambda given: given and _split(",".join(given)),
    ),
]
Metrics = Annotated[
    list[str],
    typer.Option(
        help="Metrics, separated by commas or repeated; options in parentheses: "
        "'selectivity(negative=shift)'."
    ),
]
Weights = Annotated[
    str | None, typer.Option(help="File of weights: safetensors, or a torch file of tensors only.")
]
Random = Annotated[bool, typer.Option("--random", help="Random weights, drawn from --seed.")]
Limit = Annotated[int | None, typer.Option(help="Number of samples, drawn at random.")]
BatchSize = Annotated[int, typer.Option(help="Samples per forward pass.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")]
Seed = Annotated[int, typer.Option(help="Seed of all random draws.")]
Tokens = Annotated[
    Any, typer.Option(parser=str, metavar="all|patch|class", help="Which tokens to use.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Skip images that cannot be read.")]
Split = Annotated[
    str | None, typer.Option(help="train, test, val, ...: a split of the data set or folder.")
]
ClassMap = Annotated[
    str | None,
    typer.Option(
        help="Output of each class of the data: index, cat=281,dog=207, or a JSON file of a mapping."
    ),
]
Attributes = Annotated[
    str | None,
    typer.Option(help="Label columns of a table, separated by commas, such as color,shape."),
]
Progress = Annotated[bool, typer.Option(help="Show a progress bar on a terminal.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile", help="Compile the model first: takes minutes, worthwhile for long runs."
    ),
]
Level = Annotated[float, typer.Option(help="Coverage of the intervals.")]
Scheduler = Annotated[str | None, typer.Option(help="Address of a dask scheduler.")]
Workers = Annotated[int | None, typer.Option(help="Number of processes that read images.")]
Epochs = Annotated[int | None, typer.Option(help="Number of epochs, instead of the recipe's.")]
DataRoot = Annotated[str | None, typer.Option(help="Folder of the data set's files.")]
Schedule = Annotated[
    str | None,
    typer.Option(help="Alpha over the epochs, such as '0*5 -20*15', instead of --alpha."),
]
Precision = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")]
Regularized = Annotated[
    list[str] | None,
    typer.Option(
        "--layers",
        help="Layers to regularize: names, globs, first:3, last:3, but-last-stage.",
        callback=lambda given: given and _split(",".join(given)),
    ),
]
Callbacks = Annotated[
    str, typer.Option(help="Trackers, separated by commas: tensorboard, wandb, mlflow; none.")
]


def check_out(files: Sequence[str], what: str, *, overwrite: bool) -> tuple[list[str], list[str]]:
    """Checks the files of `-o` before any computation; returns those of tables, and those of figures."""
    from probekit.reports.saving import check_figure
    from probekit.results.files import check_output_path

    tables = [file for file in files if Path(file).suffix in (".nc", ".zarr")]
    figures = [file for file in files if file not in tables]
    for file in files:
        kinds = (".nc", ".zarr", ".png", ".pdf", ".svg")
        check_output_path(file, kinds, what, overwrite=overwrite)
    for file in figures:
        check_figure(file, overwrite=overwrite)
    return tables, figures


def numbers(option: str, given: Sequence[str], kind: Callable[[str], Number]) -> list[Number]:
    """Parses the numbers of an option that is separated by commas or repeated."""
    text = ",".join(given)
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except (ValueError, ZeroDivisionError):
        raise OptionError(f"{option} takes numbers separated by commas, not {text!r}") from None


def jobs_or_auto(given: str) -> int | Literal["auto"]:
    """Parses a number of jobs, or `auto`."""
    if given == "auto":
        return "auto"
    try:
        return int(given)
    except ValueError:
        raise OptionError(f"--jobs takes a number or auto, not {given!r}") from None


def names(given: str | Sequence[str]) -> list[str] | None:
    """Parses the names of an option that is separated by commas or repeated; None for `none`."""
    text = given if isinstance(given, str) else ",".join(given)
    return None if text == "none" else [name.strip() for name in text.split(",") if name.strip()]


def metric_list(given: str | Sequence[str]) -> list[Metric]:
    """Parses metrics such as `selectivity(negative=shift),dimensionality`."""
    from probekit.metrics.metric import resolve

    text = given if isinstance(given, str) else ",".join(given)
    found = [_metric(part) for part in _split(text)]
    return resolve(found)


def _split(text: str) -> list[str]:
    """Splits text at commas outside brackets."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts if part.strip()]


def _metric(text: str) -> Metric:
    """Parses a metric name with optional options in parentheses, without executing any code."""
    from probekit.metrics.metric import FunctionMetric, get_metric

    name, bracket, rest = text.partition("(")
    metric = get_metric(name.strip())
    if not bracket:
        return metric
    if not rest.endswith(")"):
        raise OptionError(f"metric {text!r} lacks a closing parenthesis at its end")
    known: dict[str, Any] = {}
    if isinstance(metric, FunctionMetric):
        known = metric.describe([])
    elif is_dataclass(metric):
        known = {one.name: getattr(metric, one.name) for one in fields(metric) if one.init}
    options = {}
    for part in _split(rest[:-1]):
        option, _, value = (side.strip() for side in part.partition("="))
        if option not in known:
            near = close_matches(option, known, what="option")
            raise OptionError(f"metric {name!r} has no option {option!r}; {near}")
        options[option] = _value(name, option, value, known[option])
    try:
        if isinstance(metric, FunctionMetric):
            return replace(metric, options=options)
        return replace(metric, **options)  # type: ignore[type-var]  # options need a dataclass
    except (TypeError, ValueError) as error:
        raise OptionError(f"metric {text!r} is not valid: {error}") from None


def _value(metric: str, option: str, text: str, default: object) -> Any:
    """Parses a literal, or a bare word if the option is a string."""
    words = {"true": True, "false": False, "none": None}
    try:
        value = words[text.lower()] if text.lower() in words else literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text
    if isinstance(value, str) and isinstance(default, bool | int | float):
        kind = type(default).__name__
        raise OptionError(f"option {option!r} of metric {metric!r} must be a {kind}, not {text!r}")
    return value


def class_mapping(text: str | None) -> Any:
    """Parses a `class_map`: `index`, pairs such as `cat=281,dog=golden retriever`, or a JSON file."""
    if text is None or text == "index":
        return text
    if text.endswith(".json"):
        try:
            return json.loads(Path(text).read_text())
        except (OSError, ValueError) as error:
            raise OptionError(f"--class-map {text!r} cannot be read: {error}") from None
    pairs = [part.rpartition("=") for part in text.split(",") if part.strip()]
    if not pairs or not all(equals for _, equals, _ in pairs):
        raise OptionError(
            f"--class-map must be index, pairs such as cat=281,dog=207, or a .json file, not {text!r}"
        )
    return {name.strip(): int(of) if of.strip().isdigit() else of.strip() for name, _, of in pairs}


def radius(text: str) -> float:
    """Parses a number or a fraction such as 8/255."""
    above, _, below = text.partition("/")
    return float(above) / float(below or 1)


def load(
    model: str | None,
    data: str | None,
    weights: str | None,
    random: bool,
    skip_bad: bool,
    seed: int,
    split: str | None = None,
    data_root: str | None = None,
    attributes: str | None = None,
) -> tuple[ImageModel, LabeledImages]:
    """Loads the model and the data of a command, by default the bundled ones."""
    import torch

    from probekit.data.datasets import load_data
    from probekit.models.loading import DEFAULT_MODEL, load_model

    if model is not None and data is None:
        raise OptionError(
            f"model {model!r} needs data: name a folder with one folder of images per class, or a data "
            "set such as fashion-mnist"
        )
    torch.manual_seed(seed % 2**63)
    network = load_model(model or DEFAULT_MODEL, weights, pretrained=not random)
    images = load_data(
        data or "fashion-mnist", network, skip_bad=skip_bad, split=split, root=data_root,
        attributes=None if attributes is None else names(attributes),
    )  # fmt: skip
    return network, images
