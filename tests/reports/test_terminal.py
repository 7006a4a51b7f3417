"""Tables in the terminal: bars on a terminal, plain text in a pipe; help; completion."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import xarray as xr
from rich.console import Console
from typer.main import get_command
from typer.testing import CliRunner

import probekit as pk
from probekit.cli.app import app
from probekit.metrics.dimensionality import Dimensionality
from probekit.metrics.gradient_variability import GradientVariability
from probekit.metrics.selectivity.selectivity import Selectivity
from probekit.reports.rows import interval_note
from probekit.reports.terminal import (
    bar,
    console,
    print_plan,
    print_result,
    print_rows,
    print_sweep,
)
from probekit.results.labels import attributes
from probekit.training.sweep.table import grid, outcomes

BLOCKS = "▏▎▍▌▋▊▉█"
PLAN = [
    {
        "layer": "conv1.relu", "type": "ReLU", "shape": (64, 16, 16), "unit_axis": 1, "units": 64,
        "calls": 1, "bytes_per_sample": 4096,
    },
    {
        "layer": "[bold]fc", "type": "GELU", "shape": (10,), "unit_axis": 1, "units": 10,
        "calls": 1, "bytes_per_sample": 1024,
    },
]  # fmt: skip
ROWS = [
    {"perturbation": "clean", "mean": 0.8, "relative": 1.0},
    {"perturbation": "fog", "1": 0.6, "5": 0.2, "mean": 0.4, "relative": 0.5},
    {"perturbation": "pgd", "4/255": 0.0, "mean": None},
]


def result() -> xr.DataTree:
    """Two layers with the values of three metrics and a user-defined metric."""
    units_mean = {"metric": "selectivity", "short_name": "selectivity", "valid_range": [0.0, 1.0]}
    layers = xr.Dataset(
        {
            "n_units": ("layer", [2, 1], {"short_name": "units"}),
            "selectivity_mean": ("layer", [0.25, 0.5], units_mean),
            "dead_units": ("layer", [0, 1]),
            "participation_ratio": ("layer", [1.5, 1.0]),
            "participation_ratio_corrected_fraction": ("layer", [0.75, 1.0]),
            "gradient_norm_cv_mean": ("layer", [0.4, 0.8]),
            "gradient_norm_cv_across_units": ("layer", [0.2, np.nan]),
            "my_score": (
                "layer",
                [3.0, 4.0],
                {"metric": "my_score", "long_name": "score of mine", "units": "points"},
            ),
        },
        {"layer": np.array(["relu", "relu_1"], dtype=object)},
    )
    for metric in (Selectivity(), Dimensionality(), GradientVariability()):
        own = [name for name in layers.data_vars if name in metric.variables]
        layers = layers.assign(metric.with_attributes(layers[own]))
    units = xr.Dataset(
        {"selectivity": ("unit", [0.3, 0.2, 0.5]), "preferred_class": ("unit", [0, 1, 1])},
        {
            "layer": ("unit", np.array(["relu", "relu", "relu_1"], dtype=object)),
            "channel": ("unit", [0, 1, 0]),
            "class": [0, 1],
            "class_name": ("class", np.array(["cat", "[red]dog"], dtype=object)),
        },
    )
    root = xr.Dataset({"selectivity_mean": 0.375})
    return xr.DataTree.from_dict({"/": root, "units": units, "layers": layers})


def printed(show: Any, thing: Any, *, terminal: bool, width: int = 110) -> str:
    to = Console(
        file=io.StringIO(), force_terminal=terminal, width=width, color_system=None, highlight=False
    )
    show(thing, to)
    return to.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def lines_with_bars(text: str) -> int:
    return sum(any(block in line for block in BLOCKS) for line in text.splitlines())


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, "    "), (1.0, "████"), (0.5, "██  "), (1 / 32, "▏   "), (0.28, "█▏  "),
        (-3.0, "    "), (7.0, "████"), (float("nan"), "    "), (float("inf"), "    "),
    ],
)  # fmt: skip
def test_a_bar_has_the_length_of_its_share(share: float, expected: str) -> None:
    assert bar(share, 4) == expected


@pytest.mark.parametrize(("show", "thing", "bars"), [(print_plan, PLAN, 2), (print_rows, ROWS, 2)])
def test_tables_have_bars_on_a_terminal_and_none_when_piped(
    show: Any, thing: Any, bars: int
) -> None:
    assert lines_with_bars(printed(show, thing, terminal=True)) == bars
    assert lines_with_bars(printed(show, thing, terminal=False)) == 0


def test_bars_are_to_scale() -> None:
    text = printed(print_plan, PLAN, terminal=True)
    assert [line.count("█") for line in text.splitlines()[1:3]] == [10, 2]
    text = printed(print_rows, ROWS, terminal=True)
    assert [line.count("█") for line in text.splitlines()[1:4]] == [8, 4, 0]


def test_a_narrow_terminal_shows_numbers_instead_of_bars() -> None:
    plain = printed(print_plan, PLAN, terminal=False)
    width = max(map(len, plain.splitlines()))
    assert printed(print_plan, PLAN, terminal=True, width=width + 5) == plain
    assert lines_with_bars(printed(print_plan, PLAN, terminal=True, width=width + 12)) == 2


@pytest.mark.parametrize("width", [80, 60, 40, 20])
def test_a_narrow_terminal_shows_all_numbers_whole(width: int) -> None:
    numbers = {f"column {count}": 1111.1 * count for count in range(1, 10)}
    text = printed(
        print_rows, [{"layer": "blocks.11.mlp.act", **numbers}], terminal=True, width=width
    )
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert sum(text.count(f"{value:,.1f}") for value in numbers.values()) == 9
    assert "\N{HORIZONTAL ELLIPSIS}" not in text


def test_markup_in_names_is_not_interpreted() -> None:
    assert "[bold]fc" in printed(print_plan, PLAN, terminal=True)
    assert "[red]dog" in printed(print_result, result(), terminal=True)


def test_a_result_has_one_table_per_metric_and_the_best_units() -> None:
    piped = printed(print_result, result(), terminal=False)
    rows = [line.split() for line in piped.splitlines()]
    assert ["layer", "units", "selectivity", "dead"] in rows
    assert ["relu", "2", "0.250", "██▌", "0"] in rows
    assert ["layer", "dimensions"] not in rows
    assert ["layer", "PR", "dimensions", "used"] in rows
    assert ["layer", "CV", "over", "samples", "CV", "over", "units"] in rows
    assert ["relu", "0.400", "0.200"] in rows
    assert ["relu", "3.000"] in rows
    assert ["layer", "score", "of", "mine", "[points]"] in rows
    assert ["relu_1", "0", "0.500", "[red]dog"] in rows
    assert ["network:", "selectivity", "mean", "0.3750", "over", "2", "layers"] in rows


def test_a_terminal_adds_bars_for_gradients_and_units() -> None:
    rows = [line.split() for line in printed(print_result, result(), terminal=True).splitlines()]
    assert ["relu", "0.400", "█████", "0.200", "██████████"] in rows
    assert ["relu_1", "0.800", "██████████", "-"] in rows
    assert ["relu_1", "0", "0.500", "█████", "[red]dog"] in rows


COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "100"}).stdout
    assert f"Example: probekit {command}" in " ".join(text.split())


def test_the_main_help_shows_how_to_start() -> None:
    text = " ".join(CliRunner().invoke(app, ["--help"]).stdout.split())
    assert "Example: probekit analyze" in text
    assert "--install-completion" in text
    assert "--show-completion" in text


def complete(words: str, shell: str = "bash") -> str:
    """The completions that a shell receives after some words."""
    code = "import sys; sys.argv = ['probekit']; from probekit.cli.app import main; main()"
    env = {
        **os.environ,
        "_PROBEKIT_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True
    ).stdout


def test_the_shell_completes_commands_and_options() -> None:
    assert complete("probekit an").split() == ["analyze"]
    assert set(complete("probekit ").split()) == set(COMMANDS)
    assert {"--metrics", "--layers", "--limit"} <= set(complete("probekit analyze --").split())


def test_omitted_columns_are_named() -> None:
    names = [f"score_{letter}" for letter in "abcdefgh"]
    layers = xr.Dataset({name: ("layer", [1.0]) for name in names}, {"layer": ["relu"]})
    tree = xr.DataTree.from_dict({"layers": layers, "units": xr.Dataset()})
    piped = printed(print_result, tree, terminal=False)
    assert "and 2 more columns (--json has all): score g, score h" in piped


def test_abbreviated_headings_are_explained() -> None:
    layers = xr.Dataset({"ratio": ("layer", [1.0]), "n": ("layer", [2])}, {"layer": ["relu"]})
    layers["ratio"].attrs = attributes("participation ratio", short_name="PR") | {"metric": "a"}
    layers["n"].attrs = attributes("dead units", short_name="dead") | {"metric": "a"}
    tree = xr.DataTree.from_dict({"layers": layers, "units": xr.Dataset()})
    lines = printed(print_result, tree, terminal=False).splitlines()
    assert lines[2] == "PR: participation ratio"


def test_a_sweep_without_any_trained_run_is_printed() -> None:
    failed = outcomes(None, []).assign(failure="the loss became NaN")
    table = grid(xr.concat([failed, failed], "run"), "alpha", np.array([-1.0, 0.0]), [3, 3])
    to = Console(file=io.StringIO(), width=100)
    print_sweep(table, to)
    rows = [line.split() for line in to.file.getvalue().splitlines()[1:]]
    assert rows == [[alpha, "3", "-", "-", "the", "loss", "became", "NaN"] for alpha in ("-1", "0")]


def test_layers_that_contain_others_are_named() -> None:
    layers = xr.Dataset({"n_units": ("layer", [1, 1])}, {"layer": ["layer3", "layer3.0.conv1"]})
    root = xr.Dataset({"selectivity_mean": 0.5})
    tree = xr.DataTree.from_dict({"/": root, "layers": layers, "units": xr.Dataset()})
    piped = printed(print_result, tree, terminal=False)
    assert "note: 1 of the layers contain others (layer3)" in piped


def test_a_mean_over_layers_of_several_types_names_them() -> None:
    model = "probekit:resnet20-fashion-mnist"
    for layers, said in (
        ("layer3.2.*", "6 layers (2 Conv2d, 2 BatchNorm2d, 2 ReLU)"),
        ("layer3.*.relu2", "3 layers, accuracy"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pk.ProbekitWarning)  # that 20 images are few
            result = pk.analyze(model, "fashion-mnist", layers, limit=20, progress=False)
        assert f"over {said}" in printed(print_result, result, terminal=False, width=200)


def test_an_interval_that_leaves_out_its_mean_is_explained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    layers = xr.Dataset(
        {
            "selectivity_mean": ("layer", [0.4, 0.5]),
            "selectivity_mean_low": ("layer", [0.1, 0.4]),
            "selectivity_mean_high": ("layer", [0.3, 0.6]),
        },
        coords={"layer": ["a", "b"]},
    )
    root = xr.Dataset({name: values.mean() for name, values in layers.data_vars.items()})
    units = xr.Dataset(coords={"layer": ("unit", ["a", "b"]), "channel": ("unit", [0, 0])})
    tree = xr.DataTree.from_dict({"/": root, "/layers": layers, "/units": units})
    print_result(tree, console())
    printed = " ".join(capsys.readouterr().out.split())
    assert "selectivity mean 0.4500 over 2 layers (0.2500 to 0.4500)" in printed
    assert "in 1 of 2 layers the interval leaves out the plain mean" in printed
    assert interval_note(layers.isel(layer=[1])) == ""


def test_fractions_of_a_further_dimension_are_not_rounded() -> None:
    table = xr.Dataset(
        {"components": (("layer", "variance"), [[3, 7]], {"metric": "dimensionality"})},
        {"layer": ["relu"], "variance": [0.9, 0.995]},
    )
    stream = io.StringIO()
    result = xr.DataTree.from_dict({"layers": table, "units": xr.Dataset()})
    print_result(result, Console(file=stream, width=100))
    heading, row = (line.split() for line in stream.getvalue().splitlines()[:2])
    assert [one for one in heading if "%" in one] == ["90%", "99.5%"]
    assert row == ["relu", "3", "7"]
