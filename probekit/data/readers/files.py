"""Files of published data sets."""

from __future__ import annotations

from pathlib import Path

from probekit.errors import DataError, foreign_file


def needed(name: str, file: Path, url: str) -> Path:
    """Returns an existing file, or raises an error that names the archive with the file."""
    if not file.is_file():
        raise DataError(
            f"{name} is incomplete: {str(file)!r} is missing; unpack the whole archive of {url}"
        )
    return file


def words_of(file: Path) -> list[str]:
    return text_of(file).split()


def text_of(file: Path) -> str:
    with foreign_file(f"{str(file)!r} cannot be read", DataError):
        return file.read_text(encoding="utf-8")
