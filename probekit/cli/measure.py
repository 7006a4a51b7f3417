"""The commands `analyze`, `layers`, `record`, `models` and `robustness`, which measure one model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from probekit.cli import options
from probekit.cli.command import command
from probekit.errors import OptionError

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
    epilog="Example: probekit analyze tf_efficientnet_lite0 photos/ --weights lite0.safetensors -o r.nc"
)
def analyze(
    model: options.Model = None,
    data: options.Data = None,
    out: Annotated[
        str | None, typer.Option("-o", "--out", help="File for the result, .nc or .zarr.")
    ] = None,
    layers: options.LayerGlobs = None,
    metrics: options.Metrics = ["selectivity"],  # noqa: B006 (typer copies it)
    limit: options.Limit = None,
    weights: options.Weights = None,
    random: options.Random = False,
    batch_size: options.BatchSize = 64,
    device: options.Device = None,
    seed: options.Seed = 0,
    tokens: options.Tokens = "all",
    precision: Annotated[
        Any, typer.Option(parser=str, metavar="bfloat16|float16", help="Run in half precision.")
    ] = None,
    compile: options.Compile = False,
    workers: options.Workers = None,
    split: options.Split = None,
    data_root: options.DataRoot = None,
    skip_bad: options.SkipBad = False,
    class_map: options.ClassMap = None,
    attributes: options.Attributes = None,
    report: Annotated[
        str | None,
        typer.Option(
            help="Also write an HTML report, with the images that each unit responds to most."
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    progress: options.Progress = True,
    as_json: options.Json = False,
) -> None:
    """Measure every unit of a model on labeled images.

    Without MODEL and DATA: a bundled ResNet20 on the Fashion-MNIST test set.
    """
    from probekit.results.trees import check_output, save_result

    if out:
        check_output(out, overwrite=overwrite)
    if report:
        from probekit.reports.page.page import check_page

        check_page(report, overwrite=overwrite)
    from probekit.analysis.analyze import analyze as run
    from probekit.reports.rows import result_json
    from probekit.reports.terminal import console, print_result
    from probekit.runtime.processes import processes

    chosen = options.metric_list(metrics)
    if report and all(metric.name != "top_images" for metric in chosen):
        chosen += options.metric_list(["top_images"])
    network, images = options.load(
        model, data, weights, random, skip_bad, seed, split, data_root, attributes
    )
    result = run(
        network, images, layers or None, chosen, batch_size=batch_size, limit=limit, device=device,
        seed=seed, progress=progress, tokens=tokens, workers=workers, precision=precision,
        compile=compile, class_map=options.class_mapping(class_map),
    )  # fmt: skip
    if not processes().is_main:
        return
    if out:
        save_result(result, out, overwrite=overwrite)
    if report:
        from probekit.reports.page.page import report as write_report

        write_report(result, report, data=images, overwrite=overwrite)
    if as_json:
        print(result_json(result))
        return
    terminal = console()
    print_result(result, terminal)
    for what, written in (("result", out), ("report", report)):
        if written:
            terminal.print(f"{what}: {Path(written)}", markup=False)


@command(
    name="layers", epilog="Example: probekit layers torchvision:swin_t --layers 'features.1.*'"
)
def show_layers(
    model: Annotated[str | None, typer.Argument(help="As for analyze.")] = None,
    layers: options.LayerGlobs = None,
    spatial: Annotated[
        str, typer.Option(help="Count bytes of pooled (mean) or whole (none) maps.")
    ] = "mean",
    tokens: options.Tokens = "all",
    weights: options.Weights = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare with a plain pass that shares no code with it."),
    ] = False,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Verify all architectures of timm, one line each; resumes."),
    ] = False,
    out: Annotated[str | None, typer.Option("-o", "--out", help="CSV file, with --all.")] = None,
    most_parameters: Annotated[
        float, typer.Option(help="Leave out larger architectures, with --all.")
    ] = 1e8,
    as_json: options.Json = False,
) -> None:
    """Show what would be recorded: layer, type, shape, unit axis, units, calls, bytes.

    With --verify, also show whether the values match those of a plain pass, what confirms the unit
    axis, and whether all calls are recorded.
    """
    import json

    if everything:
        if model is not None or out is None:
            raise OptionError(
                "--all verifies all architectures of timm: give no MODEL, and -o FILE"
            )
        _verify_everything(out, most_parameters)
        return
    if model is None:
        raise OptionError("name a MODEL, or verify all architectures of timm with --all -o FILE")

    import torch

    from probekit.capture.plan import plan
    from probekit.models.loading import load_model
    from probekit.reports.terminal import console, print_plan, print_verification

    network = load_model(model, weights, pretrained=False)
    images = torch.rand(2, *network.input_size, generator=torch.Generator().manual_seed(0))
    rows: Any = plan(
        network,
        images,
        layers or None,
        spatial=spatial,  # type: ignore[arg-type]  # checked by plan
        tokens=tokens,
        verify=verify,
    )
    about = rows.attrs
    rows = rows.to_dict("records")
    if as_json:
        print(json.dumps(rows))
    else:
        print_plan(rows, console())
        if verify:
            print_verification(rows, about, console())


def _verify_everything(out: str, most_parameters: float) -> None:
    from probekit.analysis.verification import timm_architectures, verify_architectures

    for line in verify_architectures(timm_architectures(), out, most_parameters=most_parameters):
        print(line["architecture"], line["outcome"], line.get("detail", ""), flush=True)


@command(
    epilog="Example: probekit record probekit:resnet20-fashion-mnist fashion-mnist -o acts.zarr"
)
def record(
    model: Annotated[str, typer.Argument(help="As for analyze.")],
    data: Annotated[str, typer.Argument(help="As for analyze.")],
    out: Annotated[str, typer.Option("-o", "--out", help="Folder for the recording, .zarr.")],
    layers: options.LayerGlobs = None,
    spatial: Annotated[
        str, typer.Option(help="mean: one number per unit; none: whole maps.")
    ] = "mean",
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
    overwrite: options.Overwrite = False,
    progress: options.Progress = True,
) -> None:
    """Record activations to a zarr store; an interrupted command resumes when run again."""
    from probekit.capture.record import record as run
    from probekit.runtime.processes import processes

    network, images = options.load(model, data, weights, random, False, seed, split, data_root)
    recording = run(
        network, images, layers or None, spatial=spatial, tokens=tokens, store=out,  # type: ignore[arg-type]  # by record
        overwrite=overwrite, batch_size=batch_size, limit=limit, device=device, seed=seed,
        progress=progress, workers=workers, compile=compile,
    )  # fmt: skip
    if not processes().is_main:
        return
    sizes = recording.sizes
    print(f"recording: {out}, {sizes['sample']} samples x {sizes['unit']} units")


@command(name="models", epilog="Example: probekit models 'resnet*'")
def show_models(
    pattern: Annotated[str, typer.Argument(help="Glob that names must match.")] = "*",
) -> None:
    """List the bundled models."""
    from probekit.models.names import list_models

    found = list_models(pattern.removeprefix("probekit:"))
    if not found:
        raise OptionError(
            f"no bundled model matches {pattern!r}; timm.list_models() lists those of timm"
        )
    for name in found:
        print(f"probekit:{name}")


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
    from probekit.runtime.processes import processes

    network, images = options.load(model, data, weights, random, skip_bad, seed, split, data_root)
    result = run(
        network, images, _corruptions(corruptions), options.numbers("--severities", severities, int),
        options.names(attacks), options.numbers("--epsilons", epsilons, options.radius),
        layers=layers or None,
        reference=reference, store=store, limit=limit, batch_size=batch_size, device=device,
        seed=seed, tokens=tokens, workers=workers, progress=progress, compile=compile, table=table,
        class_map=options.class_mapping(class_map),
    )  # fmt: skip
    if not processes().is_main:
        return
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
