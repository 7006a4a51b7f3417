"""The one command: measures all questions or chosen ones, shows rows, keeps them, and makes the page."""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from threadpoolctl import threadpool_limits

from harness import machine, page, table
from harness.kept import Kept
from harness.question import Case, Question, Setting

RESULTS = machine.ROOT / "benchmarks" / "results.json"
PAGE = machine.ROOT / "docs" / "benchmarks.md"


def main(
    questions: Sequence[Question], *, keep: bool = False, arguments: Sequence[str] | None = None
) -> int:
    """Runs the command line of some questions.

    Args:
        questions: All that can be asked.
        keep: Keep the rows of a full run, and make the page of them, without being asked to.
        arguments: The command line; None is that of the process.

    Returns:
        The exit status: 1 where a case failed, 130 when interrupted.
    """
    options = parse(questions, arguments)
    keep = keep and not options.quick
    path = options.results or (RESULTS if keep else None)
    written = options.page or (PAGE if keep else None)
    kept = Kept(path)
    screen = table.console()
    if options.list:
        for question in questions:
            screen.print(f"{question.name:<16}{question.title}")
        return 0
    status = 0
    if not options.render:
        setting = Setting(options.quick, options.device, options.threads, options.clock)
        try:
            status = measure(questions, options.asked, setting, kept, screen, options.resume)
        except KeyboardInterrupt:
            screen.print("interrupted; the rows of finished cases are kept")
            status = 130
    if written is not None:
        written.write_text(page.render(questions, kept))
        screen.print(f"{written} shows {len(kept.rows)} rows")
    return status


def measure(
    questions: Sequence[Question],
    patterns: Sequence[str],
    setting: Setting,
    kept: Kept,
    screen: Console,
    resume: bool,
) -> int:
    """Measures the chosen cases one by one; a case that fails is told, and the next one begins."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(setting.threads)
    facts = machine.describe(setting)
    run = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {setting.device}"
    begun, failed = time.monotonic(), 0
    screen.print(
        f"{facts['processor']}, {facts['threads']} of {facts['cores']} cores, {setting.device}, "
        f"commit {facts['commit']}" + (", quick: the numbers mean nothing" if setting.quick else "")
    )
    with threadpool_limits(setting.threads):
        for question in questions:
            cases = list(chosen(question, patterns, setting))
            whole = not patterns or question.name in patterns
            if cases:
                screen.print(f"\n{question.title}  ({question.name})", style="bold")
            for number, case in enumerate(cases):
                if resume and kept.has(question.name, case.name, setting.device, facts["commit"]):
                    screen.print(f"    kept: {case.name}", style="dim")
                    continue
                try:
                    with screen.status(f"{question.name}: {case.name}"):
                        rows = [
                            replace(
                                row, question=question.name, case=case.name, device=setting.device
                            )
                            for row in case.measure()
                        ]
                except Exception:
                    failed += 1
                    screen.print(f"{question.name}, {case.name}: failed", style="red")
                    traceback.print_exc(file=sys.stderr)
                    continue
                kept.put(run, facts, rows)
                table.show(screen, rows, header=not number)
            if whole and cases:
                kept.keep_only(question.name, setting.device, {case.name for case in cases})
    screen.print(f"\n{time.monotonic() - begun:.0f} s" + (f", {failed} failed" if failed else ""))
    return 1 if failed else 0


def chosen(question: Question, patterns: Sequence[str], setting: Setting) -> Iterator[Case]:
    """The cases of a question that were asked for and can be measured on the device."""
    for case in question.cases(setting):
        names = (question.name, f"{question.name}/{case.name}")
        wanted = not patterns or any(fnmatch.fnmatch(n, p) for n in names for p in patterns)
        if wanted and setting.device in case.devices:
            yield case


def parse(questions: Sequence[Question], arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; what cannot be asked ends the command."""
    names = [question.name for question in questions]
    parser = argparse.ArgumentParser(
        prog="python benchmarks" if len(names) > 1 else f"python benchmarks/{names[0]}.py",
        description="Measures what probekit costs beside the floor and beside its peers.",
        epilog="A full run of all questions takes about 20 minutes on two quiet cores.",
    )
    parser.add_argument(
        "asked",
        nargs="*",
        metavar="QUESTION",
        help=f"{', '.join(names)}, or QUESTION/CASE with * and ? (all, if none is named)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="smallest sizes, to see that all works"
    )
    parser.add_argument("--threads", type=int, default=min(2, machine.cores()))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--clock",
        choices=["wall", "processor"],
        default="wall",
        help="processor: the time of this process alone, for a machine that is not quiet",
    )
    parser.add_argument("--results", type=Path, help="a JSON file to keep rows in")
    parser.add_argument("--page", type=Path, help="a Markdown file to show all kept rows in")
    parser.add_argument("--resume", action="store_true", help="skip cases kept from this commit")
    parser.add_argument("--render", action="store_true", help="measure nothing, make the page")
    parser.add_argument("--list", action="store_true", help="list the questions")
    options = parser.parse_args(arguments)
    for pattern in options.asked:
        if not any(fnmatch.fnmatch(name, pattern.partition("/")[0]) for name in names):
            parser.error(f"no question {pattern!r}; there are {', '.join(names)}")
    if options.threads < 1:
        parser.error(f"--threads is at least 1, not {options.threads}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda was asked for, and torch finds no GPU")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return options
