"""The networks for the claims of the papers on small images, at scales from seconds to hours."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import xarray as xr
from tqdm.auto import tqdm

import probekit as pk
from probekit.checks import one_of
from probekit.errors import OptionError
from probekit.runtime.progress import hidden
from probekit.training.run.recipes import get_recipe

__all__ = ["Scale", "Study", "get_study", "study_parser"]

Scale: TypeAlias = Literal["tiny", "quick", "default"]


@dataclass(frozen=True)
class Study:
    """A recipe, the alphas and seeds to train it with, and the options of its control runs.

    Attributes:
        recipe: Name of the recipe.
        alphas: Alphas of the sweep.
        seeds: Seeds of the sweep and of the control runs.
        options: Recipe options changed by the sweep.
        control: Recipe options changed by control runs: shorter but more epochs, so that schedules
            have enough steps.
        machine: Options of `train` that do not affect results, such as `data_root` and `device`.

    Example:
        >>> study = get_study("tiny")
        >>> study.recipe, study.alphas
        ('resnet20-digits', (-1.0, 0.0, 1.0))
    """

    recipe: str
    alphas: tuple[float, ...]
    seeds: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    control: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> str:
        """The name of the data set."""
        return get_recipe(self.recipe).data

    @property
    def control_epochs(self) -> int:
        """The number of epochs of a control run."""
        epochs: int = get_recipe(self.recipe, **self.control).epochs
        return epochs

    def sweep(self, out: str | Path, **options: Any) -> xr.Dataset:
        """Trains or resumes the sweep; see `sweep`."""
        given = {**self.options, **self.machine, **options}
        return pk.sweep(self.recipe, self.alphas, self.seeds, out, **given)

    def vary(
        self, out: str | Path, variants: Mapping[str, Mapping[str, Any]], *, progress: bool = True
    ) -> xr.Dataset:
        """Trains or resumes control runs, every variant with every seed.

        Args:
            out: Folder of the runs; the run of a variant with seed N is in `VARIANT/seed_N`.
            variants: For each name, options of `train` in addition to the control options: `alpha`,
                `alpha_schedule`, `layers`, `augmix`, ...
            progress: Show a progress bar when on a terminal.

        Returns:
            The result of `run_outcomes` for these variants and seeds.

        Raises:
            OptionError: There are no variants, or a name is not a valid folder name.
        """
        if not variants or any("/" in name or not name for name in variants):
            raise OptionError(f"variants are one or more, named without '/', not {list(variants)}")
        runs = [(name, seed) for name in variants for seed in self.seeds]
        for name, seed in tqdm(runs, desc="controls", unit="run", disable=hidden(progress)):
            given = {"alpha": 0.0, **self.control, **self.machine, **variants[name]}
            pk.train(
                self.recipe, seed=seed, out=Path(out, name, f"seed_{seed}"), progress=False, **given
            )
        return pk.run_outcomes(out).sel(variant=list(variants), seed=list(self.seeds))


def get_study(
    scale: Scale = "default", *, data_root: str | Path | None = None, device: str | None = None
) -> Study:
    """Returns a study of the papers' claims at the given scale.

    Args:
        scale: `"tiny"`: seconds, ResNet8 on digits, a smoke test; `"quick"`: minutes, ResNet8 on
            digits; `"default"`: hours on a laptop, ResNet20 on Fashion-MNIST.
        data_root: Folder of the data set's files.
        device: Where to train.

    Raises:
        OptionError: The scale is unknown.
    """
    one_of("scale", scale, get_args(Scale))
    return replace(_STUDIES[scale], machine={"data_root": data_root, "device": device})


def study_parser(description: str) -> argparse.ArgumentParser:
    """Returns a parser for the command-line arguments shared by all studies.

    The parsed arguments are `out` (a path), `scale`, `data_root` and `device`; the last three are arguments
    of `get_study`.

    Args:
        description: The first line of the help text.

    Example:
        >>> asked = study_parser("A study.").parse_args(["--quick"])
        >>> asked.scale, str(asked.out)
        ('quick', 'reproduction')
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--out", type=Path, default=Path("reproduction"), help="folder of all files"
    )
    scale = parser.add_mutually_exclusive_group()
    for name, text in (
        ("tiny", "seconds, to see that all works"),
        ("quick", "minutes, on digits"),
    ):
        scale.add_argument(
            f"--{name}",
            dest="scale",
            action="store_const",
            const=name,
            default="default",
            help=text,
        )
    parser.add_argument("--data-root", help="folder of the data set's files")
    parser.add_argument("--device", help="cpu, cuda, ...; what accelerate finds by default")
    return parser


_STUDIES: Mapping[str, Study] = {
    "tiny": Study(
        recipe="resnet20-digits",
        alphas=(-1.0, 0.0, 1.0),
        seeds=(0, 1),
        options={"architecture": "resnet8", "epochs": 1, "limit": 256},
        control={"architecture": "resnet8", "epochs": 2, "limit": 128},
    ),
    "quick": Study(
        recipe="resnet20-digits",
        alphas=(-2.0, -1.0, -0.4, 0.0, 0.4, 1.0, 2.0),
        seeds=(0, 1, 2),
        options={"architecture": "resnet8", "epochs": 5},
        control={"architecture": "resnet8", "epochs": 6, "limit": 640},
    ),
    "default": Study(
        recipe="resnet20-fashion-mnist",
        alphas=(-30.0, -2.0, -1.0, -0.4, 0.0, 0.4, 1.0, 2.0, 30.0),
        seeds=(0, 1, 2),
        options={"epochs": 2},
        control={"epochs": 8, "limit": 10_000, "validation": 1000},
    ),
}
