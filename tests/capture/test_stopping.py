"""Passes that stop after the last requested layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import probekit as pk
from hook_recording import X, conv, hooks
from probekit.capture.recorder import Recorder


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


@pytest.mark.parametrize("planned", [False, True])
def test_stop_ends_the_pass_at_the_last_requested_layer(planned: bool) -> None:
    net = nn.Sequential(conv(), nn.ReLU(), Counting(), nn.Flatten())
    layers: Any = ["0", "1"]
    if planned:
        with Recorder(net, layers) as recorder:
            net(X)
        layers = recorder.layers
        net[2].calls = 0
    with Recorder(net, layers, stop=True) as recorder:
        for _ in range(2):
            assert recorder(X) is None
            assert list(recorder.activations) == ["0", "1"]
        assert net[2].calls == 0
        net(X)
        pytest.fail("module(x) leaves the block")  # pragma: no cover
    assert net[2].calls == 0
    assert recorder.activations["1"].shape == (4, 6)
    assert hooks(net) == 0


def test_stop_with_a_pattern_ends_passes_after_the_first() -> None:
    net = nn.Sequential(conv(), nn.ReLU(), Counting(), nn.Flatten())
    with Recorder(net, [nn.ReLU], stop=True) as recorder:
        assert recorder(X) is not None
        assert recorder(X) is None
    assert net[2].calls == 1


def test_stop_propagates_other_exceptions() -> None:
    net = nn.Sequential(conv(), nn.ReLU())
    with pytest.raises(RuntimeError), Recorder(net, ["1"], stop=True) as recorder:
        recorder(torch.rand(4, 9))
    assert hooks(net) == 0


def test_a_pass_is_stopped_by_its_own_recorder_only() -> None:
    net = nn.Sequential(conv(), nn.ReLU(), Counting(), nn.Flatten())
    finished = False
    with Recorder(net, ["0"], stop=True), Recorder(net, ["2"]) as whole:
        net(X)
        finished = True
    assert not finished
    with Recorder(net, ["0"], stop=True), Recorder(net, ["2"]) as whole:
        whole(X)
        finished = True
    assert not finished


@pytest.mark.filterwarnings("ignore::probekit.errors.ProbekitWarning")
def test_gradients_of_a_model_with_hooks_do_not_end_the_analysis() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
    net[0].register_forward_hook(lambda module, args, output: 2 * output)
    images, labels = torch.rand(2100, 3, 8, 8), torch.arange(2100) % 2
    metrics = ["selectivity", pk.GradientVariability(method="exact", samples=1051)]
    result = pk.analyze(
        net, (images, labels), "1", metrics=metrics, batch_size=1050, progress=False
    )
    assert result["samples"].sizes["sample"] == 2100
    with torch.no_grad():
        values = torch.relu(2 * net[0].forward(images)).mean((2, 3)).double()
    means = torch.stack([values[labels == label].mean(0) for label in (0, 1)], 1)
    np.testing.assert_allclose(result["units"]["class_mean"].values, means, rtol=1e-5)
