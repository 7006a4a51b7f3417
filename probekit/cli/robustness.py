"""The command `robustness`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from probekit.cli import options
from probekit.cli.command import command

Corruptions = Annotated[
    list[str],
    typer.Option(
        help="all, extra, none, names separated by commas, or a folder of published files."
    ),
]
Severities = Annotated[list[str], typer.Option(help="From 1 to 5, separated by commas.")]
Attacks = Annotated[
    list[str], typer.Option(help="fgsm, pgd, autoattack, separated by commas; or none.")
]
Epsilons = Annotated[list[str], typer.Option(help="Radii of the attacks, such as 1/255,4/255.")]


@command(
    epilog="Example: probekit robustness probekit:resnet20-fashion-mnist fashion-mnist "
    "-o robustness.nc --corruptions fog,contrast --attacks pgd --limit 500"
)
def robustness(
    model: Annotated[str, typer.Argument(help="As for analyze.")],
    data: Annotated[str, typer.Argument(help="As for analyze.")],
    out: Annotated[str, typer.Option("-o", "--out", help="File for the result, .nc or .zarr.")],
    corruptions: Corruptions = ["all"],  # noqa: B006 (typer copies it)
    severities: Severities = ["1,2,3,4,5"],  # noqa: B006
    attacks: Attacks = ["none"],  # noqa: B006
    epsilons: Epsilons = ["1/255,2/255,4/255,8/255"],  # noqa: B006
    table: Annotated[
        int | None,
        typer.Option(help="Published constants of the corruptions: 32, 64 or 224 (pixels)."),
    ] = None,
    layers: options.LayerGlobs = None,
    reference: Annotated[str | None, typer.Option(help="Result of another model, for mCE.")] = None,
    store: Annotated[
        str | None, typer.Option(help="Folder for the conditions measured so far.")
    ] = None,
    limit: options.Limit = None,
    weights: options.Weights = None,
    random: options.Random = False,
    batch_size: options.BatchSize = 64,
    device: options.Device = None,
    seed: options.Seed = 0,
    tokens: options.Tokens = "all",
    compile: options.Compile = False,
    workers: options.Workers = None,
    split: options.Split = None,
    data_root: options.DataRoot = None,
    skip_bad: options.SkipBad = False,
    class_map: options.ClassMap = None,
    overwrite: options.Overwrite = False,
    progress: options.Progress = True,
    as_json: options.Json = False,
) -> None:
    """Measure a model under corruptions and attacks.

    With --store, an interrupted run resumes where it stopped.
    """
    from probekit.results.trees import check_output, save_result

    check_output(out, overwrite=overwrite)
    from probekit.analysis.robustness.robustness import robustness as run
    from probekit.reports.rows import robustness_rows, to_json
    from probekit.reports.terminal import console, print_rows

    network, images = options.load(model, data, weights, random, skip_bad, seed, split, data_root)
    result = run(
        network, images, _corruptions(corruptions), options.numbers("--severities", severities, int),
        options.names(attacks), options.numbers("--epsilons", epsilons, options.radius),
        layers=layers or None,
        reference=reference, store=store, limit=limit, batch_size=batch_size, device=device,
        seed=seed, tokens=tokens, workers=workers, progress=progress, compile=compile, table=table,
        class_map=options.class_mapping(class_map),
    )  # fmt: skip
    save_result(result, out, overwrite=overwrite)
    rows = robustness_rows(result)
    if as_json:
        print(to_json(rows))
    else:
        print_rows(rows, console())
        print(f"result: {Path(out)}")


def _corruptions(given: list[str]) -> Any:
    text = ",".join(given)
    if text in ("all", "extra"):
        return text
    if os.path.isdir(text):
        from probekit.perturbations.corruptions.published import load_published

        return load_published(text)
    return options.names(text)
