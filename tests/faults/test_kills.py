"""Processes that are killed at random moments: nothing is lost, and the same command resumes.

The duration of a command is measured on an undisturbed run. The kill times are fractions of it, drawn
from a seed. A command that finishes before its kill time is restarted and killed earlier.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from safetensors.torch import load_file

import probekit as pk
from probekit.capture.store import _PROGRESS

pytestmark = pytest.mark.slow

Start = Callable[..., Any]
Check = Callable[[Path], None]

DATA = "probekit:resnet20-fashion-mnist fashion-mnist --layers layer3.2.relu?"
QUICK = 'epochs=3, architecture="resnet8", limit=96, batch_size=16, device="cpu"'
KILLS = 2


def kill_and_go_on(
    start: Start, job: dict[str, Any], out: Path, after_kill: Check, seed: int
) -> None:
    """Kills a job several times, each time after it resumed, and finally lets it finish.

    Args:
        start: Starts processes.
        job: Its arguments; its output is named `out`.
        out: The path of its output.
        after_kill: Inspects the files after each kill.
        seed: Determines the kill times.
    """
    moments = random.Random(seed)
    begun = time.monotonic()
    status, printed, told = start(**_named(job, "whole")).wait()
    assert status == 0, printed + told
    takes, kills = time.monotonic() - begun, 0
    for _ in range(8 * KILLS):
        child = start(**_named(job, out.name))
        time.sleep(takes * moments.random())
        if child.kill():
            kills += 1
            after_kill(out)
            if kills == KILLS:
                break
        elif kills:
            break
        else:
            takes *= 0.7
            _remove(out)
    assert kills, "it was never caught while it ran"
    status, printed, told = start(**_named(job, out.name)).wait()
    assert status == 0, printed + told


def _remove(out: Path) -> None:
    for path in out.parent.glob(f"{out.name}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _named(job: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value.replace("OUT", name) for key, value in job.items()}


def same(one: xr.DataTree, other: xr.DataTree) -> None:
    for name, node in other.children.items():
        xr.testing.assert_identical(
            one[name].to_dataset().drop_attrs(), node.to_dataset().drop_attrs()
        )


@pytest.mark.parametrize("ending", [".nc", ".zarr"])
def test_an_analysis_is_complete_or_absent(ending: str, start: Start, tmp_path: Path) -> None:
    file = tmp_path / f"out{ending}"
    job = {"arguments": f"analyze {DATA} --limit 400 --overwrite -o OUT{ending}"}

    def whole_or_not_there(_: Path) -> None:
        if file.exists():
            assert pk.open_result(file)["units"].sizes["unit"] == 128

    kill_and_go_on(start, job, tmp_path / "out", whole_or_not_there, seed=1)
    same(pk.open_result(file), pk.open_result(tmp_path / f"whole{ending}"))


def test_a_recording_resumes(start: Start, tmp_path: Path) -> None:
    small_blocks = (
        "import probekit.capture.store as store; store._BLOCK_BYTES = 2**13\n"
        "from probekit.cli.app import main; main()"
    )
    arguments = f"record {DATA} --limit 600 --batch-size 16 -o OUT.zarr"
    store = tmp_path / "out.zarr"
    done: list[int] = []

    def what_was_done_stays(_: Path) -> None:
        if not store.exists():
            return
        progress = store / _PROGRESS
        if progress.exists():
            with pytest.raises(pk.ProbekitError, match="is not complete"):
                pk.open_recording(store)
        done.append(len(list((store / "activation" / "c").rglob("0"))))
        assert done == sorted(done)

    kill_and_go_on(
        start, {"arguments": arguments, "code": small_blocks}, tmp_path / "out", what_was_done_stays,
        seed=2,
    )  # fmt: skip
    one, other = (
        pk.open_recording(tmp_path / f"{name}.zarr").compute() for name in ("out", "whole")
    )
    xr.testing.assert_identical(one.drop_attrs(), other.drop_attrs())


@pytest.mark.filterwarnings("ignore:the training run in")
def test_a_training_run_resumes_to_the_same_weights(start: Start, tmp_path: Path) -> None:
    code = (
        "import probekit as pk\n"
        f"pk.train('resnet20-digits', -1.0, 0, 'OUT', {QUICK}, checkpoint_minutes=0, progress=False)"
    )

    def what_loads_is_whole(out: Path) -> None:
        if (out / "model.json").exists():
            pk.load_model(out)

    kill_and_go_on(start, {"code": code}, tmp_path / "out", what_loads_is_whole, seed=3)
    for name in ("final.safetensors", "last.safetensors"):
        one, other = (load_file(tmp_path / run / name) for run in ("out", "whole"))
        assert all(np.array_equal(one[key], other[key]) for key in other)
    logs = [pk.train("resnet20-digits", -1.0, 0, tmp_path / run, epochs=3, architecture="resnet8",
                     limit=96, batch_size=16).log for run in ("out", "whole")]  # fmt: skip
    columns = [name for name in logs[0] if name not in ("seconds", "images_per_second")]
    assert logs[0][columns].equals(logs[1][columns])
    assert not list((tmp_path / "out").glob(".draft-*"))


def test_a_sweep_resumes(start: Start, tmp_path: Path) -> None:
    code = (
        "import probekit as pk\n"
        f"pk.sweep('resnet20-digits', [-1.0, 0.0], [0], 'OUT', {QUICK.replace('3', '1', 1)}, progress=False)"
    )

    def no_run_is_lost(out: Path) -> None:
        finished.append(sum('"finished": true' in card.read_text() for card in
                            (out / "runs").rglob("model.json")))  # fmt: skip
        assert finished == sorted(finished)

    finished: list[int] = []
    kill_and_go_on(start, {"code": code}, tmp_path / "out", no_run_is_lost, seed=4)
    one, other = (xr.load_dataset(tmp_path / name / "sweep.nc") for name in ("out", "whole"))
    xr.testing.assert_identical(one.drop_attrs(), other.drop_attrs())


def test_a_robustness_run_keeps_completed_conditions(start: Start, tmp_path: Path) -> None:
    arguments = (
        f"robustness {DATA} --limit 20 --corruptions contrast,brightness --severities 5 "
        "--attacks fgsm --epsilons 1/255 --store OUT --overwrite -o OUT.nc"
    )
    known: dict[str, int] = {}

    def conditions_stay(out: Path) -> None:
        there = {path.name: path.stat().st_mtime_ns for path in out.glob("[a-z]*.nc")}
        assert known.items() <= there.items()
        known.update(there)

    kill_and_go_on(start, {"arguments": arguments}, tmp_path / "out", conditions_stay, seed=5)
    conditions_stay(tmp_path / "out")
    same(pk.open_result(tmp_path / "out.nc"), pk.open_result(tmp_path / "whole.nc"))


def test_a_report_is_complete_or_absent(start: Start, tmp_path: Path) -> None:
    data = pk.load_data("fashion-mnist", pk.load_model("probekit:resnet20-fashion-mnist"))
    result = pk.analyze("probekit:resnet20-fashion-mnist", data, limit=50, progress=False)
    pk.save_result(result, tmp_path / "r.nc")

    def whole_or_not_there(_: Path) -> None:
        page = tmp_path / "out.html"
        if page.exists():
            assert page.read_text().rstrip().endswith("</html>")

    job = {"arguments": "report r.nc -o OUT.html --overwrite"}
    kill_and_go_on(start, job, tmp_path / "out", whole_or_not_there, seed=6)
    whole_or_not_there(tmp_path)
