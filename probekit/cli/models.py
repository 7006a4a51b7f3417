"""The commands `survey` and `cka`, which measure several models."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from probekit.cli import options
from probekit.cli.command import command
from probekit.errors import MissingPackageError, OptionError, ProbekitWarning

if TYPE_CHECKING:
    import xarray as xr


@command(epilog="Example: probekit survey 'resnet*' 'vit_tiny*' photos/ -o survey/ --limit 1000")
def survey(
    models: Annotated[
        list[str],
        typer.Argument(help="Models as for analyze, and globs of timm models or of run folders."),
    ],
    data: Annotated[str, typer.Argument(help="As for analyze.")],
    out: Annotated[str, typer.Option("-o", "--out", help="Folder of the survey.")],
    layers: options.LayerGlobs = None,
    metrics: options.Metrics = ["selectivity"],  # noqa: B006 (typer copies it)
    limit: options.Limit = None,
    random: options.Random = False,
    batch_size: options.BatchSize = 64,
    device: options.Device = None,
    seed: options.Seed = 0,
    tokens: options.Tokens = "all",
    split: options.Split = None,
    data_root: options.DataRoot = None,
    skip_bad: options.SkipBad = False,
    jobs: Annotated[
        int, typer.Option(help="Number of models to measure at the same time on this machine.")
    ] = 1,
    scheduler: options.Scheduler = None,
    progress: options.Progress = True,
) -> None:
    """Measure many models on the same data; an existing survey resumes.

    Writes a result per model, the table survey.nc, the figure survey.png and the page report.html.
    """
    from probekit.analysis.survey import survey as run
    from probekit.reports.page.page import report
    from probekit.reports.terminal import console, print_rows

    table = run(
        models, data, out, layers or None, options.metric_list(metrics), pretrained=not random, split=split,
        root=data_root, skip_bad=skip_bad, seed=seed, jobs=jobs, scheduler=scheduler,
        progress=progress, limit=limit, batch_size=batch_size, device=device, tokens=tokens,
    )  # fmt: skip
    numbers = table.to_dataset()
    left_out = {"notes"} if any(numbers["failure"].values) else {"notes", "failure"}
    shown = [name for name in numbers if numbers[name].dims == ("model",) and name not in left_out]
    rows = numbers[shown].to_dataframe()[shown].reset_index().to_dict("records")
    print_rows(rows, console())
    page = report(table, Path(out, "report.html"), overwrite=True)
    figures = _survey_figure(table, Path(out, "survey.png"))
    print(f"written: {', '.join(map(str, [Path(out, 'survey.nc'), *figures, page]))}")


def _survey_figure(table: xr.DataTree, file: Path) -> list[Path]:
    """Draws selectivity over depth and against accuracy, if models were measured."""
    known = table.to_dataset()
    if "selectivity_mean" not in known or not known["selectivity_mean"].notnull().any():
        return []
    from probekit import plot
    from probekit.errors import optional
    from probekit.reports.saving import save_figure

    try:
        with optional("matplotlib", "the figure of a survey"):
            from matplotlib import pyplot as plt
    except MissingPackageError as error:
        warnings.warn(f"not drawn: {error}", ProbekitWarning, stacklevel=2)
        return []
    has_accuracy = "accuracy" in known and known["accuracy"].notnull().any()
    with plt.rc_context(plot.style()):
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 2.9), layout="constrained")
    plot.model_profile(table, ax=left)
    plot.model_scatter(table, "accuracy" if has_accuracy else "parameters", ax=right)
    keys = [ax.get_legend() for ax in (left, right)]
    if all(keys):  # the one without the models that have no accuracy
        min(keys, key=lambda one: len(one.get_texts())).remove()
    return save_figure(figure, file)


@command(epilog="Example: probekit cka resnet18 resnet34 photos/ -o cka.nc -o cka.png")
def cka(
    models: Annotated[
        list[str], typer.Argument(help="One model, as for analyze, or two to compare.")
    ],
    data: Annotated[str, typer.Argument(help="As for analyze.")],
    out: Annotated[
        list[str],
        typer.Option(
            "-o", "--out", help="Table (.nc, .zarr) or figure (.png, .pdf, .svg); may be repeated."
        ),
    ],
    layers: options.LayerGlobs = None,
    level: options.Level = 0.95,
    limit: options.Limit = None,
    random: options.Random = False,
    batch_size: options.BatchSize = 64,
    device: options.Device = None,
    seed: options.Seed = 0,
    tokens: options.Tokens = "all",
    split: options.Split = None,
    data_root: options.DataRoot = None,
    overwrite: options.Overwrite = False,
    progress: options.Progress = True,
) -> None:
    """Compute linear CKA between the layers of one or two models, with intervals.

    Prints, for each layer, the layer of the other model (or the other layer) most similar to it.
    """
    import numpy as np
    import xarray as xr

    from probekit import plot
    from probekit.analysis.cka import cka as run
    from probekit.reports.saving import save_figure
    from probekit.reports.terminal import console, print_rows
    from probekit.results.trees import save_result
    from probekit.runtime.processes import processes

    if len(models) > 2:
        raise OptionError(f"cka compares one model or two, not {len(models)}")
    tables, figures = options.check_out(out, "CKA", overwrite=overwrite)
    loaded = [
        options.load(one, data, None, random, False, seed, split, data_root) for one in models
    ]
    (first, images), (second, others) = loaded[0], loaded[-1]
    if (split or data_root) and others.fingerprint != images.fingerprint:
        raise OptionError(
            f"{models[0]} and {models[1]} need the images in different sizes or crops, for which --split "
            "and --data-root are not possible; give the folder of the split"
        )
    table = run(
        first, second if len(loaded) > 1 else None, images if split or data_root else data,
        layers or None, level=level, limit=limit,
        batch_size=batch_size, device=device, seed=seed, tokens=tokens, progress=progress,
    )  # fmt: skip
    if not processes().is_main:
        return
    for file in tables:
        save_result(xr.DataTree(table), file, overwrite=overwrite)
    for file in figures:
        save_figure(plot.layer_similarity(table), file)
    values = table["cka"]
    if len(loaded) == 1:
        values = values.where(table["layer"] != table["other_layer"])
    rows = []
    for layer in values["layer"].values:
        row = values.sel(layer=layer)
        if row.notnull().any():
            near = row["other_layer"].values[int(np.nanargmax(row.values))]
            found = table.sel(layer=layer, other_layer=near)
            numbers = {"CKA": "cka", "low": "cka_low", "high": "cka_high"}
            cells = {name: float(found[variable]) for name, variable in numbers.items()}
            rows.append({"layer": str(layer), "most similar": str(near), **cells})
    print_rows(rows, console(), bars=["CKA"])
    print(f"written: {', '.join(out)}")
