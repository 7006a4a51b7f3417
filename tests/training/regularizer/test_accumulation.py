import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import probekit as pk
from probekit.errors import DataError, LayerError, OptionError, ProbekitWarning
from probekit.models.architectures import CifarResNet


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(20, 3),
    ).double()  # fmt: skip


def batch(rows=12):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(rows, 1, 6, 6, generator=generator, dtype=torch.float64)
    return images, torch.arange(rows) % 3


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


def whole_batch_gradients(x, y, alpha):
    model = network()
    with pk.SelectivityRegularizer(model, alpha) as penalty:
        loss = functional.cross_entropy(model(x), y) + penalty(y)
    loss.backward()
    return loss, gradients(model)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_accumulation_is_refused_at_the_second_backward(set_to_none):
    model, (x, y) = network(), batch()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pk.SelectivityRegularizer(model, -1.0) as penalty:
        for _ in range(2):
            (functional.cross_entropy(model(x), y) + penalty(y)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none)
        (functional.cross_entropy(model(x), y) + penalty(y)).backward()
        with pytest.raises(OptionError, match="gathering"):
            (functional.cross_entropy(model(x), y) + penalty(y)).backward()


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
        lambda parameters: torch.optim.AdamW(parameters, 0.1, fused=True),
        lambda parameters: torch.optim.SGD(list(parameters)[:2], 0.1),
    ],
    ids=["momentum", "fused", "some parameters"],
)
@pytest.mark.parametrize("order", ["zero first", "zero late", "no step", "both losses apart"])
def test_ordinary_loops_are_not_mistaken_for_accumulation(optimizer, set_to_none, order):
    model, (x, y) = network(), batch()
    optimizer = optimizer(model.parameters())
    with pk.SelectivityRegularizer(model, -1.0) as penalty:
        for _ in range(3):
            if order != "zero late":
                optimizer.zero_grad(set_to_none)
                model.zero_grad(set_to_none)
            loss = functional.cross_entropy(model(x), y)
            term = penalty(y)
            if order == "zero late":
                model.zero_grad(set_to_none)
            if order == "both losses apart":
                loss.backward(retain_graph=True)
                term.backward()
            else:
                (loss + term).backward()
            if order != "no step":
                optimizer.step()


def test_each_uses_the_selectivity_of_each_part():
    model, (x, y) = network(), batch()
    with pk.SelectivityRegularizer(model, -1.0, accumulation="each") as penalty:
        for rows in (slice(0, 6), slice(6, 12)):
            model(x[rows])
            penalty(y[rows]).backward()
    accumulated = gradients(model[:4])
    reference = network()
    with pk.SelectivityRegularizer(reference, -1.0) as penalty:
        terms = []
        for rows in (slice(0, 6), slice(6, 12)):
            reference(x[rows])
            terms.append(penalty(y[rows]))
        sum(terms).backward()
    torch.testing.assert_close(accumulated, gradients(reference[:4]))


@pytest.mark.parametrize("cuts", [(12,), (6, 6), (1, 7, 4)])
@pytest.mark.parametrize("alpha", [-1.0, 3.0])
def test_a_gathered_batch_has_the_gradient_of_the_whole_batch(cuts, alpha):
    x, y = batch()
    y[:1] = 2
    loss, expected = whole_batch_gradients(x, y, alpha)
    model = network()
    parts = list(zip(x.split(cuts), y.split(cuts), strict=True))
    with pk.SelectivityRegularizer(model, alpha) as penalty:
        for _ in range(2):
            model.zero_grad()
            with penalty.gathering():
                for images, labels in parts:
                    model(images)
                    penalty(labels)
            cross_entropy = 0.0
            for images, labels in parts:
                share = functional.cross_entropy(model(images), labels) * len(labels) / len(y)
                term = penalty(labels)
                (share + term).backward()
                cross_entropy += share
            torch.testing.assert_close(cross_entropy + term, loss)
            torch.testing.assert_close(gradients(model), expected)


def test_state_is_restored_after_a_gathered_batch():
    model, (x, y) = network(), batch()
    with pk.SelectivityRegularizer(model, -1.0) as penalty:
        with penalty.gathering():
            model(x)
            assert penalty(y).item() == 0
        model(x)
        whole = penalty(y).item()
        model(x[:5])
        part = penalty(y[:5]).item()
        with pytest.raises(DataError), penalty.gathering():  # noqa: PT012
            model(x)
            penalty(y[:3])
        model(x[:5])
        assert penalty(y[:5]).item() == part != whole


class Checkpointed(nn.Module):
    def __init__(self, model, reentrant):
        super().__init__()
        self.model = model
        self.reentrant = reentrant

    def forward(self, x):
        x = self.model[1](self.model[0](x))
        x = checkpoint(self.model[2:4], x, use_reentrant=self.reentrant)
        return self.model[4:](x)


def test_checkpointed_layers_count_once():
    x, y = batch()
    loss, expected = whole_batch_gradients(x, y, -1.0)
    model = Checkpointed(network(), reentrant=False)
    with pk.SelectivityRegularizer(model, -1.0) as penalty:
        for _ in range(2):
            model.zero_grad()
            again = functional.cross_entropy(model(x), y) + penalty(y)
            again.backward()
            torch.testing.assert_close(again, loss)
            torch.testing.assert_close(gradients(model), expected)
            assert list(penalty.selectivity) == ["model.1", "model.3"]


def test_reentrant_checkpointing_is_refused():
    x, _ = batch()
    model = Checkpointed(network(), reentrant=True)
    with (
        pk.SelectivityRegularizer(model, -1.0),
        pytest.raises(LayerError, match=r"'model\.3' .*use_reentrant=False"),
    ):
        model(x)


def test_a_layer_that_is_no_longer_reached_is_named():
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = network()
            self.short = False

        def forward(self, x):
            return x if self.short else self.model(x)

    model, (x, y) = Fickle(), batch()
    with pk.SelectivityRegularizer(model, -1.0) as penalty:
        model(x)
        penalty(y)
        model.short = True
        with pytest.warns(ProbekitWarning, match=r"'model\.1' is missing"):
            model(x)
        with pytest.raises(LayerError, match=r"'model\.1' was reached in the first"):
            penalty(y)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_is_one_graph_with_the_same_gradient(backend):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = CifarResNet(8, classes=3, channels=1).double()
    twin = copy.deepcopy(model)
    x, y = batch()
    with pk.SelectivityRegularizer(twin, -1.0) as penalty:
        (functional.cross_entropy(twin(x), y) + penalty(y)).backward()
    with pk.SelectivityRegularizer(model, -1.0, images=x[:2]) as penalty:
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        for _ in range(2):
            model.zero_grad()
            (functional.cross_entropy(compiled(x), y) + penalty(y)).backward()
            torch.testing.assert_close(gradients(model), gradients(twin), rtol=1e-6, atol=1e-9)
        compiled.eval()
        with torch.no_grad():
            compiled(x)
