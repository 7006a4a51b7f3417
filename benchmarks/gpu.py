"""Correctness and cost of probekit on a GPU, in one run of about twelve minutes.

python benchmarks/gpu.py [--out gpu.json] [--device cuda] [--small]

The results of each step are saved when it ends, so an interrupted run keeps them. `--small` uses small
networks and few images, for testing the script on a CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Contender, Missing, Run, Setting, always
from networks import bare_loop, random_batches, timm_model
from torch import Tensor, nn

import probekit as pk
from probekit.perturbations.corruptions.corruption import CORRUPTIONS

ARCHITECTURES = (
    "resnet18", "resnet26", "resnext26ts", "densenet121", "mobilenetv2_050", "mobilenetv3_small_050",
    "efficientnet_lite0", "mnasnet_050", "regnetx_002", "regnety_002", "convnext_atto", "mambaout_femto",
    "vit_tiny_patch16_224", "deit_tiny_patch16_224", "mixer_s32_224", "resmlp_12_224", "poolformer_s12",
    "efficientvit_b0", "ghostnet_050", "lcnet_050",
)  # fmt: skip
TIMED = ("resnet18", "resnet50", "vit_small_patch16_224", "convnext_tiny")


def random_data(images: int, size: int, device: str) -> tuple[Tensor, Tensor]:
    """Random color images in one batch, with labels of ten classes."""
    return random_batches(images, images, (3, size, size), device)[0]


def seconds_of(setting: Setting, ways: dict[str, Run], rounds: int = 3) -> dict[str, float]:
    """The median seconds of several calls that take turns."""
    contenders: dict[str, Contender | Missing] = {name: always(way) for name, way in ways.items()}
    times = setting.take_turns(contenders, seconds=0, least=rounds)
    return {name: times.median(name) for name in ways}


def correctness(setting: Setting) -> Iterator[dict[str, Any]]:
    """The largest relative difference of each metric between the device and the CPU."""
    metrics = ["selectivity", "dimensionality", pk.GradientVariability(probes=4)]
    for name in ARCHITECTURES[: setting.size(20, 2)]:
        net, (images, labels) = (
            timm_model(name, setting.device),
            random_data(setting.size(60, 20), setting.size(224, 64), setting.device),
        )
        here = pk.analyze(net, (images, labels), metrics=metrics, progress=False)
        there = pk.analyze(net.cpu(), (images.cpu(), labels.cpu()), metrics=metrics, progress=False)
        yield {"network": name, **differences(here, there)}
    images = random_data(16, 32, setting.device)[0]
    for name in CORRUPTIONS:
        one = pk.corrupt(images, name, 3).cpu()
        other = pk.corrupt(images.cpu(), name, 3)
        yield {"corruption": name, "share_of_pixels_changed": float((one != other).float().mean())}
    model = pk.load_model("probekit:resnet20-fashion-mnist")
    data = pk.load_data("fashion-mnist", model)
    for attack in (pk.FGSM(), pk.PGD(steps=5)):
        accuracies = [
            pk.robustness(
                model, data, None, attacks=[attack], epsilons=[8 / 255], limit=64,
                dimensionality=False, selectivity=False, device=device, progress=False,
            )["robustness"]["attack_accuracy"].values.ravel().tolist()
            for device in (setting.device, "cpu")
        ]  # fmt: skip
        yield {"attack": type(attack).__name__, "accuracy": accuracies[0], "on_cpu": accuracies[1]}


def differences(here: Any, there: Any) -> dict[str, float]:
    """The largest difference of each unit variable, divided by its largest absolute value."""
    found = {}
    for name, values in there["units"].data_vars.items():
        if values.dtype.kind == "f":
            expected, given = values.values, here["units"][name].values
            size = np.nanmax(np.abs(expected)) if np.isfinite(expected).any() else 0
            found[str(name)] = float(np.nanmax(np.abs(given - expected), initial=0) / (size or 1))
    return found


def overhead(setting: Setting) -> Iterator[dict[str, Any]]:
    """The time of an analysis, and of a bare forward loop over the same batches."""
    size, batches = setting.size(256, 8), setting.size(20, 2)
    for name in TIMED[: setting.size(4, 1)]:
        net, (images, labels) = (
            timm_model(name, setting.device),
            random_data(size * batches, setting.size(224, 64), setting.device),
        )
        for precision in (None, "bfloat16"):
            ways = analyses(net, (images, labels), size, precision)
            seconds = seconds_of(setting, ways)
            yield {"network": name, "precision": precision or "float32", "seconds": seconds}


def analyses(
    net: nn.Module, data: tuple[Tensor, Tensor], size: int, precision: Any
) -> dict[str, Callable[[], Any]]:
    """A bare loop and an analysis, each for the uncompiled and the compiled network."""

    batches = list(zip(*(part.split(size) for part in data), strict=True))
    device = data[0].device.type

    def bare(run: Any) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=precision is not None):
            bare_loop(run, batches)

    def analyze(compile: bool) -> Any:
        return pk.analyze(
            net, data, batch_size=size, precision=precision, compile=compile, progress=False
        )

    return {
        "bare": partial(bare, net),
        "bare, compiled": partial(bare, torch.compile(net, dynamic=False)),
        "analyze": partial(analyze, False),
        "analyze, compiled": partial(analyze, True),
    }


def many_images(setting: Setting) -> Iterator[dict[str, Any]]:
    """ResNet50 on images in device memory, and the peak memory at two numbers of images."""
    name, cuda = setting.size("resnet50", "test_resnet"), setting.device.startswith("cuda")
    net = timm_model(name, setting.device)
    for count in (setting.size(5_000, 16), setting.size(50_000, 32)):
        images, labels = random_data(min(count, 64), setting.size(224, 64), setting.device)
        data = [(images, labels)] * (count // 64 or 1)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = setting.seconds(
            lambda data=data: pk.analyze(
                net, data, metrics=["selectivity", "dimensionality"], progress=False
            )
        )
        peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else None
        yield {"images": count, "images_per_second": count / seconds, "peak_MiB": peak}


def gradients(setting: Setting) -> Iterator[dict[str, Any]]:
    """Seconds of exact gradients, of 32 probes, and of one bare forward pass."""
    name, last = setting.size(("resnet18", "layer4.1.act2"), ("test_resnet", "layer4.0.act2"))
    net = timm_model(name, setting.device)
    data = random_data(setting.size(256, 4), setting.size(224, 64), setting.device)
    ways: dict[str, Callable[[], Any]] = {"bare": lambda: net(data[0])}
    for name, metric in {
        "32 probes": pk.GradientVariability(probes=setting.size(32, 2)),
        "exact, last layer": pk.GradientVariability(),
    }.items():
        layers = last if "exact" in name else None
        ways[name] = lambda metric=metric, layers=layers: pk.analyze(
            net, data, layers, metrics=[metric], progress=False
        )
    with torch.no_grad():
        yield {"seconds": seconds_of(setting, ways)}


def corruptions(setting: Setting) -> Iterator[dict[str, Any]]:
    """Images per second for every corruption at severity 3."""
    images = random_data(setting.size(1_000, 8), 32, setting.device)[0]
    for name in CORRUPTIONS:
        seconds = seconds_of(setting, {name: partial(pk.corrupt, images, name, 3)})
        yield {"corruption": name, "images_per_second": len(images) / seconds[name]}


def training(setting: Setting) -> Iterator[dict[str, Any]]:
    """Training images per second, for one run and for several concurrent runs."""
    recipe = "resnet20-digits" if setting.quick else "resnet20-fashion-mnist"
    with tempfile.TemporaryDirectory() as folder:

        def run(number: int) -> None:
            pk.train(
                recipe, -1.0, number, Path(folder) / str(number), epochs=1, device=setting.device,
                progress=False,
            )  # fmt: skip

        alone = setting.seconds(lambda: run(0))
        several = setting.size(4, 2)
        with ThreadPoolExecutor(several) as pool:
            together = setting.seconds(lambda: list(pool.map(run, range(1, 1 + several))))
    yield {"recipe": recipe, "seconds_alone": alone, "runs": several, "seconds_together": together}


def memory_message(setting: Setting) -> Iterator[dict[str, Any]]:
    """The error message when device memory is too small; on GPUs only."""
    if not setting.device.startswith("cuda"):
        return
    net, data = timm_model("resnet50", setting.device), random_data(512, 224, setting.device)
    torch.cuda.set_per_process_memory_fraction(0.02)
    try:
        pk.analyze(net, data, batch_size=512, progress=False)
        yield {"message": "none: it fitted"}
    except Exception as error:
        yield {"type": type(error).__name__, "message": str(error)}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


STEPS = (
    correctness, overhead, many_images, gradients, corruptions, training, memory_message,
)  # fmt: skip


def main() -> int:
    """Runs all steps and saves their results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--steps", nargs="*", choices=[step.__name__ for step in STEPS])
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    setting = Setting(given.small, given.device, threads=1 if given.small else 2)
    cuda = given.device.startswith("cuda")
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "torch": torch.__version__,
    }
    for step in STEPS:
        if given.steps and step.__name__ not in given.steps:
            continue
        start, rows = time.perf_counter(), []
        try:
            for row in step(setting):
                rows.append(row)
                print(step.__name__, row, flush=True)
        except Exception as error:  # the remaining steps still run
            rows.append({"failed": f"{type(error).__name__}: {error}"})
            print(step.__name__, rows[-1], flush=True)
        found[step.__name__] = {"rows": rows, "seconds": time.perf_counter() - start}
        given.out.write_text(json.dumps(found, indent=1))
    return int(
        any(
            "failed" in row
            for step in found.values()
            if isinstance(step, dict)
            for row in step["rows"]
        )
    )


if __name__ == "__main__":
    sys.exit(main())
