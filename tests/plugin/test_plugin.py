"""An installed package provides its metrics through its entry points alone."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import probekit

PACKAGE = Path(__file__).parent / "package"

ANALYSIS = """
import json, torch, probekit as pk
assert "response_range" in pk.list_metrics()
torch.manual_seed(0)
nn = torch.nn
net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2))
data = [(torch.rand(20, 1, 8, 8), torch.arange(20) % 2)]
result = pk.analyze(net, data, metrics=["response_range", "response_extent"], progress=False)
rows = pk.record(net, data, progress=False)["activation"].values
json.dump({
    "units": result["units"]["response_range"].values.tolist(),
    "expected": (rows.max(0) - rows.min(0)).tolist(),
    "layer": result["layers"]["response_extent"].item(),
    "mean": result["layers"]["response_range_mean"].item(),
}, open("found.json", "w"))
from response_range import Extremes
pk.check_statistic(Extremes())
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed the package."""
    target = tmp_path_factory.mktemp("site")
    options = ["--no-deps", "--quiet", "--disable-pip-version-check", "--target", str(target)]
    if importlib.util.find_spec("hatchling"):
        options += ["--no-build-isolation", "--no-index"]
    command = [sys.executable, "-m", "pip", "install", *options, str(PACKAGE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return target


def run(command: list[str], installed: Path, folder: Path) -> Any:
    paths = [str(Path(probekit.__file__).parents[1]), str(installed)]
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_plugin_metrics_are_available_by_name(installed: Path, tmp_path: Path) -> None:
    done = run(["-c", ANALYSIS], installed, tmp_path)
    assert not done.returncode, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["units"] == pytest.approx(found["expected"], rel=1e-6)
    assert found["layer"] == max(found["units"])
    assert found["mean"] == pytest.approx(sum(found["units"]) / 3)


@pytest.mark.slow
def test_plugin_metrics_are_available_on_the_command_line(installed: Path, tmp_path: Path) -> None:
    command = ["-m", "probekit", "analyze", "--limit", "20", "--layers", "layer3.2"]
    command += ["--metrics", "selectivity,response_range", "--json", "-o", "result.nc"]
    done = run(command, installed, tmp_path)
    assert not done.returncode, done.stderr
    units = probekit.open_result(tmp_path / "result.nc")["units"]
    assert units.sizes["unit"] == 64
    assert (units["response_range"] > 0).all()
