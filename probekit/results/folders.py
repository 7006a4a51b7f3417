"""Folders of stored work: claimed by one process, checked for what they belong to, written atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probekit.errors import OutputError, foreign_file, some_of
from probekit.results.files import DRAFT, remove_drafts, whole, writable, writer_of
from probekit.results.provenance import as_stored, differences, parsed

FAILURES = "failures.json"


def claim(
    file: Path,
    identity: Mapping[str, Any],
    what: str,
    *,
    own: Sequence[str] = (),
    ignored: Sequence[str] = (),
    inner: str = "",
) -> None:
    """Creates a folder with a file that describes its contents, or checks that they are the same.

    The `identity` is everything that determines the contents, of which the dotted names `ignored` may
    differ; `own` are names in the folder that may exist before the file. A folder without contents, of
    a call that was refused, may be claimed for others; `inner` are such files in folders below.
    """
    folder = file.parent
    if not os.path.isfile(file) or _is_empty(folder, (file.name, inner)):
        _make(folder)
        if others := _others((path.name for path in folder.iterdir()), [file.name, *own]):
            raise OutputError(
                f"{str(folder)!r} is not a {what} and not empty (it holds {others[0]}); choose another "
                "folder"
            )
        write_whole(file, json.dumps(as_stored(identity), indent=2) + "\n")
        return
    check_same(file, identity, what, ignored)


def check_same(
    file: Path, identity: Mapping[str, Any], what: str, ignored: Sequence[str] = ()
) -> None:
    """Checks that a folder has the contents that the file in it describes, as `claim` does."""
    with foreign_file(f"{str(file)!r} is damaged", OutputError, "; choose another folder"):
        differing = differences(parsed(file.read_text()), identity, ignored)
    if differing:
        raise OutputError(
            f"{str(file.parent)!r} holds another {what}: {some_of(differing, separator='; ')}; choose "
            "another folder, or ask for the same to continue it"
        )


def read_identity(file: Path, what: str) -> dict[str, Any]:
    """The identity that `claim` wrote."""
    if not file.is_file():
        raise OutputError(f"{str(file.parent)!r} is not a {what}: it has no {file.name}")
    with foreign_file(f"{str(file)!r} is damaged", OutputError):
        return dict(json.loads(file.read_text()))


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Creates and locks the folder of a file for this process, and removes leftover drafts."""
    _make(file.parent)
    with writer_of(file):
        remove_drafts(file.parent)
        yield


def write_whole(path: Path, content: str | bytes | memoryview) -> None:
    """Writes a file atomically: if the process dies, either the old or the new file is intact."""
    unchanged = "; the previous file is intact" if path.exists() else ""
    advice = f"{unchanged}; free some space and start again with the same options, which resumes"
    with whole(path, advice) as draft, draft.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def _make(folder: Path) -> None:
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _is_empty(folder: Path, claims: Sequence[str]) -> bool:
    """Whether a folder holds no files, at any depth, but those that `claim` writes."""
    return not any(_others(files, claims) for _, _, files in os.walk(folder))


def _others(names: Iterable[str], own: Sequence[str]) -> list[str]:
    """The names of files, except those that an interrupted start may have left."""
    return sorted(
        x for x in names if x not in own and not x.startswith(DRAFT) and not x.endswith(".lock")
    )


def read_failures(folder: Path) -> dict[str, str]:
    """The reasons why parts of the stored work failed, by the key of the part."""
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
