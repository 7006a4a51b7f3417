"""Commands in child processes that can be killed, and whose files can be limited in size.

Imports would dominate the runtime of a test. Therefore one server imports everything once and forks
the children.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHILD = """
import os, resource, sys
os.environ.update(environment)
os.chdir(folder)
os.dup2(out.fileno(), 1)
os.dup2(err.fileno(), 2)
if limit is not None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
import torch
torch.set_num_threads(1)
sys.argv = ["probekit", *arguments]
exec(code, {"__name__": "__main__"})
"""
COMMAND = "from probekit.cli.app import main; main()"
# Workers of dask are forked from the server of the fixture `server`, where everything is imported.
FORKS = {"distributed.worker.multiprocessing-method": "forkserver"}


def fork_server() -> Any:
    """A context whose processes start with one thread and with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "commands_in_memory"])
    with pytest.MonkeyPatch.context() as patch:
        helpers, package = Path(__file__).parent, Path(__file__).parents[2]
        paths = [str(helpers), str(package), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
        patch.setenv("OMP_NUM_THREADS", "1")
        first = context.Process(target=time.time)
        first.start()
        first.join()
    return context


@dataclass
class Child:
    """A command that runs in a process of its own."""

    process: Any
    out: Any
    err: Any

    def kill(self) -> bool:
        """Kills the process at once, as a crash would; returns whether it was still running."""
        running = bool(self.process.is_alive())
        if running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)
        self.wait()
        return running

    def wait(self) -> tuple[int, str, str]:
        """Its exit status, its output, and its notes and errors."""
        said = [_all_of(pipe) for pipe in (self.out, self.err)]
        self.process.join()
        return self.process.exitcode, *said


def _all_of(pipe: Any) -> str:
    said = b""
    while part := os.read(pipe.fileno(), 65536):
        said += part
    pipe.close()
    return said.decode(errors="replace")


def start_child(
    server: Any,
    folder: Path,
    arguments: str | list[str] = "",
    *,
    code: str = COMMAND,
    limit: int | None = None,
    environment: dict[str, str] | None = None,
) -> Child:
    """Starts a command or other code in a folder; `limit` is the maximum file size in bytes."""
    (out, to_out), (err, to_err) = server.Pipe(duplex=False), server.Pipe(duplex=False)
    words = arguments.split() if isinstance(arguments, str) else arguments
    names = {
        "folder": str(folder), "out": to_out, "err": to_err, "limit": limit,
        "arguments": words, "code": code, "environment": environment or {},
    }  # fmt: skip
    process = server.Process(target=exec, args=(CHILD, names))
    process.start()
    to_out.close()
    to_err.close()
    return Child(process, out, err)


def launched(world: int) -> list[dict[str, str]]:
    """What `torchrun` adds to the environments of the processes that it launches."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
