"""The public interface of the recorder, which restores the model after any failure."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from probekit.capture.pooling import pool
from probekit.capture.recorder import Recorder
from probekit.errors import LayerError, ModelError, OptionError, ProbekitError
from probekit.models.image_model import ImageModel

X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def snapshot(module: nn.Module) -> dict[str, Any]:
    """Everything in a model that recording could change."""
    return {
        "hooks": [
            len(hooks)
            for child in module.modules()
            for hooks in (
                child._forward_hooks,
                child._forward_pre_hooks,
                child._backward_hooks,
                child._forward_hooks_with_kwargs,
                child._forward_pre_hooks_with_kwargs,
                child._forward_hooks_always_called,
            )
        ],
        "modes": [child.training for child in module.modules()],
        "attributes": [sorted(vars(child)) for child in module.modules()],
        "state": {name: value.clone() for name, value in module.state_dict().items()},
        "gradients": [(one.requires_grad, one.grad) for one in module.parameters()],
        "devices": [one.device for one in (*module.parameters(), *module.buffers())],
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for name in before.keys() - {"state"}:
        assert before[name] == after[name], name
    assert before["state"].keys() == after["state"].keys()
    for name, value in before["state"].items():
        assert torch.equal(value, after["state"][name]), name


class Fragile(nn.Module):
    """A network in mixed modes, one part of which can be made to raise."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(1, 6, 3),
            nn.BatchNorm2d(6).eval(),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 4, 3),
            nn.ReLU(),
        )
        self.drop = nn.Dropout()
        self.head = nn.Linear(4, 3)
        self.unused = nn.Tanh()
        self.body[0].weight.requires_grad_(False)
        self.bad_at: int | None = None
        self.error: BaseException = RuntimeError("broken")

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.body):
            if number == self.bad_at:
                raise self.error
            x = layer(x)
        logits: Tensor = self.head(self.drop(x.mean((2, 3))))
        return logits


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


def test_the_default_is_every_activation_function_except_the_classifiers() -> None:
    net = nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 2), nn.Sigmoid()
    )
    with Recorder(net) as recorder:
        net(torch.rand(4, 3))
    assert list(recorder.activations) == ["1", "3"]


def test_the_activation_function_after_a_classifier_of_maps_is_excluded() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 3, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    with Recorder(net) as recorder:
        net(X)
    assert list(recorder.activations) == ["1", "3"]
    net.num_classes = 3
    with Recorder(net) as recorder:
        net(X)
    assert list(recorder.activations) == ["1"]


def test_the_last_activation_function_of_a_headless_model_is_included() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten())
    with Recorder(net) as recorder:
        net(X)
    assert list(recorder.activations) == ["1"]


def test_a_model_with_only_a_classifier_activation_has_no_default_layers() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Sigmoid())
    message = "no wanted layer has units to record; '1' is the classifier's"
    with Recorder(net) as recorder, pytest.raises(LayerError, match=message):
        recorder(torch.rand(4, 3))
    with Recorder(net, ["1"]) as recorder:
        recorder(torch.rand(4, 3))
        assert list(recorder.activations) == ["1"]


def test_a_planned_recorder_records_the_same_values_in_its_first_pass() -> None:
    net = Fragile().eval()
    with Recorder(net, ["body.*"]) as first:
        first(X)
    with Recorder(net, first.layers) as second:
        hooked = sum(len(child._forward_hooks) for child in net.modules())
        second(X)
    assert hooked == len(first.layers) + 1
    for name, values in first.activations.items():
        torch.testing.assert_close(second.activations[name], values)


def test_passes_are_not_recorded_while_paused() -> None:
    net = Fragile().eval()
    with Recorder(net) as recorder:
        recorder(X)
        kept = recorder.activations
        recorder.paused = True
        recorder(X * 2)
        assert recorder.activations is kept
        recorder.paused = False
        recorder(X * 2)
        assert recorder.activations is not kept


def test_the_activations_remain_available_after_the_context() -> None:
    net = Fragile().eval()
    with Recorder(net) as recorder:
        recorder(X)
    kept = recorder.activations
    net(X * 2)
    assert recorder.activations is kept


def test_a_recorder_can_be_reused() -> None:
    net = Fragile().eval()
    recorder = Recorder(net)
    for _ in range(2):
        with recorder:
            recorder(X)
        assert list(recorder.activations) == ["body.2", "body.4"]


def test_an_image_model_is_recorded_on_normalized_images() -> None:
    net = Fragile().eval()
    model = ImageModel(net, (0.5,), (0.2,), (1, 8, 8))
    with Recorder(model, ["body.0"]) as recorder:
        model(X)
        found = recorder.activations["body.0"]
        recorder(X)
        torch.testing.assert_close(recorder.activations["body.0"], found)
    torch.testing.assert_close(found, net.body[0]((X - 0.5) / 0.2).mean((2, 3)).detach())


def test_the_input_may_be_a_keyword_argument_or_a_mapping() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.act(batch["pixels"]).mean((1, 2, 3))

    net = Mapped()
    with Recorder(net) as recorder:
        net(batch={"pixels": X})
        assert recorder.activations["act"].shape == (4, 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "resnet18"}, ModelError, "a model is a torch module, not str"),
        ({"model": print}, ModelError, "a model is a torch module, not builtin_function"),
        ({"spatial": "max"}, OptionError, "spatial is 'mean', 'none' or a function, not 'max'"),
        ({"tokens": "cls"}, OptionError, "tokens is 'all', 'patch' or 'class', not 'cls'"),
        ({"layers": []}, LayerError, "layers is empty"),
        ({"layers": ["body.22"]}, LayerError, "'body.22'; close matches: body.2"),
    ],
)
def test_a_mistake_is_reported_before_any_hook_is_registered(
    options: dict[str, Any], error: type[ProbekitError], message: str
) -> None:
    net = Fragile()
    before = snapshot(net)
    with pytest.raises(error, match=message):
        Recorder(**{"model": net, **options})
    assert_same(before, snapshot(net))


def test_planned_layers_and_layer_options_cannot_be_combined() -> None:
    net = Fragile()
    with Recorder(net, ["body.0"]) as recorder:
        recorder(X)
    with pytest.raises(OptionError, match="either planned ones or choices"):
        Recorder(net, [recorder.layers[0], "body.2"])


SHAPES = st.tuples(*(st.integers(1, 5) for _ in range(4)))


@settings(max_examples=50, deadline=None)
@given(
    shape=SHAPES,
    ndim=st.integers(2, 4),
    order=st.permutations(range(4)),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
)
def test_pool_is_the_mean_over_positions_in_every_layout(
    shape: tuple[int, ...], ndim: int, order: list[int], dtype: torch.dtype
) -> None:
    shape = shape[:ndim]
    order = [axis for axis in order if axis < ndim]
    stored = torch.rand(tuple(shape[axis] for axis in order), dtype=torch.float64).to(dtype)
    maps = stored.permute([order.index(axis) for axis in range(ndim)])
    assert maps.shape == shape
    found = pool(maps)
    expected = maps.double().numpy().reshape(*shape[:2], -1).mean(2)
    assert found.shape == shape[:2]
    assert found.dtype == (dtype if dtype in (torch.float32, torch.float64) else torch.float32)
    assert found.untyped_storage().data_ptr() != maps.untyped_storage().data_ptr()
    bound = {torch.bfloat16: 2e-5}.get(dtype, 1e-6)
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), rtol=bound, atol=bound)
