"""Peak memory of a piece of work, in a process of its own."""

from __future__ import annotations

import importlib
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

FOLDER = str(Path(__file__).parents[1])


class Peak(NamedTuple):
    """MiB: the most that the process has held, and how much of that came with the work."""

    whole: float
    grown: float


def peak_of(work: Callable[..., Callable[[], object]], *given: str | int) -> Peak:
    """The peak of what a function of a benchmark returns, called with some words or numbers.

    What the function itself does, as importing and making a network, is set-up and not counted as
    growth.
    """
    name = Path(work.__code__.co_filename).stem
    code = f"import sys; sys.path.insert(0, {FOLDER!r}); from harness import peak; peak.tell()"
    command = [sys.executable, "-c", code, name, work.__name__, *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}.{work.__name__} failed:\n{done.stderr}")
    return Peak(*map(float, done.stdout.split()[-2:]))


def tell() -> None:
    """Does the work named on the command line and prints its peak."""
    module, name, *given = sys.argv[1:]
    run = getattr(importlib.import_module(module), name)(*given)
    begin_anew()
    before = held("VmRSS")
    run()
    most = held("VmHWM")
    print(most, most - before)


def begin_anew() -> None:
    """Lets the peak begin with what is held now, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def held(kind: str) -> float:
    """MiB that this process holds or has held.

    Linux counts the peak of `getrusage` from the process that started this one; /proc does not.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{kind}:"):
                return int(line.split()[1]) / 2**10
    except OSError:
        pass
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**20 if sys.platform == "darwin" else 2**10)
