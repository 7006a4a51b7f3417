import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import probekit as pk
from probekit.errors import ProbekitWarning
from probekit.metrics.selectivity.selectivity import class_selectivity
from probekit.models.architectures import CifarResNet
from probekit.statistics.class_means import ClassMeans
from regularized_network import batch, gradients, plain_activations, plain_term, small


@pytest.mark.parametrize("alpha", [-1.0, 2.5])
def test_the_term_and_its_gradient_equal_an_explicit_computation(alpha):
    model, (x, y) = small(), batch()
    with pk.SelectivityRegularizer(model, alpha) as penalty:
        loss = functional.cross_entropy(model(x), y) + penalty(y)
    loss.backward()
    reference = small()
    expected = functional.cross_entropy(reference(x), y) - alpha * plain_term(
        plain_activations(reference, x), y
    )
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(model), gradients(reference))


def test_the_gradient_equals_finite_differences():
    model, (x, y) = small(), batch(8)
    with pk.SelectivityRegularizer(model, -1.0, accumulation="each") as penalty:

        def term(weight, bias):
            parameters = {"conv1.weight": weight, "conv1.bias": bias}
            torch.func.functional_call(model, parameters, (x,))
            return penalty(y)

        inputs = [
            parameter.detach().clone().requires_grad_() for parameter in model.conv1.parameters()
        ]
        assert torch.autograd.gradcheck(term, inputs)
        assert torch.autograd.gradgradcheck(term, inputs)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_resnet_in_either_memory_format_has_the_gradient_of_plain_autograd(layout):
    torch.manual_seed(0)
    model = CifarResNet(8, classes=3, channels=1).double().to(memory_format=layout)
    twin = copy.deepcopy(model)
    x, y = batch(10)
    x = x.to(memory_format=layout)
    with pk.SelectivityRegularizer(model, -3.0) as penalty:
        (functional.cross_entropy(model(x), y) + penalty(y)).backward()
    kept = []
    for module in twin.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
            module.register_forward_hook(lambda _, __, out: kept.append(out.mean((2, 3))))
    (functional.cross_entropy(twin(x), y) + 3 * plain_term(kept, y)).backward()
    torch.testing.assert_close(gradients(model), gradients(twin))


def test_the_logged_selectivity_equals_the_metric():
    model, (x, y) = small(), batch()
    with pk.SelectivityRegularizer(model, -1.0) as penalty:
        assert penalty.selectivity == {}
        model(x)
        term = penalty(y)
        logged = penalty.selectivity
    with torch.no_grad():
        tables = plain_activations(model, x)
    for table, value in zip(tables, logged.values(), strict=True):
        means = ClassMeans()
        means.update(table, y)
        assert value == pytest.approx(float(class_selectivity(means.to_xarray()).mean()))
    assert list(logged) == ["relu", "relu_1"]
    assert term.item() == pytest.approx(np.mean(list(logged.values())))


def test_minimizing_the_penalty_changes_selectivity_in_the_direction_of_alpha():
    for alpha, direction in ((-1.0, -1), (1.0, 1)):
        model, (x, y) = small(), batch(30)
        optimizer = torch.optim.SGD(model.parameters(), 0.2)
        with pk.SelectivityRegularizer(model, alpha) as penalty:
            course = []
            for _ in range(8):
                optimizer.zero_grad()
                model(x)
                penalty(y).backward()
                optimizer.step()
                course.append(np.mean(list(penalty.selectivity.values())))
        assert direction * (course[-1] - course[0]) > 0.01


def train(model, penalty, steps=4, dtype=None):
    x, y = batch(16, dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            loss = functional.cross_entropy(model(x), y)
            if penalty is not None:
                loss = loss + penalty(y)
        loss.backward()
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_alpha_zero_changes_no_bit(dtype):
    torch.manual_seed(0)
    model = CifarResNet(8, classes=3, channels=1).to(memory_format=torch.channels_last)
    twin = copy.deepcopy(model)
    with pk.SelectivityRegularizer(model, 0) as penalty:
        regularized = train(model, penalty, dtype=dtype)
        assert set(penalty.selectivity) == {layer.name for layer in penalty.layers}
    plain = train(twin, None, dtype=dtype)
    for name, value in plain.items():
        assert torch.equal(value, regularized[name]), name


def test_nonzero_alpha_changes_the_weights():
    torch.manual_seed(0)
    model = CifarResNet(8, classes=3, channels=1)
    twin = copy.deepcopy(model)
    with pk.SelectivityRegularizer(model, -1) as penalty:
        regularized = train(model, penalty)
    plain = train(twin, None)
    assert not torch.equal(plain["conv1.weight"], regularized["conv1.weight"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_pooled_in_float32(dtype):
    torch.manual_seed(0)
    model = CifarResNet(8, classes=3, channels=1).to(memory_format=torch.channels_last)
    x, y = batch(16, dtype=torch.float32)
    maps = {}
    with pk.SelectivityRegularizer(model, -1) as penalty:
        for name, module in model.named_modules():
            if isinstance(module, nn.ReLU):
                module.register_forward_hook(
                    lambda _, __, out, name=name: maps.update({name: out.detach().clone()})
                )
        with torch.autocast("cpu", dtype):
            model(x)
            term = penalty(y)
        term.backward()
    assert term.dtype == torch.float32
    assert maps["relu"].dtype == dtype
    exact = plain_term([out.double().mean((2, 3)) for out in maps.values()], y)
    assert term.item() == pytest.approx(exact.item(), rel=1e-4)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model))


def test_a_gradient_scaler_also_scales_the_penalty():
    model, (x, y) = small(), batch()
    with pk.SelectivityRegularizer(model, -1.0) as penalty:
        (1024 * (functional.cross_entropy(model(x), y) + penalty(y))).backward()
        scaled = [gradient / 1024 for gradient in gradients(model)]
        model.zero_grad()
        (functional.cross_entropy(model(x), y) + penalty(y)).backward()
    torch.testing.assert_close(scaled, gradients(model))


def test_fewer_than_two_classes_give_zero_and_are_counted():
    model, (x, _) = small(), batch(4)
    with pk.SelectivityRegularizer(model, -1.0, accumulation="each") as penalty:
        for labels, skipped in (([2, 2, 2, 2], 1), ([0, 2, 0, 2], 1), ([0, 0, 0, 0], 2)):
            model.zero_grad()
            model(x)
            term = penalty(torch.tensor(labels))
            term.backward()
            assert penalty.skipped == skipped
            assert (term.item() == 0) == (len(set(labels)) == 1)
            assert all(
                torch.isfinite(parameter.grad).all() for parameter in model.conv1.parameters()
            )


def test_alpha_follows_a_schedule():
    model, (x, y) = small(), batch()
    schedule = pk.AlphaSchedule.parse("0*2 -20*1")
    terms = []
    with pk.SelectivityRegularizer(model, schedule.alpha(0)) as penalty:
        for epoch in range(3):
            penalty.alpha = schedule.alpha(epoch)
            model(x)
            terms.append(penalty(y))
    assert [term.requires_grad for term in terms] == [False, False, True]
    assert terms[:2] == [0, 0]
    assert terms[2].item() == pytest.approx(20 * np.mean(list(penalty.selectivity.values())))


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (None, ["relu", "relu_1"]),
        ("first:1", ["relu"]),
        ("last:1", ["relu_1"]),
        (["conv*"], ["conv1", "conv2"]),
        ("!relu_1", ["relu"]),
        (nn.Conv2d, ["conv1", "conv2"]),
    ],
)
@pytest.mark.parametrize("known", [False, True])
def test_subsets_of_layers_are_regularized(layers, names, known):
    model, (x, y) = small(), batch()
    images = x[:2] if known else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *given, **named: None)
        with pk.SelectivityRegularizer(model, -1.0, layers, images=images) as penalty:
            assert bool(penalty.layers) == known
            for _ in range(2):
                model.zero_grad()
                model(x)
                penalty(y).backward()
                assert list(penalty.selectivity) == names
    assert [layer.name for layer in penalty.layers] == names


def test_layers_can_be_found_before_training_without_side_effects():
    torch.manual_seed(0)
    model = CifarResNet(8, classes=3, channels=1)
    before = copy.deepcopy(model.state_dict())
    penalty = pk.SelectivityRegularizer(
        model, -1.0, "but-last-stage", images=torch.rand(2, 1, 8, 8)
    )
    assert len(penalty.layers) == 5
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    penalty.close()


def test_validation_passes_are_ignored():
    model, (x, y) = small(), batch()
    with pk.SelectivityRegularizer(model, -1.0) as penalty:
        with torch.no_grad():
            model(x[:3])
        model(x)
        term = penalty(y)
        model(x)
        with torch.no_grad():
            model(x[:3])
        with torch.inference_mode():
            model(x[:5])
        assert penalty(y).item() == term.item()


def test_negative_class_means_warn_once_and_give_finite_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3))
    x, y = torch.randn(9, 4), torch.arange(9) % 3
    for negative in ("clip", "shift", "keep"):
        with pk.SelectivityRegularizer(model, -1.0, negative=negative) as penalty:
            model(x)
            with pytest.warns(ProbekitWarning, match=f"below zero in 1 .*negative='{negative}'"):
                term = penalty(y)
            term.backward()
            assert torch.isfinite(model[0].weight.grad).all()
            model.zero_grad()
            model(x)
            penalty(y)


def test_two_regularizers_add_up():
    model, (x, y) = small(), batch()
    with (
        pk.SelectivityRegularizer(model, -1.0, "first:1") as first,
        pk.SelectivityRegularizer(model, 2.0, "last:1") as last,
    ):
        model(x)
        term = first(y) + last(y)
    one, two = (plain_term([table], y) for table in plain_activations(model, x))
    assert term.item() == pytest.approx((one - 2 * two).item())
