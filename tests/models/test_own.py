"""User-defined models, given as `module:function`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import probekit as pk
from children import Child
from probekit.errors import ModelError

CODE = """
import torch, probekit as pk

def make():
    torch.manual_seed(0)
    layers = torch.nn.Flatten(), torch.nn.Linear(784, 10), torch.nn.ReLU()
    return pk.ImageModel(torch.nn.Sequential(*layers), (0.5,), (0.5,), (1, 28, 28))

def bare():
    return make().module

ready = make()
number = 3
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_models_of_a_test.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_models_of_a_test", raising=False)
    return tmp_path


@pytest.mark.parametrize("attribute", ["make", "ready"])
def test_a_function_or_a_model_of_a_module_in_the_working_directory_is_loaded(
    code: Path, attribute: str
) -> None:
    model = pk.load_model(f"own_models_of_a_test:{attribute}")
    assert (model.mean, model.input_size) == ((0.5,), (1, 28, 28))
    assert model.provenance["name"] == f"own_models_of_a_test:{attribute}"
    assert model.provenance["hash"].startswith("sha256:")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:make", "cannot be imported: No module named 'no_such_module'"),
        ("own_models_of_a_test:maek", "has no 'maek'; close matches: make"),
        ("own_models_of_a_test:bare", r"return pk\.ImageModel\(module"),
        ("own_models_of_a_test:number", "cannot be created: 'int' object is not callable"),
    ],
)
def test_objects_that_are_not_models_are_refused(code: Path, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        pk.load_model(name)


@pytest.mark.slow
def test_user_models_work_on_the_command_line(code: Path, start: Callable[..., Child]) -> None:
    command = "analyze own_models_of_a_test:make fashion-mnist --limit 20 --layers 2 -o r.nc"
    status, _, errors = start(command).wait()
    assert status == 0, errors
    assert pk.open_result("r.nc")["layers"].sizes["layer"] == 1


def test_listing_models_does_not_import_torch() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from probekit.cli.app import app\n"
        "assert CliRunner().invoke(app, ['models']).exit_code == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
