"""Invalid options, folders of other runs, divergence and full memory are reported in one sentence."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import probekit as pk
from probekit.errors import (
    DataError,
    LayerError,
    ModelError,
    OptionError,
    OutputError,
    ProbekitError,
    ProbekitWarning,
)
from probekit.results.folders import locked
from probekit.training.run.directory import read_checkpoint, read_log
from probekit.training.run.loop import TrainingLoop
from quick_runs import quick


def test_divergence_names_epoch_step_and_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        ProbekitError, match=r"not finite in epoch 0, step \d.*there is no checkpoint"
    ):
        quick(tmp_path / "at once", alpha=1e38)
    out = tmp_path / "later"
    with pytest.raises(ProbekitError, match=r"epoch 1, step \d.*last\.safetensors'") as caught:
        quick(out, alpha_schedule="0*1 1e38")
    assert "alpha 1e+38" in str(caught.value)
    tensors, facts = read_checkpoint(out / "last.safetensors")
    assert facts["place"]["epoch"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert len(read_log(out / "log.jsonl")) == 1
    with pytest.warns(ProbekitWarning, match="has not ended"):
        assert pk.load_model(out).classes[3] == "3"


def test_weights_that_diverge_in_the_last_step_are_detected(tmp_path: Path) -> None:
    with pytest.raises(ProbekitError, match="not finite in epoch 0, step 0"):
        quick(tmp_path / "run", learning_rate=3e38, epochs=1, limit=32, rise=1.0)


OTHER: list[tuple[dict[str, Any], str]] = [
    ({"seed": 1}, "seed was 0 and is 1"),
    ({"alpha": -1.0}, 'alpha_schedule was "0" and is "-1"'),
    ({"epochs": 3}, r"recipe\.epochs was 2 and is 3"),
    ({"layers": "layer1.*"}, "layers was null and is"),
    ({"weight_decay": 0.0}, r"recipe\.weight_decay was 0\.0005 and is 0\.0"),
    ({"precision": "bfloat16"}, r'recipe\.precision was "float32" and is "bfloat16"'),
]


@pytest.mark.parametrize(("options", "message"), OTHER)
def test_the_folder_of_another_run_is_refused(
    baseline: Any, options: dict[str, Any], message: str
) -> None:
    before = sorted((path.name, path.stat().st_mtime_ns) for path in baseline.folder.iterdir())
    with pytest.raises(OutputError, match=f"holds another training run: {message}"):
        quick(baseline.folder, **options)
    after = sorted((path.name, path.stat().st_mtime_ns) for path in baseline.folder.iterdir())
    assert before == after


def test_the_folder_of_another_recipe_is_refused(baseline: Any) -> None:
    with pytest.raises(OutputError, match=r'recipe\.architecture was "resnet8" and is "vgg16"'):
        pk.train("vgg16-cifar10", out=baseline.folder)


def test_a_folder_with_unrelated_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"not a training run and not empty \(it holds thesis"):
        quick(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(OutputError, match="cannot be written: Not a directory"):
        quick(tmp_path / "thesis.tex" / "run")


def test_two_processes_cannot_share_a_folder(baseline: Any) -> None:
    with (
        locked(baseline.folder / "run.json"),
        pytest.raises(OutputError, match="is being written by another process"),
    ):
        quick(baseline.folder)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")]
)
def test_an_out_of_memory_error_says_what_to_reduce(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*args: Any) -> None:
        raise error

    monkeypatch.setattr(TrainingLoop, "_train_step", full)
    with pytest.raises(ProbekitError, match=r"batch_size=32.*lower batch_size, or use precision"):
        quick(tmp_path / "run")


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"alpha": float("nan")}, OptionError, "alpha must be a finite number"),
    ({"alpha": "low"}, OptionError, "alpha must be a finite number"),
    ({"alpha": True}, OptionError, "alpha must be a finite number"),
    ({"seed": -1}, OptionError, "seed must be an integer from 0"),
    ({"seed": 0.5}, OptionError, "seed must be an integer from 0"),
    ({"workers": -1}, OptionError, "workers must be an integer from 0"),
    ({"checkpoint_minutes": -1.0}, OptionError, "checkpoint_minutes"),
    ({"alpha": 1.0, "alpha_schedule": "0*1 -1"}, OptionError, "exclude each other"),
    ({"alpha_schedule": "0*1 minus"}, OptionError, "'minus' in the alpha schedule"),
    ({"layers": [nn.ReLU]}, OptionError, "names or globs"),
    ({"layers": "layr1", "alpha": 1.0}, LayerError, "no layer is named 'layr1'"),
    ({"device": "gpu0"}, ModelError, "device 'gpu0' cannot be used here"),
    ({"precision": "float16"}, OptionError, "trains on a GPU only"),
    ({"validation": 1437}, OptionError, "leaves nothing to train on"),
    ({"validation": 15, "stratified": True}, OptionError, "not a multiple of the 10 classes"),
    ({"batchsize": 4}, OptionError, "no option 'batchsize'; close matches: batch_size"),
    ({"input_size": (3, 8, 8)}, OptionError, "one number for each of 3 channels"),
    ({"input_size": (1, 16, 16)}, DataError, "is for images of"),
    ({"data": "digit"}, DataError, "close matches: digits"),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD)
def test_an_invalid_option_is_reported(
    tmp_path: Path, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        quick(tmp_path / "run", **options)


def test_a_missing_data_file_is_named_before_training(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cifar10 is not in .*data_batch_1"):
        pk.train("resnet20-cifar10", out=tmp_path / "run", data_root=tmp_path, device="cpu")


def test_data_without_class_names_is_refused(tmp_path: Path) -> None:
    images, labels = np.zeros((6, 1, 8, 8), np.uint8), np.arange(6) % 3
    file = tmp_path / "data.npz"
    np.savez(file, x_train=images, y_train=labels, x_test=images, y_test=labels)
    with pytest.raises(DataError, match=r"names of two or more classes.* names 0; give a folder"):
        quick(tmp_path / "run", data=str(file), validation=0, limit=None)


@pytest.mark.parametrize("layers", ["nonsense", "nons*"])
def test_layers_are_checked_without_a_regularizer(layers: str, tmp_path: Path) -> None:
    with pytest.raises(LayerError, match=re.escape(repr(layers))):
        quick(tmp_path, alpha=0.0, layers=layers)


def test_a_refused_call_does_not_claim_the_folder(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="leaves nothing to train on"):
        quick(tmp_path / "run", validation=5000)
    run = quick(tmp_path / "run", epochs=1)
    with pytest.raises(OutputError, match="holds another training run"):
        quick(tmp_path / "run", epochs=1, validation=5000)
    assert pk.load_model(run).classes[0] == "0"
