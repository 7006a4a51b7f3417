"""Sweeps: the grid, its table, and that interruptions of the sweep or a worker lose nothing."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import probekit as pk
from children import FORKS
from probekit.errors import DataError, OptionError, OutputError, ProbekitWarning
from probekit.results import jobs
from probekit.training.run.directory import read_run
from probekit.training.sweep import sweep as sweeping
from probekit.training.sweep.table import run_folder, sweep_table

QUICK: dict[str, Any] = {
    "epochs": 1,
    "architecture": "resnet8",
    "limit": 64,
    "batch_size": 32,
    "device": "cpu",
    "progress": False,
}
VARIABLES = ("test_accuracy", "validation_accuracy", "best_epoch", "selectivity_mean")


def quick(out: Path, alphas: list[float], seeds: list[int], **options: Any) -> xr.Dataset:
    return pk.sweep("resnet20-digits", alphas, seeds, out, **{**QUICK, **options})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, xr.Dataset]:
    out = tmp_path_factory.mktemp("sweeps") / "small"
    return out, quick(out, list(np.array([1, -0.5], np.float32)), list(np.arange(0, 4, 3)))


def test_the_table_contains_the_outcomes_of_the_runs(small: tuple[Path, xr.Dataset]) -> None:
    out, table = small
    assert table["alpha"].values.tolist() == [-0.5, 1.0]
    assert table["seed"].values.tolist() == [0, 3]
    for alpha in (-0.5, 1.0):
        for seed in (0, 3):
            run = read_run(run_folder(out, alpha, seed))
            assert run is not None
            assert (run.alpha, run.seed) == (alpha, seed)
            row = table.sel(alpha=alpha, seed=seed)
            for name in VARIABLES:
                assert float(row[name]) == getattr(run, name)
            for name in ("selectivity", "dead_units"):
                found = dict(zip(row["layer"].values, row[name].values, strict=True))
                assert found == dict(getattr(run, name))
    assert (table["failure"] == "").all()


def test_a_run_of_a_sweep_equals_a_single_run(
    small: tuple[Path, xr.Dataset], tmp_path: Path
) -> None:
    alone = pk.train("resnet20-digits", 1.0, 3, tmp_path / "alone", **QUICK)
    there = read_run(run_folder(small[0], 1.0, 3))
    assert there is not None
    assert there.selectivity == alone.selectivity


def test_the_table_is_saved_in_the_folder(small: tuple[Path, xr.Dataset]) -> None:
    out, table = small
    with xr.open_dataset(out / "sweep.nc", engine="h5netcdf") as opened:
        loaded = opened.load()
    assert loaded.equals(table)
    assert "resnet20-digits" in loaded.attrs["provenance"]
    assert sorted(os.listdir(out)) == ["runs", "sweep.json", "sweep.nc"]


def test_finished_runs_are_not_trained_again(
    small: tuple[Path, xr.Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any) -> str:
        raise AssertionError("trained again")

    monkeypatch.setattr(sweeping, "_one_run", never)
    assert quick(small[0], [1.0, -0.5], [3]).equals(small[1])


def test_an_interrupted_sweep_resumes_and_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[float, int]] = []
    one_run = sweeping._one_run

    def counted(recipe: Any, alpha: float, seed: int, *rest: Any) -> str:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append((alpha, seed))
        return one_run(recipe, alpha, seed, *rest)

    monkeypatch.setattr(sweeping, "_one_run", counted)
    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path / "s", [0.0, 1.0], [0, 1])
    table = sweep_table(tmp_path / "s")
    with xr.open_dataset(tmp_path / "s" / "sweep.nc", engine="h5netcdf") as opened:
        assert opened.load().equals(table)
    assert table.sizes == {"alpha": 2, "seed": 1, "layer": 7}
    trained[:] = [(9.0, 9)]
    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path / "s", [0.0, 1.0], [0, 1])
    assert trained == [(9.0, 9), (0.0, 1)]
    table = sweep_table(tmp_path / "s")
    assert table["test_accuracy"].notnull().values.tolist() == [[True, True], [True, False]]
    ended = table["test_accuracy"].notnull()
    for name in ("best_epoch", "dead_units"):
        assert table[name].notnull().equals(ended.broadcast_like(table[name]))
    assert float(table["best_epoch"].mean()) == 0


def test_a_failing_run_is_reported_and_the_others_continue(tmp_path: Path) -> None:
    out = tmp_path / "s"
    with pytest.warns(ProbekitWarning, match=r"1 of 2 runs failed; alpha 1e\+38, seed 0: the loss"):
        table = quick(out, [1e38, 0.0], [0])
    assert np.isnan(table["test_accuracy"].sel(alpha=1e38)).all()
    assert table["test_accuracy"].sel(alpha=0.0).notnull().all()
    assert "not finite in epoch 0" in str(table["failure"].sel(alpha=1e38, seed=0).values)
    again = quick(out, [0.0], [0])
    assert "not finite" in str(again["failure"].sel(alpha=1e38, seed=0).values)


def test_a_sweep_whose_runs_all_fail_still_has_a_table(tmp_path: Path) -> None:
    with pytest.warns(ProbekitWarning, match="1 of 1 runs failed"):
        table = quick(tmp_path / "s", [1e38], [0])
    assert (tmp_path / "s" / "sweep.nc").is_file()
    assert table["failure"].values.item().startswith("the loss is not finite")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"alphas": []}, "alphas must be one or more"),
    ({"alphas": [0.0, -0.0]}, "alphas must be one or more different"),
    ({"alphas": [float("nan")]}, "alpha must be a finite number"),
    ({"alphas": ["low"]}, "alpha must be a finite number"),
    ({"alphas": "-1,0"}, "alphas must be a list of numbers"),
    ({"seeds": 3}, "seeds must be a list"),
    ({"seeds": [0, 0]}, "seeds must be one or more different"),
    ({"seeds": [-1]}, "every seed must be a non-negative integer"),
    ({"alpha_schedule": "0*1 -1"}, "constant alphas"),
    ({"epoch": 1}, "no option 'epoch'"),
    ({"layers": [torch.nn.ReLU]}, "layers of a sweep must be names"),
    ({"scheduler": "tcp://127.0.0.1:1"}, "no dask scheduler answers"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_an_invalid_option_is_reported(
    tmp_path: Path, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_PATIENCE", "1s")
    with pytest.raises(OptionError, match=message):
        quick(tmp_path / "s", **{"alphas": [0.0], "seeds": [0], **options})


def test_the_folder_of_another_sweep_is_refused(
    small: tuple[Path, xr.Dataset], tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match=r"holds another sweep: recipe\.epochs was 1 and is 2"):
        quick(small[0], [0.0], [0], epochs=2)
    with pytest.raises(OutputError, match="holds another sweep: layers was null and is"):
        quick(small[0], [0.0], [0], layers="first:3")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"is not a sweep and not empty \(it holds notes\.txt\)"):
        quick(tmp_path, [0.0], [0])
    assert os.listdir(tmp_path) == ["notes.txt"]
    with pytest.raises(OutputError, match="is not a sweep"):
        sweep_table(tmp_path)


def test_a_mistake_common_to_all_runs_stops_the_sweep(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="close matches: digits"):
        quick(tmp_path / "s", [0.0, 1.0], [0], data="digit")
    with pytest.raises(DataError, match="expected data_batch_1"):
        pk.sweep("resnet20-cifar10", [0.0], [0], tmp_path / "c", data_root=tmp_path, progress=False)


def test_a_sweep_that_failed_at_its_first_write_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            quick(tmp_path / "s", [0.0], [0])
    assert quick(tmp_path / "s", [0.0], [0])["test_accuracy"].notnull().all()


def test_a_sweep_under_torchrun_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="started as one process"):
        quick(tmp_path / "s", [0.0], [0])


def test_folders_of_different_alphas_differ() -> None:
    alphas = [0.0, 1.0, -1.0, 0.1, 0.1 + 1e-12, 1e-7, 100.0, 1e38]
    assert len({run_folder("s", alpha, 0) for alpha in alphas}) == len(alphas)
    assert run_folder("s", -0.0, 0) == run_folder("s", 0.0, 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_cluster_loses_nothing_when_a_worker_is_killed(tmp_path: Path, server: Any) -> None:
    import threading

    import dask
    from distributed import Client, LocalCluster, WorkerPlugin

    class OneThread(WorkerPlugin):
        """Also applies to the replacement of the killed worker: thread counts affect results bitwise."""

        def setup(self, worker: Any) -> None:
            torch.set_num_threads(1)

    out = tmp_path / "s"
    killed: list[int] = []
    options = {"epochs": 6, "limit": 256}

    with (
        dask.config.set(FORKS),
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(OneThread())

        def kill_one() -> None:
            """Kills the worker that trains a run as soon as the run has a checkpoint."""
            last = run_folder(out, 1.0, 0) / "last.safetensors"
            while not last.exists():
                time.sleep(0.01)
            tasks = client.processing()
            address = next(
                worker for worker, keys in tasks.items() if any("-1|0-" in str(k) for k in keys)
            )
            pid = client.run(os.getpid, workers=[address])[address]
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

        thread = threading.Thread(target=kill_one)
        thread.start()
        table = quick(out, [1.0, -0.5], [0], scheduler=client, **options)
        thread.join()
        assert client.status == "running"
    assert len(killed) == 1
    assert table["test_accuracy"].notnull().all()
    assert (table["failure"] == "").all()
    alone = pk.train("resnet20-digits", 1.0, 0, tmp_path / "alone", **{**QUICK, **options})
    assert float(table["selectivity_mean"].sel(alpha=1.0, seed=0)) == alone.selectivity_mean


@pytest.mark.slow
def test_parallel_runs_equal_sequential_ones(tmp_path: Path, server: Any) -> None:
    import dask

    with dask.config.set(FORKS):
        together = quick(tmp_path / "together", [0.0, 1.0], [0], jobs=2)
    assert (together["failure"] == "").all()
    alone = pk.train("resnet20-digits", 1.0, 0, tmp_path / "alone", **QUICK)
    found = together["selectivity_mean"].sel(alpha=1.0, seed=0)
    assert float(found) == pytest.approx(alone.selectivity_mean, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 0}, "jobs must be a positive integer, not 0"),
        ({"jobs": 2, "scheduler": "tcp://127.0.0.1:1"}, "not by both"),
    ],
)
def test_invalid_jobs_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        quick(tmp_path / "s", [0.0], [0], **options)


def test_parallel_jobs_name_their_missing_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(OptionError, match=r'pip install "probekit\[cluster\]"'):
        quick(tmp_path / "s", [0.0], [0], jobs=2)


def _fail(number: int) -> None:
    raise RuntimeError(f"no such luck {number}")


def test_errors_on_a_cluster_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import Client

    monkeypatch.setattr(sweeping, "_one_run", lambda *args: _fail(7))
    with (
        Client(
            processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None
        ) as client,
        pytest.warns(ProbekitWarning, match=r"2 of 2 runs failed.*RuntimeError: no such luck 7"),
    ):
        table = quick(tmp_path / "s", [0.0], [0, 1], scheduler=client.scheduler.address, retries=0)
    assert (table["failure"] == "RuntimeError: no such luck 7").all()


def test_runs_of_another_sweep_are_refused(small: tuple[Path, xr.Dataset], tmp_path: Path) -> None:
    runs = small[0] / "runs"
    shutil.copytree(runs, tmp_path / "foreign" / "runs")
    with pytest.raises(OutputError, match=r"run: recipe\.learning_rate was 0\.1 and is 0\.01"):
        quick(tmp_path / "foreign", [1.0], [0], learning_rate=0.01)
    shutil.copytree(run_folder(small[0], 1.0, 0), run_folder(tmp_path / "renamed", 2.0, 0))
    with pytest.raises(OutputError, match="holds a run with alpha 1 and seed 0"):
        quick(tmp_path / "renamed", [2.0], [0])


def test_a_refused_sweep_does_not_claim_the_folder(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="leaves nothing to train on"):
        quick(tmp_path, [0.0], [0], validation=5000)
    assert quick(tmp_path, [0.0], [0])["failure"].values.tolist() == [[""]]


def test_a_finished_run_keeps_no_failure_of_an_earlier_attempt(
    small: tuple[Path, xr.Dataset], tmp_path: Path
) -> None:
    shutil.copytree(small[0], tmp_path / "s")
    (tmp_path / "s" / "failures.json").write_text('{"1|0": "out of memory", "2|0": "no luck"}')
    failures = sweep_table(tmp_path / "s")["failure"].sel(seed=0)
    assert failures.sel(alpha=[1.0, 2.0]).values.tolist() == ["", "no luck"]
