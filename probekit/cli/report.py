"""The command `report`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from probekit.cli.command import command
from probekit.cli.options import Overwrite

if TYPE_CHECKING:
    from probekit.models.image_model import ImageModel


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
