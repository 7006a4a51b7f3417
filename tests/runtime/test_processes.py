"""Several processes compute the same results as one.

One launch computes everything that is compared, since starting processes takes longer than the work.
`torchrun` starts two processes; three are forked with the environment that it would give them.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import probekit as pk
from children import launched, start_child
from probekit.runtime.processes import own_device

SCRIPT = """
import sys, torch
import xarray as xr
from torch import nn
from torch.utils.data import TensorDataset
import probekit as pk
from probekit.runtime.processes import processes

torch.set_num_threads(1)
options = {"batch_size": 4, "progress": False}

def compute(what, kind, out):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)
    ).double()
    images, labels = torch.rand(31, 1, 8, 8).double(), torch.arange(31) % 3
    data = {
        "dataset": TensorDataset(images, labels),
        "batches": list(zip(images.split(4), labels.split(4))),
        "few": TensorDataset(images[:2], labels[:2]),
    }[kind]
    if what == "analyze":
        metrics = ["selectivity", "dimensionality", "selectivity_split_half"]
        return pk.analyze(network, data, metrics=metrics, **options)
    if what == "robustness":
        attacks = [pk.PGD(steps=3, random_start=True)]
        return pk.robustness(
            network, data, ["fog", "shot_noise"], (3,), attacks, [0.1], store=out + ".store", **options
        )
    if what == "ablate":
        units = pk.analyze(network, data, **options)["units"].to_dataset()
        curves = pk.ablate(
            network, data, units["selectivity"], fractions=(0, 0.3, 1), random=2, value="mean", **options
        )
        result = xr.DataTree(curves)
        result.attrs["provenance"] = curves.attrs.pop("provenance")
        return result
    if what == "jacobian":
        result = xr.DataTree(pk.jacobian_norm(network, data, **options))
        result.attrs["provenance"] = '{"data": null}'
        return result
    if what == "failing":
        def predicate(name, module):
            if processes().rank == 1:
                raise SystemExit(3)
            return name == "1"
        return pk.analyze(network, data, predicate, **options)
    recording = pk.record(network, data, store=out + ".zarr" if what == "store" else None, **options)
    result = xr.DataTree(recording.load())
    result.attrs["provenance"] = recording.attrs.pop("provenance")
    return result

for job in sys.argv[1:]:
    what, kind = job.split("-")
    result = compute(what, kind, job)
    if processes().is_main:
        pk.save_result(result, job + ".nc")
"""
JOBS = {
    "torchrun": ["analyze-dataset", "analyze-batches", "robustness-dataset", "store-dataset"],
    "three forks": [
        "analyze-dataset", "analyze-few", "robustness-dataset", "ablate-dataset", "record-batches",
        "jacobian-dataset", "jacobian-batches",
    ],
}  # fmt: skip


def torchrun(jobs: list[str], folder: Path) -> tuple[int, str]:
    """Starts two processes; returns the exit status and the messages."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, *command, str(script), *jobs],
        cwd=folder, env=environment, timeout=300, capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stderr


def forks(server: Any, world: int, jobs: list[str], folder: Path) -> tuple[int, str]:
    """Forks processes; returns the highest exit status and their messages."""
    children = [
        start_child(server, folder, jobs, code=SCRIPT, environment=one) for one in launched(world)
    ]
    ends = [child.wait() for child in children]
    return max((status for status, _, _ in ends), key=abs), "".join(said for _, _, said in ends)


@pytest.fixture(scope="module")
def alone(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one process."""
    folder = tmp_path_factory.mktemp("alone")
    jobs = list({job: None for how in JOBS for job in JOBS[how]})
    status, printed, errors = start_child(server, folder, jobs, code=SCRIPT).wait()
    assert status == 0, printed + errors
    return folder


@pytest.fixture(scope="module")
def together(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The folder of several processes, their exit status and messages; with `torchrun` one fails at last."""

    @functools.cache
    def results(how: str) -> tuple[Path, tuple[int, str]]:
        folder = tmp_path_factory.mktemp("together")
        if how == "torchrun":
            return folder, torchrun([*JOBS[how], "failing-dataset"], folder)
        return folder, forks(server, 3, JOBS[how], folder)

    return results


@pytest.mark.slow
@pytest.mark.parametrize(("how", "job"), [(how, job) for how in JOBS for job in JOBS[how]])
def test_processes_share_the_data_and_agree(
    how: str, job: str, alone: Path, together: Callable[[str], Any]
) -> None:
    folder, (_, messages) = together(how)
    assert (folder / f"{job}.nc").exists(), messages
    one_process, several = (pk.open_result(place / f"{job}.nc") for place in (alone, folder))
    assert several.groups == one_process.groups
    for group in one_process.groups:
        one, many = one_process[group].to_dataset(), several[group].to_dataset()
        assert set(one.variables) == set(many.variables)
        for name, values in one.variables.items():
            if values.dtype.kind == "f":
                np.testing.assert_allclose(
                    many[name], values, rtol=1e-12, atol=1e-12, err_msg=str(name)
                )
            else:
                np.testing.assert_array_equal(many[name], values, err_msg=str(name))
    facts = [json.loads(tree.attrs["provenance"]) for tree in (one_process, several)]
    assert facts[0]["data"] == facts[1]["data"]


@pytest.mark.parametrize(
    ("asked", "found"), [("cuda", "cuda:1"), ("cuda:0", "cuda:0"), ("cpu", "cpu")]
)
def test_each_process_uses_its_own_gpu(
    asked: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device(asked) == torch.device(asked)  # a single process leaves the choice to torch
    # The fourth of four processes, two on each machine of two GPUs.
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert own_device(asked) == torch.device(found)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert own_device(asked) == torch.device(asked)


@pytest.mark.slow
def test_a_failing_process_ends_all_processes(together: Callable[[str], Any]) -> None:
    folder, (status, messages) = together("torchrun")
    assert status != 0
    assert "exitcode  : 3" in messages
    assert not (folder / "failing-dataset.nc").exists()
    status, messages = together("three forks")[1]
    assert status == 0, messages
