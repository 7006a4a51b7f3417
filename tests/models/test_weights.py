"""Weights that are not plain tensors in memory: correct values, or a one-sentence error."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import probekit as pk
from probekit.errors import DataError, LayerError, ModelError
from probekit.models.identity import model_identity
from probekit.models.image_model import content_hash, device_of

pytestmark = pytest.mark.filterwarnings("ignore")

X = torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 2
EXACT = pk.GradientVariability("exact", units=1)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 8),
        nn.ReLU(),
        nn.Linear(8, 2),
    )
    return nn.Sequential(*layers).eval()


def by_hand(net: nn.Module, layer: str, x: Tensor = X) -> Tensor:
    """The output that a plain hook records."""
    seen: list[Tensor] = []
    handle = net.get_submodule(layer).register_forward_hook(
        lambda module, args, output: seen.append(output.clone())
    )
    with torch.no_grad():
        net(x)
    handle.remove()
    return seen[0].flatten(2).mean(2) if seen[0].ndim > 2 else seen[0]


def check(net: nn.Module, layers: list[str], x: Tensor = X) -> None:
    recorded = pk.record(net, (x, Y), progress=False)
    for layer in layers:
        columns = recorded["activation"].values[:, recorded["layer"].values == layer]
        torch.testing.assert_close(
            torch.from_numpy(columns).float(), by_hand(net, layer, x).float()
        )
    result = pk.analyze(net, (x, Y), progress=False)
    pk.ablate(
        net, (x, Y), result["units"]["selectivity"], fractions=(0, 1), random=0, progress=False
    )


def offload(net: nn.Module, by: str) -> nn.Module:
    """Weights that have values only while their module runs, by hooks or by an instance's `forward`."""
    for child in net:
        stored = {name: tensor.data for name, tensor in child.named_parameters()}

        def load(*given: Any, child: nn.Module = child, stored: Any = stored) -> None:
            for name, tensor in stored.items():
                child._parameters[name] = nn.Parameter(tensor, requires_grad=False)

        def unload(*given: Any, child: nn.Module = child, stored: Any = stored) -> None:
            for name, tensor in stored.items():
                child._parameters[name] = nn.Parameter(tensor.to("meta"), requires_grad=False)

        if by == "hooks":
            child.register_forward_pre_hook(load)
            child.register_forward_hook(unload)
        else:

            def forward(
                x: Tensor, usual: Any = child.forward, load: Any = load, unload: Any = unload
            ):
                load()
                try:
                    return usual(x)
                finally:
                    unload()

            child.forward = forward
        unload()
    return net


@pytest.mark.parametrize("by", ["hooks", "forward"])
def test_offloaded_weights_give_correct_values(by: str) -> None:
    expected = by_hand(network(), "1"), by_hand(network(), "4")
    net = offload(network(), by)
    assert device_of(net) == torch.device("cpu")
    check(net, ["1", "4"])
    torch.testing.assert_close((by_hand(net, "1"), by_hand(net, "4")), expected)
    found = pk.analyze(net, (X, Y), metrics=[EXACT], progress=False)["units"]["gradient_norm_mean"]
    plain = pk.analyze(network(), (X, Y), metrics=[EXACT], progress=False)["units"]
    torch.testing.assert_close(
        torch.from_numpy(found.values),
        torch.from_numpy(plain["gradient_norm_mean"].values),
        equal_nan=True,
    )
    assert all(one.is_meta for one in net.parameters())


@pytest.mark.parametrize("disk", [False, True])
def test_weights_offloaded_by_accelerate_are_recorded_and_identify_the_model(
    disk: bool, tmp_path: Path
) -> None:
    accelerate = pytest.importorskip("accelerate")
    found = []
    for scale in (1, 1, 2):
        net = network()
        with torch.no_grad():
            net[0].weight *= scale
        expected = by_hand(net, "1")
        if disk:
            folder = tmp_path / str(len(found))
            accelerate.disk_offload(net, folder, execution_device=torch.device("cpu"))
        else:
            accelerate.cpu_offload(net, execution_device=torch.device("cpu"))
        recording = pk.record(net, (X, Y), "1", progress=False)
        np.testing.assert_allclose(recording["activation"].values, expected, rtol=1e-5, atol=1e-6)
        found.append(model_identity(net))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("whole", [True, False])
def test_weights_that_never_have_values_are_refused(whole: bool) -> None:
    net = network()
    net = net.to("meta") if whole else net
    net[5] = nn.Linear(8, 2, device="meta")
    with pytest.raises(ModelError, match="has no values"):
        pk.analyze(net, (X, Y))
    with pytest.raises(ModelError, match="has no values"), pk.Recorder(net):
        net(X)


def test_lazy_modules_are_refused_before_their_first_pass() -> None:
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(ModelError, match="call the model on a batch once"):
        pk.analyze(net, (X, Y))
    with pytest.raises(ModelError, match="call the model on a batch once"), pk.Recorder(net):
        net(X)
    net(X)
    check(net, ["1"])


class Sparse(nn.Module):
    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(5, 108).relu().to_sparse(layout=layout))
        self.act, self.head = nn.ReLU(), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act((self.weight @ x.flatten(1).T).T))


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_weights_give_correct_values(layout: torch.layout) -> None:
    net = Sparse(layout)
    check(net, ["act"])
    dense = net.weight.detach().to_dense()
    active = (X.flatten(1) @ dense.T > 0).double()
    norms = active * dense.double().norm(dim=1)
    units = pk.analyze(net, (X, Y), metrics=[pk.GradientVariability("exact")], progress=False)[
        "units"
    ]
    found = torch.from_numpy(units["gradient_norm_mean"].values)
    torch.testing.assert_close(found, norms.mean(0), rtol=1e-5, atol=1e-6)
    other = Sparse(layout)
    assert content_hash(other) == content_hash(net)
    other.weight = nn.Parameter((2 * dense).to_sparse(layout=layout))
    assert content_hash(other) != content_hash(net)


class SparseOut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to_sparse()


def test_a_sparse_output_is_refused() -> None:
    net = nn.Sequential(SparseOut())
    with (
        pytest.raises(LayerError, match="returns a sparse tensor"),
        pk.Recorder(net, ["0"]) as one,
    ):
        one(X.flatten(1))


def test_dynamically_quantized_weights_give_correct_values() -> None:
    net = torch.ao.quantization.quantize_dynamic(network(), {nn.Linear}, torch.qint8)
    check(net, ["1", "4"])
    with pytest.raises(LayerError, match="quantized weights"):
        pk.analyze(net, (X, Y), metrics=[EXACT], progress=False)
    other = network()
    with torch.no_grad():
        other[5].weight *= 2
    other = torch.ao.quantization.quantize_dynamic(other, {nn.Linear}, torch.qint8)
    assert content_hash(other) != content_hash(net)
    assert content_hash(copy.deepcopy(net)) == content_hash(net)


class Quantized(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.quantize_per_tensor(x, 0.1, 10, torch.quint8)


def test_quantized_outputs_are_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Quantized(), nn.ReLU())
    with (
        pytest.raises(LayerError, match=r"returns torch\.quint8"),
        pk.Recorder(net) as one,
    ):
        one(X)


def test_gradients_by_tokens_are_refused() -> None:
    net = nn.Sequential(nn.Embedding(9, 6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2))
    tokens = torch.randint(9, (40, 4))
    with pytest.raises(DataError, match=r"inputs are torch\.int64"):
        pk.analyze(net, (tokens, Y), metrics=[EXACT], progress=False)
    with pytest.raises(DataError, match=r"inputs are torch\.int64"):
        pk.unit_saliency(net, tokens, "1", 0)


@pytest.fixture
def mesh(tmp_path: Any) -> Iterator[Any]:
    if dist.is_initialized() or not dist.is_gloo_available():
        pytest.skip("needs a process group of its own")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        yield dist.device_mesh.init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(
    not hasattr(getattr(torch.cpu, "Stream", None), "record_event"),
    reason="this torch shards no weights on the CPU",
)
def test_sharded_weights_give_correct_values(mesh: Any) -> None:
    fully_shard = pytest.importorskip("torch.distributed.fsdp").fully_shard
    net, expected = network(), by_hand(network(), "4")
    before = content_hash(net)
    fully_shard(net[3], mesh=mesh)
    fully_shard(net, mesh=mesh)
    assert type(net[3].weight).__name__ == "DTensor"
    check(net, ["1", "4"])
    torch.testing.assert_close(by_hand(net, "4"), expected)
    assert content_hash(net) == before  # a single process holds all weights
    model_identity(net)
    with pytest.raises(ModelError, match=r"is a DTensor, distributed over processes"):
        pk.analyze(net, (X, Y), metrics=[EXACT], progress=False)


def test_outputs_that_are_distributed_over_processes_are_refused(mesh: Any) -> None:
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    net = nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.ReLU())
    parallelize_module(net, mesh, {"1": ColwiseParallel(use_local_output=False)})
    with pytest.raises(LayerError, match="returns a DTensor"), pk.Recorder(net) as recorder:
        recorder(X)
