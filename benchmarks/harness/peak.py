"""Peak memory of a task, measured in a separate process."""

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
    """The peak memory of the process, and its growth during the task (at least 1), in MiB."""

    whole: float
    grown: float


def peak_of(work: Callable[..., Callable[[], object]], *given: str | int) -> Peak:
    """The peak memory of a call that `work` returns for the given strings or numbers.

    `work` itself is setup, such as imports and creating a network. It is not counted as growth.
    """
    name = Path(work.__code__.co_filename).stem
    code = f"import sys; sys.path.insert(0, {FOLDER!r}); from harness import peak; peak.measure()"
    command = [sys.executable, "-c", code, name, work.__name__, *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}.{work.__name__} failed:\n{done.stderr}")
    return Peak(*map(float, done.stdout.split()[-2:]))


def measure() -> None:
    """Runs the task named on the command line and prints its peak memory."""
    module, name, *given = sys.argv[1:]
    run = getattr(importlib.import_module(module), name)(*given)
    with suppress(OSError):  # resets the peak to the memory currently in use
        Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    run()
    most = memory("VmHWM")
    print(most, max(most - before, 1))


def memory(kind: str) -> float:
    """The memory that this process uses, or its peak memory, in MiB.

    On Linux, the peak of `getrusage` includes that of the parent process; /proc does not.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{kind}:"):
                return int(line.split()[1]) / 2**10
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**20 if sys.platform == "darwin" else 2**10)
