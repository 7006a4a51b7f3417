"""The benchmark command: measures questions, prints and stores their rows, renders the page."""

from __future__ import annotations

import argparse
import fnmatch
import os
import platform
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import probekit
from harness.results import Results, render
from harness.row import Case, Question, Row
from harness.timing import Setting
from probekit.reports.terminal import console, print_rows

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results.json"
PAGE = ROOT / "docs" / "benchmarks.md"
PEERS = (
    "captum", "foolbox", "imagecorruptions-imaug", "opencv-python", "opencv-python-headless",
    "scikit-learn", "timm", "torchattacks", "torchvision",
)  # fmt: skip


def main(
    questions: Sequence[Question], *, keep: bool = False, arguments: Sequence[str] | None = None
) -> int:
    """Runs the command line for some questions.

    With `keep`, the rows of a full run are stored and the page is rendered by default. The exit status
    is 1 if a case failed, and 130 after an interruption.
    """
    options = parse(questions, arguments)
    keep = keep and not options.quick
    results = Results(options.results or (RESULTS if keep else None))
    page = options.page or (PAGE if keep else None)
    screen = console()
    status = 0
    if not options.render:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status = measure(questions, options, results, screen)
    if page is not None:
        page.write_text(render(questions, results))
        screen.print(f"{page} shows {len(results.rows)} rows")
    return status


def parse(questions: Sequence[Question], arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the options; exits on an unknown question."""
    names = [question.name for question in questions]
    parser = argparse.ArgumentParser(
        prog="python benchmarks" if len(names) > 1 else f"python benchmarks/{names[0]}.py",
        description="Measures the cost of probekit compared with the unavoidable work and its peers.",
        epilog="A full run takes about 25 minutes on two quiet cores. Slow questions run only if named.",
    )
    help_ = f"{', '.join(names)}, or QUESTION/CASE with * and ? (all by default)"
    parser.add_argument("asked", nargs="*", metavar="QUESTION", help=help_)
    parser.add_argument("--quick", action="store_true", help="smallest sizes, as a test")
    parser.add_argument("--threads", type=int, default=min(2, cores()))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--results", type=Path, help="a JSON file to store rows in")
    parser.add_argument("--page", type=Path, help="a Markdown file that shows all stored rows")
    parser.add_argument("--render", action="store_true", help="measure nothing, render the page")
    options = parser.parse_args(arguments)
    for pattern in options.asked:
        if not any(fnmatch.fnmatch(name, pattern.partition("/")[0]) for name in names):
            parser.error(f"no question {pattern!r}; there are {', '.join(names)}")
    if options.threads < 1:
        parser.error(f"--threads is at least 1, not {options.threads}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda was asked for, and torch finds no GPU")
    return options


def measure(
    questions: Sequence[Question], options: argparse.Namespace, results: Results, screen: Console
) -> int:
    """Measures cases one by one; prints and stores the rows of each when it is done."""
    torch.set_num_threads(options.threads)
    setting = Setting(options.quick, options.device, options.threads)
    facts, begun, failed = describe(setting), time.monotonic(), 0
    run = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {setting.device}"
    screen.print(
        f"{facts['processor']}, {setting.threads} of {facts['cores']} cores, "
        f"{setting.device}, commit {facts['commit']}"
        + (", quick: the numbers are not meaningful" if setting.quick else "")
    )
    try:
        for question in questions:
            cases = [x for x in question.cases(setting) if _chosen(question, x, options)]
            if cases:
                screen.print(f"\n{question.title}  ({question.name})", style="bold")
            for case in cases:
                where = {"question": question.name, "case": case.name, "device": setting.device}
                try:
                    rows = [replace(row, **where) for row in case.measure()]
                except Exception:
                    failed += 1
                    screen.print(f"{question.name}, {case.name}: failed", style="red")
                    traceback.print_exc(file=sys.stderr)
                    continue
                results.add(run, facts, rows)
                show(screen, rows)
            if cases and (not options.asked or question.name in options.asked):
                names = {case.name for case in cases}
                results.drop_others(question.name, names)
    except KeyboardInterrupt:
        screen.print("interrupted; the rows of finished cases are stored")
        return 130
    screen.print(f"\n{time.monotonic() - begun:.0f} s, {failed} failed")
    return min(1, failed)


def _chosen(question: Question, case: Case, options: argparse.Namespace) -> bool:
    names = (question.name, f"{question.name}/{case.name}")
    if not options.asked:
        return not question.slow
    return any(fnmatch.fnmatch(name, pattern) for name in names for pattern in options.asked)


def show(screen: Console, rows: Sequence[Row]) -> None:
    """Prints the rows of a case, and their notes."""
    print_rows(
        [
            {
                "case": row.case, "ours": row.ours, "compared with": row.other,
                "ours takes": row.amount, "ratio": row.shown_ratio, "quartiles": row.quartiles,
                "bound": row.asked, "verdict": row.verdict,
            }
            for row in rows
        ],
        screen,
    )  # fmt: skip
    for remark in dict.fromkeys(row.missing or row.note for row in rows):
        if remark:
            screen.print(f"    {remark}", style="dim", markup=False)


def describe(setting: Setting) -> dict[str, Any]:
    """The hardware, versions, commit and time of a run, without host or user names."""
    versions = {"probekit": probekit.__version__, "Python": platform.python_version()}
    versions["torch"] = torch.__version__
    for name in PEERS:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "quick": setting.quick,
        "device": setting.device,
        "clock": "wall",
        "threads": setting.threads,
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def commit() -> str:
    """The commit of the code, and whether there are uncommitted changes."""
    git = ("git", "-C", str(ROOT))
    code = ("probekit", "benchmarks/*.py", "benchmarks/harness")
    try:
        name = subprocess.check_output([*git, "rev-parse", "--short=10", "HEAD"], text=True)
        changed = subprocess.check_output([*git, "status", "--porcelain", "--", *code])
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name.strip()} with changes" if changed else name.strip()


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
