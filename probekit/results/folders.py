"""Folders of stored work: claimed by one process, checked for what they belong to, written atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probekit.errors import OutputError, foreign_file
from probekit.results.files import DRAFT, remove_drafts, whole, writer_of

FAILURES = "failures.json"


@contextmanager
def claimed(
    file: Path,
    identity: Mapping[str, Any],
    what: str,
    check: Callable[[Path, Mapping[str, Any]], None],
    own: Sequence[str] = (),
) -> Iterator[None]:
    """Creates a folder with a file that describes its contents, and locks it for this process.

    Args:
        file: The file that holds the identity, as JSON; its folder may already exist.
        identity: Everything that determines the contents.
        what: What the folder contains, such as "sweep", for error messages.
        check: Called with the file and the identity if the file exists; raises if they differ.
        own: Names in the folder that may exist before the file.

    Raises:
        OutputError: The folder holds something else, another process is writing to it, or it cannot be
            written.
    """
    folder = file.parent
    others = [] if os.path.isfile(file) else _other_files(folder, own)
    if others:
        raise OutputError(
            f"{str(folder)!r} is no {what} and not empty (it holds {others[0]}); choose another folder"
        )
    with locked(file):
        if file.is_file():
            check(file, identity)
        else:
            write_whole(file, json.dumps(identity, indent=2) + "\n")
        yield


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Creates and locks the folder of a file for this process, and removes leftover drafts.

    Raises:
        OutputError: Another process is writing to the folder, or it cannot be created.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{str(file.parent)!r} cannot be written: {reason}") from None
    with writer_of(file):
        remove_drafts(file.parent)
        yield


def write_whole(path: Path, content: str | bytes | memoryview) -> None:
    """Writes a file atomically: if the process dies, either the old or the new file is intact.

    Raises:
        OutputError: The file cannot be written (for example, the disk is full); the old file is intact.
    """
    try:
        with whole(path) as draft, draft.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        unchanged = "; the previous file is intact" if path.exists() else ""
        raise OutputError(
            f"{str(path)!r} cannot be written ({error.strerror}){unchanged}; free some space and start "
            "again with the same options, which resumes"
        ) from None


def _other_files(folder: Path, own: Sequence[str]) -> list[str]:
    """The files in a folder, except those that an interrupted start may have left."""
    names = (path.name for path in folder.iterdir()) if os.path.isdir(folder) else ()
    return sorted(
        x for x in names if x not in own and not x.startswith(DRAFT) and not x.endswith(".lock")
    )


def read_failures(folder: Path) -> dict[str, str]:
    """The reasons why parts of the stored work failed, by the key of the part.

    Raises:
        OutputError: The file is damaged.
    """
    file = folder / FAILURES
    if not file.is_file():
        return {}
    with foreign_file(f"{str(file)!r} is damaged", OutputError, "; remove it"):
        return {str(key): str(why) for key, why in json.loads(file.read_text()).items()}


def note_failure(folder: Path, key: str, failure: str) -> None:
    """Stores the reason why a part failed, or removes an earlier one if the reason is empty."""
    failures = read_failures(folder)
    failures.pop(key, None)
    if failure:
        failures[key] = failure
    if failures or (folder / FAILURES).exists():
        write_whole(folder / FAILURES, json.dumps(failures, indent=2) + "\n")
