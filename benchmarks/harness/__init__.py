"""What all benchmarks share: the one way of timing, rows, results that are kept, and their page."""

from harness.command import main
from harness.peers import Missing, peer
from harness.question import Case, Question, Setting
from harness.row import Row, at_least, at_most, cost, gain, versus
from harness.timing import Contender, Run, Times, always

__all__ = [
    "Case",
    "Contender",
    "Missing",
    "Question",
    "Row",
    "Run",
    "Setting",
    "Times",
    "always",
    "at_least",
    "at_most",
    "cost",
    "gain",
    "main",
    "peer",
    "versus",
]
