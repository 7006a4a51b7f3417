"""Commands that fail in this process, and commands in child processes that can be killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from probekit.cli.app import app

# Imports would dominate the runtime of a test, so the server that forks the children preloads them.
PRELOADED = [
    "probekit.analysis.analyze", "probekit.capture.record", "probekit.cli.app",
    "probekit.reports.page.page", "probekit.analysis.robustness.robustness", "probekit.training.sweep.sweep",
]  # fmt: skip
CHILD = """
import os, resource, sys
os.chdir(folder)
os.dup2(out.fileno(), 1)
os.dup2(err.fileno(), 2)
if limit is not None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
import torch
torch.set_num_threads(1)
sys.argv = ["probekit", *arguments.split()]
exec(code, {})
"""
COMMAND = "from probekit.cli.app import main; main()"


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


@pytest.fixture(scope="session")
def server() -> Any:
    """Forks children with the imports of a command preloaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@pytest.fixture
def start(server: Any, tmp_path: Path) -> Callable[..., Child]:
    """Starts a command or other code in `tmp_path`; `limit` is the maximum file size in bytes."""

    def run(arguments: str = "", *, code: str = COMMAND, limit: int | None = None) -> Child:
        (out, to_out), (err, to_err) = server.Pipe(duplex=False), server.Pipe(duplex=False)
        names = {
            "folder": str(tmp_path), "out": to_out, "err": to_err, "limit": limit,
            "arguments": arguments, "code": code,
        }  # fmt: skip
        process = server.Process(target=exec, args=(CHILD, names))
        process.start()
        to_out.close()
        to_err.close()
        return Child(process, out, err)

    return run


def listing(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder, with its content; None for folders and links."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        if path.is_file() and not path.is_symlink()
        else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command that must fail with one sentence and exit status 2, and without changing any files.

    Returns the sentence.
    """
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, changes: bool = False) -> str:
        before = listing(tmp_path)
        done = CliRunner().invoke(app, list(arguments))
        assert done.exit_code == 2, (done.exit_code, done.output, done.exception)
        said = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
        assert len(said) == 1, done.stderr
        assert said[0].startswith("probekit: ")
        assert said[0].isprintable()
        assert "Traceback" not in done.output
        assert changes or listing(tmp_path) == before
        return said[0].removeprefix("probekit: ")

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six valid images of two classes."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            pixels = random.integers(0, 256, (30, 28), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"
