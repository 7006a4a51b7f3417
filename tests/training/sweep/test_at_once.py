from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import probekit as pk
from probekit.errors import OptionError
from probekit.training.run.recipes import Recipe, get_recipe
from probekit.training.sweep import sweep as sweeping
from probekit.training.sweep.sweep import runs_at_once

LONG = get_recipe("resnet20-digits", epochs=100_000, limit=1000)


def timed(monkeypatch: pytest.MonkeyPatch, seconds: dict[tuple[int, int], float]) -> None:
    """Replaces the times of a step by the given ones, by number of networks and threads."""

    def known(recipe: Recipe, several: int, threads: int) -> float:
        return seconds[several, threads]

    monkeypatch.setattr(sweeping, "_seconds", known)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)


@pytest.mark.parametrize(("together", "best"), [(3.9, 4), (4.1, 1)])
def test_the_faster_way_is_chosen(
    monkeypatch: pytest.MonkeyPatch, together: float, best: int
) -> None:
    timed(monkeypatch, {(1, 4): 1.0, (4, 1): together})
    assert runs_at_once(LONG, 10, "cpu", None, 0) == best


def test_fewer_runs_than_cores_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, {(1, 4): 1.0, (2, 2): 1.5})
    assert runs_at_once(LONG, 2, "cpu", None, 0) == 2


def test_a_short_sweep_stays_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1437 images without 180 for validation are 19.6 batches of 64: 118 s for 6 runs, 137 s for 7.
    timed(monkeypatch, {(1, 4): 1.0, (4, 1): 1.0})
    recipe = get_recipe("resnet20-digits", epochs=1)
    assert runs_at_once(recipe, 6, "cpu", None, 0) == 1
    assert runs_at_once(recipe, 7, "cpu", None, 0) == 4


def test_runs_on_other_devices_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, {})
    assert runs_at_once(LONG, 10, "meta", None, 0) == 1


def test_without_distributed_runs_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, {})
    monkeypatch.setattr(sweeping, "find_spec", lambda name: None)
    assert runs_at_once(LONG, 10, "cpu", None, 0) == 1


def test_a_step_is_timed_without_side_effects() -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    assert sweeping._seconds(get_recipe("resnet20-digits", batch_size=4), 2, 1) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_a_sweep_trains_as_many_runs_at_once_as_are_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeping: Any = sys.modules["probekit.training.sweep.sweep"]
    asked = []

    def two(recipe: Recipe, runs: int, *rest: Any) -> int:
        asked.append(runs)
        return 0  # refused by the sweep, which shows that it is used

    monkeypatch.setattr(sweeping, "runs_at_once", two)
    with pytest.raises(OptionError, match="jobs must be a positive integer, not 0"):
        pk.sweep("resnet20-digits", [0.0, 1.0], [0, 1], tmp_path / "s", jobs="auto", device="cpu")
    assert asked == [4]
    assert not (tmp_path / "s").exists()
