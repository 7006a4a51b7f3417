"""Gradients, ablation and the dimensionality of changes in activations, for `cifar10_measures.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import probekit as pk
from probekit.capture.gradients.norms import GradientNorms

EPSILONS = (1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255)
FACTS = (
    "trace", "trace_of_square", "participation_ratio", "n90", "n95", "n99", "fourth_moment", "rows",
)  # fmt: skip
ORDERS = ("top", "bottom", "matched", "random_0", "random_1")
GRADIENTS = 128


def spectrum(table: Tensor) -> list[float]:
    """`FACTS` of the covariance of rows, from the smaller of covariance and Gram matrix."""
    table = (table - table.mean(0)).double()
    fourth = float((table**2).sum(1).square().mean())
    square = table.T @ table if table.shape[1] <= len(table) else table @ table.T
    values = np.linalg.eigvalsh((square / (len(table) - 1)).cpu().numpy())[::-1].clip(0)
    trace, of_square = values.sum(), (values**2).sum()
    shares = np.cumsum(values) / trace if trace > 0 else np.ones_like(values)
    counts = [int((shares < q - 1e-12).sum()) + 1 for q in (0.9, 0.95, 0.99)]
    ratio = trace**2 / of_square if of_square else 0.0
    return [trace, of_square, ratio, *counts, fourth, len(table)]


def perturbed(model: Any, images: Tensor, sample: Any, corrupted: Any) -> dict[str, Tensor]:
    """Images by condition: corrupted, attacked, with random signs, and corrupted to an attack's norm."""
    attack = pk.PGD(steps=10, keep="last")
    found = attack.run(
        model, images, sample.labels[::2], EPSILONS, index=sample.index[::2], check=False
    )
    severities = [(name, s) for name in corrupted for s in (1, 3, 5)]
    conditions = {f"{name}-{s}": corrupted[name][s - 1][::2] for name, s in severities}
    for number, epsilon in enumerate(EPSILONS):
        generator = torch.Generator().manual_seed(number)
        signs = torch.randint(0, 2, images.shape, generator=generator).to(images.device) * 2 - 1
        conditions[f"pgd-{round(255 * epsilon)}"] = found.images[number]
        conditions[f"signs-{round(255 * epsilon)}"] = (images + epsilon * signs).clamp(0, 1)
    for number in (1, 2):
        size = (found.images[number] - images).flatten(1).norm(dim=1)
        for name, kinds in corrupted.items():
            delta = kinds[2][::2] - images
            scale = size / delta.flatten(1).norm(dim=1).clamp(min=1e-12)
            matched = images + delta * scale.view(
                -1, 1, 1, 1
            )  # not clipped, because clipping would shorten the change
            conditions[f"{name}-matched-{round(255 * EPSILONS[number])}"] = matched
    return conditions


def dimensionality(model: Any, sample: Any, corrupted: Any) -> dict[str, Any]:
    """`FACTS` of representations and of their change: pooled in all layers, flattened in three."""
    images, labels = sample.images[::2], sample.labels[::2]
    conditions = {"clean": images, **perturbed(model, images, sample, corrupted)}
    pooled, flat, right = [], [], []
    clean: dict[str, Tensor] = {}
    with pk.Recorder(model, spatial="none") as recorder, torch.no_grad():
        for x in conditions.values():
            right.append((recorder(x).argmax(1) == labels).cpu().numpy())
            maps = {name: values.clone() for name, values in recorder.activations.items()}
            clean = clean or maps
            names = list(maps)
            flattened = [names[place] for place in (0, 2 * len(names) // 3, -1)]
            pools = {name: values.flatten(2).mean(2) for name, values in maps.items()}
            before = {name: values.flatten(2).mean(2) for name, values in clean.items()}
            pooled.append([[spectrum(p), spectrum(p - before[name])] for name, p in pools.items()])
            changed = [(maps[name] - clean[name]).flatten(1) for name in flattened]
            flat.append([[[np.nan] * len(FACTS), spectrum(change)] for change in changed])
    return {
        "condition": np.array(list(conditions)), "fact": np.array(FACTS), "flat_layer": np.array(flattened),
        "pooled": np.array(pooled, np.float32), "flat": np.array(flat, np.float32),
        "right": np.packbits(np.array(right), axis=1),
    }  # fmt: skip


def gradients(model: Any, sample: Any) -> dict[str, Any]:
    """Norms of unit gradients with respect to the image, relative to each unit's maximum; activity."""
    images = sample.images[:GRADIENTS]
    with pk.Recorder(model) as recorder, torch.no_grad():
        recorder(images)
        pooled = torch.cat(list(recorder.activations.values()), 1)
    layers = recorder.layers
    with GradientNorms(method="exact").open(model, layers) as tap:
        tables = tap(images, torch.arange(len(images)))
    norms = torch.cat([tables[layer.name][:, : layer.units] for layer in layers], 1).numpy()
    largest = norms.max(0).clip(1e-30)
    active = np.packbits((pooled > 0).cpu().numpy(), axis=1)
    scaled = (norms / largest).astype(np.float16)
    return {"norm": scaled, "norm_largest": largest.astype(np.float32), "active": active}


def chosen(score: Any, mean: Any, draw: Any) -> list[Any]:
    """A quarter of a layer's units in each of `ORDERS`; `matched` has mean activations like `top`."""
    order, k = np.argsort(-score, kind="stable"), len(score) // 4
    others, matched = list(order[k:]), []
    for unit in order[:k]:
        matched.append(min(others, key=lambda one: abs(mean[one] - mean[unit])))
        others.remove(matched[-1])
    random = [draw.permutation(len(score))[:k] for _ in range(2)]
    return [order[:k], order[-k:], np.array(matched), *random]


def holding(place: Tensor, value: Tensor) -> Any:
    """A function that holds some units of a feature map at a value."""
    values = value.view(1, -1, 1, 1)
    return lambda _, maps: maps.index_copy(1, place, values.expand_as(maps[:, place]))


def ablation(model: Any, sample: Any, moments: Any) -> dict[str, Any]:
    """Which images are classified correctly while units of one layer are held at zero or their mean."""
    means = moments[0].astype(np.float64) / np.bincount(sample.data.labels, minlength=10)[:, None]
    highest = means.max(0)
    rest = (means.sum(0) - highest) / (len(means) - 1)
    score = (highest - rest) / (highest + rest).clip(1e-12)
    images, labels = sample.images[::2], sample.labels[::2]
    average, draw, right = torch.from_numpy(means.mean(0)).to(images), np.random.default_rng(0), []
    with pk.Recorder(model) as recorder, torch.no_grad():
        recorder(images[:2])
    ends = np.cumsum([layer.units for layer in recorder.layers])
    for layer, end in zip(recorder.layers, ends, strict=True):
        own = slice(end - layer.units, end)
        for units in chosen(score[own], means.mean(0)[own], draw):
            place = torch.from_numpy(units.copy()).to(images.device)
            for value in (torch.zeros_like(average[own][place]), average[own][place]):
                hold = holding(place, value)
                with pk.Recorder(model, [layer], change=hold) as held, torch.no_grad():
                    right.append((held(images).argmax(1) == labels).cpu().numpy())
    table = np.array(right).reshape(len(ends), len(ORDERS), 2, -1)
    return {"ablated_right": np.packbits(table, axis=-1)}


def changes(model: Any, sample: Any, corrupted: Any, moments: Any) -> dict[str, Any]:
    """All measurements of this module for one network."""
    found = gradients(model, sample) | ablation(model, sample, moments)
    return found | dimensionality(model, sample, corrupted)
