"""Several processes find what one finds."""

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
kind, out = sys.argv[1:]
data = {
    "dataset": TensorDataset(images, labels),
    "batches": list(zip(images.split(4), labels.split(4))),
    "few": TensorDataset(images[:2], labels[:2]),
}[kind]
metrics = ["selectivity", "dimensionality", "selectivity_split_half"]
result = pk.analyze(network, data, metrics=metrics, batch_size=4, progress=False)
if processes().is_main:
    pk.save_result(result, out)
"""


def run(kind: str, world: int, folder: Path) -> xr.DataTree:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    out = folder / f"{kind}{world}.nc"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    subprocess.run(
        [sys.executable, *(launch if world > 1 else []), str(script), kind, str(out)],
        check=True, env=environment, timeout=300, capture_output=True,
    )  # fmt: skip
    return pk.open_result(out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "worlds"), [("dataset", (2, 3)), ("batches", (2,)), ("few", (3,))]
)
def test_processes_share_the_data_and_agree(
    kind: str, worlds: tuple[int, ...], tmp_path: Path
) -> None:
    alone = run(kind, 1, tmp_path)
    for world in worlds:
        together = run(kind, world, tmp_path)
        for group in ("/", "units", "layers", "samples"):
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
