"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from uuid import uuid4

from probekit.errors import OutputError

__all__ = ["DRAFT", "check_output_path", "remove_drafts", "whole", "writer_of"]

DRAFT = ".draft-"


def check_output_path(
    path: str | Path,
    endings: Sequence[str],
    what: str,
    *,
    overwrite: bool = False,
    any_case: bool = False,
) -> Path:
    """Makes sure, before any work, that something can be written.

    Args:
        path: Where.
        endings: The endings that it may have; one of `.zarr` is of a folder.
        what: What is to be written, for the message.
        overwrite: Something may be there already.
        any_case: The ending may have capitals.

    Raises:
        OutputError: It exists already, has another ending, or its folder cannot be written.
    """
    path = Path(path)
    if (path.suffix.lower() if any_case else path.suffix) not in endings:
        raise OutputError(
            f"{what} is written to a {' or '.join(endings)} file, not to {str(path)!r}"
        )
    if os.path.isdir(path) and path.suffix != ".zarr":
        raise OutputError(f"{str(path)!r} is a folder")
    if os.path.lexists(path) and not overwrite:
        raise OutputError(
            f"{str(path)!r} exists already; choose another name, or overwrite=True (--overwrite)"
        )
    trial = path.with_name(f"{DRAFT}{uuid4().hex}")
    try:
        with suppress(FileNotFoundError):
            path.lstat()  # a name that is too long is an OSError, one with a null byte a ValueError
        trial.touch()
        trial.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{str(path)!r} cannot be written: {reason}") from None
    return path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name beside a path to write to, which takes the path's place at the end of the block.

    Where the block raises, what was at the path stays, and nothing else is left. A folder takes the
    place of a folder, which is removed afterwards.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with whole(Path(folder, "notes.txt")) as draft:
        ...         _ = draft.write_text("all of it")
        ...     [(file.name, file.read_text()) for file in Path(folder).iterdir()]
        [('notes.txt', 'all of it')]
    """
    draft = path.with_name(f"{DRAFT}{uuid4().hex}{path.suffix}")
    try:
        yield draft
        if draft.is_dir() and path.is_dir():
            _replace_folder(draft, path)
        else:
            os.replace(draft, path)
    finally:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)


def _replace_folder(draft: Path, path: Path) -> None:
    """Puts a folder in the place of another, which stays there if that fails."""
    old = path.with_name(f"{DRAFT}{uuid4().hex}{path.suffix}")
    os.replace(path, old)
    try:
        os.replace(draft, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def writer_of(path: str | Path) -> Iterator[None]:
    """Makes this the only process, and the only thread, that writes at a path.

    The lock is of a file beside the path, which goes at the end; that of a process that dies goes
    with it, so that nothing has to be cleaned up.

    Raises:
        OutputError: Another one is writing there, or the folder cannot be written.
    """
    path = Path(path)
    file = path.with_name(f".{path.name}.lock")
    try:
        held = _locked(file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{str(path)!r} cannot be written: {reason}") from None
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
    """The file, open and locked; None where someone else holds it."""
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
        held.close()  # its last holder removed it in between


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
    except OSError:  # no such locks on this file system: work goes on without
        return True
    return True


def remove_drafts(folder: Path) -> None:
    """Removes files that writes left behind that were cut off."""
    for draft in folder.glob(f"{DRAFT}*"):
        draft.unlink(missing_ok=True)
