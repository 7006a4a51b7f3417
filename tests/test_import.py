"""Importing the package is fast, and every public name exists."""

from __future__ import annotations

import subprocess
import sys

import pytest

import probekit as pk

HEAVY = (
    "timm",
    "transformers",
    "torchvision",
    "captum",
    "matplotlib",
    "dask",
    "sklearn",
    "distributed",
    "sympy",  # which the compiler of torch imports
)


def loaded_by(code: str) -> set[str]:
    listing = f"{code}\nimport sys\nprint(*sorted(m.split('.')[0] for m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", listing], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_import_is_light() -> None:
    assert not loaded_by("import probekit") & {*HEAVY, "torch", "xarray"}


def test_heavy_packages_are_imported_only_when_needed() -> None:
    code = (
        "import probekit as pk, torch\n"
        "pk.analyze, pk.record, pk.load_model, pk.load_data\n"
        "network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU())\n"
        "with pk.Recorder(network) as recorder: recorder(torch.rand(2, 1, 8, 8))"
    )
    assert not loaded_by(code) & set(HEAVY)


def test_command_line_does_not_import_torch() -> None:
    assert not loaded_by("import probekit.cli.app") & {*HEAVY, "torch", "xarray"}


@pytest.mark.parametrize("name", sorted(set(pk.__all__)))
def test_public_name_exists_and_is_documented(name: str) -> None:
    found = getattr(pk, name)
    assert name in dir(pk)
    assert name == "__version__" or not callable(found) or found.__doc__


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="attribute nonsense"):
        _ = pk.nonsense
