"""The benchmark command: its measurements are stored, shown, and rendered as a page."""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def reachable() -> Iterator[None]:
    """Makes the benchmark scripts importable, and removes them from `sys.modules` afterwards."""
    before = set(sys.modules)
    threads = torch.get_num_threads()
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))
    torch.set_num_threads(threads)
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def harness(name: str) -> Any:
    return importlib.import_module(f"harness.{name}")


def every_question() -> Any:
    """All questions of the benchmark command."""
    spec = importlib.util.spec_from_file_location("benchmarks_main", FOLDER / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.QUESTIONS


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Runs two cheap questions at the smallest sizes."""
    folder = tmp_path_factory.mktemp("benchmarks")
    results, page = folder / "results.json", folder / "page.md"
    covariance, attacks = (importlib.import_module(name) for name in ("covariance", "attacks"))
    status = harness("command").main(
        [covariance.QUESTION, attacks.QUESTION],
        arguments=["covariance", "attacks/small*FGSM*", "--quick", "--threads", "1",
                   "--results", str(results), "--page", str(page)],
    )  # fmt: skip
    assert status == 0
    return results, page


def test_rows_are_stored_with_the_facts_of_their_run(asked: tuple[Path, Path]) -> None:
    stored = json.loads(asked[0].read_text())
    rows = stored["rows"]
    assert [row["question"] for row in rows] == ["covariance"] * 6 + ["attacks"] * 6
    for row in rows:
        facts = stored["runs"][row["run"]]
        assert (facts["quick"], facts["threads"], facts["device"]) == (True, 1, "cpu")
        assert facts["versions"]["torch"] == torch.__version__
        low, middle, high = row["ratio"] or (0, 0, 0)
        assert bool(row["ratio"]) != bool(row["missing"])
        assert 0 <= low <= middle <= high
    assert {row["bound"] for row in rows if row["question"] == "attacks"} == {1.25}


def test_the_page_has_one_line_per_row_and_no_host_name(asked: tuple[Path, Path]) -> None:
    import platform

    rows, text = json.loads(asked[0].read_text())["rows"], asked[1].read_text()
    lines = text.splitlines()
    for row in rows:
        start = f"| {row['case']} | {row['ours']} | {row['other']} |"
        assert sum(line.startswith(start) for line in lines) == 1, start
    titles = [line for line in lines if line.startswith("## ")]
    assert len(titles) == 3
    assert titles[-1] == "## Machine and versions"
    assert "too small for conclusions" in text
    assert f"| torch | {torch.__version__} |" in text
    if len(platform.node()) > 3:
        assert platform.node() not in text


def test_every_script_with_a_question_is_part_of_the_command() -> None:
    known = {question.name: question for question in every_question()}
    scripts = {path.stem for path in FOLDER.glob("*.py") if "QUESTION =" in path.read_text()}
    assert set(known) == scripts - {"__main__"}
    setting = harness("timing").Setting(quick=True)
    for name, question in known.items():
        cases = [case.name for case in question.cases(setting)]
        assert cases, name
        assert len(set(cases)) == len(cases), name


def test_headlines_are_known_cases() -> None:
    from_module = importlib.import_module("headlines")
    setting = harness("timing").Setting()
    known = {(one.name, case.name) for one in every_question() for case in one.cases(setting)}
    assert {key[:2] for key in from_module.HEADLINES.values()} <= known
    key = next(iter(from_module.HEADLINES.values()))
    fields = dict(zip(("question", "case", "ours", "other"), key, strict=True))
    assert [found.case for _, found in from_module.headlines([row(**fields), row()])] == [key[1]]


def row(**given: Any) -> Any:
    kinds = {"ours": "a", "other": "b", "form": "cost", "question": "q", "case": "c"}
    return harness("row").Row(**kinds | given)


@pytest.mark.parametrize(
    ("form", "spread", "bound", "verdict"),
    [
        ("cost", (1.0, 1.02, 1.04), 1.05, "met"),
        ("cost", (1.0, 1.02, 1.06), 1.05, "within noise"),
        ("cost", (1.04, 1.06, 1.08), 1.05, "within noise"),
        ("cost", (1.06, 1.07, 1.08), 1.05, "not met"),
        ("cost", (1.05, 1.05, 1.05), 1.05, "met"),
        ("gain", (11.0, 12.0, 13.0), 10, "met"),
        ("gain", (7.0, 8.0, 9.0), 10, "not met"),
        ("gain", (9.0, 12.0, 13.0), 10, "within noise"),
        ("gain", (9.0, 12.0, 13.0), None, ""),
        ("gain", None, 10, "not measured"),
    ],
)
def test_a_bound_is_met_or_not_met_or_within_noise(
    form: str, spread: Any, bound: float | None, verdict: str
) -> None:
    spread = spread and harness("timing").Spread(*spread)
    assert row(form=form, ratio=spread, bound=bound).verdict == verdict


def test_contenders_alternate_and_each_starts_a_round() -> None:
    timing = harness("timing")
    turns: list[str] = []
    now = 0.0

    def takes(name: str, seconds: float) -> Any:
        def run() -> None:
            nonlocal now
            now += seconds
            turns.append(name)

        return run

    contenders = {
        "one": timing.always(takes("one", 1.0)),
        "two": timing.always(takes("two", 4.0), per=2),
        "none": harness("timing").Missing("it is not installed"),
    }
    rounds = {"least": 4, "most": 4, "seconds": 0.0, "shortest": 0.001}
    times = timing.take_turns(contenders, lambda: now, **rounds)
    assert turns[-8:] == ["one", "two", "two", "one", "one", "two", "two", "one"]
    assert times.median("two") == 2.0
    assert times.ratio("two", "one") == (2.0, 2.0, 2.0)
    assert times.plus("one", 1.0).ratio("two", "one").middle == 1.0

    rows = list(
        harness("row").versus(
            times, "one", {"two": harness("row").gain(2), "none": harness("row").cost(1)}
        )
    )
    assert (rows[0].ratio.middle, rows[0].verdict) == (2.0, "met")
    assert (rows[1].ratio, rows[1].missing) == (None, "it is not installed")


def test_short_calls_are_repeated_within_a_turn() -> None:
    timing = harness("timing")
    now, calls = 0.0, 0

    def run() -> None:
        nonlocal now, calls
        now, calls = now + 0.001, calls + 1

    rounds = {"least": 3, "most": 3, "seconds": 0.0, "shortest": 0.01}
    times = timing.take_turns({"one": timing.always(run)}, lambda: now, **rounds)
    assert calls in range(3 * 10, 3 * 11 + 3)
    assert times.median("one") == pytest.approx(0.001)


def test_a_missing_peer_gives_a_reason() -> None:
    peers = harness("timing")
    assert "no_such_library" in peers.peer("no_such_library", lambda library: 1).reason
    assert peers.peer("json", lambda library: library.loads("3")) == 3


def test_a_newer_case_replaces_the_old_one(tmp_path: Path) -> None:
    stored = harness("results").Results(tmp_path / "results.json")
    ratio = harness("timing").Spread(1.0, 1.0, 1.0)
    for case, run in (("c", "1"), ("d", "1"), ("c", "2")):
        stored.add(run, {"commit": f"at {run}"}, [row(case=case, ratio=ratio, other=run)])
    again = harness("results").Results(tmp_path / "results.json")
    assert again.rows == stored.rows
    assert [(one.case, one.other, one.run) for one in again.rows] == [
        ("c", "2", "2"),
        ("d", "1", "1"),
    ]
    again.drop_others("q", {"c"})
    assert [one.case for one in again.rows] == ["c"]
    assert set(json.loads((tmp_path / "results.json").read_text())["runs"]) == {"2"}


def test_a_failing_case_does_not_remove_rows_of_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question, timing = harness("row"), harness("timing")

    def fails() -> Iterator[Any]:
        raise RuntimeError("no such luck")

    def works() -> Iterator[Any]:
        yield row(ratio=timing.Spread(1.0, 1.0, 1.0))

    def stops() -> Iterator[Any]:
        raise KeyboardInterrupt

    def ask(*cases: Any) -> int:
        asked = question.Question("q", "Why?", "So.", lambda setting: iter(cases))
        path = str(tmp_path / "results.json")
        return int(harness("command").main([asked], arguments=["--quick", "--results", path]))

    failing, working = question.Case("broken", fails), question.Case("fine", works)
    assert ask(failing, working) == 1
    assert "no such luck" in capsys.readouterr().err
    assert ask(working, question.Case("stopped", stops)) == 130
    stored = json.loads((tmp_path / "results.json").read_text())
    assert [one["case"] for one in stored["rows"]] == ["fine"]


def test_an_unknown_question_ends_the_command() -> None:
    covariance = importlib.import_module("covariance")
    with pytest.raises(SystemExit) as ended:
        harness("command").main([covariance.QUESTION], arguments=["covarianse"])
    assert ended.value.code == 2


def test_a_row_has_its_ratio_quartiles_verdict_and_note_on_the_page() -> None:
    timing, question = harness("timing"), harness("row")
    stored = harness("results").Results(None)
    facts = {"quick": False, "date": "today", "commit": "c", "processor": "p", "instructions": "i",
             "cores": 2, "threads": 2, "memory_gib": None, "gpu": "none", "system": "s",
             "clock": "wall", "device": "cuda", "versions": {}}  # fmt: skip
    ask = question.Question("q", "Why?", "So.", lambda setting: iter(()))
    ratio = timing.Spread(1.0, 1.1, 1.2)
    stored.add("1", facts, [row(ratio=ratio, rounds=5, bound=1.05, note="It hums.")])
    page = harness("results").render([ask], stored)
    assert "| c | a | b | - | 1.100 (1.000 to 1.200), within noise | at most 1.05 |\n" in page
    assert "Of 1 bounds, 0 are met, 1 are within noise" in " ".join(page.split())
    assert "\n- It hums.\n" in page
    assert "Measured on the GPU, today" in page


def test_a_remark_common_to_all_cases_appears_once() -> None:
    page = harness("results")
    rows = [row(case=case, missing="no peer") for case in "cd"]
    assert page.remarks(rows) == [("", "no peer")]
    rows.append(row(case="e", note="fast"))
    assert page.remarks(rows) == [
        ("c; d", "no peer"),
        ("e", "fast"),
    ]


def test_the_documentation_page_matches_the_stored_results() -> None:
    stored = FOLDER / "results.json"
    questions = every_question()
    text = harness("results").render(questions, harness("results").Results(stored))
    assert (ROOT / "docs" / "benchmarks.md").read_text() == text, "run python benchmarks --render"


@pytest.mark.slow
def test_the_gpu_script_runs_in_its_small_form_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gpu.json"
    steps = ["--steps", "many_images", "gradients", "memory_message"]
    arguments = ["--small", "--device", "cpu", "--out", str(out), *steps]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    with warnings.catch_warnings():
        assert importlib.import_module("gpu").main() == 0
    found = json.loads(out.read_text())
    assert [row["images"] for row in found["many_images"]["rows"]] == [16, 32]
    assert found["gradients"]["rows"][0]["seconds"]["bare"] > 0
    assert found["memory_message"]["rows"] == []
