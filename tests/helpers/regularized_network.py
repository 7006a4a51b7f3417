"""A small network that breaks naive hooks, and its penalty computed in plain PyTorch."""

import torch
from torch import nn


class Shortcut(nn.Module):
    """A network that breaks naive hooks: in-place consumers, a module called twice, an in-place sum."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        shortcut = self.relu(self.conv1(x))
        out = self.conv2(shortcut)
        out += shortcut
        out = self.relu(out)
        return self.fc(out.mean((2, 3)) + out.amax((2, 3)))


def small(seed=0):
    torch.manual_seed(seed)
    return Shortcut().double()


def batch(rows=12, classes=3, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, 1, 6, 6, generator=generator, dtype=dtype),
        torch.arange(rows) % classes,
    )


def plain_activations(model, x):
    """The default layers of `Shortcut`, without hooks and with plain pooling."""
    shortcut = model.conv1(x).relu()
    last = (model.conv2(shortcut) + shortcut).relu()
    return [shortcut.mean((2, 3)), last.mean((2, 3))]


def plain_term(tables, labels):
    """Mean over layers of the mean over units of the index, computed class by class."""
    layers = []
    for table in tables:
        means = torch.stack([table[labels == label].mean(0) for label in labels.unique()])
        highest = means.max(0).values
        rest = (means.sum(0) - highest) / (len(means) - 1)
        layers.append(((highest - rest) / (highest + rest + 1e-6)).mean())
    return torch.stack(layers).mean()


def gradients(model):
    return [value.grad.clone() for value in model.parameters() if value.grad is not None]


def hooks(model):
    return [
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    ]
