"""The commands `compare` and `report`, which read results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probekit.cli.command import command
from probekit.cli.options import Json, Level, Overwrite, check_out

if TYPE_CHECKING:
    from probekit.models.image_model import ImageModel


@command(
    epilog="Example: probekit compare before.nc after.nc --paired -o difference.nc -o both.png"
)
def compare(
    first: Annotated[str, typer.Argument(help="File that analyze wrote.")],
    second: Annotated[str, typer.Argument(help="Result of another model, as analyze wrote it.")],
    out: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            "--out",
            help="Differences (.nc, .zarr), or figure of both by layer (.png, .pdf, .svg); may be repeated.",
        ),
    ] = None,
    variable: Annotated[str, typer.Option(help="Unit variable to print and draw.")] = "selectivity",
    paired: Annotated[
        bool, typer.Option("--paired", help="Pair units by channel, as for checkpoints of one run.")
    ] = False,
    level: Level = 0.95,
    report: Annotated[
        str | None,
        typer.Option(help="File for a page of the differences and of both side by side, .html."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Compare two results by layer: the second minus the first, with intervals over units."""
    from probekit import plot
    from probekit.analysis.compare import compare as run
    from probekit.errors import OptionError, close_matches
    from probekit.reports.rows import to_json
    from probekit.reports.saving import save_figure
    from probekit.reports.terminal import console, print_rows
    from probekit.results.trees import open_result, save_result

    tables, figures = check_out(out or (), "a comparison", overwrite=overwrite)
    if report:
        from probekit.reports.page.page import check_page

        check_page(report, overwrite=overwrite)
    results = [open_result(file) for file in (first, second)]
    found = run(*results, paired=paired, level=level)
    layers = found["layers"].to_dataset()
    ends = ("first", "second", "difference", "low", "high")
    if f"{variable}_low" not in layers:
        known = [str(name).removesuffix("_low") for name in layers if str(name).endswith("_low")]
        near = close_matches(variable, known, what="variable")
        raise OptionError(f"the results have no unit variable named {variable!r}; {near}")
    rows: list[dict[str, Any]] = [
        {"layer": layer, **{end: float(layers[f"{variable}_{end}"].values[at]) for end in ends}}
        for at, layer in enumerate(layers["layer"].values.tolist())
    ]
    for file in tables:
        save_result(found, file, overwrite=overwrite)
    names = [Path(file).stem for file in (first, second)]
    if names[0] == names[1]:
        names = [first, second]
    for file in figures:
        axes = plot.layer_profile(dict(zip(names, results, strict=True)), variable)
        save_figure(axes, file)
    if report:
        from probekit.reports.page.page import report as write_report

        write_report([*results, found], report, names=names, overwrite=overwrite)
    if as_json:
        print(to_json(rows))
        return
    print_rows(rows, console())
    if written := [*(out or ()), *([report] if report else [])]:
        print(f"written: {', '.join(written)}")


@command(
    epilog="Example: probekit report result.nc robustness.nc -o report.html --data fashion-mnist "
    "--model probekit:resnet20-fashion-mnist"
)
def report(
    results: Annotated[list[str], typer.Argument(help="Files that analyze or robustness wrote.")],
    out: Annotated[str, typer.Option("-o", "--out", help="File for the page, .html.")],
    data: Annotated[
        str | None,
        typer.Option(help="The analyzed data, for the images that each unit responds to most."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model, as for analyze: it sets the size of the images.")
    ] = None,
    names: Annotated[
        str | None, typer.Option(help="Names of the models, separated by commas.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
    budget: Annotated[float, typer.Option(help="Maximum size of the file in MiB.")] = 16.0,
    overwrite: Overwrite = False,
) -> None:
    """Show results as one HTML page that works offline: layers, robustness, every unit.

    Several models are shown side by side. A robustness result is merged with the analysis of its model.
    """
    from probekit.reports.page.page import check_page
    from probekit.reports.page.page import report as run

    check_page(out, overwrite=overwrite)
    network: ImageModel | None = None
    if model is not None and data is not None:
        from probekit.models.loading import load_model

        network = load_model(model, pretrained=False)
    path = run(
        results, out, data=data, model=network, title=title, budget=round(budget * 2**20),
        names=None if names is None else [name.strip() for name in names.split(",")],
        overwrite=overwrite,
    )  # fmt: skip
    print(f"report: {path}, {path.stat().st_size / 2**20:.1f} MiB")
