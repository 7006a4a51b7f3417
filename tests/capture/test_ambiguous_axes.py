"""Units, windows and samples on axes that shapes do not show."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hook_recording import X, conv, record
from probekit.capture.recorder import Recorder
from probekit.errors import LayerError


def test_units_last_maps_are_distinguished_from_units_first_maps() -> None:
    class ToLast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.permute(0, 2, 3, 1)

    net = nn.Sequential(conv(), ToLast(), nn.LayerNorm(6), nn.Linear(6, 5), nn.GELU())
    with Recorder(net, ["*"]) as recorder:
        net(X)
    assert [layer.unit_axis for layer in recorder.layers] == [1, 3, 3, 3, 3]
    assert [layer.units for layer in recorder.layers] == [6, 6, 6, 5, 5]
    torch.testing.assert_close(recorder.activations["1"], recorder.activations["0"])
    torch.testing.assert_close(recorder.activations["4"], net(X).mean((1, 2)).detach())


class Colliding(nn.Module):
    """Two layers of the same shape, with units first and then last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        last: Tensor = self.linear(self.relu(self.conv(x)).permute(0, 2, 3, 1))
        return last.flatten(1)


@pytest.mark.parametrize("size", [6, 8])
def test_ambiguous_shapes_are_resolved(size: int) -> None:
    net = Colliding()
    x = torch.rand(2, 3, size, size)
    expected = net.relu(net.conv(x)).mean((2, 3)).detach()
    torch.testing.assert_close(record(net, ["relu"], x)["relu"], expected)
    record(net, ["conv", "linear"])


class Windows(nn.Module):
    """Folds windows into the batch axis, grouped by sample or interleaved."""

    def __init__(self, together: bool) -> None:
        super().__init__()
        self.together = together
        self.linear = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        windows = x.unflatten(2, (2, 4)).unflatten(4, (2, 4)).permute(0, 2, 4, 3, 5, 1)
        windows = windows.flatten(3, 4).flatten(1, 2)
        if not self.together:
            windows = windows.transpose(0, 1)
        folded: Tensor = self.linear(windows.flatten(0, 1))
        return folded.unflatten(0, (-1, 4)).mean((1, 2))


@pytest.mark.parametrize("together", [True, False])
def test_windows_in_the_batch_axis_are_separated_by_sample(together: bool) -> None:
    net = Windows(together)
    with Recorder(net, ["linear"]) as recorder:
        net(X)
    assert recorder.layers[0].windows == 4
    expected = net.linear(X.permute(0, 2, 3, 1)).mean((1, 2))
    torch.testing.assert_close(recorder.activations["linear"], expected.detach())


def test_samples_may_be_on_another_axis() -> None:
    net = nn.Sequential(nn.Linear(3, 5))
    net.forward = lambda x: net[0](x.permute(2, 3, 0, 1).flatten(0, 1))  # type: ignore[method-assign]
    with torch.no_grad(), Recorder(net, ["0"]) as recorder:
        for samples in (4, 3):
            recorder(X[:samples])
            expected = net[0](X[:samples].movedim(1, -1)).mean((1, 2))
            torch.testing.assert_close(recorder.activations["0"], expected)


def test_fewer_rows_than_samples_are_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 5))
    net.forward = lambda x: net[0](x[:3].movedim(1, -1))  # type: ignore[method-assign]
    with Recorder(net, ["0"]) as recorder:
        recorder(X[:3])
        with pytest.raises(
            LayerError, match="'0' returned 3 rows for 4 samples, and 4 were expected"
        ):
            recorder(X)
