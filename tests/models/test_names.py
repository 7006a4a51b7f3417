"""Globs are replaced by the names that they match."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm

from probekit.errors import ModelError, OptionError
from probekit.models.names import list_models, model_names


def test_globs_of_every_source(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes.txt").touch()
    assert model_names(f"{tmp_path}/*") == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert model_names(f"{tmp_path}/a/") == [str(tmp_path / "a")]
    assert model_names("probekit:*") == [f"probekit:{name}" for name in list_models()]
    assert model_names("torchvision:resnet18*") == ["torchvision:resnet18"]
    assert model_names("test_vit*", pretrained=False) == timm.list_models("test_vit*")
    assert model_names("timm:test_vit*", pretrained=False) == timm.list_models("test_vit*")
    assert all("." in name for name in model_names("test_vit*"))


def test_names_keep_their_order_without_repetition() -> None:
    names = ["resnet18", "hf:org/model", "own:make", Path("missing"), "resnet18"]
    assert model_names(names) == ["resnet18", "hf:org/model", "own:make", "missing"]


def test_a_selection_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no model matches 'resnex1\*'; close matches: .*resnet1"):
        model_names("resnex1*", pretrained=False)
    with pytest.raises(ModelError, match="no model matches 'probekit:vgg"):
        model_names("probekit:vgg*")
    for empty in ([], [3]):
        with pytest.raises(OptionError, match="models must be one or more names"):
            model_names(empty)  # type: ignore[arg-type]
