"""Time and strength of attacks, compared with foolbox and torchattacks.

python benchmarks/attacks.py [--quick]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from harness import (
    Case,
    Contender,
    Missing,
    Question,
    Row,
    Setting,
    always,
    cost,
    main,
    peer,
    versus,
)
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from probekit.models.architectures import CifarResNet
from probekit.perturbations.attacks.gradient import FGSM, PGD, Attack

Predict = Callable[[], Tensor]
BOUND = 1.25


class Subject(NamedTuple):
    """A network, the number of attacked images, and the number of PGD steps."""

    name: str
    model: str
    size: int
    images: int
    steps: int


class Threat(NamedTuple):
    """An attack with its radii."""

    kind: str
    norm: str
    epsilons: tuple[float, ...]

    def named(self, steps: int) -> str:
        """The name of the attack in the tables."""
        kind = f"PGD-{steps}" if self.kind == "PGD" else self.kind
        if len(self.epsilons) == 1:
            return f"{kind} {self.norm} {self.epsilons[0]:g}"
        return f"{kind} {self.norm} at {len(self.epsilons)} radii"


SUBJECTS = (
    Subject("small network, 256 digits", "cnn", 8, 256, 20),
    Subject("ResNet20, 64 digits", "resnet20", 32, 64, 10),
)
THREATS = (
    Threat("FGSM", "linf", (0.05,)),
    Threat("FGSM", "linf", (0.1,)),
    Threat("FGSM", "linf", (0.02, 0.04, 0.06, 0.08, 0.1)),
    Threat("PGD", "linf", (0.01,)),
    Threat("PGD", "linf", (0.1,)),
    Threat("PGD", "l2", (0.5,)),
)


def cases(setting: Setting) -> Iterator[Case]:
    for subject in SUBJECTS:
        for threat in THREATS:
            name = f"{subject.name}, {threat.named(subject.steps)}"
            yield Case(name, partial(compared, subject, threat, setting))


def compared(subject: Subject, threat: Threat, setting: Setting) -> Iterator[Row]:
    model, images, labels = prepared(subject, setting)
    steps = setting.size(subject.steps, 2)
    ways: dict[str, Predict | Missing] = {
        "probekit": ours(threat, steps, model, images, labels),
        "foolbox": peer("foolbox", partial(with_foolbox, threat, steps, model, images, labels)),
        "torchattacks": peer(
            "torchattacks", partial(with_torchattacks, threat, steps, model, images, labels)
        ),
    }
    accuracy = ", ".join(
        f"{name} {(way() == labels).double().mean():.3f}"
        for name, way in ways.items()
        if not isinstance(way, Missing)
    )
    contenders: dict[str, Contender | Missing] = {
        name: way if isinstance(way, Missing) else always(way) for name, way in ways.items()
    }
    times = setting.take_turns(contenders, seconds=4)
    note = f"accuracy under attack: {accuracy}"
    asked = {"foolbox": cost(BOUND), "torchattacks": cost(BOUND)}
    yield from versus(times, "probekit", asked, note)


def ours(threat: Threat, steps: int, model: nn.Module, images: Tensor, labels: Tensor) -> Predict:
    size = step_size(threat, steps)
    attack: Attack = (
        FGSM() if threat.kind == "FGSM" else PGD(steps=steps, step_size=size, norm=threat.norm)
    )
    return lambda: attack.run(model, images, labels, threat.epsilons, check=False).prediction


def with_foolbox(
    threat: Threat, steps: int, model: nn.Module, images: Tensor, labels: Tensor, foolbox: Any
) -> Predict:
    """Runs foolbox, whose call also returns which images are fooled."""
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
    size = step_size(threat, steps)
    attack = {
        "FGSM linf": lambda: foolbox.attacks.LinfFastGradientAttack(),
        "PGD linf": lambda: foolbox.attacks.LinfProjectedGradientDescentAttack(
            steps=steps, abs_stepsize=size
        ),
        "PGD l2": lambda: foolbox.attacks.L2ProjectedGradientDescentAttack(
            steps=steps, abs_stepsize=size
        ),
    }[f"{threat.kind} {threat.norm}"]()

    def run() -> Tensor:
        _, _, fooled = attack(wrapped, images, labels, epsilons=threat.epsilons)
        return torch.where(fooled, -1, labels)

    return run


def with_torchattacks(
    threat: Threat, steps: int, model: nn.Module, images: Tensor, labels: Tensor, peers: Any
) -> Predict:
    """Runs torchattacks, which returns only images; another forward pass finds the fooled ones."""
    options = {"alpha": step_size(threat, steps), "steps": steps}
    make = {
        "FGSM linf": lambda eps: peers.FGSM(model, eps=eps),
        "PGD linf": lambda eps: peers.PGD(model, eps=eps, **options),
        "PGD l2": lambda eps: peers.PGDL2(model, eps=eps, **options),
    }[f"{threat.kind} {threat.norm}"]
    attacks = [make(epsilon) for epsilon in threat.epsilons]

    def predicted(adversarial: Tensor) -> Tensor:
        with torch.no_grad():
            return model(adversarial).argmax(dim=1)

    def run() -> Tensor:
        return torch.stack([predicted(attack(images, labels)) for attack in attacks])

    return run


def step_size(threat: Threat, steps: int) -> float:
    """The step size of PGD, which is used with a single radius."""
    return 2.5 * threat.epsilons[0] / steps


@cache
def prepared(subject: Subject, setting: Setting) -> tuple[nn.Module, Tensor, Tensor]:
    """A network trained on digits, and digits that are not in its training set."""
    torch.manual_seed(0)
    images, labels = digits(subject.size)
    model = trained(subject, images, labels, setting)
    count = setting.size(subject.images, 8)
    device = setting.device
    return model.to(device), images[-count:].to(device), labels[-count:].to(device)


def digits(size: int) -> tuple[Tensor, Tensor]:
    """scikit-learn's digits in a fixed random order, (n, 1, size, size) in [0, 1]."""
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(bunch.images / 16).float()[order, None]
    if size != 8:
        images = functional.interpolate(images, size=(size, size), mode="nearest")
    return images, torch.from_numpy(bunch.target)[order]


def trained(subject: Subject, images: Tensor, labels: Tensor, setting: Setting) -> nn.Module:
    """A network trained on all images except those attacked, to an accuracy of at least 95%."""
    epochs = setting.size(1 if subject.model == "resnet20" else 6, 0)
    model: nn.Module = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 10),
    )
    if subject.model == "resnet20":
        model = CifarResNet(20, classes=10, channels=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(1400).split(50):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    return model.eval()


QUESTION = Question(
    "attacks",
    "What do attacks cost compared with foolbox and torchattacks?",
    "All libraries attack the same network and images with the same radius, number of steps and "
    "step size: scikit-learn's digits of 8 px for a small network, and of 32 px for ResNet20. Every "
    "library also reports which images fool the network; for torchattacks, this takes one more "
    "forward pass. torchattacks takes one radius per call. Our checks of the model and the images, "
    "which the peers do not have, are excluded. The bound applies to the faster peer, so both rows of "
    "an attack must meet it.",
    cases,
)

if __name__ == "__main__":
    sys.exit(main([QUESTION]))
