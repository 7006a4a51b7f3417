"""Models whose calls or values change between forward passes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

import probekit as pk
from probekit.capture.plan import plan
from probekit.capture.recorder import Recorder
from probekit.errors import LayerError, ProbekitWarning

X = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 2


class Looped(nn.Module):
    """Runs one block a given number of times in each pass."""

    def __init__(self, counts: list[int], function: bool = False) -> None:
        super().__init__()
        self.counts, self.function = [*counts], function
        self.conv, self.act, self.head = nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        count = self.counts.pop(0) if len(self.counts) > 1 else self.counts[0]
        for _ in range(count):
            x = self.conv(x)
            x = functional.relu(x) if self.function else self.act(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("function", [False, True])
@pytest.mark.parametrize("counts", [[1, 3], [2, 1]])
def test_a_changed_number_of_calls_warns(counts: list[int], function: bool) -> None:
    net = Looped(counts, function)
    with Recorder(net, ["relu" if function else "act"]), torch.no_grad():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The warning that the layer is one of several calls
            net(X)
        with pytest.warns(ProbekitWarning, match=r"calls of .*: \d in this forward pass, \d in"):
            net(X)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # The warning appears only once
            net(X)


class Own(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.7 * x)


class Inside(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(x)


class Later(nn.Module):
    """Applies a second activation function only in some passes."""

    def __init__(self, runs: Callable[[int, Tensor], bool], second: nn.Module | None) -> None:
        super().__init__()
        self.runs, self.count = runs, 0
        self.conv, self.act, self.second, self.head = (
            nn.Conv2d(3, 3, 1), nn.ReLU(), second, nn.Linear(3, 2)
        )  # fmt: skip
        nn.init.ones_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        x = self.act(self.conv(x))
        if self.runs(self.count, x):
            x = functional.gelu(x) if self.second is None else self.second(x)
        return self.head(x.mean((2, 3)))


RUNS: dict[str, Callable[[int, Tensor], bool]] = {
    "after a warm-up": lambda count, x: count > 4,
    "for bright images": lambda count, x: bool(x.mean() > 10),
}
BRIGHT = torch.cat([X, X + 100 * (1 + torch.arange(6.0)).reshape(6, 1, 1, 1)])
BRIGHT[..., 0, 0] = -1  # as in normalized images, so that they are not taken for bytes


@pytest.mark.parametrize("runs", RUNS)
@pytest.mark.parametrize(
    ("second", "name"),
    [(nn.ReLU(), "second"), (Own(), "second"), (Inside(), "second"), (None, "gelu in the model")],
)
def test_an_activation_that_runs_only_later_is_noted(
    runs: str, second: nn.Module | None, name: str
) -> None:
    expected = f"layers are not complete: '{name}' runs in this forward pass"
    with pytest.warns(ProbekitWarning, match=expected):
        result = pk.analyze(
            Later(RUNS[runs], second), (BRIGHT, Y.repeat(2)), batch_size=3, progress=False
        )
    assert expected in result.attrs["notes"]
    net = Later(RUNS[runs], second)
    with (
        pk.SelectivityRegularizer(net, alpha=-1),
        pytest.warns(ProbekitWarning, match=expected),
    ):
        [net(images) for images in (*X.split(2), *BRIGHT.split(3))]
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in net.modules())


class Branching(nn.Module):
    """The weights before an activation function depend on the values of the batch."""

    def __init__(self, parts: dict[bool, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({str(key): part for key, part in parts.items()})
        self.conv, self.act, self.head = nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        part = self.parts[str(bool(x.mean() > 10))]
        return self.head(self.act(part(self.conv(x))).mean((2, 3)))


@pytest.mark.parametrize("layers", [None, ["act"], nn.ReLU])
@pytest.mark.parametrize(
    ("bright", "other"),
    [(nn.Conv2d(3, 3, 1), True), (nn.Identity(), True), (None, False)],
    ids=["another", "none", "same"],
)
def test_other_weights_before_a_layer_are_noted(
    bright: nn.Module | None, other: bool, layers: Any
) -> None:
    dark = nn.Conv2d(3, 3, 1)
    net = Branching({False: dark, True: bright or dark}).eval()
    images = torch.cat([X.repeat(7, 1, 1, 1), BRIGHT[-2:]])  # after 21 passes
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pk.analyze(net, (images, torch.arange(44) % 2), layers, batch_size=2, progress=False)
    said = [str(one.message) for one in caught if "another part" in str(one.message)]
    assert len(said) == other
    assert all("'act' is" in one and "ran after 'parts.False' in the first" in one for one in said)


@pytest.mark.filterwarnings("ignore:layer '.*' is missing:probekit.errors.ProbekitWarning")
@pytest.mark.parametrize("function", [False, True])
def test_a_layer_that_is_missing_later_is_noted_or_refused(function: bool) -> None:
    net = Later(lambda count, x: count < 4, None if function else nn.ReLU())
    with Recorder(net) as recorder, torch.no_grad():
        for _ in range(3):
            net(X)
        with pytest.warns(ProbekitWarning, match="is missing"):
            net(X)
    assert list(recorder.activations) == ["act"]
    for metrics in ("selectivity", "gradient_variability"):
        net = Later(lambda count, x: bool(x.mean() < 20), None if function else nn.ReLU())
        with pytest.raises(LayerError, match="was reached in the first batch but not now"):
            pk.analyze(net, (BRIGHT, Y.repeat(2)), metrics=metrics, batch_size=3, progress=False)


def test_all_layers_that_are_missing_later_are_named_in_one_warning() -> None:
    second = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Tanh())
    net = Later(lambda count, x: count < 2, second)
    with Recorder(net) as recorder, torch.no_grad():
        net(X)
        with pytest.warns(ProbekitWarning) as told:
            net(X)
    assert list(recorder.activations) == ["act"]
    (message,) = (str(one.message) for one in told)
    assert message.startswith("layer 'second.1' is missing")
    assert message.endswith("; the calls of second.2 changed too")


def test_an_unchanged_number_of_calls_does_not_warn() -> None:
    net = Looped([2])
    with Recorder(net) as recorder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        net(X)
        net(X)
    torch.testing.assert_close(
        recorder.activations["act_1"], net.conv(net.conv(X).relu()).relu().mean((2, 3)).detach()
    )


class Mixing(nn.Module):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.middle, self.act, self.head = (
            nn.Conv2d(3, 4, 1), middle, nn.ReLU(), nn.Linear(4, 2)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.middle(self.conv(x))).mean((2, 3)))


class AlwaysDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5)


class ByBatch(nn.Module):
    """A scale computed from the whole batch, as in dynamic quantization."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.mean().abs().clamp_min(1e-3)


class ByMaximum(nn.Module):
    """A scale that another order of the samples does not change."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.amax()


@pytest.mark.parametrize(
    ("middle", "mixes"),
    [
        (nn.BatchNorm2d(4, track_running_stats=False), True),
        (ByMaximum(), True),
        (AlwaysDropout(), True),
        (ByBatch(), True),
        (nn.BatchNorm2d(4), False),
        (nn.InstanceNorm2d(4), False),
        (nn.Dropout(), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_values_that_depend_on_other_samples_warn(middle: nn.Module, mixes: bool) -> None:
    net = Mixing(middle)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = plan(net, X[:2])
        result = pk.analyze(net, (X, Y), progress=False)
    said = [str(one.message) for one in caught]
    assert any("depend on the other samples" in sentence for sentence in said) == mixes
    assert any("act depend" in sentence for sentence in table.attrs["notes"]) == mixes
    assert ("act depend" in result.attrs["notes"]) == mixes


def _stretched(x: Tensor) -> Tensor:
    return x / x.amax()


def _limited(x: Tensor) -> Tensor:
    if x.amax() > 1:
        raise ArithmeticError("images must not exceed 1")
    return x


@pytest.mark.parametrize(("first", "mixes"), [(_stretched, True), (_limited, False)])
def test_a_scale_of_the_batch_is_noticed_where_two_images_have_the_same(
    first: Callable[[Tensor], Tensor], mixes: bool
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    net(X)
    images = X.clamp(0, 1)
    images[:2, :, 0, 0] = 1
    images[2:] /= 4
    model = Before(first, net)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [pk.record(model, (images, Y), batch_size=n, progress=False) for n in (1, 4)]
    values = [one["activation"].values for one in found]
    assert np.allclose(*values, atol=1e-5) != mixes
    assert any("depend on the other samples" in str(one.message) for one in caught) == mixes


class Before(nn.Module):
    def __init__(self, first: Callable[[Tensor], Tensor], net: nn.Module) -> None:
        super().__init__()
        self.first, self.net = first, net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.first(x))


def test_dynamic_quantization_warns() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    small = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    with pytest.warns(ProbekitWarning, match="values of 2 depend on the other samples"):
        plan(small, torch.rand(2, 3, 6, 6))


def test_an_empty_batch_is_an_error_first_and_has_no_rows_later() -> None:
    net = Mixing(nn.Identity())
    with Recorder(net) as recorder, torch.no_grad():
        with pytest.raises(LayerError, match="batch has no samples"):
            net(X[:0])
        net(X)
        net(X[:0])
    assert recorder.activations["act"].shape == (0, 4)


def test_notes_are_stored_with_a_recording(tmp_path: Any) -> None:
    net = Mixing(AlwaysDropout())
    with pytest.warns(ProbekitWarning, match="depend on the other samples"):
        pk.record(net, (X, Y), store=tmp_path / "store.zarr", progress=False)
    assert (
        "depend on the other samples" in pk.open_recording(tmp_path / "store.zarr").attrs["notes"]
    )


def test_notes_are_saved_with_a_result(tmp_path: Any) -> None:
    with pytest.warns(ProbekitWarning):
        result = pk.analyze(Mixing(AlwaysDropout()), (X, Y), progress=False)
    pk.save_result(result, tmp_path / "result.nc")
    notes = pk.open_result(tmp_path / "result.nc").attrs["notes"].splitlines()
    assert any("depend on the other samples" in sentence for sentence in notes)
    assert any("fewer than 20 samples" in sentence for sentence in notes)


SMALL = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
SMALL_IMAGES = torch.rand(2, 1, 8, 8)


def modes() -> tuple[int, int]:
    return torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()


def test_an_interrupted_pass_leaves_the_device_and_the_compiler_of_the_caller() -> None:
    with pk.Recorder(SMALL), pk.Recorder(SMALL, ["1"], stop=True) as inner:
        inner(SMALL_IMAGES)
        with torch.device("meta"):
            inner(SMALL_IMAGES)
        assert torch.empty(0).device.type == "cpu"
        assert set(inner.activations) == {"1"}
    assert modes() == (0, 0)
    assert not is_in_torch_dispatch_mode()
    graphs: list[Any] = []
    torch._dynamo.reset()
    torch.compile(SMALL, backend=lambda graph, _: graphs.append(graph) or graph.forward)(
        SMALL_IMAGES
    )
    assert len(graphs) == 1


def test_a_pass_that_another_recorder_ends_leaves_no_modes() -> None:
    with pk.Recorder(SMALL) as outer:
        with pk.Recorder(SMALL, ["1"], stop=True):
            SMALL(SMALL_IMAGES)
            pytest.fail("the pass was not stopped")
        SMALL(SMALL_IMAGES)
        assert set(outer.activations) == {"1"}
    assert modes() == (0, 0)


class Fragile(Looped):
    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        if len(x) == 1:
            raise ValueError("one sample")
        return self.head(x.mean((2, 3)))


def test_a_failed_pass_leaves_no_activations_of_the_pass_before() -> None:
    net = Fragile([1]).eval()
    with Recorder(net) as recorder, torch.no_grad():
        net(X)
        for run in (net, recorder):
            with pytest.raises(ValueError, match="one sample"):
                run(X[:1])
            with pytest.raises(LayerError, match="or its last forward pass failed"):
                _ = recorder.activations
            net(X[1:])
            expected = net.act(net.conv.forward(X[1:])).mean((2, 3))
            torch.testing.assert_close(recorder.activations["act"], expected)
