"""Jobs run here or on a cluster, with the same results."""

from __future__ import annotations

import logging
import os
import time

import pytest

from probekit.errors import OptionError, ProbekitError
from probekit.results.jobs import open_cluster, run_jobs


def halved(number: int) -> str:
    if number == 7:
        raise RuntimeError("no luck\nat all")
    if number == 9:
        raise OptionError("nine is not valid")
    return "" if number % 2 == 0 else f"{number} is odd"


TASKS = {"two": (2,), "three": (3,), "four": (4,)}
ENDED = {"two": "", "three": "3 is odd", "four": ""}


def test_jobs_run_in_this_process_in_order() -> None:
    assert open_cluster(1, None, "a test") is None
    assert list(run_jobs(halved, TASKS)) == list(ENDED.items())


def test_jobs_on_a_cluster_give_the_same_and_report_their_errors() -> None:
    from distributed import Client

    with Client(processes=False, n_workers=1, dashboard_address=None) as client:
        found = dict(run_jobs(halved, TASKS | {"seven": (7,)}, open_cluster(1, client, "a test")))
        assert found == ENDED | {"seven": "RuntimeError: no luck"}
        with pytest.raises(OptionError, match="nine is not valid"):
            list(run_jobs(halved, {"nine": (9,)}, open_cluster(1, client, "a test"), retries=0))
        assert client.status == "running"


def late(seconds: float) -> str:
    time.sleep(seconds)
    return ""


def test_a_lost_scheduler_ends_the_jobs_in_one_sentence(caplog: pytest.LogCaptureFixture) -> None:
    from distributed import LocalCluster

    with LocalCluster(processes=False, n_workers=1, dashboard_address=None) as cluster:
        there = open_cluster(1, cluster.scheduler_address, "a test")
        ended = run_jobs(late, {"now": (0.0,), "never": (3.0,)}, there)
        assert next(ended) == ("now", "")
        caplog.clear()
        cluster.close()
        with pytest.raises(ProbekitError, match="scheduler was lost, or it canceled the work"):
            next(ended)
    logger = logging.getLogger("distributed.client")
    assert not [one for one in caplog.records if one.name == logger.name]
    assert logger.level != logging.CRITICAL


def test_a_cluster_under_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="a test must be started as one process"):
        open_cluster(1, None, "a test")
