"""Train the networks that ship with probekit: ResNet20 on Fashion-MNIST at five strengths of the regularizer.

    python examples/bundled_zoo.py RUNS --data-root DIR --out ZOO

All 60,000 training images are used and none are held out, so the weights are those of the last epoch.
The card's accuracy and mean selectivity are those that `probekit analyze` computes on the test split in
float32. An interrupted run resumes. On two CPU cores, each network takes about ten minutes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors.torch import load_file, save_file

import probekit as pk

RECIPE = "resnet20-fashion-mnist"
ALPHAS = (0.0, -1.0, 1.0, -2.0, 2.0)
# With alpha 2 from the first step on, 39 units in early layers die.
STRENGTHS = {2.0: {"alpha_schedule": "0>2*3 2*5"}}
EPOCHS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="where the runs are kept")
    parser.add_argument("--data-root", help="the folder with the data set's files")
    parser.add_argument("--out", type=Path, default=Path("zoo"), help="where the networks go")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for alpha in ALPHAS:
        folder = options.runs / f"alpha{alpha:g}"
        pk.train(
            RECIPE, out=folder, epochs=options.epochs, validation=0, data_root=options.data_root,
            **STRENGTHS.get(alpha, {"alpha": alpha}),
        )  # fmt: skip
        card = ship(folder, options.out, alpha)
        print(f"{alpha:+g}: {card['test_accuracy']}, selectivity {card['selectivity_mean']}")
        if alpha == 0:
            write_card(options.out, card | {"name": RECIPE})


def ship(run: Path, out: Path, alpha: float) -> dict[str, object]:
    """Copies the weights of a run, and writes their card."""
    name = f"{RECIPE}-a{alpha:g}"
    card = json.loads((run / "model.json").read_text())
    save_file(load_file(run / card["weights"]), out / f"{name}.safetensors")
    model = pk.load_model(run)
    found = pk.analyze(model, pk.load_data("fashion-mnist", model), batch_size=500)
    card |= {
        "name": name,
        "alpha": alpha,
        "weights": f"{name}.safetensors",
        "test_accuracy": round(float(found["accuracy"]), 4),
        "selectivity_mean": round(float(found["selectivity_mean"]), 4),
        "script": "examples/bundled_zoo.py",
    }
    for by_layer in ("selectivity", "dead_units"):
        card.pop(by_layer)
    write_card(out, card)
    return card


def write_card(out: Path, card: dict[str, object]) -> None:
    """Writes a card to a file with the name in the card."""
    (out / f"{card['name']}.json").write_text(json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    main()
