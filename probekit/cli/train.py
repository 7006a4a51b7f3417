"""The commands `train`, `sweep` and `recipes`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from probekit.cli import options
from probekit.cli.command import command
from probekit.errors import OptionError

Numbers = Annotated[list[str], typer.Option(help="Numbers separated by commas.")]


@command(
    epilog="Example: probekit train resnet20-digits --alpha -1 --seed 0 -o run/   "
    "(an existing run resumes; probekit analyze run/ digits measures it)"
)
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name; see probekit recipes.")],
    out: Annotated[str, typer.Option("-o", "--out", help="Folder of the run.")],
    alpha: Annotated[
        float, typer.Option(help="Below 0 discourages selectivity, above 0 promotes it.")
    ] = 0.0,
    seed: options.Seed = 0,
    epochs: options.Epochs = None,
    data_root: options.DataRoot = None,
    alpha_schedule: options.Schedule = None,
    layers: options.Regularized = None,
    augmix: Annotated[
        int | None, typer.Option(help="Mix training images by AugMix of this severity, 1 to 10.")
    ] = None,
    pgd: Annotated[
        str | None,
        typer.Option(help="Train on images attacked by PGD: radius and steps, such as 8/255,7."),
    ] = None,
    device: options.Device = None,
    precision: options.Precision = None,
    workers: Annotated[
        int, typer.Option(help="Number of threads or processes that decode images.")
    ] = 0,
    callbacks: options.Callbacks = "none",
    progress: options.Progress = True,
) -> None:
    """Train a network with class selectivity lowered or raised."""
    from probekit.training.run.train import train as run

    robust: dict[str, Any] = {} if augmix is None else {"augmix": augmix}
    if pgd is not None:
        robust["pgd"] = _radius_and_steps(pgd)
    done = run(
        recipe, alpha, seed, out, epochs=epochs, data_root=data_root, device=device,
        layers=layers or None, alpha_schedule=alpha_schedule, workers=workers,
        precision=precision, callbacks=options.names(callbacks) or (), progress=progress,  # type: ignore[arg-type]  # checked by train
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
    alphas: Numbers = ["-2,-1,0,1,2"],  # noqa: B006 (typer copies it)
    seeds: Numbers = ["0"],  # noqa: B006
    epochs: options.Epochs = None,
    data_root: options.DataRoot = None,
    layers: options.Regularized = None,
    device: options.Device = None,
    precision: options.Precision = None,
    jobs: Annotated[
        str,
        typer.Option(
            help="Number of runs to train at the same time on this machine; auto uses the faster of "
            "one run with all cores and one run per core."
        ),
    ] = "auto",
    scheduler: options.Scheduler = None,
    callbacks: options.Callbacks = "none",
    progress: options.Progress = True,
) -> None:
    """Train a recipe for each alpha and seed; an existing sweep resumes."""
    from probekit.reports.terminal import console, print_sweep
    from probekit.training.sweep.sweep import sweep as run

    given: dict[str, Any] = {"epochs": epochs, "precision": precision, "layers": layers or None}
    table = run(
        recipe, options.numbers("--alphas", alphas, float), options.numbers("--seeds", seeds, int), out,
        jobs=options.jobs_or_auto(jobs), scheduler=scheduler, progress=progress,
        data_root=data_root, device=device, callbacks=options.names(callbacks) or (),
        **{name: value for name, value in given.items() if value is not None},
    )  # fmt: skip
    print_sweep(table, console())


def _radius_and_steps(text: str) -> tuple[float, int]:
    size, _, steps = text.partition(",")
    try:
        return options.radius(size), int(steps)
    except (ValueError, ZeroDivisionError):
        raise OptionError(
            f"--pgd takes a radius and a number of steps, such as 8/255,7, not {text!r}"
        ) from None


@command(epilog="Example: probekit recipes")
def recipes() -> None:
    """List the recipes of train and sweep."""
    from probekit.training.run.recipes import list_recipes

    for name in list_recipes():
        print(name)
