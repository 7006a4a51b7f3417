"""Atomic writing of files."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from uuid import uuid4

from probekit.errors import OutputError, first_line

DRAFT = ".draft-"
# What writes files with other endings, which are often asked of a function that writes results.
_WRITERS = {
    **dict.fromkeys([".csv", ".parquet"], "; tables: pk.save_tables"),
    **dict.fromkeys(
        [".png", ".pdf", ".svg"], "; figures: pk.save_figure, or -o of probekit compare and cka"
    ),
    ".html": "; pages: pk.report, or probekit report",
}


def check_output_path(
    path: str | Path,
    endings: Sequence[str],
    what: str,
    *,
    overwrite: bool,
    any_case: bool = False,
) -> Path:
    """Checks, before any computation, that a path can be written."""
    path = Path(path)
    if (path.suffix.lower() if any_case else path.suffix) not in endings:
        advice = _WRITERS.get(path.suffix.lower(), "")
        raise OutputError(
            f"{what} is written to a {' or '.join(endings)} file, not to {str(path)!r}{advice}"
        )
    if os.path.isdir(path) and path.suffix != ".zarr":
        raise OutputError(f"{str(path)!r} is a folder")
    if os.path.lexists(path) and not overwrite:
        raise OutputError(
            f"{str(path)!r} exists already; choose another name, or overwrite=True (--overwrite)"
        )
    trial = path.with_name(f"{DRAFT}{uuid4().hex}")
    with writable(path):
        with suppress(FileNotFoundError):
            path.lstat()  # a name that is too long is an OSError, one with a null byte a ValueError
        trial.touch()
        trial.unlink()
    return path


@contextmanager
def writable(path: Path, advice: str = "") -> Iterator[None]:
    """Converts errors of the file system, and of values that a file cannot hold, to an `OutputError`.

    >>> with writable(Path("a.nc"), "; choose another name"):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    ...
    probekit.errors.OutputError: 'a.nc' cannot be written: No space left on device; choose another name
    """
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise OutputError(f"{str(path)!r} cannot be written: {reason}{advice}") from None


@contextmanager
def whole(path: Path, advice: str = "") -> Iterator[Path]:
    """Yields a temporary path in the same folder, which replaces the path at the end of the block.

    If the block raises an exception, the path is unchanged and the temporary path is removed. A folder
    replaces whatever exists, which is then removed. Errors are converted as by `writable`.
    """
    draft = path.with_name(f"{DRAFT}{uuid4().hex}{path.suffix}")
    try:
        with writable(path, advice):
            yield draft
            if draft.is_dir() and os.path.lexists(path):
                _replace(draft, path)
            else:
                os.replace(draft, path)
    finally:
        _remove(draft)


def _replace(draft: Path, path: Path) -> None:
    """Replaces a file or folder by a folder, or leaves it unchanged if that fails or is interrupted."""
    old = path.with_name(f"{DRAFT}{uuid4().hex}{path.suffix}")
    try:
        os.replace(path, old)
        os.replace(draft, path)
    except BaseException:
        if not os.path.lexists(path):
            os.replace(old, path)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def writer_of(path: str | Path) -> Iterator[None]:
    """Acquires an exclusive lock for writing at a path, among processes and threads.

    The lock is on a file next to the path, which is removed at the end. If a process dies, its lock is
    released, so no cleanup is necessary.
    """
    path = Path(path)
    file = path.with_name(f".{path.name}.lock")
    with writable(path):
        held = _locked(file)
    if held is None:
        raise OutputError(
            f"{str(path)!r} is being written by another process; wait until it is finished, or choose "
            "another name"
        )
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        held.close()


def _locked(file: Path) -> IO[bytes] | None:
    """Opens and locks a file; returns None if the lock is held elsewhere."""
    while True:
        held = file.open("ab")
        try:
            if not _lock(held):
                held.close()
                return None
            if file.exists() and os.path.samestat(os.fstat(held.fileno()), file.stat()):
                return held
        except BaseException:
            held.close()
            raise
        held.close()  # the last holder removed the file meanwhile


def _lock(held: IO[bytes]) -> bool:
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(held.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # this file system has no such locks: continue without
        return True
    return True


def remove_drafts(folder: Path) -> None:
    """Removes temporary files of interrupted writes; a folder may be the only complete result."""
    for draft in folder.glob(f"{DRAFT}*"):
        if not draft.is_dir():
            draft.unlink(missing_ok=True)
