"""Warnings name the line of the caller."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import probekit as pk
from probekit.cli.app import app
from probekit.errors import EXTRAS, MissingPackageError, OptionError, ProbekitWarning, optional


def test_a_warning_names_the_line_outside_the_package_each_time() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    data = [(torch.rand(8, 1, 8, 8), torch.arange(8) % 2)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default", ProbekitWarning)
        first = pk.analyze(network, data, progress=False)
        second = pk.analyze(network, data, progress=False)
    assert first.attrs["notes"] == second.attrs["notes"]
    few = [one for one in said if "fewer than 20" in str(one.message)]
    assert {one.filename for one in few} == {__file__}
    assert few[1].lineno == few[0].lineno + 1


class ReluByHand(nn.Module):
    """Causes a warning in a hook, since one of its activation functions is not recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3))

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.layers(images)
        return x * (x > 0)


def test_a_warning_of_a_hook_names_a_line_outside_torch() -> None:
    network = ReluByHand()
    data = [(torch.rand(4, 1, 8, 8), torch.arange(4) % 2)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default", ProbekitWarning)
        pk.record(network, data, progress=False)
        pk.plan(network, data[0][0])
    files = [one.filename for one in said if "layers may be missing" in str(one.message)]
    assert files == [__file__] * 2


ROOT = Path(__file__).parents[1]
# The distribution that provides a package, if it has another name.
DISTRIBUTIONS = {
    "imagecorruptions": "imagecorruptions-imaug", "mlflow": "mlflow-skinny", "sklearn": "scikit-learn",
}  # fmt: skip


def extras() -> dict[str, list[str]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("package", sorted(EXTRAS))
def test_an_extra_installs_its_package(package: str) -> None:
    wanted = DISTRIBUTIONS.get(package, package)
    assert any(line.startswith(f"{wanted}>=") for line in extras()[EXTRAS[package]])


def test_all_contains_every_user_extra_of_the_package() -> None:
    (line,) = extras()["all"]
    assert line == f"probekit[{','.join(sorted(set(extras()) - {'all', 'docs', 'test'}))}]"
    assert set(EXTRAS.values()) == set(extras()) - {"all", "docs", "test"}


def saliency() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU())
    pk.unit_saliency(network, torch.rand(1, 1, 2, 2), "1", 0)


@pytest.mark.parametrize(
    ("package", "call", "install"),
    [
        ("captum", saliency, '"probekit[captum]"'),
        ("sklearn", lambda: pk.load_data("digits"), '"probekit[train]"'),
        ("matplotlib", lambda: pk.save_figure(None, "figure"), '"probekit[plot]"'),
        ("accelerate", lambda: pk.train("resnet20-digits", out="run"), '"probekit[train]"'),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    package: str,
    call: Callable[[], Any],
    install: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    for module in [name for name in sys.modules if name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError) as caught:
        call()
    message = str(caught.value)
    assert f"needs the package {package}, which is not installed" in message
    assert message.endswith(f"pip install {install}")


@pytest.mark.parametrize(
    "command",
    [
        "compare a.nc b.nc -o both.png",
        "cka probekit:resnet20-fashion-mnist fashion-mnist -o similar.nc -o similar.svg",
    ],
)
def test_a_command_whose_figure_cannot_be_drawn_says_so_before_it_starts(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = CliRunner().invoke(app, command.split())
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.endswith('; install it with: pip install "probekit[plot]"\n')


def test_a_survey_without_matplotlib_leaves_its_figure_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    model = "probekit:resnet20-fashion-mnist"
    command = f"survey {model} fashion-mnist -o out --layers layer3.2.relu2 --limit 20"
    done = CliRunner().invoke(app, command.split())
    assert done.exit_code == 0, done.stderr
    assert (
        'needs the package matplotlib, which is not installed; install it with: pip install "probekit[plot]"'
        in (done.stderr)
    )
    assert {"survey.nc", "report.html"} < {path.name for path in (tmp_path / "out").iterdir()}


def test_another_missing_package_is_not_hidden() -> None:
    with (
        pytest.raises(ModuleNotFoundError, match="no_such_package"),
        optional("captum", "unit_saliency"),
    ):
        import no_such_package  # type: ignore[import-not-found]  # noqa: F401


def test_a_package_without_an_extra_is_installed_by_its_name() -> None:
    with (
        pytest.raises(OptionError, match=r"pip install no_such_package$"),
        optional("no_such_package", "this test"),
    ):
        import no_such_package  # type: ignore[import-not-found]  # noqa: F401


WITHOUT_EXTRAS = """
import sys
from probekit.errors import EXTRAS
for package in EXTRAS:
    sys.modules[package] = None
import numpy as np, probekit as pk
from probekit.cli.app import main
data = pk.load_data("fashion-mnist")
model = pk.load_model("probekit:resnet20-fashion-mnist")
recording = pk.record(model, data, ["layer3"], store="r.zarr", limit=20, progress=False)
assert np.isfinite(pk.open_recording("r.zarr")["activation"].values).all()
means = pk.feed(pk.open_recording("r.zarr"), pk.ClassMeans())
try:
    pk.plot.layer_profile
except pk.ProbekitError as error:
    print(error)
sys.argv = ["probekit", "analyze", "-o", "result.nc", "--limit", "20", "--report", "report.html"]
main()
"""


def test_the_core_needs_no_extra(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "pk.plot needs the package matplotlib" in done.stdout
    assert {"result.nc", "report.html"} <= {path.name for path in tmp_path.iterdir()}
