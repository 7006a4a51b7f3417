"""An installed package provides its metrics through its entry points alone."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import probekit
from children import start_child

PACKAGE = Path(__file__).parent / "package"

COMMAND = [
    "analyze", "--limit", "20", "--layers", "layer3.2", "--metrics", "selectivity,response_range",
    "--json", "-o", "result.nc",
]  # fmt: skip
ANALYSIS = (
    f"""
import os, sys
# As in a new process into whose path the package was installed.
sys.path.insert(0, os.environ["INSTALLED"])
for name in [name for name in sys.modules if name.split(".")[0] == "probekit"]:
    del sys.modules[name]
from typer.testing import CliRunner
from probekit.cli.app import app
done = CliRunner().invoke(app, {COMMAND})
assert done.exit_code == 0, done.output
"""
    + """
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
)


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


@pytest.fixture(scope="module")
def folder(server: Any, installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a process that runs a command and an analysis, to which only the folder was given."""
    made = tmp_path_factory.mktemp("made")
    environment = {"INSTALLED": str(installed)}
    child = start_child(server, made, code=ANALYSIS, environment=environment)
    status, _, errors = child.wait()
    assert status == 0, errors
    return made


@pytest.mark.slow
def test_plugin_metrics_are_available_by_name(folder: Path) -> None:
    found = json.loads((folder / "found.json").read_text())
    assert found["units"] == pytest.approx(found["expected"], rel=1e-6)
    assert found["layer"] == max(found["units"])
    assert found["mean"] == pytest.approx(sum(found["units"]) / 3)


@pytest.mark.slow
def test_plugin_metrics_are_available_on_the_command_line(folder: Path) -> None:
    units = probekit.open_result(folder / "result.nc")["units"]
    assert units.sizes["unit"] == 64
    assert (units["response_range"] > 0).all()
