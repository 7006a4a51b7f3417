"""Time and strength of the attacks beside foolbox and torchattacks, on the same model and images.

    python benchmarks/attacks.py [cnn|resnet20] [--images 256] [--repeats 7] [--threads 1]

The model is a small convolutional network trained on scikit-learn's digits, or a ResNet20 on
digits scaled to 32 pixels, whose cost is mostly the network's as in real use. Each library makes
adversarial images and says which of them fool the model: foolbox and probekit as part of the
call, torchattacks by one more forward pass. The libraries take turns; a row holds the median
time, its ratio to the faster of the other two, and the accuracy under attack.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import foolbox
import torch
import torchattacks
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from probekit.models.architectures import cifar_resnet
from probekit.robustness.attacks import FGSM, PGD, Attack

Run = Callable[[], Tensor]


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    images, labels = digits(size=32 if options.model == "resnet20" else 8)
    model = trained(options.model, images, labels)
    images, labels = images[-options.images :], labels[-options.images :]
    print(f"{options.model}, {len(images)} images, {options.threads} thread(s)")
    print(f"{'attack':<22}{'library':<14}{'seconds':>9}{'ratio':>7}{'accuracy':>10}")
    for name, runs in cases(model, images, labels):
        report(name, runs, labels, options.repeats)


def cases(model: nn.Module, images: Tensor, labels: Tensor) -> list[tuple[str, dict[str, Run]]]:
    """The attacks to compare, each as one call for every library that gives (n,) predictions."""
    peer = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)

    def ours(attack: Attack, epsilon: float) -> Run:
        return lambda: attack.run(model, images, labels, epsilon, check=False).prediction[0]

    def with_foolbox(attack: foolbox.Attack, epsilon: float) -> Run:
        def run() -> Tensor:
            _, _, fooled = attack(peer, images, labels, epsilons=epsilon)
            return torch.where(fooled, -1, labels)

        return run

    def with_torchattacks(attack: torchattacks.attack.Attack) -> Run:
        def run() -> Tensor:
            adversarial = attack(images, labels)
            with torch.no_grad():
                return model(adversarial).argmax(dim=1)

        return run

    found = []
    for epsilon in (0.05, 0.1):
        found.append(
            (
                f"FGSM linf {epsilon}",
                {
                    "probekit": ours(FGSM(), epsilon),
                    "foolbox": with_foolbox(foolbox.attacks.LinfFastGradientAttack(), epsilon),
                    "torchattacks": with_torchattacks(torchattacks.FGSM(model, eps=epsilon)),
                },
            )
        )
    for norm, epsilon, steps in (("linf", 0.01, 20), ("linf", 0.1, 20), ("l2", 0.5, 20)):
        size = 2.5 * epsilon / steps
        peers = {
            "linf": (foolbox.attacks.LinfProjectedGradientDescentAttack, torchattacks.PGD),
            "l2": (foolbox.attacks.L2ProjectedGradientDescentAttack, torchattacks.PGDL2),
        }
        of_foolbox, of_torchattacks = peers[norm]
        best = PGD(steps=steps, step_size=size, norm=norm)
        last = PGD(steps=steps, step_size=size, norm=norm, keep="last")
        found.append(
            (
                f"PGD-{steps} {norm} {epsilon}",
                {
                    "probekit": ours(best, epsilon),
                    "probekit last": ours(last, epsilon),
                    "foolbox": with_foolbox(of_foolbox(steps=steps, abs_stepsize=size), epsilon),
                    "torchattacks": with_torchattacks(
                        of_torchattacks(model, eps=epsilon, alpha=size, steps=steps)
                    ),
                },
            )
        )
    return found


def report(name: str, runs: dict[str, Run], labels: Tensor, repeats: int) -> None:
    seconds: dict[str, list[float]] = {library: [] for library in runs}
    accuracy = {library: (run() == labels).double().mean().item() for library, run in runs.items()}
    for turn in range(repeats):
        order = list(runs)
        for library in order[turn % len(order) :] + order[: turn % len(order)]:
            start = time.perf_counter()
            runs[library]()
            seconds[library].append(time.perf_counter() - start)
    median = {library: statistics.median(times) for library, times in seconds.items()}
    fastest_peer = min(median["foolbox"], median["torchattacks"])
    for library, value in median.items():
        row = f"{value:>9.4f}{value / fastest_peer:>7.2f}{accuracy[library]:>10.3f}"
        print(f"{name:<22}{library:<14}{row}")


def digits(size: int) -> tuple[Tensor, Tensor]:
    """scikit-learn's digits in a fixed random order, (n, 1, size, size) in [0, 1]."""
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(bunch.images / 16).float()[order, None]
    if size != 8:
        images = functional.interpolate(images, size=(size, size), mode="nearest")
    return images, torch.from_numpy(bunch.target)[order]


def trained(name: str, images: Tensor, labels: Tensor) -> nn.Module:
    """A network fitted to all but the images that are attacked, to 95% and more."""
    epochs = 1 if name == "resnet20" else 6
    model: nn.Module = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 10),
    )
    if name == "resnet20":
        model = cifar_resnet(20, classes=10, channels=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(1400).split(50):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    return model.eval()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", nargs="?", choices=["cnn", "resnet20"], default="cnn")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
