"""Folders of stored work belong to one identity and one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from probekit.errors import OutputError
from probekit.results.folders import claim, locked, note_failure, read_failures


def test_a_folder_is_created_once_and_checked_afterwards(tmp_path: Path) -> None:
    file = tmp_path / "new" / "work.json"
    claim(file, {"seed": 2}, "work")
    for _ in range(2):
        claim(file, {"seed": 0}, "work")  # nothing was stored for seed 2
        assert json.loads(file.read_text()) == {"seed": 0}
        (file.parent / "part.nc").touch()
    with pytest.raises(
        OutputError, match="holds another work: seed was 0 and is 1; choose another"
    ):
        claim(file, {"seed": 1}, "work")
    claim(file, {"seed": 1}, "work", ignored=["seed"])


def test_other_files_are_refused_but_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    with locked(tmp_path / "work.json"):
        claim(tmp_path / "work.json", {}, "work", own=["parts"])
    (tmp_path / "work.json").unlink()
    with pytest.raises(OutputError, match=r"is not a work and not empty \(it holds parts\)"):
        claim(tmp_path / "work.json", {}, "work")


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "work.json"),
        pytest.raises(OutputError, match="being written by another process"),
        locked(tmp_path / "work.json"),
    ):
        pass


def test_failures_are_stored_and_removed(tmp_path: Path) -> None:
    note_failure(tmp_path, "a", "")
    assert not list(tmp_path.iterdir())
    note_failure(tmp_path, "a", "too large")
    note_failure(tmp_path, "b", "too small")
    note_failure(tmp_path, "a", "")
    assert read_failures(tmp_path) == {"b": "too small"}
    (tmp_path / "failures.json").write_text("[")
    with pytest.raises(OutputError, match="is damaged"):
        read_failures(tmp_path)


def test_drafts_are_removed_except_folders_which_may_be_a_whole_result(tmp_path: Path) -> None:
    (tmp_path / ".draft-1.nc").touch()
    (tmp_path / ".draft-2.zarr").mkdir()
    with locked(tmp_path / "work.json"):
        assert [path.name for path in tmp_path.glob(".draft-*")] == [".draft-2.zarr"]
