"""The command line: parses, calls, prints."""

from __future__ import annotations

import errno
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from probekit.errors import OptionError, ProbekitError, ProbekitWarning, plain

_DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)

app = typer.Typer(
    name="probekit",
    help="Understand trained vision networks, unit by unit.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Example: probekit analyze -o result.nc   (a bundled network on a bundled test set)",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[
    str | None,
    typer.Argument(
        help="A timm name, hf-hub:..., torchvision:NAME, probekit:NAME, or a run's folder."
    ),
]
Data = Annotated[
    str | None,
    typer.Argument(help="A folder with one folder of images a class, or a data set's name."),
]
LayerGlobs = Annotated[
    list[str] | None,
    typer.Option("--layers", help="Name or glob of layers; !GLOB takes out. May be repeated."),
]
Weights = Annotated[str | None, typer.Option(help="File of weights, safetensors or tensors alone.")]
Random = Annotated[bool, typer.Option("--random", help="Random weights, drawn from --seed.")]
Limit = Annotated[int | None, typer.Option(help="Use so many samples, drawn at random.")]
BatchSize = Annotated[int, typer.Option(help="Samples a forward pass.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")]
Seed = Annotated[int, typer.Option(help="Seeds everything random.")]
Tokens = Annotated[
    Any, typer.Option(parser=str, metavar="all|patch|class", help="Tokens that count.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what exists.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out images that cannot be read.")]
Progress = Annotated[bool, typer.Option(help="Show a progress bar on a terminal.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Workers = Annotated[int | None, typer.Option(help="Processes that read images.")]


def command(**options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a command whose mistakes of the user end in one sentence and exit status 2."""

    def wrap(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                with _notes():
                    function(*args, **kwargs)
                    sys.stdout.flush()
            except ProbekitError as error:
                print(f"probekit: {plain(error)}", file=sys.stderr)
                raise typer.Exit(2) from None
            except KeyboardInterrupt:
                print("probekit: interrupted", file=sys.stderr)
                raise typer.Exit(130) from None
            except OSError as error:
                if error.errno not in _DISK_FULL:
                    raise
                # What could not be printed would be tried again, and complained of, at the end.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                print(f"probekit: no room to write: {error.strerror}", file=sys.stderr)
                raise typer.Exit(2) from None

        return app.command(**options)(run)

    return wrap


@contextmanager
def _notes() -> Iterator[None]:
    """Shows probekit's own warnings as notes, each once."""
    shown: set[str] = set()
    usual = warnings.showwarning

    def show(message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
        if not issubclass(category, ProbekitWarning):
            usual(message, category, *rest, **more)
        elif str(message) not in shown:
            shown.add(str(message))
            print(f"note: {plain(message)}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", ProbekitWarning)
        warnings.showwarning = show
        yield


def _version(wanted: bool) -> None:
    if wanted:
        from probekit import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Understand trained vision networks, unit by unit."""


def _subject(
    model: str | None,
    data: str | None,
    weights: str | None,
    random: bool,
    skip_bad: bool,
    seed: int,
) -> tuple[Any, Any]:
    import torch

    from probekit.data.datasets import load_data
    from probekit.models.loading import DEFAULT_MODEL, load_model
    from probekit.runtime.memory import ask_for_huge_pages

    ask_for_huge_pages()
    if model is not None and data is None:
        raise OptionError(
            f"model {model!r} needs data: name a folder with one folder of images a class, or a data "
            "set such as fashion-mnist"
        )
    torch.manual_seed(seed % 2**63)
    network = load_model(model or DEFAULT_MODEL, weights, pretrained=not random)
    return network, load_data(data or "fashion-mnist", network, skip_bad=skip_bad)


@command(
    epilog="Example: probekit analyze tf_efficientnet_lite0 photos/ --weights lite0.safetensors -o r.nc"
)
def analyze(
    model: Model = None,
    data: Data = None,
    out: Annotated[
        str | None, typer.Option("-o", "--out", help="File for the result, .nc or .zarr.")
    ] = None,
    layers: LayerGlobs = None,
    metrics: Annotated[
        str, typer.Option(help="Names of metrics, with commas between.")
    ] = "selectivity",
    limit: Limit = None,
    weights: Weights = None,
    random: Random = False,
    batch_size: BatchSize = 64,
    device: Device = None,
    seed: Seed = 0,
    tokens: Tokens = "all",
    precision: Annotated[
        Any, typer.Option(parser=str, metavar="bfloat16|float16", help="Run in half precision.")
    ] = None,
    workers: Workers = None,
    skip_bad: SkipBad = False,
    report: Annotated[
        str | None,
        typer.Option(help="Write an HTML report too, with the images that units like best."),
    ] = None,
    overwrite: Overwrite = False,
    progress: Progress = True,
    as_json: Json = False,
) -> None:
    """Measure every unit of a model on labelled images.

    Without MODEL and DATA: a bundled ResNet20 on the Fashion-MNIST test set.
    """
    from probekit.results.trees import check_output, save_result

    if out:
        check_output(out, overwrite=overwrite)
    if report:
        from probekit.reports.page.page import check_page

        check_page(report, overwrite=overwrite)
        metrics = metrics if "top_images" in metrics.split(",") else f"{metrics},top_images"
    from probekit.analysis.analyze import analyze as run
    from probekit.metrics.metric import resolve
    from probekit.reports.terminal import console, print_result, result_json
    from probekit.runtime.processes import processes

    chosen = resolve([name.strip() for name in metrics.split(",") if name.strip()])
    network, images = _subject(model, data, weights, random, skip_bad, seed)
    result = run(
        network, images, layers or None, chosen, batch_size=batch_size, limit=limit, device=device,
        seed=seed, progress=progress, tokens=tokens, workers=workers, precision=precision,
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
    model: Annotated[str, typer.Argument(help="As for analyze.")],
    layers: LayerGlobs = None,
    spatial: Annotated[
        str, typer.Option(help="Count bytes of pooled (mean) or whole (none) maps.")
    ] = "mean",
    tokens: Tokens = "all",
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """Show what would be recorded: layer, type, shape, unit axis, units, calls, bytes."""
    import json

    import torch

    from probekit.capture.plan import plan
    from probekit.models.loading import load_model
    from probekit.reports.terminal import console, print_plan

    network = load_model(model, weights, pretrained=False)
    images = torch.rand(2, *network.input_size, generator=torch.Generator().manual_seed(0))
    rows: Any = plan(network, images, layers or None, spatial=spatial, tokens=tokens)  # type: ignore[arg-type]
    rows = rows.to_dict("records")
    if as_json:
        print(json.dumps(rows))
    else:
        print_plan(rows, console())


@command(
    epilog="Example: probekit record probekit:resnet20-fashion-mnist fashion-mnist -o acts.zarr"
)
def record(
    model: Annotated[str, typer.Argument(help="As for analyze.")],
    data: Annotated[str, typer.Argument(help="As for analyze.")],
    out: Annotated[str, typer.Option("-o", "--out", help="Folder for the recording, .zarr.")],
    layers: LayerGlobs = None,
    spatial: Annotated[
        str, typer.Option(help="mean: one number a unit; none: whole maps.")
    ] = "mean",
    limit: Limit = None,
    weights: Weights = None,
    random: Random = False,
    batch_size: BatchSize = 64,
    device: Device = None,
    seed: Seed = 0,
    tokens: Tokens = "all",
    workers: Workers = None,
    overwrite: Overwrite = False,
    progress: Progress = True,
) -> None:
    """Record activations to a zarr store; the same command goes on where it was interrupted."""
    from probekit.capture.recording.record import record as run

    network, images = _subject(model, data, weights, random, False, seed)
    recording = run(
        network, images, layers or None, spatial=spatial, tokens=tokens, store=out,  # type: ignore[arg-type]
        overwrite=overwrite, batch_size=batch_size, limit=limit, device=device, seed=seed,
        progress=progress, workers=workers,
    )  # fmt: skip
    sizes = recording.sizes
    print(f"recording: {out}, {sizes['sample']} samples x {sizes['unit']} units")


Epochs = Annotated[int | None, typer.Option(help="Instead of the recipe's.")]
DataRoot = Annotated[str | None, typer.Option(help="Where the data set's files are.")]
Schedule = Annotated[
    str | None,
    typer.Option(help="Alpha over the epochs, such as '0*5 -20*15', instead of --alpha."),
]
Precision = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
Regularized = Annotated[
    list[str] | None,
    typer.Option(
        "--layers", help="Layers to regularize: names, globs, first:3, last:3, but-last-stage."
    ),
]


@command(
    epilog="Example: probekit train resnet20-digits --alpha -1 --seed 0 -o run/   "
    "(a run that exists goes on; probekit analyze run/ digits looks at it)"
)
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name; see probekit recipes.")],
    out: Annotated[str, typer.Option("-o", "--out", help="Folder of the run.")],
    alpha: Annotated[
        float, typer.Option(help="Below 0 discourages selectivity, above 0 promotes it.")
    ] = 0.0,
    seed: Seed = 0,
    epochs: Epochs = None,
    data_root: DataRoot = None,
    alpha_schedule: Schedule = None,
    layers: Regularized = None,
    augmix: Annotated[
        int | None, typer.Option(help="Mix training images by AugMix of this severity, 1 to 10.")
    ] = None,
    pgd: Annotated[
        str | None,
        typer.Option(help="Train against PGD of this radius and number of steps, such as 8/255,7."),
    ] = None,
    device: Device = None,
    precision: Precision = None,
    workers: Annotated[int, typer.Option(help="Threads or processes that decode images.")] = 0,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write event files.")] = False,
    progress: Progress = True,
) -> None:
    """Train a network with class selectivity turned down or up."""
    from probekit.training.run.train import train as run

    robust: dict[str, Any] = {} if augmix is None else {"augmix": augmix}
    if pgd is not None:
        robust["pgd"] = _radius_and_steps(pgd)
    done = run(
        recipe, alpha, seed, out, epochs=epochs, data_root=data_root, device=device,
        layers=layers or None, alpha_schedule=alpha_schedule, workers=workers,
        precision=precision, tensorboard=tensorboard, progress=progress,  # type: ignore[arg-type]
        **robust,
    )  # fmt: skip
    print(
        f"{done.recipe}, alpha {done.alpha_schedule}, seed {done.seed}: test accuracy "
        f"{done.test_accuracy:.4f}, mean selectivity {done.selectivity_mean:.4f} "
        f"(epoch {done.best_epoch + 1} of {done.epochs})\nrun: {done.folder}"
    )


@command(
    epilog="Example: probekit sweep resnet20-digits --alphas -2,-1,0,1,2 --seeds 0,1,2 -o sweep/"
)
def sweep(
    recipe: Annotated[str, typer.Argument(help="A recipe's name; see probekit recipes.")],
    out: Annotated[str, typer.Option("-o", "--out", help="Folder of the sweep.")],
    alphas: Annotated[str, typer.Option(help="Numbers with commas between.")] = "-2,-1,0,1,2",
    seeds: Annotated[str, typer.Option(help="Whole numbers with commas between.")] = "0",
    epochs: Epochs = None,
    data_root: DataRoot = None,
    layers: Regularized = None,
    device: Device = None,
    precision: Precision = None,
    jobs: Annotated[int, typer.Option(help="Runs to train together on this machine.")] = 1,
    scheduler: Annotated[str | None, typer.Option(help="Address of a dask scheduler.")] = None,
    progress: Progress = True,
) -> None:
    """Train a recipe for each alpha and seed; a sweep that exists goes on."""
    from probekit.reports.terminal import console, print_sweep
    from probekit.training.sweep.sweep import sweep as run

    given: dict[str, Any] = {"epochs": epochs, "precision": precision, "layers": layers or None}
    table = run(
        recipe, _numbers("--alphas", alphas, float), _numbers("--seeds", seeds, int), out,
        jobs=jobs, scheduler=scheduler, progress=progress, data_root=data_root, device=device,
        **{name: value for name, value in given.items() if value is not None},
    )  # fmt: skip
    print_sweep(table, console())


def _numbers(option: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except (ValueError, ZeroDivisionError):
        raise OptionError(f"{option} takes numbers with commas between, not {text!r}") from None


@command(
    epilog="Example: probekit robustness probekit:resnet20-fashion-mnist fashion-mnist "
    "-o robustness.nc --corruptions fog,contrast --attacks pgd --limit 500"
)
def robustness(
    model: Annotated[str, typer.Argument(help="As for analyze.")],
    data: Annotated[str, typer.Argument(help="As for analyze.")],
    out: Annotated[str, typer.Option("-o", "--out", help="File for the result, .nc or .zarr.")],
    corruptions: Annotated[
        str,
        typer.Option(
            help="all, extra, none, names with commas between, or a folder of published files."
        ),
    ] = "all",
    severities: Annotated[str, typer.Option(help="From 1 to 5, commas between.")] = "1,2,3,4,5",
    attacks: Annotated[
        str, typer.Option(help="fgsm, pgd, autoattack, commas between; or none.")
    ] = "none",
    epsilons: Annotated[
        str, typer.Option(help="Radii of the attacks, such as 1/255,4/255.")
    ] = "1/255,2/255,4/255,8/255",
    layers: LayerGlobs = None,
    reference: Annotated[str | None, typer.Option(help="Result of another model, for mCE.")] = None,
    store: Annotated[
        str | None, typer.Option(help="Folder that keeps finished conditions.")
    ] = None,
    limit: Limit = None,
    weights: Weights = None,
    random: Random = False,
    batch_size: BatchSize = 64,
    device: Device = None,
    seed: Seed = 0,
    tokens: Tokens = "all",
    workers: Workers = None,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
    progress: Progress = True,
    as_json: Json = False,
) -> None:
    """Measure a model under corruptions and attacks.

    With --store, a run that was interrupted goes on where it stopped.
    """
    import json

    from probekit.results.trees import check_output, save_result

    check_output(out, overwrite=overwrite)
    from probekit.analysis.robustness.join import robustness_rows
    from probekit.analysis.robustness.robustness import robustness as run
    from probekit.reports.terminal import console, print_rows

    network, images = _subject(model, data, weights, random, skip_bad, seed)
    result = run(
        network, images, _corruptions(corruptions), _numbers("--severities", severities, int),
        _names(attacks), _numbers("--epsilons", epsilons, _radius), layers=layers or None,
        reference=reference, store=store, limit=limit, batch_size=batch_size, device=device,
        seed=seed, tokens=tokens, workers=workers, progress=progress,
    )  # fmt: skip
    save_result(result, out, overwrite=overwrite)
    rows = robustness_rows(result)
    if as_json:
        print(json.dumps(rows))
    else:
        print_rows(rows, console())
        print(f"result: {Path(out)}")


def _corruptions(text: str) -> Any:
    if text in ("all", "extra"):
        return text
    if os.path.isdir(text):
        from probekit.perturbations.corruptions.published import load_published

        return load_published(text)
    return _names(text)


def _names(text: str) -> list[str] | None:
    return None if text == "none" else [name.strip() for name in text.split(",") if name.strip()]


def _radius_and_steps(text: str) -> tuple[float, int]:
    radius, _, steps = text.partition(",")
    try:
        return _radius(radius), int(steps)
    except (ValueError, ZeroDivisionError):
        raise OptionError(
            f"--pgd takes a radius and a number of steps, such as 8/255,7, not {text!r}"
        ) from None


def _radius(text: str) -> float:
    above, _, below = text.partition("/")
    return float(above) / float(below or 1)


@command(
    epilog="Example: probekit report result.nc robustness.nc -o report.html --data fashion-mnist "
    "--model probekit:resnet20-fashion-mnist"
)
def report(
    results: Annotated[list[str], typer.Argument(help="Files that analyze or robustness wrote.")],
    out: Annotated[str, typer.Option("-o", "--out", help="File for the page, .html.")],
    data: Annotated[
        str | None,
        typer.Option(help="The data that was analysed, for the images that units like best."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model, for the size of the images, as for analyze.")
    ] = None,
    names: Annotated[
        str | None, typer.Option(help="What to call the models, commas between.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
    budget: Annotated[float, typer.Option(help="Most MiB that the file may have.")] = 16.0,
    overwrite: Overwrite = False,
) -> None:
    """Show results as one HTML page that works offline: layers, robustness, every unit.

    Several models are shown side by side; a robustness result joins the analysis of its model.
    """
    from probekit.reports.page.page import check_page
    from probekit.reports.page.page import report as run

    check_page(out, overwrite=overwrite)
    network: Any = None
    if model is not None and data is not None:
        from probekit.models.loading import load_model

        network = load_model(model, pretrained=False)
    path = run(
        results, out, data=data, model=network, title=title, budget=round(budget * 2**20),
        names=None if names is None else [name.strip() for name in names.split(",")],
        overwrite=overwrite,
    )  # fmt: skip
    print(f"report: {path}, {path.stat().st_size / 2**20:.1f} MiB")


@command(epilog="Example: probekit recipes")
def recipes() -> None:
    """List the recipes that train and sweep know."""
    from probekit.training.run.recipes import list_recipes

    for name in list_recipes():
        print(name)


@command(name="models", epilog="Example: probekit models 'resnet*'")
def show_models(
    pattern: Annotated[str, typer.Argument(help="Glob over the names.")] = "*",
) -> None:
    """List the bundled models."""
    from probekit.models.loading import list_models

    for name in list_models(pattern):
        print(f"probekit:{name}")


def main() -> None:
    """Runs the command line."""
    app()


if __name__ == "__main__":
    main()
