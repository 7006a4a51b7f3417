"""The benchmark harness: timing in turns, result rows, stored results and their page."""

from harness.command import main
from harness.row import Case, Question, Row, cost, gain, versus
from harness.timing import Contender, Missing, Run, Setting, Spread, Times, always, peer

__all__ = [
    "Case",
    "Contender",
    "Missing",
    "Question",
    "Row",
    "Run",
    "Setting",
    "Spread",
    "Times",
    "always",
    "cost",
    "gain",
    "main",
    "peer",
    "versus",
]
