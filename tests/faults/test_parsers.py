"""Arbitrary text in place of a pattern, a schedule, a name or a list of numbers."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

import probekit as pk
from probekit.analysis.robustness.choices import choose_severities
from probekit.capture.calls import Call
from probekit.capture.selection import Selection
from probekit.cli.measure import _corruptions
from probekit.cli.options import names, numbers, radius
from probekit.data.images import LabeledImages
from probekit.errors import ProbekitError, plain
from probekit.metrics.metric import resolve
from probekit.perturbations.attacks.checks import check_epsilons

QUICK = settings(
    max_examples=75, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Mostly text that is valid somewhere, occasionally arbitrary text.
MEANINGFUL = st.text("abc019._-+*?![]()>/:, eE\\\n\0\x1b\udcff", max_size=12)
ANYTHING = MEANINGFUL | st.text(max_size=20) | st.sampled_from(["", "x" * 300, "../" * 2000])
NETWORK = nn.Sequential(
    nn.Conv2d(1, 2, 3), nn.ReLU(), nn.ModuleDict({"a_b": nn.ReLU(), "1": nn.ReLU()})
)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, so that no text is the name of an existing file by chance."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")


@QUICK
@given(st.lists(ANYTHING, max_size=3) | ANYTHING)
@example("[")
@example("[[a--b]*")
@example("!")
@example("")
@example("1_0")
@example("*" * 40 + "b")
def test_layer_patterns(patterns: list[str] | str) -> None:
    try:
        chosen = Selection(NETWORK, patterns)
    except ProbekitError:
        return
    assert isinstance(chosen.wants(Call("1", "1", "1", "1", 0, called=NETWORK[1]), True), bool)


SEGMENT = st.from_regex(
    r"[+-]?\d{1,3}(\.\d*)?(e[+-]?\d{1,4})?(>-?\d)?(\*\d{1,12})?", fullmatch=True
)


@QUICK
@given(ANYTHING | st.lists(SEGMENT, max_size=4).map(" ".join))
@example("1*" + "9" * 5000)
@example("1e999")
@example("1>2")
@example("0*0")
def test_schedules(text: str) -> None:
    try:
        schedule = pk.AlphaSchedule.parse(text)
    except ProbekitError:
        return
    assert pk.AlphaSchedule.parse(str(schedule)) == schedule
    assert all(math.isfinite(schedule.alpha(epoch)) for epoch in (0, 1, 10**6))


@QUICK
@given(ANYTHING)
@example("~")
@example("cifar10")
def test_data_by_name(nowhere: None, text: str) -> None:
    if os.path.isdir(text):
        return
    try:
        data = pk.load_data(text)
    except ProbekitError:
        return
    assert isinstance(data, LabeledImages)


@settings(QUICK, max_examples=60)
@given(st.sampled_from(["", "probekit:", "torchvision:", "hf-hub:"]), ANYTHING)
@example("", "resnet18.")
@example("", "resnet18.no_such_tag")
@example("", "local-dir:x")
@example("hf-hub:", "")
def test_models_by_name(nowhere: None, kind: str, text: str) -> None:
    if os.path.isdir(kind + text):
        return
    with pytest.raises(ProbekitError):
        pk.load_model(kind + text, weights="no such file", pretrained=False)


@QUICK
@given(ANYTHING)
@example("1/0")
@example("nan,inf,-1")
@example("1/255,")
@example("9" * 5000)
def test_epsilons(text: str) -> None:
    try:
        radii = check_epsilons(numbers("--epsilons", text, radius), "linf", 784)
    except ProbekitError:
        return
    assert radii
    assert all(0 <= radius <= 1 for radius in radii)


@QUICK
@given(ANYTHING | st.lists(st.integers(-1, 7)).map(lambda some: ",".join(map(str, some))))
@example("1,2,2")
@example("1.0")
def test_severities(text: str) -> None:
    try:
        severities = choose_severities(numbers("--severities", text, int))
    except ProbekitError:
        return
    assert set(severities) <= {1, 2, 3, 4, 5}
    assert list(severities) == sorted(set(severities))


@QUICK
@given(ANYTHING)
def test_names_of_corruptions_and_metrics(nowhere: None, text: str) -> None:
    for read in (_corruptions, lambda one: resolve(names(one) or [])):
        with contextlib.suppress(ProbekitError):
            read(text)


@QUICK
@given(st.text())
def test_terminal_messages_are_one_line_without_control_characters(text: str) -> None:
    shown = plain(text)
    assert shown.isprintable()
    assert plain(shown) == shown
