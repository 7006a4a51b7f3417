"""Time of a regularized training step beside the plain step, and beside the plain way to regularize.

    python benchmarks/regularizer.py [resnet20|resnet20-bfloat16|resnet18 ...] [--repeats 15]
        [--threads 2] [--clock wall|cpu]

Forward, loss, backward and optimizer step in channels-last: ResNet20 on 256 grey images of 28 px in
float32 and under bfloat16 autocast, torchvision's ResNet18 on 128 images of 64 px. The plain way is
a forward hook with a spatial mean, differentiated by autograd as it comes. The three take turns; a
ratio is the median, over the turns, of a step's time to that of the plain step of the same turn.
On a busy machine `--clock cpu --threads 1` counts the processor's time of this process alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18

import probekit as pk
from probekit.models.architectures import cifar_resnet
from probekit.training.objective import ClassSums, batch_selectivity

Step = Callable[[], None]
ALPHA = -1.0
CASES = {
    "resnet20": ("float32", 256, 1, 28, 1.10),
    "resnet20-bfloat16": ("bfloat16", 256, 1, 28, 1.15),
    "resnet18": ("float32", 128, 3, 64, 1.10),
}


class PlainWay:
    """The regularizer as it is usually written: hooks, `mean((2, 3))` and autograd."""

    def __init__(self, model: nn.Module) -> None:
        self._pooled: list[Tensor] = []
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: object, output: Tensor) -> None:
        self._pooled.append(output.float().mean((2, 3)))

    def __call__(self, labels: Tensor) -> Tensor:
        pooled, self._pooled = self._pooled, []
        terms = [batch_selectivity(ClassSums.of(table, labels, 10))[0].mean() for table in pooled]
        return -ALPHA * torch.stack(terms).mean()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    print(f"{device}, {options.threads} thread(s), {options.repeats} turns, {options.clock} time")
    print(f"{'case':<20}{'step':<14}{'seconds':>9}{'ratio':>8}{'quartiles':>16}{'bound':>7}")
    for case in options.cases or CASES:
        measure(case, device, options.repeats, clock)


def measure(case: str, device: str, repeats: int, clock: Callable[[], float]) -> None:
    steps = {
        "plain": step(case, device, lambda model: None),
        "probekit": step(case, device, lambda model: pk.SelectivityRegularizer(model, ALPHA)),
        "plain way": step(case, device, PlainWay),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(-2, repeats):
        order = list(steps)
        for name in order[turn % 3 :] + order[: turn % 3]:
            taken = timed(steps[name], device, clock)
            if turn >= 0:
                seconds[name].append(taken)
    for name, times in seconds.items():
        ratios = [one / plain for one, plain in zip(times, seconds["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        bound = f"{CASES[case][-1]:.2f}" if name == "probekit" else ""
        spread = f"{low:.3f}-{high:.3f}"
        print(
            f"{case:<20}{name:<14}{statistics.median(times):>9.4f}{middle:>8.3f}{spread:>16}{bound:>7}",
            flush=True,
        )


def step(
    case: str, device: str, regularize: Callable[[nn.Module], Callable[[Tensor], Tensor] | None]
) -> Step:
    """One whole training step of a network of its own."""
    dtype, batch, channels, size, _ = CASES[case]
    torch.manual_seed(0)
    model: nn.Module = resnet18(num_classes=10) if case == "resnet18" else cifar_resnet(20, 10, 1)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(batch, channels, size, size, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % 10
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    penalty = regularize(model)

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = functional.cross_entropy(model(images), labels)
        if penalty is not None:
            loss = loss + penalty(labels)
        loss.backward()
        optimizer.step()

    return run


def timed(run: Step, device: str, clock: Callable[[], float]) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], metavar="CASE")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    return parser.parse_args()


if __name__ == "__main__":
    main()
