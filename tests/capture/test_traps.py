"""Known pitfalls of forward hooks, with one test for each."""

from __future__ import annotations

import gc
import weakref
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from probekit.capture.recorder import Recorder
from probekit.errors import LayerError, ModelError, OptionError, ProbekitWarning

X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5


def hooks(module: nn.Module) -> int:
    return sum(
        len(child._forward_hooks) + len(child._forward_pre_hooks) for child in module.modules()
    )


def record(module: nn.Module, layers: Any = None, x: Any = X, **options: Any) -> dict[str, Tensor]:
    """The activations of the second pass; the first pass finds the layers."""
    with torch.no_grad(), Recorder(module, layers, **options) as recorder:
        module(x)
        first = recorder.activations
        module(x)
        second = recorder.activations
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
    return second


def conv(channels: int = 6) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(3, channels, 3, padding=1)


# In-place operations and shared memory


def test_an_in_place_operation_after_the_layer_does_not_change_the_record() -> None:
    net = nn.Sequential(conv(), nn.ReLU(inplace=True))
    found = record(net, ["0"], spatial="none")["0"]
    assert found.min() < 0
    torch.testing.assert_close(found, net[0](X))


def test_an_in_place_operation_on_a_view_of_a_readout_does_not_change_the_record() -> None:
    net = nn.Sequential(conv(), nn.ReLU(inplace=True))
    found = record(net, ["0"], spatial=lambda maps: maps[:, :2])["0"]
    torch.testing.assert_close(found, net[0](X)[:, :2])


@pytest.mark.parametrize("spatial", ["mean", "none", lambda maps: maps[:, 0]])
def test_the_record_has_its_own_memory(spatial: Any) -> None:
    kept: list[Tensor] = []
    net = nn.Sequential(nn.Linear(3, 6), nn.Identity())
    net[1].register_forward_hook(lambda module, args, output: kept.append(output))
    with Recorder(net, ["1"], spatial=spatial) as recorder:
        net(torch.rand(4, 3))
    (found,) = recorder.activations.values()
    assert found.untyped_storage().data_ptr() != kept[0].untyped_storage().data_ptr()


def test_the_record_does_not_keep_the_map_the_batch_or_the_graph_alive() -> None:
    net = nn.Sequential(conv(), nn.ReLU(), nn.Flatten())
    seen: list[weakref.ref[Tensor]] = []
    watch = net[1].register_forward_hook(
        lambda module, args, output: seen.append(weakref.ref(output))
    )
    with Recorder(net, ["1"], spatial=lambda maps: maps[:1, :1]) as recorder:
        for _ in range(2):
            batch = torch.rand(4, 3, 8, 8)
            whole = weakref.ref(batch)
            output = net(batch)
            assert recorder.activations["1"].grad_fn is None
            del batch, output
            gc.collect()
            assert whole() is None
            assert all(one() is None for one in seen)
    watch.remove()
    assert recorder.activations["1"].untyped_storage().nbytes() == 8 * 8 * 4


def test_with_gradients_the_record_is_part_of_the_graph() -> None:
    net = nn.Sequential(conv(), nn.ReLU(inplace=True), nn.Flatten())
    x = X.clone().requires_grad_()
    with Recorder(net, ["0"], grad=True) as recorder:
        net(x)
        (gradient,) = torch.autograd.grad(recorder.activations["0"].sum(), x)
    (expected,) = torch.autograd.grad(net[0](x).mean((2, 3)).sum(), x)
    torch.testing.assert_close(gradient, expected)


# Calls: several, none, and which module is called


class Reused(nn.Module):
    """Calls one module three times, next to a module with the name of the second call."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.relu_1 = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.relu_1(self.relu(x)) + self.relu(x - 0.1)).flatten(1)


def test_each_call_of_a_module_is_a_separate_layer() -> None:
    net = nn.Sequential(conv(), nn.ReLU())
    net.forward = lambda x: net[1](net[1](net[0](x)) - 0.2).flatten(1)  # type: ignore[method-assign]
    found = record(net, ["1", "1_1"])
    once = net[1](net[0](X))
    torch.testing.assert_close(found["1"], once.mean((2, 3)))
    torch.testing.assert_close(found["1_1"], net[1](once - 0.2).mean((2, 3)))


def test_a_module_named_like_the_second_call_of_another_keeps_its_name() -> None:
    found = record(Reused())
    assert list(found) == ["relu", "relu_1", "relu_2", "relu_3"]
    torch.testing.assert_close(found["relu_1"], torch.relu(X).tanh().mean((2, 3)))
    torch.testing.assert_close(found["relu_2"], torch.relu(X - 0.1).mean((2, 3)))


def test_a_missing_call_is_reported_with_the_existing_ones() -> None:
    with pytest.raises(LayerError, match="'relu_7' was not reached: 'relu' is called 3 times"):
        record(Reused(), ["relu_7"])


def test_a_glob_may_match_only_a_later_call() -> None:
    assert list(record(Reused(), ["relu_[23]"])) == ["relu_2", "relu_3"]


class Attention(nn.Module):
    """Holds a module that it never calls, as fused attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"drop": nn.Dropout(), "inner": nn.ModuleDict()})
        self.block = nn.Sequential(nn.Linear(3, 3))
        self.block.add_module("unused", nn.Sequential(nn.Dropout()))
        self.block.forward = lambda x: self.block[0](x)  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block(x)
        return result


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["block.unused.0"], r"'block.unused.0' \(Dropout\) exists .* parent that does is 'block'"),
        (["attention.drop"], r"'attention.drop' \(Dropout\) exists .* no parent of it does"),
        (["*.unused*"], r"'block.unused' .*nor is any other of the 2 that match '\*.unused\*'"),
        ([nn.Linear, nn.Dropout], "nor is any other of the 2 that match Dropout"),
    ],
)
def test_a_module_that_is_never_called_is_an_error_naming_its_nearest_parent(
    layers: Any, message: str
) -> None:
    net = Attention()
    with pytest.raises(LayerError, match=message):
        record(net, layers, torch.rand(4, 3))
    assert hooks(net) == 0


def test_out_proj_of_torchvision_is_reported_with_its_parent() -> None:
    vit = pytest.importorskip("torchvision").models.VisionTransformer
    net = vit(8, 4, 1, 2, 12, 16, num_classes=3).eval()
    name = "encoder.layers.encoder_layer_0.self_attention"
    with pytest.raises(LayerError, match=f"parent that does is {name!r}"):
        record(net, [f"{name}.out_proj"])
    assert record(net, [name])[name].shape == (4, 12)


def test_fused_attention_hides_its_map_and_the_error_explains_it() -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1).eval()
    x = torch.rand(2, 3, 32, 32)
    with pytest.raises(LayerError, match=r"fused attention.* parent that does is 'blocks.0.attn'"):
        record(net, ["blocks.0.attn.attn_drop"], x)
    net.blocks[0].attn.fused_attn = False
    assert record(net, ["blocks.0.attn.attn_drop"], x)["blocks.0.attn.attn_drop"].shape == (2, 3)


def test_the_fast_path_of_the_transformer_encoder_does_not_skip_the_hooks() -> None:
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    net = nn.TransformerEncoder(block, 2, enable_nested_tensor=False).eval()
    reference: list[Tensor] = []
    x = torch.rand(3, 5, 8)
    found = record(net, ["layers.1.linear1"], x)["layers.1.linear1"]
    watch = net.layers[1].linear1.register_forward_hook(
        lambda module, args, output: reference.append(output.clone())
    )
    with torch.inference_mode():
        net(x)
    watch.remove()
    torch.testing.assert_close(found, reference[0].mean(1))


def test_a_shared_module_is_found_under_both_names() -> None:
    net = nn.Module()
    net.first, net.second = nn.Linear(3, 4), nn.Tanh()
    net.alias = net.first
    net.forward = lambda x: net.second(net.alias(x))  # type: ignore[method-assign]
    for name in ("first", "alias"):
        found = record(net, [name], torch.rand(4, 3))
        assert list(found) == [name]


# Outputs other than a single tensor

Pair = namedtuple("Pair", "loss logits")


@dataclass
class Output:
    """Similar to the ModelOutput of transformers, but not a mapping."""

    loss: Tensor | None
    logits: Tensor


class Gives(nn.Module):
    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(x)


class Shell(nn.Module):
    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.inner = Gives(wrap)

    def forward(self, x: Tensor) -> Tensor:
        self.inner(x)
        return x


def double(x: Tensor) -> Tensor:
    return 2 * x


@pytest.mark.parametrize(
    ("wrap", "pick", "factor"),
    [
        (lambda x: (x, double(x)), None, 1),
        (lambda x: (x, double(x)), 1, 2),
        (lambda x: [None, double(x)], None, 2),
        (lambda x: {"ids": x.long(), "values": double(x)}, None, 2),
        (lambda x: {"a": x, "b": double(x)}, "b", 2),
        (lambda x: Pair(x, double(x)), "logits", 2),
        (lambda x: Pair(x, double(x)), 0, 1),
        (lambda x: Output(None, double(x)), None, 2),
        (lambda x: Output(x, double(x)), "logits", 2),
        (lambda x: (x, {"deep": [double(x)]}), 1, 2),
        (lambda x: double(x), "logits", 2),
    ],
)
def test_the_requested_tensor_of_a_nested_output_is_recorded(
    wrap: Any, pick: Any, factor: int
) -> None:
    x = torch.rand(4, 3)
    found = record(Shell(wrap), ["inner"], x, output=pick)["inner"]
    torch.testing.assert_close(found, factor * x)


@pytest.mark.parametrize("as_mapping", [True, False])
def test_fields_of_a_transformers_model_output_are_recorded(as_mapping: bool) -> None:
    from collections import OrderedDict

    class ModelOutput(OrderedDict[Any, Any]):
        def __getitem__(self, key: Any) -> Any:
            return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)

    x = torch.rand(4, 3)
    pick = "logits" if as_mapping else 1
    net = Shell(lambda x: ModelOutput(hidden=x, logits=double(x)))
    torch.testing.assert_close(record(net, ["inner"], x, output=pick)["inner"], 2 * x)


@pytest.mark.parametrize(
    ("wrap", "pick", "message"),
    [
        (lambda x: None, None, r"'inner' \(Gives\) gives NoneType and no floating-point tensor"),
        (lambda x: (x.long(),), None, "gives tuple and no floating-point tensor"),
        (lambda x: (x, x), 2, r"'inner': output=2 names nothing in an output of type tuple"),
        (lambda x: {"a": x}, "b", "output='b' names nothing in an output of type dict"),
        (lambda x: Output(x, x), "hidden", "output='hidden' names nothing"),
        (lambda x: x.mean(), None, "no floating-point tensor"),
        (lambda x: x[:3], None, r"the shape \(3, 3\), no axis of which is the batch of 4"),
    ],
)
def test_an_output_without_units_raises_a_one_sentence_error(
    wrap: Any, pick: Any, message: str
) -> None:
    with pytest.raises(LayerError, match=message):
        record(Shell(wrap), ["inner"], torch.rand(4, 3), output=pick)


def test_an_output_without_units_under_a_pattern_is_skipped_with_a_warning() -> None:
    net = nn.Sequential(nn.Tanh(), Shell(lambda x: None))
    with pytest.warns(ProbekitWarning, match=r"not recorded: 1.inner, whose output gives NoneType"):
        found = record(net, ["*"], torch.rand(4, 3))
    assert list(found) == ["0", "1"]


# Wrappers


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
        with pytest.raises(LayerError, match="no forward pass of the module itself was seen"):
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
    with pytest.raises(ModelError, match=r"TorchScript.* pass the model that it was made from"):
        Recorder(scripted)


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


# Modes, layouts, precision


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_every_gradient_mode_gives_the_same_values(mode: Any) -> None:
    net = nn.Sequential(conv(), nn.ReLU(inplace=True), nn.Flatten())
    with mode(), Recorder(net, ["0", "1"]) as recorder:
        net(X)
        net(X)
        found = recorder.activations
    torch.testing.assert_close(found["0"], net[0](X).mean((2, 3)).detach())
    assert not found["0"].requires_grad


@pytest.mark.parametrize("spatial", ["mean", "none"])
def test_channels_last_memory_gives_the_same_values(spatial: Any) -> None:
    net = nn.Sequential(conv(), nn.ReLU(), nn.Flatten())
    expected = record(net, ["0", "1"], spatial=spatial)
    net = net.to(memory_format=torch.channels_last)
    found = record(net, ["0", "1"], X.to(memory_format=torch.channels_last), spatial=spatial)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_half_precision_is_averaged_in_single_precision(dtype: torch.dtype, memory: Any) -> None:
    net = nn.Sequential(nn.Identity(), nn.MaxPool2d(1))
    x = (torch.rand(2, 3, 50, 50) * 60 + 1000).to(dtype).contiguous(memory_format=memory)
    found = record(net, ["1"], x)["1"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), x.double().mean((2, 3)), rtol=1e-5, atol=0)


def test_double_precision_is_preserved() -> None:
    assert record(nn.Sequential(nn.ReLU()), ["0"], X.double())["0"].dtype == torch.float64


def test_a_batch_of_one_is_recorded() -> None:
    net = nn.Sequential(conv(), nn.ReLU(), nn.Flatten())
    torch.testing.assert_close(record(net, ["1"], X[:1])["1"], record(net, ["1"])["1"][:1])


def test_training_flags_of_every_part_are_unchanged() -> None:
    net = nn.Sequential(conv(), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout())
    net.train()
    net[1].eval()
    modes = [child.training for child in net.modules()]
    record(net)
    assert [child.training for child in net.modules()] == modes


# Unit axes


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


def test_windows_in_the_batch_axis_are_separated_by_sample() -> None:
    net = Windows(together=True)
    with Recorder(net, ["linear"]) as recorder:
        net(X)
    assert recorder.layers[0].windows == 4
    expected = net.linear(X.permute(0, 2, 3, 1)).mean((1, 2))
    torch.testing.assert_close(recorder.activations["linear"], expected.detach())


@pytest.mark.parametrize("samples", [1, 2, 4])
def test_windows_that_mix_samples_are_refused_in_advance(samples: int) -> None:
    from probekit.capture.plan import scout_layers

    scout_layers(Windows(together=True), X[:samples], ["linear"])
    with pytest.raises(LayerError, match="cannot be told apart by sample"):
        scout_layers(Windows(together=False), X[:samples], ["linear"])


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
        with pytest.raises(LayerError, match="'0' gave 3 rows for 4 samples where 4 were expected"):
            recorder(X)


# Tokens


class Transformer(nn.Module):
    """A sequence of patch tokens after zero to five other tokens."""

    def __init__(self, prefix: int, convolve: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 8, 4, 4) if convolve else nn.Linear(48, 8)
        if prefix:
            self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        if prefix > 1:
            self.reg_token = nn.Parameter(torch.randn(1, prefix - 1, 8))
        self.norm = nn.LayerNorm(8)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.embed, nn.Linear):
            patches = functional.unfold(x, 4, stride=4).mT
            tokens = self.embed(patches)
        else:
            tokens = self.embed(x).flatten(2).mT
        first = [getattr(self, name) for name in ("cls_token", "reg_token") if hasattr(self, name)]
        tokens = torch.cat([*(one.expand(len(x), -1, -1) for one in first), tokens], 1)
        return self.act(self.norm(tokens)).mean(1)


@pytest.mark.parametrize("convolve", [True, False])
@pytest.mark.parametrize("prefix", range(6))
def test_tokens_before_the_patches_are_included_as_requested(prefix: int, convolve: bool) -> None:
    net = Transformer(prefix, convolve)
    whole = record(net, ["act"], spatial="none")["act"]
    assert whole.shape == (4, 8, prefix + 4)
    torch.testing.assert_close(record(net, ["act"])["act"], whole.mean(2))
    torch.testing.assert_close(
        record(net, ["act"], tokens="patch")["act"], whole[:, :, prefix:].mean(2)
    )
    if prefix:
        found = record(net, ["act"], tokens="class")["act"]
        torch.testing.assert_close(found, whole[:, :, 0])
    else:
        with pytest.raises(OptionError, match="no class token"):
            record(net, ["act"], tokens="class")


@pytest.mark.parametrize("convolve", [True, False])
def test_tokens_are_all_patches_before_the_class_token_is_added(convolve: bool) -> None:
    net = Transformer(2, convolve)
    torch.testing.assert_close(
        record(net, ["embed"], tokens="patch")["embed"], record(net, ["embed"])["embed"]
    )
    with pytest.raises(LayerError, match=r"'embed' .* no class token"):
        record(net, ["embed"], tokens="class")
    with pytest.warns(ProbekitWarning, match="not recorded: embed"):
        assert list(record(net, ["*"], tokens="class")) == ["norm", "act"]


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("vit_tiny_patch16_224", 1),
        ("deit_tiny_distilled_patch16_224", 2),
        ("vit_small_patch16_dinov3", 5),
        ("eva02_tiny_patch14_224", 1),
    ],
)
def test_timm_transformers_declare_their_prefix_tokens(name: str, prefix: int) -> None:
    timm = pytest.importorskip("timm")
    size = 56 if "14" in name else 64
    net = timm.create_model(name, img_size=size, depth=1).eval()
    with Recorder(net) as recorder:
        net(torch.rand(1, 3, size, size))
    assert {layer.prefix for layer in recorder.layers} == {prefix}


# Stopping early


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
