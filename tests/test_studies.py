"""Studies: valid scales, and control runs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

import probekit as pk
from probekit.errors import OptionError
from probekit.training.run.recipes import get_recipe


def _studies() -> Any:
    """The module that the examples import."""
    path = Path(__file__).parents[1] / "examples" / "studies.py"
    spec = importlib.util.spec_from_file_location("studies", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["studies"] = module  # where dataclasses look up the names in annotations
    spec.loader.exec_module(module)
    return module


studies = _studies()
SCALES = ("tiny", "quick", "default")


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_is_consistent(scale: str) -> None:
    study = studies.get_study(scale, data_root="DATA", device="cuda")
    assert study.machine == {"data_root": "DATA", "device": "cuda"}
    assert 0.0 in study.alphas
    assert len(study.seeds) >= 2
    for options in (study.options, study.control):
        get_recipe(study.recipe, **options)
    assert study.control_epochs >= 2
    assert study.data == get_recipe(study.recipe).data


def test_the_default_has_seven_alphas_and_three_seeds() -> None:
    study = studies.get_study()
    assert sum(-2 <= alpha <= 2 for alpha in study.alphas) >= 7
    assert min(study.alphas) < -2
    assert max(study.alphas) > 2
    assert len(study.seeds) >= 3


def test_control_runs_are_stored_by_variant_and_seed(tmp_path: Path) -> None:
    study = studies.get_study("tiny", device="cpu")
    found = study.vary(
        tmp_path, {"late": {"alpha_schedule": "0*1 -1"}, "up": {"alpha": 1.0}}, progress=False
    )
    assert found["test_accuracy"].sizes == {"variant": 2, "seed": 2}
    assert found["variant"].values.tolist() == ["late", "up"]
    assert pk.load_model(tmp_path / "up" / "seed_1").provenance["recipe"]["limit"] == 128
    fewer = study.vary(tmp_path, {"up": {"alpha": 1.0}}, progress=False)
    assert fewer["variant"].values.tolist() == ["up"]
    with pytest.raises(OptionError, match="named without '/'"):
        study.vary(tmp_path, {"a/b": {}})


def test_invalid_scales_are_refused() -> None:
    with pytest.raises(OptionError, match="scale must be 'tiny', 'quick'"):
        studies.get_study("huge")


def test_the_parser_accepts_one_scale(capsys: pytest.CaptureFixture[str]) -> None:
    asked = studies.study_parser("A study.").parse_args(["--tiny", "--out", "x"])
    assert (asked.scale, asked.out) == ("tiny", Path("x"))
    assert studies.study_parser("A study.").parse_args([]).scale == "default"
    with pytest.raises(SystemExit):
        studies.study_parser("A study.").parse_args(["--tiny", "--quick"])
    assert "not allowed with" in capsys.readouterr().err
