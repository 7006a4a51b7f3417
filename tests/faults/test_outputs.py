"""Output paths and numbers that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from damaged_files import BUNDLED, LAST, Fails


@pytest.mark.parametrize(
    "out", ["no/such/folder/r.nc", "r.txt", "null\0byte.nc", "x" * 300 + ".nc", "photos", "old.nc"]
)
@pytest.mark.parametrize("command", ["analyze", "robustness"])
def test_paths_that_cannot_be_written(
    command: str, out: str, fails: Fails, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "old.nc").write_bytes(b"precious")
    more = ["--corruptions", "contrast"] if command == "robustness" else []
    assert fails(command, BUNDLED, "fashion-mnist", "--limit", "4", *more, "-o", out)


@pytest.mark.parametrize(
    ("command", "out"),
    [
        ("record BUNDLED fashion-mnist --limit 4", "null\0byte.zarr"),
        ("record BUNDLED fashion-mnist --limit 4", "x" * 300 + ".zarr"),
        ("record BUNDLED fashion-mnist --limit 4", "a-file.zarr"),
        ("train resnet20-digits", "null\0byte"),
        ("train resnet20-digits", "x" * 300),
        ("train resnet20-digits", "a-file.zarr"),
        ("sweep resnet20-digits", "photos"),
        ("sweep resnet20-digits", "x" * 300),
    ],
)
def test_folders_that_cannot_be_written(
    command: str, out: str, fails: Fails, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "a-file.zarr").write_bytes(b"precious")
    assert fails(*command.replace("BUNDLED", BUNDLED).split(), "-o", out)


def test_unbounded_numbers_are_refused(fails: Fails) -> None:
    huge = "9" * 30
    for option in ("--batch-size", "--seed", "--workers"):
        said = fails("analyze", BUNDLED, "fashion-mnist", "--limit", "4", option, huge, *LAST)
        assert huge in said
    assert "workers" in fails("analyze", BUNDLED, "fashion-mnist", "--workers", "-1", *LAST)
    assert "seed" in fails("train", "resnet20-digits", "--seed", huge, "-o", "run")
