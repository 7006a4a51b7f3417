"""The rows that the documentation page shows first: what a user waits for."""

from __future__ import annotations

from collections.abc import Iterable

from harness.row import Row

# What is measured, and the question, case and contenders of its row.
HEADLINES: dict[str, tuple[str, str, str, str]] = {
    "class selectivity of a ResNet18, per batch": (
        "overhead", "resnet18, 224 px, batch 16", "pk.analyze, a batch", "bare forward pass"),
    "class selectivity of a ViT, per batch": (
        "overhead", "vit_tiny_patch16_224, 224 px, batch 16", "pk.analyze, a batch",
        "bare forward pass"),
    "a whole analysis of 10,000 small images": (
        "overhead", "bundled ResNet20, 10,000 images, whole call", "pk.analyze",
        "bare forward loop"),
    "a whole analysis of 2,500 small images": (
        "intervals", "bundled ResNet20, 2,500 images, whole call", "selectivity alone",
        "bare forward loop"),
    "the same with chance level, intervals and split halves": (
        "intervals", "bundled ResNet20, 2,500 images, whole call", "all of these",
        "bare forward loop"),
    "an analysis of a folder of photographs": (
        "folder", "resnet18, 1,000 photographs", "pk.analyze", "one after the other"),
    "memory for ten times as many images": (
        "memory", "small network, selectivity", "20,000 samples", "2,000 samples"),
    "selectivity and dimensionality, whole call": (
        "dimensionality", "resnet18, 224 px, 128 images, whole call", "both metrics",
        "bare forward loop"),
    "a recording of activations": (
        "recording", "resnet18, 224 px, 17 layers, 256 images, time", "pk.record",
        "torchvision feature extractor, pooled"),
    "exact gradients of units": (
        "gradients", "resnet18, 32 px, layer3, batch 64", "exact", "captum, a unit at a time"),
    "gradients of all units from 32 probes": (
        "probes", "resnet18, 32 px, all layers, batch 64", "probes, all units", "forward pass"),
    "robustness to corruptions": (
        "robustness", "bundled ResNet20, 1,000 images of 32 px", "pk.robustness",
        "bare passes and corruptions alone"),
    "a PGD attack on a ResNet20": (
        "attacks", "ResNet20, 64 digits, PGD-10 linf 0.01", "probekit", "foolbox"),
    "a training step with the regularizer": (
        "regularizer", "ResNet20, 28 px, batch 256, float32", "pk.SelectivityRegularizer",
        "plain step"),
}  # fmt: skip


def headlines(rows: Iterable[Row]) -> list[tuple[str, Row]]:
    """The measured rows of `HEADLINES`, on the CPU."""
    found = {(x.question, x.case, x.ours, x.other): x for x in rows if x.device == "cpu"}
    return [(text, found[key]) for text, key in HEADLINES.items() if key in found]
