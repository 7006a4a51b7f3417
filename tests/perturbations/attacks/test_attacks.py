"""FGSM, PGD and AutoAttack compared with manual computation, captum, foolbox and torchattacks."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any

import captum.robust
import foolbox
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from probekit.errors import DataError, ModelError, OptionError, ProbekitWarning
from probekit.perturbations.attacks.gradient import FGSM, PGD, Attack, AutoAttack, get_attack

NOISE = 0.01  # one image in a hundred: the effect of a different random start on an accuracy


@pytest.fixture
def torchattacks() -> Any:
    """Installed without its dependencies, whose version pins conflict with other packages."""
    return pytest.importorskip("torchattacks", reason="pip install --no-deps torchattacks==3.5.1")


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A small network and the digits held out from its training."""

    model: nn.Sequential
    images: Tensor
    labels: Tensor

    def accuracy(self, images: Tensor) -> float:
        with torch.no_grad():
            return float((self.model(images).argmax(dim=1) == self.labels).double().mean())


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: for networks this small, threads cost more time than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(one_thread: None) -> Trained:
    bunch = load_digits()
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(bunch.target), generator=generator)
    images = torch.from_numpy(bunch.images / 16).float()[order, None]
    labels = torch.from_numpy(bunch.target)[order]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(16 * 16, 10),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(5):
            for rows in torch.randperm(1400).split(50):
                optimizer.zero_grad()
                functional.cross_entropy(model(images[rows]), labels[rows]).backward()
                optimizer.step()
    for parameter in model.parameters():
        parameter.grad = None
    found = Trained(model.eval(), images[1400:1600], labels[1400:1600])
    assert found.accuracy(found.images) > 0.9
    return found


class Linear(nn.Module):
    """Logits whose last bit does not depend on the batch, unlike those of a matrix product."""

    def __init__(self, classes: int = 3, features: int = 6) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(classes, features, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([(images.flatten(1) * row).sum(dim=1) for row in self.weight], dim=1)


def linear_batch(n: int = 50) -> tuple[Linear, Tensor, Tensor]:
    model = Linear().eval()
    images = torch.rand(n, 1, 2, 3, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
    labels[:3] = (labels[:3] + 1) % 3
    return model, images, labels


def distance(images: Tensor, others: Tensor, norm: str) -> Tensor:
    change = (images.double() - others.double()).flatten(1)
    return torch.linalg.vector_norm(change, ord={"linf": float("inf"), "l2": 2}[norm], dim=1)


# --- comparison with manual computation and other libraries -----------------------------------


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_fgsm_of_two_linear_classes_by_hand(targeted: bool, loss: Any) -> None:
    model = Linear(classes=2).eval()
    images = torch.rand(20, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
    labels[0] = 1 - labels[0]
    towards = (model.weight[1] - model.weight[0]).detach().sign() * (1 - 2 * labels[:, None])
    stepped = (images + 0.1 * towards.view(20, 1, 2, 3)).clamp(0, 1)
    run = FGSM(targeted=targeted, loss=loss).run(model, images, labels, 0.1)
    with torch.no_grad():
        prediction = model(stepped).argmax(dim=1)
    rescued = (run.clean_prediction != labels) & (prediction == labels)
    expected = torch.where(rescued.view(20, 1, 1, 1), images, stepped)
    torch.testing.assert_close(run.images[0], expected)
    assert torch.equal(run.success[0], (prediction != labels) | (run.clean_prediction != labels))


def test_fgsm_equals_captum_with_loss_and_bounds_given(trained: Trained) -> None:
    loss = nn.CrossEntropyLoss(reduction="none")
    peer = captum.robust.FGSM(trained.model, loss, lower_bound=0, upper_bound=1)
    peer.zero_thresh = 0
    for epsilon in (1 / 255, 0.1):
        theirs = peer.perturb(trained.images.clone(), epsilon=epsilon, target=trained.labels)
        ours = FGSM()(trained.model, trained.images, trained.labels, epsilon)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-7)


def test_captums_default_fgsm_skips_small_gradients(trained: Trained) -> None:
    loss = nn.CrossEntropyLoss(reduction="none")
    confident = nn.Sequential(trained.model, Scaled(3.0)).eval()
    peer = captum.robust.FGSM(confident, loss, lower_bound=0, upper_bound=1)
    theirs = peer.perturb(trained.images.clone(), epsilon=0.1, target=trained.labels)
    ours = FGSM()(confident, trained.images, trained.labels, 0.1)
    spared = (theirs == trained.images).flatten(1).all(dim=1)
    moved = (ours != trained.images).flatten(1).any(dim=1)
    assert (spared & moved).any(), "the reason to have an FGSM of our own is gone"


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return logits * self.factor


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_last_iterate_equals_that_of_foolbox_and_torchattacks(
    trained: Trained, torchattacks: Any, norm: Any
) -> None:
    epsilon, steps = {"linf": (0.1, 5), "l2": (0.8, 5)}[norm]
    size = epsilon / 3
    attack = PGD(steps=steps, step_size=size, norm=norm, random_start=False, keep="last")
    run = attack.run(trained.model, trained.images, trained.labels, epsilon)
    clean_right = run.clean_prediction == trained.labels
    peer: Any = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
    of_torchattacks = peer(trained.model, eps=epsilon, alpha=size, steps=steps, random_start=False)(
        trained.images, trained.labels
    )
    kind: Any = {
        "linf": foolbox.attacks.LinfProjectedGradientDescentAttack,
        "l2": foolbox.attacks.L2ProjectedGradientDescentAttack,
    }[norm]
    model = foolbox.PyTorchModel(trained.model, bounds=(0, 1), device="cpu")
    of_foolbox, _, _ = kind(steps=steps, abs_stepsize=size, random_start=False)(
        model, trained.images, trained.labels, epsilons=epsilon
    )
    for theirs in (of_torchattacks, of_foolbox):
        far = (run.images[0] - theirs).abs()[clean_right] > 1e-4
        assert far.double().mean() < 0.005, "more than the sign of some gradient near zero"


@pytest.mark.parametrize(
    ("norm", "epsilon"), [("linf", 0.05), ("linf", 0.1), ("l2", 0.3), ("l2", 0.7)]
)
def test_pgd_is_as_strong_as_foolbox_and_torchattacks(
    trained: Trained, torchattacks: Any, norm: Any, epsilon: float
) -> None:
    steps, size = 15, epsilon / 6
    peer: Any = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
    kind: Any = {
        "linf": foolbox.attacks.LinfProjectedGradientDescentAttack,
        "l2": foolbox.attacks.L2ProjectedGradientDescentAttack,
    }[norm]
    model = foolbox.PyTorchModel(trained.model, bounds=(0, 1), device="cpu")
    images, labels = trained.images, trained.labels
    # Random starts change the result for a few images.
    ours, of_torchattacks, of_foolbox = [], [], []
    for seed in range(4):
        attack = PGD(steps=steps, step_size=size, norm=norm, seed=seed)
        run = attack.run(trained.model, images, labels, epsilon)
        assert trained.accuracy(run.images[0]) == pytest.approx(run.accuracy[0], abs=NOISE)
        ours.append(run.accuracy[0])
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found = peer(trained.model, eps=epsilon, alpha=size, steps=steps)(images, labels)
            of_torchattacks.append(trained.accuracy(found))
            _, _, fooled = kind(steps=steps, abs_stepsize=size)(
                model, images, labels, epsilons=epsilon
            )
            of_foolbox.append(1 - float(fooled.double().mean()))
    assert fmean(ours) <= min(fmean(of_torchattacks), fmean(of_foolbox)) + NOISE
    assert 0.02 < fmean(ours) < 0.9, "an epsilon at which the attacks could differ"


def test_targeted_pgd_is_as_strong_as_torchattacks(trained: Trained, torchattacks: Any) -> None:
    targets = (trained.labels + 1) % 10
    peer = torchattacks.PGD(trained.model, eps=0.2, alpha=0.03, steps=15)
    peer.set_mode_targeted_by_function(lambda images, labels: (labels + 1) % 10, quiet=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = peer(trained.images, trained.labels)
    with torch.no_grad():
        reached = (trained.model(theirs).argmax(dim=1) == targets).double().mean()
    run = PGD(steps=15, step_size=0.03, targeted=True).run(
        trained.model, trained.images, trained.labels, 0.2, targets=targets
    )
    assert torch.equal(run.success[0], run.prediction[0] == targets)
    assert run.success.double().mean() >= reached - NOISE
    assert reached > 0.3, "an epsilon at which targets can be reached"


# --- contents of a result ----------------------------------------------------------------------

EVERY: dict[str, Attack] = {
    "fgsm": FGSM(),
    "fgsm margin": FGSM(loss="margin"),
    "fgsm targeted": FGSM(targeted=True),
    "pgd": PGD(steps=6),
    "pgd last": PGD(steps=6, keep="last"),
    "pgd l2": PGD(steps=6, norm="l2"),
    "pgd l2 last": PGD(steps=6, norm="l2", keep="last", restarts=2),
    "pgd targeted": PGD(steps=6, targeted=True),
    "pgd margin": PGD(steps=6, loss="margin", random_start=False),
    "pgd restarts": PGD(steps=3, restarts=3, seed=5),
}


@pytest.mark.parametrize("name", EVERY)
def test_result_is_consistent_and_respects_its_bounds(trained: Trained, name: str) -> None:
    attack = EVERY[name]
    epsilons = (0.1, 0.0, 0.3, 1 / 255)
    images, labels = trained.images[:60], trained.labels[:60].clone()
    labels[0] = (labels[0] + 1) % 10
    run = attack.run(trained.model, images, labels, epsilons)
    assert run.epsilons == epsilons
    assert run.images.shape == (4, *images.shape)
    assert run.success_by_step is not None
    assert run.success_by_step.shape == (4, attack.steps + 1, 60)
    assert torch.equal(run.success_by_step[:, -1], run.success)
    assert run.n_fooled == tuple(run.success.sum(dim=1).tolist())
    for epsilon, adversarial, prediction in zip(epsilons, run.images, run.prediction, strict=True):
        assert (distance(adversarial, images, attack.norm) <= epsilon).all()
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1
        with torch.no_grad():
            again = trained.model(adversarial).argmax(dim=1)
        assert (again == prediction).double().mean() > 0.98, "but for ties in the last bit"
    if not attack.targeted:
        assert torch.equal(run.success, run.prediction != labels)
        assert run.success[:, 0].all(), "wrong without attack is fooled at every epsilon"
    assert torch.equal(run.images[1], images), "epsilon 0 gives the clean images"
    assert torch.equal(run.prediction[1], run.clean_prediction)
    assert f"{run.n_fooled[0]} at 0.1" in repr(run)


@pytest.mark.parametrize("name", EVERY)
def test_each_epsilon_is_attacked_independently(name: str) -> None:
    model, images, labels = linear_batch()
    together = EVERY[name].run(model, images, labels, [0.3, 0.02, 0.1])
    alone = EVERY[name].run(model, images, labels, 0.1)
    assert torch.equal(together.images[2], alone.images[0])
    assert torch.equal(EVERY[name](model, images, labels, 0.1), alone.images[0])


@settings(max_examples=60, deadline=None)
@given(
    epsilon=st.one_of(st.floats(1e-6, 1.0), st.integers(1, 255).map(lambda level: level / 255)),
    name=st.sampled_from(sorted(EVERY)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_bounds_are_exact(epsilon: float, name: str, dtype: torch.dtype) -> None:
    model, images, labels = linear_batch(20)
    images = images.to(dtype)
    adversarial = EVERY[name](model.to(dtype), images, labels, epsilon)
    assert adversarial.dtype == dtype
    assert (distance(adversarial, images, EVERY[name].norm) <= epsilon).all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


def test_more_steps_never_raise_accuracy_when_the_best_is_kept(trained: Trained) -> None:
    attack = PGD(steps=12, step_size=0.01)
    run = attack.run(trained.model, trained.images, trained.labels, [0.05, 0.1])
    assert run.success_by_step is not None
    fooled = run.success_by_step.sum(dim=2)
    assert (fooled.diff(dim=1) >= 0).all()
    assert (fooled[:, -1] > fooled[:, 0]).all()


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_success_by_step_equals_attacks_with_fewer_steps(keep: Any, norm: Any) -> None:
    model, images, labels = linear_batch()
    long = PGD(steps=8, step_size=0.02, keep=keep, norm=norm)
    run = long.run(model, images, labels, 0.2)
    assert run.success_by_step is not None
    assert run.success_by_step[0, 0].sum() < run.success_by_step[0, -1].sum()
    for steps in (1, 3, 7):
        short = dataclasses.replace(long, steps=steps).run(model, images, labels, 0.2)
        assert torch.equal(short.success[0], run.success_by_step[0, steps])


def test_images_that_stop_early_do_not_affect_others() -> None:
    model, images, labels = linear_batch(200)
    attack = PGD(steps=6, step_size=0.03)
    together = attack.run(model, images, labels, 0.1)
    assert 20 < together.n_fooled[0] < 180
    assert together.success_by_step is not None
    assert len(together.success_by_step[0].sum(dim=1).unique()) > 3, "they leave at many steps"
    for i in range(0, 200, 7):
        alone = attack.run(model, images[i : i + 1], labels[i : i + 1], 0.1, index=[i])
        assert torch.equal(alone.images[0, 0], together.images[0, i])


@pytest.mark.parametrize("keep", ["best", "last"])
def test_restarts_never_weaken_the_attack(trained: Trained, keep: Any) -> None:
    attack = PGD(steps=2, step_size=0.05, keep=keep)
    runs = [
        dataclasses.replace(attack, restarts=restarts).run(
            trained.model, trained.images, trained.labels, 0.1
        )
        for restarts in (1, 2, 6)
    ]
    assert (runs[0].success <= runs[1].success).all()
    assert (runs[1].success <= runs[2].success).all()
    assert runs[2].n_fooled[0] > runs[0].n_fooled[0]


def test_margin_loss_works_with_a_saturated_softmax(trained: Trained) -> None:
    saturated = nn.Sequential(trained.model, Scaled(1e3)).eval()
    attack = PGD(steps=10, random_start=False)
    with pytest.warns(ProbekitWarning, match="gradient is zero"):
        blind = attack.run(saturated, trained.images, trained.labels, 0.1)
    sharp = dataclasses.replace(attack, loss="margin")
    sees = sharp.run(saturated, trained.images, trained.labels, 0.1)
    assert sees.accuracy[0] < blind.accuracy[0] - 0.1


def test_default_targets_are_the_least_likely_classes(trained: Trained) -> None:
    run = FGSM(targeted=True).run(trained.model, trained.images, trained.labels, 0.05)
    with torch.no_grad():
        ranks = trained.model(trained.images).argsort(dim=1)
    targets = torch.where(ranks[:, 0] == trained.labels, ranks[:, 1], ranks[:, 0])
    given_targets = FGSM(targeted=True).run(
        trained.model, trained.images, trained.labels, 0.05, targets=targets
    )
    assert torch.equal(run.images, given_targets.images)


# --- seeds and batches --------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_batch_split_and_order_change_nothing(name: str) -> None:
    model, images, labels = linear_batch()
    attack = EVERY[name]
    whole = attack.run(model, images, labels, 0.1)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    for rows in order.split(17):
        part = attack.run(model, images[rows], labels[rows], 0.1, index=rows, check=False)
        assert torch.equal(part.images[0], whole.images[0, rows])
        assert torch.equal(part.success[0], whole.success[0, rows])


def test_splitting_a_batch_changes_a_network_only_by_rounding(trained: Trained) -> None:
    attack = PGD(steps=10)
    whole = attack.run(trained.model, trained.images, trained.labels, 0.08)
    parts = [
        attack.run(trained.model, trained.images[rows], trained.labels[rows], 0.08, index=rows)
        for rows in torch.arange(200).split(64)
    ]
    success = torch.cat([part.success[0] for part in parts])
    assert (success == whole.success[0]).double().mean() >= 0.99


def test_seed_and_index_determine_the_start() -> None:
    model, images, labels = linear_batch()

    def start(seed: int, first: int) -> Tensor:
        attack = PGD(steps=1, step_size=1e-9, keep="last", seed=seed)
        return attack.run(model, images, labels, 0.1, index=range(first, first + 50)).images

    assert torch.equal(start(0, 0), start(0, 0))
    assert not torch.equal(start(0, 0), start(1, 0))
    assert not torch.equal(start(0, 0), start(0, 50))


def test_global_generators_are_unchanged() -> None:
    model, images, labels = linear_batch()
    before = torch.random.get_rng_state()
    PGD(steps=2, restarts=2).run(model, images, labels, 0.1)
    assert torch.equal(before, torch.random.get_rng_state())


# --- the model and the images are restored -----------------------------------------------------


def state_of(model: nn.Module) -> list[object]:
    modes = [part.training for part in model.modules()]
    hooks = [len(part._forward_hooks) + len(part._backward_hooks) for part in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    grads = [None if p.grad is None else p.grad.clone().tolist() for p in model.parameters()]
    values = [value.clone().tolist() for value in model.state_dict().values()]
    return [modes, hooks, flags, grads, values]


def mixed_model() -> nn.Sequential:
    """In training mode except for its batch norm, with one frozen parameter and one that has a gradient."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    model[2].eval()
    model[1].bias.requires_grad_(False)
    model[1].weight.grad = torch.ones(3, 6)
    return model


@pytest.mark.parametrize("name", ["fgsm", "pgd", "pgd last", "pgd l2"])
def test_model_is_restored(name: str) -> None:
    model = mixed_model()
    images = torch.rand(8, 1, 2, 3, requires_grad=True)
    clean = images.detach().clone()
    before = state_of(model)
    run = EVERY[name].run(model, images, torch.zeros(8, dtype=torch.int64), 0.1, check=False)
    assert state_of(model) == before
    assert images.grad is None
    assert images.requires_grad
    assert torch.equal(images, clean)
    assert not run.images.requires_grad
    again = EVERY[name].run(model, images, torch.zeros(8, dtype=torch.int64), 0.1, check=False)
    assert torch.equal(run.images, again.images), "dropout was on: the model was not in eval mode"


class FailsOnCall(nn.Module):
    def __init__(self, call: int) -> None:
        super().__init__()
        self.countdown = call

    def forward(self, x: Tensor) -> Tensor:
        self.countdown -= 1
        if self.countdown == 0:
            raise RuntimeError("of the model's own")
        return x


@pytest.mark.parametrize("call", [1, 2, 4])
def test_model_is_restored_after_an_exception(call: int) -> None:
    model = mixed_model().append(FailsOnCall(call))
    before = state_of(model)
    with pytest.raises(RuntimeError, match="of the model's own"):
        PGD(steps=5, keep="last").run(
            model, torch.rand(8, 1, 2, 3), torch.zeros(8, dtype=torch.int64), 0.1, check=False
        )
    assert state_of(model) == before


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["fgsm", "pgd", "pgd l2"])
def test_attacks_run_when_the_caller_has_disabled_gradients(
    context: Callable[[], Any], name: str
) -> None:
    model, images, labels = linear_batch()
    expected = EVERY[name](model, images, labels, 0.1)
    with context():
        assert torch.equal(EVERY[name](model, images.clone(), labels.clone(), 0.1), expected)
        assert not torch.is_grad_enabled()


def test_a_callable_that_holds_a_module_is_restored_too() -> None:
    @dataclasses.dataclass(frozen=True)
    class Holder:
        module: nn.Module

        def __call__(self, images: Tensor) -> Tensor:
            return self.module(images * 2 - 1)

    model = mixed_model()
    before = state_of(model)
    images, labels = torch.rand(8, 1, 2, 3), torch.zeros(8, dtype=torch.int64)
    with pytest.warns(ProbekitWarning, match="training mode"):
        first = PGD(steps=3).run(Holder(model), images, labels, 0.1)
    assert state_of(model) == before
    again = PGD(steps=3).run(Holder(model), images, labels, 0.1, check=False)
    assert torch.equal(first.images, again.images)


class RootOfDistance(nn.Module):
    """Its gradient is NaN wherever a pixel equals one half."""

    def forward(self, images: Tensor) -> Tensor:
        root = (images.flatten(1) - 0.5).abs().sqrt().sum(dim=1)
        return torch.stack([root, 2 - root], dim=1)


@pytest.mark.parametrize("name", ["fgsm", "pgd margin", "pgd l2"])
def test_nan_gradients_do_not_reach_the_images(name: str) -> None:
    images = torch.tensor([[0.5, 0.2, 0.7], [0.5, 0.5, 0.5]])
    labels = torch.tensor([0, 1])
    run = EVERY[name].run(RootOfDistance().eval(), images, labels, 0.1, check=False)
    adversarial = run.images[0]
    assert torch.isfinite(adversarial).all()
    assert (distance(adversarial, images, EVERY[name].norm) <= 0.1).all()


# --- invalid arguments --------------------------------------------------------------------------

BAD_OPTIONS: dict[str, tuple[Callable[[], object], str]] = {
    "norm": (lambda: PGD(norm="l3"), "norm must be 'linf' or 'l2', not 'l3'"),  # type: ignore[arg-type]
    "loss": (lambda: FGSM(loss="crossentropy"), "loss must be 'cross_entropy' or"),  # type: ignore[arg-type]
    "keep": (lambda: PGD(keep="first"), "keep must be .* not 'first'"),  # type: ignore[arg-type]
    "version": (lambda: AutoAttack(version="std"), "version must be .* not 'std'"),  # type: ignore[arg-type]
    "steps": (lambda: PGD(steps=0), "steps must be a positive integer, not 0"),
    "restarts": (lambda: PGD(restarts=0), "restarts must be a positive integer, not 0"),
    "same runs": (lambda: PGD(restarts=2, random_start=False), "needs random_start=True"),
    "step size": (lambda: PGD(step_size=-0.1), "step_size must be a positive number, not -0.1"),
    "step scale": (lambda: PGD(step_size=2), "pass 2/255"),
    "name": (lambda: get_attack("pdg"), "there is no attack 'pdg'; close matches: pgd"),
    "type": (lambda: get_attack(PGD), "there is no attack 'ABCMeta'"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_invalid_options_are_refused(case: str) -> None:
    make, words = BAD_OPTIONS[case]
    with pytest.raises(OptionError, match=words):
        make()


BAD_RUNS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "epsilon": ({"epsilons": 8}, OptionError, "pass 8/255"),
    "images": ({"images": torch.full((50, 1, 2, 3), 99.0)}, DataError, "divide by 255"),
    "labels": ({"labels": torch.full((50,), 3)}, DataError, "labels hold class 3"),
    "label count": ({"labels": torch.zeros(49, dtype=torch.int64)}, DataError, "as 50 integers"),
    "targets": ({"targets": torch.full((50,), 7)}, DataError, "targets hold class 7"),
    "index": ({"index": [1, 2]}, OptionError, "one number for each of 50 images, not 2"),
    "model": ({"model": lambda images: images.flatten(1).detach()}, ModelError, "no gradient"),
}


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("case", BAD_RUNS)
def test_invalid_runs_are_refused(case: str, check: bool) -> None:
    changed, error, words = BAD_RUNS[case]
    model, images, labels = linear_batch()
    asked = {"model": model, "images": images, "labels": labels, "epsilons": 0.1} | changed
    with pytest.raises(error, match=words):
        PGD(steps=2, targeted="targets" in asked).run(**asked, check=check)


def test_targets_without_a_targeted_attack_are_refused() -> None:
    model, images, labels = linear_batch()
    with pytest.raises(OptionError, match=r"pgd\(targeted=True\)"):
        PGD().run(model, images, labels, 0.1, targets=labels)


def test_attacks_are_immutable_and_comparable() -> None:
    assert get_attack("PGD") == PGD()
    assert get_attack("fgsm") == FGSM()
    assert get_attack(PGD(steps=3)) == PGD(steps=3)
    assert len({PGD(), PGD(steps=40), PGD(steps=41)}) == 2
    assert eval(repr(PGD(steps=7, norm="l2"))) == PGD(steps=7, norm="l2")
    with pytest.raises(dataclasses.FrozenInstanceError):
        PGD().steps = 3  # type: ignore[misc]


# --- AutoAttack ---------------------------------------------------------------------------------


def test_missing_autoattack_is_reported_with_its_installation(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    attack = get_attack("autoattack")
    with pytest.raises(OptionError, match=r'pip install "probekit\[autoattack\]"'):
        attack.run(trained.model, trained.images, trained.labels, 0.1)


def test_autoattack_needs_four_classes() -> None:
    model, images, labels = linear_batch()
    with pytest.raises(OptionError, match="4 classes or more"):
        AutoAttack().run(model, images, labels, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.25), ("l2", 1.2)])
def test_autoattack_is_stronger_than_two_short_steps_of_pgd(
    trained: Trained, norm: Any, epsilon: float
) -> None:
    pytest.importorskip("pyautoattack")
    images, labels = trained.images[:12], trained.labels[:12]
    before, drawn = state_of(trained.model), torch.random.get_rng_state()
    run = AutoAttack(norm=norm).run(trained.model, images, labels, epsilon)
    assert state_of(trained.model) == before
    assert torch.equal(drawn, torch.random.get_rng_state())
    assert (distance(run.images[0], images, norm) <= epsilon).all()
    assert torch.equal(run.success, run.prediction != labels)
    assert run.success_by_step is None
    pgd = PGD(steps=2, step_size=epsilon / 5, norm=norm).run(trained.model, images, labels, epsilon)
    assert run.n_fooled[0] > pgd.n_fooled[0]
    again = AutoAttack(norm=norm).run(trained.model, images, labels, epsilon)
    assert torch.equal(run.images, again.images)
