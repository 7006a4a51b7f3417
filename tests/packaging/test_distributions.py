"""The wheel and the source distribution: they build, are complete, and work when installed."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="hatchling builds the distributions")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def call(*command: str, cwd: Path, path: Path | None = None) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    folder = tmp_path_factory.mktemp("source")
    call("-m", "hatchling", "build", "-t", "sdist", "-d", str(folder), cwd=ROOT)
    (archive,) = folder.glob("probekit-*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    (unpacked,) = (one for one in folder.iterdir() if one.is_dir())
    return unpacked


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that the source distribution builds."""
    folder = tmp_path_factory.mktemp("wheel")
    call("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=source)
    (found,) = folder.glob("probekit-*.whl")
    return found


def test_the_source_has_everything_needed_for_tests_and_documentation(source: Path) -> None:
    for name in ("README.md", "LICENSE", "CHANGELOG.md", "tests/conftest.py", "docs/index.md"):
        assert (source / name).is_file()
    assert not list(source.rglob("__pycache__"))


def test_the_wheel_has_every_file_of_the_package_and_both_licenses(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        text = opened.read(metadata).decode()
        (license_name,) = (name for name in names if name.endswith("Fashion-MNIST.txt"))
        assert "Zalando" in opened.read(license_name).decode()
    files = [path for path in (ROOT / "probekit").rglob("*") if path.is_file()]
    wanted = {str(path.relative_to(ROOT)) for path in files if path.suffix != ".pyc"}
    assert wanted == {name for name in names if name.startswith("probekit/")}
    assert "License-Expression: Apache-2.0 AND MIT" in text


def test_the_installed_wheel_runs_an_analysis_and_a_report(wheel: Path, tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    pip = ["-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(site)]
    call(*pip, str(wheel), cwd=work)
    place = call("-c", "import probekit; print(probekit.__file__)", cwd=work, path=site)
    assert Path(place.strip()).is_relative_to(site)
    command = "analyze --limit 50 -o result.nc --report report.html"
    printed = call("-m", "probekit", *command.split(), cwd=work, path=site)
    assert "result: result.nc" in printed
    assert (work / "report.html").is_file()
