"""Peak memory of a piece of work, in a process of its own."""

from __future__ import annotations

import importlib
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

FOLDER = str(Path(__file__).parents[1])


class Peak(NamedTuple):
    """MiB: the peak of the process, and how much of it came with the work."""

    whole: float
    grown: float


def peak_of(work: Callable[..., Callable[[], object]], *given: str | int) -> Peak:
    """The peak of the call that a function of a benchmark returns for some words or numbers.

    The function itself, which imports and makes a network, is set-up and not counted as growth.
    """
    name = Path(work.__code__.co_filename).stem
    code = f"import sys; sys.path.insert(0, {FOLDER!r}); from harness import peak; peak.measure()"
    command = [sys.executable, "-c", code, name, work.__name__, *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}.{work.__name__} failed:\n{done.stderr}")
    return Peak(*map(float, done.stdout.split()[-2:]))


def measure() -> None:
    """Does the work named on the command line and prints its peak."""
    module, name, *given = sys.argv[1:]
    run = getattr(importlib.import_module(module), name)(*given)
    with suppress(OSError):  # lets the peak begin with the memory in use now
        Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    run()
    most = memory("VmHWM")
    print(most, most - before)


def memory(kind: str) -> float:
    """MiB that this process uses or has used.

    Linux counts the peak of `getrusage` from the process that started this one; /proc does not.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{kind}:"):
                return int(line.split()[1]) / 2**10
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**20 if sys.platform == "darwin" else 2**10)
