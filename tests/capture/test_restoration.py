"""The recorder restores the model after any failure."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fragile_network import Fragile, X, assert_same, snapshot
from probekit.capture.recorder import Recorder
from probekit.errors import LayerError

Failure = Callable[[Fragile, int], None]


def bad_name(net: Fragile, passes: int) -> None:
    Recorder(net, ["body.0", "body.9"]).__enter__()


def bad_glob(net: Fragile, passes: int) -> None:
    Recorder(net, ["body.0", "tail.*"]).__enter__()


def bad_type(net: Fragile, passes: int) -> None:
    Recorder(net, nn.GELU).__enter__()


def model_raises(net: Fragile, passes: int, at: int = 0, error: Any = RuntimeError) -> None:
    with Recorder(net, ["body.0", "body.4"]) as recorder:
        for _ in range(passes):
            recorder(X)
        net.bad_at, net.error = at, error("broken")
        try:
            recorder(X)
        finally:
            net.bad_at, net.error = None, RuntimeError("broken")


def reading_raises(net: Fragile, passes: int) -> None:
    calls = []

    def read(maps: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > passes:
            raise ValueError("broken")
        return maps.mean((2, 3))

    with Recorder(net, ["body.2"], spatial=read) as recorder:
        for _ in range(passes + 1):
            recorder(X)


def predicate_raises(net: Fragile, passes: int) -> None:
    def wanted(name: str, module: nn.Module) -> bool:
        raise ValueError("broken")

    Recorder(net, wanted).__enter__()


def loop_raises(net: Fragile, passes: int, error: Any = ValueError) -> None:
    with Recorder(net) as recorder:
        for _ in range(passes):
            recorder(X)
        raise error("broken")


def never_fired(net: Fragile, passes: int) -> None:
    with Recorder(net, ["body.0"]) as other:
        for _ in range(passes):
            other(X)
        with Recorder(net, ["unused"]) as recorder:
            recorder(X)


def wrong_output(net: Fragile, passes: int) -> None:
    with Recorder(net, ["body.0"]) as recorder:
        for _ in range(passes):
            recorder(X)
        recorder(X[:, :, :2])


def entered_twice(net: Fragile, passes: int) -> None:
    with Recorder(net) as recorder:
        for _ in range(passes):
            recorder(X)
        with recorder:
            pass


def foreign_layers(net: Fragile, passes: int) -> None:
    other = nn.Sequential(nn.Linear(3, 2))
    with Recorder(other, ["0"]) as recorder:
        other(torch.rand(2, 3))
    Recorder(net, recorder.layers).__enter__()


FAILURES: dict[str, tuple[Failure, type[BaseException]]] = {
    "bad name": (bad_name, LayerError),
    "bad glob": (bad_glob, LayerError),
    "bad type": (bad_type, LayerError),
    "reading raises": (reading_raises, ValueError),
    "predicate raises": (predicate_raises, ValueError),
    "loop raises": (loop_raises, ValueError),
    "interrupt in the loop": (lambda n, p: loop_raises(n, p, KeyboardInterrupt), KeyboardInterrupt),
    "exit in the loop": (lambda n, p: loop_raises(n, p, SystemExit), SystemExit),
    "never fired": (never_fired, LayerError),
    "wrong input": (wrong_output, RuntimeError),
    "entered twice": (entered_twice, LayerError),
    "layers of another model": (foreign_layers, LayerError),
    **{
        f"model raises at {at}": (lambda n, p, at=at: model_raises(n, p, at), RuntimeError)
        for at in range(5)
    },
    **{
        f"interrupt in the model at {at}": (
            lambda n, p, at=at: model_raises(n, p, at, KeyboardInterrupt),
            KeyboardInterrupt,
        )
        for at in (0, 3)
    },
}


@pytest.mark.parametrize("evaluating", [False, True])
@pytest.mark.parametrize("passes", [0, 1], ids=["first pass", "second pass"])
@pytest.mark.parametrize("failure", FAILURES)
def test_the_model_is_restored_after_a_failure(failure: str, passes: int, evaluating: bool) -> None:
    net = Fragile()
    if evaluating:
        net.eval()
    act, error = FAILURES[failure]
    attributes = snapshot(net)
    with torch.no_grad(), pytest.raises(error):
        act(net, passes)
    assert_same(attributes, snapshot(net))


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("passes", [0, 1])
def test_a_pass_after_a_failed_one_records_correctly(at: int, passes: int) -> None:
    net = Fragile().eval()
    with Recorder(net, ["*"]) as recorder:
        recorder(X)
        expected = recorder.activations
    with Recorder(net, ["*"]) as recorder:
        for _ in range(passes):
            recorder(X)
        net.bad_at = at
        with pytest.raises(RuntimeError, match="broken"):
            recorder(X)
        net.bad_at = None
        recorder(X)
        found = recorder.activations
    assert list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_recording_changes_only_what_a_training_pass_changes() -> None:
    net = Fragile()
    before = snapshot(net)
    with Recorder(net) as recorder:
        recorder(X)
        recorder(X)
    assert_same(before, snapshot(net))


def test_hooks_of_other_code_remain() -> None:
    net = Fragile()
    seen: list[int] = []
    net.body[2].register_forward_hook(lambda module, args, output: seen.append(1))
    with Recorder(net) as recorder:
        recorder(X)
    net(X)
    assert len(seen) == 2


def test_copies_and_pickles_made_while_recording_have_inactive_hooks() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    with Recorder(net, ["0"]) as recorder:
        net(torch.rand(4, 3))
        mine = recorder.activations["0"]
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            other(torch.rand(4, 3))
        assert recorder.activations["0"] is mine
