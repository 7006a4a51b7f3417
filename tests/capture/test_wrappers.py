"""Models that are compiled, distributed, scripted or checkpointed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hook_recording import X, conv, hooks, record
from probekit.capture.recorder import Recorder
from probekit.errors import LayerError, ModelError, ProbekitWarning


def test_a_compiled_model_is_recorded_through_its_original() -> None:
    net = nn.Sequential(conv(), nn.ReLU(inplace=True), nn.Flatten())
    compiled = torch.compile(net, backend="eager")
    expected = compiled(X)
    with Recorder(compiled, ["0", "1"]) as recorder:
        torch.testing.assert_close(recorder(X), expected)
        assert list(recorder.activations) == ["0", "1"]
        torch.testing.assert_close(recorder.activations["0"], net[0](X).mean((2, 3)))
    assert hooks(net) == 0
    torch.testing.assert_close(compiled(X), expected)


@pytest.mark.parametrize("warm", [False, True])
def test_the_compiled_copy_gives_the_record_or_an_error(warm: bool) -> None:
    net = nn.Sequential(conv(), nn.ReLU(), nn.Flatten())
    compiled = torch.compile(net, backend="eager")
    if warm:
        compiled(X)
    with Recorder(compiled, ["1"]) as recorder:
        compiled(X)
        if warm:
            with pytest.raises(LayerError, match=r"its compiled copy\), or recorder\(x\)"):
                _ = recorder.activations
        else:
            assert recorder.activations["1"].shape == (4, 6)
    kept = recorder._activations
    compiled(2 * X)
    assert recorder._activations is kept
    torch._dynamo.reset()


def test_a_compiled_part_of_a_model_is_recorded_too() -> None:
    net = nn.Sequential(torch.compile(nn.Sequential(conv(), nn.ReLU()), backend="eager"))
    net(X)
    with Recorder(net, [nn.ReLU]) as recorder:
        recorder(X)
        (name,) = recorder.activations
    assert name.endswith("1")


def test_a_model_compiled_in_place_is_recorded_too() -> None:
    net = nn.Sequential(conv(), nn.ReLU(), nn.Flatten())
    net.compile(backend="eager")
    expected = net(X)
    with Recorder(net, ["1"]) as recorder:
        torch.testing.assert_close(recorder(X), expected)
        assert recorder.activations["1"].shape == (4, 6)


def test_a_pass_that_bypasses_the_hooks_is_reported() -> None:
    net = nn.Sequential(conv(), nn.ReLU(), nn.Flatten())
    with Recorder(net, ["1"]) as recorder:
        net.forward(X)
        with pytest.raises(LayerError, match="the module itself was not called"):
            _ = recorder.activations


@pytest.fixture
def process_group(tmp_path: Any) -> Any:
    from torch import distributed

    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


def test_a_distributed_model_is_recorded_through_its_original(process_group: Any) -> None:
    net = nn.Sequential(conv(), nn.ReLU(inplace=True), nn.Flatten())
    wrapped = nn.parallel.DistributedDataParallel(net)
    with Recorder(wrapped, ["0"], grad=True) as recorder:
        wrapped(X)
        torch.testing.assert_close(recorder.activations["0"], net[0](X).mean((2, 3)))
    assert hooks(net) == 0
    assert list(record(wrapped)) == ["1"]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.DataParallel(nn.ReLU()), "the model is wrapped in nn.DataParallel"),
        (nn.Sequential(nn.DataParallel(nn.ReLU())), "part '0' is wrapped in nn.DataParallel"),
    ],
)
def test_data_parallel_is_refused_with_a_fix(net: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=f"{message}.*DistributedDataParallel"):
        Recorder(net, ["0"])


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_torch_script_is_refused_with_a_fix() -> None:
    net = nn.Sequential(conv(), nn.ReLU())
    scripted = torch.jit.trace(net.eval(), X)
    with pytest.raises(ModelError, match=r"TorchScript.* pass the model that it was created from"):
        Recorder(scripted)


class Mapped(nn.Module):
    """Runs a part of the model under `torch.vmap`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = conv(), nn.ReLU()
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x)).mean((2, 3))
        return self.head(torch.vmap(self.inner)(x))


def test_layers_under_vmap_are_left_out_with_a_note() -> None:
    net = Mapped().eval()
    with (
        pytest.warns(ProbekitWarning, match=r"not recorded: inner\.1.* inside torch\.func"),
        Recorder(net) as recorder,
    ):
        net(X)
    assert list(recorder.activations) == ["act"]
    torch.testing.assert_close(recorder.activations["act"], net.conv(X).relu().mean((2, 3)))
    with (
        pytest.raises(LayerError, match=r"runs inside torch\.func or torch\.vmap"),
        Recorder(net, ["inner.1"]),
    ):
        net(X)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.body = nn.Sequential(conv(), nn.ReLU(inplace=True), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(6 * 64, 2), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(self.body, x, use_reentrant=self.reentrant)
        result: Tensor = self.head(hidden)
        return result


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_layer_is_recorded_once_per_call(reentrant: bool) -> None:
    net = Checkpointed(reentrant)
    readings: list[int] = []

    def read(maps: Tensor) -> Tensor:
        readings.append(1)
        return maps.flatten(2).mean(2)

    with Recorder(net, ["body.0", "body.1"], spatial=read) as recorder:
        for _ in range(2):
            x = X.clone().requires_grad_()
            net(x).sum().backward()
            assert list(recorder.activations) == ["body.0", "body.1"]
    assert len(readings) == 4


def test_a_non_reentrant_checkpointed_layer_gives_gradients() -> None:
    net = Checkpointed(False)
    x = X.clone().requires_grad_()
    with Recorder(net, ["body.1"], grad=True) as recorder:
        net(x)
        (gradient,) = torch.autograd.grad(recorder.activations["body.1"].sum(), x)
    (expected,) = torch.autograd.grad(net.body[:2](x).mean((2, 3)).sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_gradients_of_a_reentrant_checkpoint_are_refused() -> None:
    net = Checkpointed(True)
    with (
        Recorder(net, ["body.1"], grad=True),
        pytest.raises(LayerError, match=r"'body.1' runs without gradients.*use_reentrant=False"),
    ):
        net(X.clone().requires_grad_())
