"""The one command: measures all questions or chosen ones, shows rows, keeps them, and makes the page."""

from __future__ import annotations

import argparse
import fnmatch
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from harness import machine, page, table
from harness.kept import Kept
from harness.question import Question, Setting
from harness.session import Session

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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status = measure(questions, options, kept, screen)
    if written is not None:
        written.write_text(page.render(questions, kept))
        screen.print(f"{written} shows {len(kept.rows)} rows")
    return status


def measure(
    questions: Sequence[Question], options: argparse.Namespace, kept: Kept, screen: Console
) -> int:
    """Asks the questions in turn; what is done when interrupted is kept."""
    torch.set_num_threads(options.threads)
    setting = Setting(options.quick, options.device, options.threads, options.clock)
    session, begun = Session(setting, kept, screen, resume=options.resume), time.monotonic()
    try:
        for question in questions:
            session.ask(question, options.asked)
    except KeyboardInterrupt:
        screen.print("interrupted; the rows of finished cases are kept")
        return 130
    screen.print(f"\n{time.monotonic() - begun:.0f} s, {session.failed} failed")
    return min(1, session.failed)


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
    return options
