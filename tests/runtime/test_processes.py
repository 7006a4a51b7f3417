"""Several processes compute the same results as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import probekit as pk

SCRIPT = """
import sys, torch
import xarray as xr
from torch import nn
from torch.utils.data import TensorDataset
import probekit as pk
from probekit.runtime.processes import processes

torch.manual_seed(0)
torch.set_num_threads(1)
network = nn.Sequential(
    nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)
).double()
images, labels = torch.rand(31, 1, 8, 8).double(), torch.arange(31) % 3
what, kind, out = sys.argv[1:]
data = {
    "dataset": TensorDataset(images, labels),
    "batches": list(zip(images.split(4), labels.split(4))),
    "few": TensorDataset(images[:2], labels[:2]),
}[kind]
options = {"batch_size": 4, "progress": False}
if what == "analyze":
    metrics = ["selectivity", "dimensionality", "selectivity_split_half"]
    result = pk.analyze(network, data, metrics=metrics, **options)
elif what == "robustness":
    attacks = [pk.PGD(steps=3, random_start=True)]
    result = pk.robustness(
        network, data, ["fog", "shot_noise"], (1, 3), attacks, [0.1], store=out + ".store", **options
    )
elif what == "ablate":
    units = pk.analyze(network, data, **options)["units"].to_dataset()
    curves = pk.ablate(
        network, data, units["selectivity"], fractions=(0, 0.3, 1), random=2, value="mean", **options
    )
    result = xr.DataTree(curves)
    result.attrs["provenance"] = curves.attrs.pop("provenance")
elif what == "failing":
    def predicate(name, module):
        if processes().rank == 1:
            raise SystemExit(3)
        return name == "1"
    pk.analyze(network, data, predicate, **options)
else:
    recording = pk.record(network, data, store=out + ".zarr" if what == "store" else None, **options)
    result = xr.DataTree(recording.load())
    result.attrs["provenance"] = recording.attrs.pop("provenance")
if processes().is_main:
    pk.save_result(result, out)
"""


def run(what: str, kind: str, world: int, folder: Path) -> xr.DataTree:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    out = folder / f"{what}-{kind}{world}.nc"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    subprocess.run(
        [sys.executable, *(launch if world > 1 else []), str(script), what, kind, str(out)],
        check=True, env=environment, timeout=300, capture_output=True,
    )  # fmt: skip
    return pk.open_result(out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "kind", "worlds"),
    [
        ("analyze", "dataset", (2, 3)),
        ("analyze", "batches", (2,)),
        ("analyze", "few", (3,)),
        ("robustness", "dataset", (2, 3)),
        ("ablate", "dataset", (3,)),
        ("record", "batches", (3,)),
        ("store", "dataset", (2,)),
    ],
)
def test_processes_share_the_data_and_agree(
    what: str, kind: str, worlds: tuple[int, ...], tmp_path: Path
) -> None:
    alone = run(what, kind, 1, tmp_path)
    for world in worlds:
        together = run(what, kind, world, tmp_path)
        assert together.groups == alone.groups
        for group in alone.groups:
            one, many = alone[group].to_dataset(), together[group].to_dataset()
            assert set(one.variables) == set(many.variables)
            for name, values in one.variables.items():
                if values.dtype.kind == "f":
                    np.testing.assert_allclose(
                        many[name], values, rtol=1e-12, atol=1e-12, err_msg=str(name)
                    )
                else:
                    np.testing.assert_array_equal(many[name], values, err_msg=str(name))
        facts = [json.loads(tree.attrs["provenance"]) for tree in (alone, together)]
        assert facts[0]["data"] == facts[1]["data"]


@pytest.mark.slow
def test_a_failing_process_ends_all_processes(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        run("failing", "dataset", 2, tmp_path)
