"""The loops that docs/regularizer.md shows are run here as they stand there."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from probekit.models.architectures import cifar_resnet

PAGE = (Path(__file__).parents[2] / "docs" / "regularizer.md").read_text()
SNIPPETS = re.findall(r"<!-- run: (\w+) -->\n```python\n(.*?)```", PAGE, re.DOTALL)


def names():
    torch.manual_seed(0)
    images, labels = torch.rand(24, 1, 8, 8), torch.arange(24) % 3
    dataset = torch.utils.data.TensorDataset(images, labels)
    model = cifar_resnet(8, classes=3, channels=1)
    return {
        "torch": torch,
        "model": model,
        "loader": torch.utils.data.DataLoader(dataset, batch_size=12),
        "optimizer": torch.optim.SGD(model.parameters(), 0.05),
        "epochs": 2,
    }


def test_every_kind_of_loop_is_shown():
    assert [kind for kind, _ in SNIPPETS] == ["plain", "parts", "accelerate", "timm", "lightning"]


@pytest.mark.parametrize(("kind", "code"), SNIPPETS, ids=[kind for kind, _ in SNIPPETS])
def test_a_loop_of_the_page_runs_and_regularizes(kind, code):
    if kind == "lightning":
        pytest.importorskip("lightning")
    space = names()
    before = [parameter.detach().clone() for parameter in space["model"].parameters()]
    exec(code, space)
    run_rest(kind, space)
    penalty = space["penalty"]
    assert len(penalty.layers) == 7
    assert all(0 < value < 1 for value in penalty.selectivity.values())
    assert penalty.skipped == 0
    after = list(space["model"].parameters())
    assert not any(torch.equal(one, two) for one, two in zip(before, after, strict=True))
    penalty.close()


@pytest.mark.parametrize(("kind", "code"), SNIPPETS, ids=[kind for kind, _ in SNIPPETS])
def test_what_must_be_added_is_ten_lines(kind, code):
    assert len([line for line in code.splitlines() if line.strip()]) <= (
        16 if kind == "parts" else 12
    )
    if kind in ("timm", "lightning"):
        hook = code.split("\n\n", 1)[1] if code.startswith("import") else code
        assert len([line for line in hook.splitlines() if line.strip()]) <= 10


def run_rest(kind, space):
    """The part of a framework's loop that its hook is given to."""
    model, loader, optimizer = (space[name] for name in ("model", "loader", "optimizer"))
    if kind == "timm":
        for images, target in loader:
            loss = space["train_loss_fn"](model(images), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    if kind == "lightning":
        run_lightning(space)


def run_lightning(space):
    import lightning

    class Task(lightning.LightningModule):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def training_step(self, batch, index):
            images, labels = batch
            return nn.functional.cross_entropy(self.model(images), labels)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.05)

    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[space["callback"]],
    )  # fmt: skip
    trainer.fit(Task(space["model"]), space["loader"])
    space["penalty"] = space["callback"].penalty
