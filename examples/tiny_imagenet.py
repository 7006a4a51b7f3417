"""Train ResNet18 with three alphas on half of the classes of Tiny ImageNet, for docs/reproduction.md.

    python examples/tiny_imagenet.py RUNS --data-root DIR                     # one small run, minutes
    python examples/tiny_imagenet.py RUNS --data-root DIR --full              # the networks of the page
    python examples/tiny_imagenet.py RUNS --data-root DIR --full --share 0 2  # every second of them

DIR contains `tiny-imagenet-200`. The images of every second class are copied to RUNS/images first. Runs are
ordered so that an interrupted set is useful; interrupted runs and measurements resume. One network takes two
hours on one core. Each is measured on all 5,000 test images, and on 500 of them under corruptions and
attacks; `networks.csv` gets a row for each that is there.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

import probekit as pk

METRICS = [
    "selectivity",
    "selectivity_chance",
    "selectivity_offset_free",
    "eta_squared",
    "preferred_class_auc",
]
ATTACKS = ["fgsm", pk.PGD(steps=20)]
EPSILONS = (0.5 / 255, 1 / 255, 2 / 255)
OPTIONS: dict[str, Any] = {
    # The max-pool after the stem, which the papers remove, makes a step 3.5 times as fast on a CPU.
    "architecture": "resnet18-pool",
    "validation": 5000,
    "epochs": 8,
    # A class has 20 images in a batch of the papers (4096), and 5 here; smaller batches have fewer.
    "batch_size": 512,
    "schedule": "one-cycle",
    "learning_rate": 0.2,
    "nesterov": True,
    "weight_decay": 5e-4,
    "shift": 4,
    "precision": "auto",
    "channels_last": True,
}
SMALL = {"epochs": 1, "limit": 512, "validation": 500, "batch_size": 256}
NETWORKS = [
    (alpha, seed) for alphas in ((0.0, -1.0), (1.0,)) for seed in (0, 1) for alpha in alphas
]


def every_second_class(root: Path, out: Path) -> Path:
    """Copies the images of every second class into `train/CLASS` and `test/CLASS`."""
    done = out / "done"
    if done.exists():
        return out
    names = sorted((root / "wnids.txt").read_text("utf-8").split())[::2]
    table = (root / "val" / "val_annotations.txt").read_text("utf-8").splitlines()
    for name in names:
        shutil.copytree(root / "train" / name / "images", out / "train" / name, dirs_exist_ok=True)
        (out / "test" / name).mkdir(parents=True, exist_ok=True)
    for file, name in (line.split("\t")[:2] for line in table):
        if name in names:
            shutil.copyfile(root / "val" / "images" / file, out / "test" / name / file)
    done.touch()
    return out


def measured(run: Path, images: Path, whole: bool) -> dict[str, float]:
    """Accuracy of a finished run, means of the measures over layers, and accuracies on changed images."""
    model = pk.load_model(run)
    data = pk.load_data(images, model, split="test")
    found = pk.analyze(model, data, metrics=METRICS, limit=None if whole else 200)
    changed = pk.robustness(
        model, data, "all", attacks=ATTACKS, epsilons=EPSILONS, limit=500 if whole else 20,
        dimensionality=False, selectivity=False, store=run / "robustness",
    )["robustness"]  # fmt: skip
    row = {"accuracy": found["accuracy"], "clean": changed["clean_accuracy"]}
    row |= {name: found[f"{name}_mean"] for name in METRICS}
    row |= {kind: accuracy.mean() for kind, accuracy in changed["accuracy"].groupby("corruption")}
    for attack in changed["attack_accuracy"]["attack"].values:
        for epsilon in EPSILONS:
            value = changed["attack_accuracy"].sel(attack=attack, epsilon=epsilon)
            row[f"{attack}-{epsilon * 255:g}"] = value
    return {name: round(float(value), 5) for name, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="where the runs are stored")
    parser.add_argument(
        "--data-root", type=Path, required=True, help="the folder of tiny-imagenet-200"
    )
    parser.add_argument("--full", action="store_true", help="all networks of the page")
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), metavar=("NUMBER", "OF"))
    parser.add_argument("--device", help="cpu, cuda, ...")
    asked = parser.parse_args()
    images = every_second_class(asked.data_root / "tiny-imagenet-200", asked.runs / "images")
    number, of = asked.share
    for alpha, seed in (NETWORKS if asked.full else NETWORKS[:1])[number::of]:
        folder = asked.runs / (f"a{alpha:g}_s{seed}" if asked.full else "small")
        run = pk.train(
            "resnet18-tiny-imagenet", alpha, seed, folder, data=str(images),
            device=asked.device, **(OPTIONS if asked.full else OPTIONS | SMALL),
        )  # fmt: skip
        print(f"{folder.name}: {run.test_accuracy:.4f}, selectivity {run.selectivity_mean:.3f}")
        if not (stored := folder / "measured.json").exists():
            row = {"alpha": alpha, "seed": seed, **measured(folder, images, asked.full)}
            draft = stored.with_suffix(".draft")
            draft.write_text(json.dumps(row))
            draft.replace(stored)  # complete or absent
    rows = [json.loads(file.read_text()) for file in sorted(asked.runs.glob("*/measured.json"))]
    pd.DataFrame(rows).to_csv(asked.runs / "networks.csv", index=False)


if __name__ == "__main__":
    main()
