"""Curves from the log of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from probekit import plot
from probekit.errors import DataError, OptionError
from probekit.training.run.directory import RunLog, read_log


def test_curves_are_columns_of_the_log(run: Path) -> None:
    ax = plot.training_curves(run)
    records = read_log(run / "log.jsonl")
    for line, name in zip(ax.lines, ("accuracy", "validation_accuracy"), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 9))
        np.testing.assert_array_equal(line.get_ydata(), [record[name] for record in records])
    legend = ax.get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["training accuracy", "validation accuracy"]


def test_both_formats_of_the_log_give_the_same_curves(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0)
    for epoch in range(3):
        layers = {"relu": 0.1 * epoch, "relu_1": 0.2}
        log.add({"epoch": epoch, "loss": 1.0 / (epoch + 1), "selectivity": layers, "late": None})
    for name in ("loss", "selectivity"):
        drawn = [
            np.array(
                [line.get_ydata() for line in plot.training_curves(tmp_path / file, name).lines]
            )
            for file in ("log.jsonl", "log.csv")
        ]
        assert drawn[0].shape == ((1, 3) if name == "loss" else (2, 3))
        np.testing.assert_allclose(drawn[0], drawn[1])
    assert np.isnan(plot.training_curves(tmp_path, "late").lines[0].get_ydata()).all()


def test_a_per_layer_column_gives_one_line_per_layer(run: Path) -> None:
    ax = plot.training_curves(run, "selectivity")
    records = read_log(run / "log.jsonl")
    assert len(ax.lines) == 5
    np.testing.assert_array_equal(
        ax.lines[2].get_ydata(), [record["selectivity"]["layer1.0.relu_1"] for record in records]
    )


def test_seeds_are_averaged_over_their_common_epochs(run: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.mkdir()
    lines = [json.dumps({"epoch": at, "loss": 1.0, "accuracy": 0.5}) for at in range(4)]
    (short / "log.jsonl").write_text("\n".join(lines))
    ax = plot.training_curves({-1.0: [run, short], 0.0: short}, "accuracy")
    records = read_log(run / "log.jsonl")[:4]
    expected = [(record["accuracy"] + 0.5) / 2 for record in records]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), expected)
    assert ax.lines[1].get_color() == "#101010"


def test_a_finished_run_is_accepted(run: Path) -> None:
    class Finished:
        folder = run

    assert len(plot.training_curves(Finished(), "loss").lines) == 1


def test_a_truncated_line_is_ignored(run: Path) -> None:
    with (run / "log.jsonl").open("a") as file:
        file.write('{"epoch": 8, "loss": 0.')
    assert len(plot.training_curves(run, "loss").lines[0].get_xdata()) == 8


def test_mistakes_are_reported(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no log of a training run at"):
        plot.training_curves(tmp_path / "none")
    with pytest.raises(DataError, match="has no 'los', it has epoch, loss"):
        plot.training_curves(run, "los")
    with pytest.raises(OptionError, match="drawn alone, for one run"):
        plot.training_curves({"a": run}, "selectivity")
    with pytest.raises(OptionError, match=r"a training run is the output of train, .* not list"):
        plot.training_curves([run])
    with pytest.raises(OptionError, match="nothing to draw"):
        plot.training_curves({})
    (tmp_path / "log.jsonl").write_text("junk")
    with pytest.raises(DataError, match="no finished epoch"):
        plot.training_curves(tmp_path)
    (tmp_path / "log.csv").write_bytes(b"")
    with pytest.raises(DataError, match="no finished epoch"):
        plot.training_curves(tmp_path / "log.csv")
