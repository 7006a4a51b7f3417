"""Runs all benchmarks: `python benchmarks`. See `python benchmarks --help`."""

from __future__ import annotations

import sys

import attacks
import compiled
import corruptions
import covariance
import dimensionality
import folder
import gradients
import intervals
import memory
import overhead
import probes
import recording
import regularizer
import robustness
from harness import main

QUESTIONS = [
    module.QUESTION
    for module in (
        overhead,
        folder,
        memory,
        recording,
        dimensionality,
        covariance,
        gradients,
        probes,
        intervals,
        regularizer,
        attacks,
        corruptions,
        robustness,
        compiled,
    )
]

if __name__ == "__main__":
    sys.exit(main(QUESTIONS, keep=True))
