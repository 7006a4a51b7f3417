"""Many architectures are verified one after another, and an interrupted run can resume."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from probekit.analysis import verification
from probekit.analysis.verification import timm_architectures, verify_architectures
from probekit.errors import LayerError, OutputError

timm = pytest.importorskip("timm")
DOCS = Path(__file__).parents[2] / "docs"


def lines(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["architecture"]: row for row in csv.DictReader(file)}


def test_each_architecture_gets_one_line_and_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        with torch.device("meta"):
            timm.create_model("vit_giant_patch14_224")
    except RuntimeError:
        pytest.skip(f"timm {timm.__version__} creates no transformer without memory")
    path = tmp_path / "timm.csv"
    names = ["test_resnet", "no_such_network", "vit_giant_patch14_224", "test_vit"]
    first = [line["outcome"] for line in verify_architectures(names[:3], path)]
    assert first == ["right", "cannot run", "too large"]
    assert [line["architecture"] for line in verify_architectures(names, path)] == ["test_vit"]
    table = lines(path)
    assert list(table) == names
    assert table["test_resnet"]["layers"] == table["test_resnet"]["values"] == "12"
    assert table["test_resnet"]["sizes"] == "2"
    assert int(table["vit_giant_patch14_224"]["parameters"]) > 1e9


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["lcnet_050", "starnet_s050", "cpubone_nano", "cspnext_tiny", "ese_vovnet19b_slim_dw", "test_byobnet",
     "selecsls42", "test_coatnet"],
)  # fmt: skip
def test_other_families_are_recorded_correctly(name: str, tmp_path: Path) -> None:
    (line,) = verify_architectures([name], tmp_path / "timm.csv")
    assert line["outcome"] == "right", line


def test_a_refusal_is_recorded_with_its_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any, **options: Any) -> None:
        raise LayerError("there is nothing to record")

    monkeypatch.setattr(verification, "plan", refuse)
    (line,) = verify_architectures(["test_resnet"], tmp_path / "timm.csv")
    assert (line["outcome"], line["detail"]) == ("refused", "there is nothing to record")


def test_families_are_interleaved() -> None:
    names = timm_architectures()
    assert len(names) > 1000
    assert len(set(names)) == len(names)
    assert len({name[:4] for name in names[:60]}) > 30


def test_the_documented_numbers_are_those_of_the_table() -> None:
    table = lines(DOCS / "verification/timm.csv").values()
    right = sum(row["outcome"] == "right" for row in table)
    layers, units = (sum(int(row[name]) for row in table) for name in ("layers", "units"))
    two_sizes = sum(row["sizes"] == "2" for row in table)
    numbers = (len(table), right, len(table) - right, layers, units, two_sizes)
    text = (DOCS / "verification.md").read_text()
    assert f"| {' | '.join(f'{number:,}' for number in numbers)} |" in text
    assert f"all {len(table):,} of timm's" in text
    assert f"For {right:,} of timm's" in (DOCS.parent / "README.md").read_text()


def test_a_file_that_cannot_be_used_is_reported(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.csv' cannot be written"):
        next(verify_architectures(["test_vit"], tmp_path / "nowhere" / "a.csv"))
    (tmp_path / "a.csv").write_text("name\nx\n")
    with pytest.raises(OutputError, match="is not a table of verified architectures"):
        next(verify_architectures(["test_vit"], tmp_path / "a.csv"))
