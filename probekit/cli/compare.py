"""The command `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from probekit.cli.command import command
from probekit.cli.options import Json, Level, Overwrite


@command(epilog="Example: probekit compare before.nc after.nc --paired -o difference.nc")
def compare(
    first: Annotated[str, typer.Argument(help="File that analyze wrote.")],
    second: Annotated[str, typer.Argument(help="Result of another model, as analyze wrote it.")],
    out: Annotated[
        str | None, typer.Option("-o", "--out", help="File for the differences, .nc or .zarr.")
    ] = None,
    variable: Annotated[str, typer.Option(help="Unit variable to print and draw.")] = "selectivity",
    paired: Annotated[
        bool, typer.Option("--paired", help="Pair units by index, as for checkpoints of one run.")
    ] = False,
    level: Level = 0.95,
    figure: Annotated[
        str | None, typer.Option(help="File for a figure of both by layer, .png, .pdf or .svg.")
    ] = None,
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
    from probekit.reports.saving import check_figure, save_figure
    from probekit.reports.terminal import console, print_rows
    from probekit.results.trees import check_output, open_result, save_result

    if out:
        check_output(out, overwrite=overwrite)
    if figure:
        check_figure(figure, overwrite=overwrite)
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
    if out:
        save_result(found, out, overwrite=overwrite)
    names = [Path(file).stem for file in (first, second)]
    if names[0] == names[1]:
        names = [first, second]
    if figure:
        axes = plot.layer_profile(dict(zip(names, results, strict=True)), variable)
        save_figure(axes, figure)
    if report:
        from probekit.reports.page.page import report as write_report

        write_report([*results, found], report, names=names, overwrite=overwrite)
    if as_json:
        print(to_json(rows))
        return
    print_rows(rows, console())
    for what, written in (("differences", out), ("figure", figure), ("report", report)):
        if written:
            print(f"{what}: {written}")
