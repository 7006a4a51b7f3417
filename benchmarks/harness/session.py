"""Measures cases one by one, and shows and keeps the rows of each as soon as it is done."""

from __future__ import annotations

import fnmatch
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from rich.console import Console

from harness import machine, table
from harness.kept import Kept
from harness.question import Case, Question, Setting
from harness.row import Row


class Session:
    """One run of the command.

    Args:
        setting: How it measures.
        kept: What was measured before, where rows go.
        screen: Where they are shown.
        resume: Leave out cases that are kept from the same commit.

    Attributes:
        failed: How many cases ended with an error, which is told; the next one begins all the same.
    """

    def __init__(self, setting: Setting, kept: Kept, screen: Console, *, resume: bool) -> None:
        self._setting, self._kept, self._screen, self._resume = setting, kept, screen, resume
        self._facts = machine.describe(setting)
        self._run = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {setting.device}"
        self.failed = 0
        screen.print(
            f"{self._facts['processor']}, {setting.threads} of {self._facts['cores']} cores, "
            f"{setting.device}, commit {self._facts['commit']}"
            + (", quick: the numbers mean nothing" if setting.quick else "")
        )

    def ask(self, question: Question, patterns: Sequence[str]) -> None:
        """Measures those cases of a question that any of the patterns means; none means all."""
        cases = list(self._chosen(question, patterns))
        if not cases:
            return
        self._screen.print(f"\n{question.title}  ({question.name})", style="bold")
        for number, case in enumerate(cases):
            if rows := self._measured(question, case):
                self._kept.put(self._run, self._facts, rows)
                table.show(self._screen, rows, header=not number)
        if not patterns or question.name in patterns:
            names = {case.name for case in cases}
            self._kept.keep_only(question.name, self._setting.device, names)

    def _chosen(self, question: Question, patterns: Sequence[str]) -> Iterator[Case]:
        for case in question.cases(self._setting):
            names = (question.name, f"{question.name}/{case.name}")
            asked = not patterns or any(fnmatch.fnmatch(n, p) for n in names for p in patterns)
            if asked and self._setting.device in case.devices:
                yield case

    def _measured(self, question: Question, case: Case) -> list[Row]:
        """The rows of a case; none where they are kept already or it fails."""
        place = (question.name, case.name, self._setting.device)
        if self._resume and self._kept.has(*place, self._facts["commit"]):
            self._screen.print(f"    kept: {case.name}", style="dim")
            return []
        if self._screen.is_terminal:
            # Only said once: a line that moves would take time from what is timed.
            self._screen.print(f"    {case.name} ...", style="dim", end="\r")
        try:
            found = list(case.measure())
        except Exception:
            self.failed += 1
            self._screen.print(f"{question.name}, {case.name}: failed", style="red")
            traceback.print_exc(file=sys.stderr)
            return []
        name, words, device = place
        return [replace(row, question=name, case=words, device=device) for row in found]
