"""Models by name, weights from files, and refused inputs."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import probekit as pk
from children import Child
from probekit.errors import ModelError
from probekit.models.image_model import content_hash
from probekit.models.loading import read_weights

# Accuracy and mean selectivity on all test images, as on the cards, and on 500 of them.
MEASURED = {
    "resnet20-fashion-mnist-a-2": ((0.9252, 0.0360), (0.912, 0.03654)),
    "resnet20-fashion-mnist-a-1": ((0.9307, 0.0553), (0.928, 0.05648)),
    "resnet20-fashion-mnist-a0": ((0.9326, 0.2462), (0.930, 0.24943)),
    "resnet20-fashion-mnist-a1": ((0.9073, 0.7907), (0.916, 0.79493)),
    "resnet20-fashion-mnist-a2": ((0.9058, 0.8255), (0.912, 0.82703)),
}


def test_all_networks_are_measured() -> None:
    assert sorted(MEASURED) == sorted(pk.list_models("resnet20-fashion-mnist-a*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_bundled_model_matches_its_card(name: str) -> None:
    model = pk.load_model(f"probekit:{name}")
    data = pk.load_data("fashion-mnist", model)
    folder = Path(pk.__file__).parent / "models" / "zoo"
    card = json.loads((folder / f"{name}.json").read_text())
    whole, part = MEASURED[name]
    assert (card["test_accuracy"], card["selectivity_mean"]) == whole
    result = pk.analyze(model, data, batch_size=100, limit=500)
    assert float(result["accuracy"]) == pytest.approx(part[0], abs=3e-4)
    assert float(result["selectivity_mean"]) == pytest.approx(part[1], abs=1e-4)
    # A sample of this size differs from all images by about one percent.
    assert part == (pytest.approx(whole[0], abs=0.02), pytest.approx(whole[1], abs=0.005))
    assert content_hash(model.module) == card["hash"]
    assert name == card["name"] == f"resnet20-fashion-mnist-a{card['alpha']:g}"


@pytest.mark.parametrize("data", ["fashion-mnist", "cifar10"])
def test_bundled_models_increase_in_selectivity_with_alpha(data: str) -> None:
    names = pk.list_models(f"resnet20-{data}-a*")
    cards = [pk.load_model(f"probekit:{name}").provenance for name in names]
    cards.sort(key=lambda card: card["alpha"])
    assert [card["alpha"] for card in cards] == [-2, -1, 0, 1, 2]
    selectivity = [card["selectivity_mean"] for card in cards]
    assert selectivity == sorted(set(selectivity))


@pytest.mark.parametrize("name", pk.list_models("resnet20-cifar10-a*"))
def test_a_cifar10_card_names_its_weights_and_the_copied_images(name: str) -> None:
    model = pk.load_model(f"probekit:{name}")
    card = json.loads((Path(pk.__file__).parent / "models" / "zoo" / f"{name}.json").read_text())
    assert content_hash(model.module) == card["hash"]
    assert name == card["name"] == f"resnet20-cifar10-a{card['alpha']:g}"
    assert (card["seed"], card["recipe"]["name"]) == (0, "resnet20-cifar10-short")
    assert "JPEG" in card["data"]
    assert model(torch.rand(2, *model.input_size)).shape == (2, len(model.classes))


def test_the_default_model_is_the_one_without_a_regularizer() -> None:
    default = pk.load_model("probekit:resnet20-fashion-mnist")
    plain = pk.load_model("probekit:resnet20-fashion-mnist-a0")
    assert content_hash(default.module) == content_hash(plain.module)
    assert default.provenance["test_accuracy"] >= 0.90
    assert default.provenance["name"] == "resnet20-fashion-mnist"


def test_a_bundled_model_without_its_weights_has_random_ones(tmp_path: Path) -> None:
    name = "probekit:resnet20-fashion-mnist"
    torch.manual_seed(0)
    model = pk.load_model(name, pretrained=False)
    trained = pk.load_model(name)
    assert content_hash(model.module) != content_hash(trained.module)
    assert model.provenance["weights"] == "random"
    assert "test_accuracy" not in model.provenance
    save_file(model.module.state_dict(), tmp_path / "w.safetensors")
    again = pk.load_model(name, tmp_path / "w.safetensors")
    assert content_hash(again.module) == content_hash(model.module)
    assert "test_accuracy" not in again.provenance


def test_package_data_stays_small() -> None:
    root = Path(pk.__file__).parent
    files = [*(root / "models" / "zoo").iterdir(), *(root / "data" / "bundled").iterdir()]
    assert sum(file.stat().st_size for file in files) < 16e6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet188", "close matches: .*resnet18"),
        ("torchvision:resnet19", "torchvision has no model 'resnet19'; close matches: .*resnet18"),
        ("probekit:resnet20", "close matches: resnet20-"),
        ("resnet18.a1_in1k", "weights=FILE"),
    ],
)
def test_unknown_and_unavailable_models_are_refused(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=message) as told:
        pk.load_model(name)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["resnet18", "torchvision:resnet18"])
def test_weights_from_a_file(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = pk.load_model(name, pretrained=False)
    save_file(source.module.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": source.module.state_dict()}, tmp_path / "w.pt")
    prefixed = {f"module.{k}": v for k, v in source.module.state_dict().items()}
    torch.save(prefixed, tmp_path / "ddp.pt")
    torch.manual_seed(2)
    for file in ("w.safetensors", "w.pt", "ddp.pt"):
        loaded = pk.load_model(name, tmp_path / file)
        assert content_hash(loaded.module) == content_hash(source.module)
        assert loaded.provenance["hash"] == content_hash(source.module)
        assert not loaded.module.training


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("pwned"),))


def test_a_pickle_that_needs_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Evil()}, "evil.pt")
    with pytest.raises(ModelError, match=r"a pickle that would run code"):
        read_weights("evil.pt")
    Path("raw.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ModelError, match=r"would run code|cannot be read"):
        read_weights("raw.pkl")
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.safetensors", None, "there is no weights file"),
        ("empty.safetensors", b"", "cannot be read"),
        ("short.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{}", "cannot be read"),
        ("empty.pt", b"", "cannot be read"),
        ("noise.pt", b"not a zip at all", "would run code|cannot be read"),
    ],
)
def test_damaged_weights_are_refused(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        pk.load_model("resnet18", tmp_path / name)


def test_incompatible_weights_are_reported_by_key(tmp_path: Path) -> None:
    state = dict(pk.load_model("resnet18", pretrained=False).module.state_dict())
    del state["conv1.weight"]
    state["extra.weight"] = torch.zeros(3)
    state["fc.bias"] = torch.zeros(7)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError) as told:
        pk.load_model("resnet18", tmp_path / "w.safetensors")
    message = str(told.value)
    assert "missing: conv1.weight" in message
    assert "not in the model: extra.weight" in message
    assert "fc.bias (7,) instead of (1000,)" in message


def test_a_state_dict_of_another_kind_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2, 3], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="contain list, not a state_dict"):
        read_weights(tmp_path / "list.pt")


def test_preprocessing_comes_from_the_model() -> None:
    lite = pk.load_model("tf_efficientnet_lite0", pretrained=False)
    assert lite.mean == lite.std == (0.5, 0.5, 0.5)
    assert lite.input_size == (3, 224, 224)
    assert len(lite.classes) == 1000
    ten = pk.load_model("resnet18", pretrained=False, num_classes=10, classes=list("abcdefghij"))
    assert ten.classes == tuple("abcdefghij")


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model\.json"):
        pk.load_model(tmp_path)
    (tmp_path / "model.json").write_text("{broken")
    with pytest.raises(ModelError, match=r"card .* cannot be used"):
        pk.load_model(tmp_path)


def test_list_models_accepts_globs() -> None:
    assert "resnet20-fashion-mnist" in pk.list_models("resnet20*")
    assert pk.list_models("no-such*") == []


def test_weights_without_batch_norm_counters_load_as_in_torch(tmp_path: Path) -> None:
    network = pk.load_model("probekit:resnet20-fashion-mnist").module
    state = {key: value for key, value in network.state_dict().items() if "num_batches" not in key}
    assert len(state) < len(network.state_dict())
    save_file(state, tmp_path / "a.safetensors")
    loaded = pk.load_model("probekit:resnet20-fashion-mnist", tmp_path / "a.safetensors")
    for key, value in loaded.module.state_dict().items():
        torch.testing.assert_close(value, state.get(key, torch.tensor(0)))


def test_an_argument_that_is_not_a_name_is_explained(tmp_path: Path) -> None:
    weights = tmp_path / "whole.pt"
    weights.touch()
    for given, message in [
        (
            torch.nn.ReLU(),
            "takes a name or a folder, not ReLU; every function takes a module itself",
        ),
        (str(weights), "give the model's name and weights="),
        ("google/vit-base", "write hf:google/vit-base for a model of transformers"),
    ]:
        with pytest.raises(ModelError, match=re.escape(message)):
            pk.load_model(given)
    with pytest.raises(ModelError, match=r"timm cannot build 'resnet18'.* unexpected keyword"):
        pk.load_model("resnet18", random=True)


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
