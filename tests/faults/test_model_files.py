"""Truncated and malicious weights and cards: one sentence, no code executed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from safetensors.torch import load, save_file

import probekit as pk
from damaged_files import BUNDLED, ZOO, Evil, Fails, mutations, safetensors, sound_weights
from probekit.errors import ProbekitError


def damaged_weights() -> dict[str, tuple[str, bytes]]:
    """Invalid files of weights by their fault: the suffix and the content."""
    whole = sound_weights()
    absurd = {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}
    return {
        "empty": (".safetensors", b""),
        "truncated header": (".safetensors", whole[:100]),
        "truncated values": (".safetensors", whole[: len(whole) // 2]),
        "header without end": (".safetensors", safetensors(b"{", 2**63)),
        "header as large as memory": (".safetensors", safetensors(b"{}", 2**40)),
        "header that is no object": (".safetensors", safetensors([1, 2])),
        "absurd shape": (".safetensors", safetensors({"conv1.weight": absurd})),
        "nothing in it": (".safetensors", safetensors({})),
        "text": (".pt", b"hello"),
        "empty pickle": (".pt", b""),
        "pickle that runs code": (".pt", pickle.dumps({"conv1.weight": Evil()})),
        "truncated pickle": (".pt", pickle.dumps({"a": [1] * 100})[:50]),
        "pickle without bottom": (".pt", b"\x80\x04" + b"]" * 5000 + b"a" * 4999 + b"."),
        "pickle of something else": (".pt", pickle.dumps([1, 2])),
        "archive of nothing": (".pt", b"PK\x05\x06" + b"\0" * 18),
    }


@pytest.mark.parametrize("damage", damaged_weights())
def test_weights(damage: str, fails: Fails, tmp_path: Path) -> None:
    ending, content = damaged_weights()[damage]
    (tmp_path / f"weights{ending}").write_bytes(content)
    said = fails("analyze", BUNDLED, "fashion-mnist", "--weights", f"weights{ending}", "-o", "r.nc")
    assert f"weights{ending}" in said
    assert not (tmp_path / "harm").exists()


def test_weights_that_are_not_numbers(fails: Fails, tmp_path: Path) -> None:
    state = load(sound_weights())
    save_file({name: x * float("nan") for name, x in state.items()}, tmp_path / "nan.safetensors")
    said = fails(
        "analyze", BUNDLED, "fashion-mnist", "--weights", "nan.safetensors", "--limit", "4",
        "-o", "r.nc",
    )  # fmt: skip
    assert "gives NaN or infinity" in said


@pytest.mark.filterwarnings("ignore:the training run in", "ignore:the weights in")
def test_cards_of_models(tmp_path: Path) -> None:
    card = json.loads((ZOO / "resnet20-fashion-mnist.json").read_text())
    (tmp_path / "run").mkdir()
    weights = "sound.safetensors"
    (tmp_path / "run" / weights).write_bytes(sound_weights())
    refused = 0
    for odd in mutations({**card, "weights": weights}):
        (tmp_path / "run" / "model.json").write_text(json.dumps(odd))
        try:
            pk.load_model(tmp_path / "run")
        except ProbekitError:
            refused += 1
    assert refused > 30


def test_a_card_cannot_name_files_outside_its_folder(tmp_path: Path) -> None:
    card = json.loads((ZOO / "resnet20-fashion-mnist.json").read_text())
    (tmp_path / "run").mkdir()
    (tmp_path / "secret.safetensors").write_bytes(sound_weights())
    card["weights"] = "../secret.safetensors"
    (tmp_path / "run" / "model.json").write_text(json.dumps(card))
    with pytest.raises(ProbekitError, match="there is no weights file"):
        pk.load_model(tmp_path / "run")
