"""Imports what commands import, also what they import late, for children that are forked afterwards."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import threading

import accelerate  # noqa: F401
import distributed  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch
import torch._dynamo  # which training imports, with hundreds of other modules
from tqdm import tqdm
from typer.testing import CliRunner

import probekit.analysis.robustness.robustness
import probekit.capture.record
import probekit.reports.page.page
import probekit.training.run.train
import probekit.training.sweep.sweep  # noqa: F401
from probekit.cli.app import app

torch.set_num_threads(1)
tqdm.monitor_interval = 0  # no thread, which forked children would lose
here = os.getcwd()
with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
    os.chdir(folder)
    small = "analyze --limit 20 --layers layer3.2.relu2 -o r.nc --report r.html"
    done = CliRunner().invoke(app, small.split())
    os.chdir(here)
assert done.exit_code == 0, done.output
threads = [one.name for one in threading.enumerate()]
assert threads == ["MainThread"], threads
