"""Vision models of transformers by name: preprocessing, outputs and attacks, with random weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import probekit as pk
from probekit.data.decoding import ImageDecoder
from probekit.errors import MissingPackageError, ModelError

transformers = pytest.importorskip("transformers")
# GELU has negative values, so selectivity warnings are expected.
pytestmark = pytest.mark.filterwarnings("ignore:.*class means below zero")

NAMES = {0: "cat", 1: "dog", 2: "owl"}
VIT: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
CLASSIFIED = {"id2label": NAMES, "label2id": {name: at for at, name in NAMES.items()}}
FIXED = {"size": {"height": 16, "width": 16}}


def vit() -> Any:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**VIT, **CLASSIFIED))


def convnext() -> Any:
    config = transformers.ConvNextConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 12, 12], image_size=32, **CLASSIFIED
    )
    return transformers.ConvNextForImageClassification(config)


def swin() -> Any:
    config = transformers.SwinConfig(
        embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2, image_size=16, patch_size=4,
        **CLASSIFIED,
    )  # fmt: skip
    return transformers.SwinForImageClassification(config)


def dinov2() -> Any:
    config = transformers.Dinov2Config(**{**VIT, "mlp_ratio": 2}, **CLASSIFIED)
    return transformers.Dinov2ForImageClassification(config)


def clip() -> Any:
    text = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
        "vocab_size": 32,
    }  # fmt: skip
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=VIT, projection_dim=8)
    )


MODELS = {
    "vit": (vit, transformers.ViTImageProcessor(**FIXED, image_mean=[0.1, 0.2, 0.3])),
    "convnext": (convnext, transformers.ConvNextImageProcessor(size={"shortest_edge": 32})),
    "swin": (swin, transformers.ViTImageProcessor(**FIXED)),
    "dinov2": (
        dinov2,
        transformers.BitImageProcessor(
            size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}
        ),
    ),
    "clip": (
        clip,
        transformers.CLIPImageProcessor(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ),
    ),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name, (make, processor) in MODELS.items():
        torch.manual_seed(0)
        folders[name] = tmp_path_factory.mktemp(name)
        make().save_pretrained(folders[name])
        processor.save_pretrained(folders[name])
    return folders


def with_processor(folder: Path, processor: Any) -> pk.ImageModel:
    vit().save_pretrained(folder)
    processor.save_pretrained(folder)
    return pk.load_model(f"hf:{folder}")


@pytest.mark.parametrize(
    "processor",
    [
        transformers.EfficientNetImageProcessor(**FIXED, resample=2),
        transformers.LevitImageProcessor(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ),
    ],
)
def test_photographs_are_prepared_as_by_the_processor(processor: Any, tmp_path: Path) -> None:
    model = with_processor(tmp_path, processor)
    ramps = np.indices((30, 40)).transpose(1, 2, 0) * (255 // 40)
    photograph = Image.fromarray(np.concatenate([ramps, ramps[..., :1]], 2).astype(np.uint8))
    prepared = processor(photograph, return_tensors="pt")["pixel_values"][0]
    decode = ImageDecoder.of(model)
    assert decode is not None
    # Half of a level in 256 is lost by rounding before or after the division by std.
    error = (model.normalize(decode(photograph, "it")) - prepared).abs() * torch.tensor(model.std)[
        :, None, None
    ]
    assert error.max() < 2 / 255


def test_a_processor_without_a_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no fixed size \(None\); wrap the module"):
        with_processor(tmp_path, transformers.Siglip2ImageProcessor())


@pytest.mark.parametrize(
    "processor",
    [
        transformers.MobileViTImageProcessor(  # BGR
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ),
        transformers.ViTImageProcessor(**FIXED, rescale_factor=1 / 127.5),
    ],
)
def test_images_that_are_prepared_differently_are_reported(processor: Any, tmp_path: Path) -> None:
    with pytest.warns(
        pk.ProbekitWarning, match="prepares images in a way that an ImageModel cannot"
    ):
        with_processor(tmp_path, processor)


def images(model: pk.ImageModel, count: int = 6) -> torch.Tensor:
    return torch.rand(count, *model.input_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
def test_the_processor_determines_mean_std_and_size(name: str, saved: dict[str, Path]) -> None:
    model = pk.load_model(f"hf:{saved[name]}")
    processor = MODELS[name][1]
    # The processor is the reference: the model must receive what it returns for images of this size.
    given = images(model)
    processed = processor(
        list(given), do_resize=False, do_center_crop=False, do_rescale=False, return_tensors="pt"
    )
    torch.testing.assert_close(model.normalize(given), processed["pixel_values"])
    side = 32 if name == "convnext" else 16
    assert model.input_size == (3, side, side)
    assert model.crop_pct == {"convnext": 0.875, "dinov2": 0.8}.get(name, 1.0)
    assert model.interpolation == Image.Resampling(processor.resample).name.lower()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_analyzed_like_any_other(name: str, saved: dict[str, Path]) -> None:
    model = pk.load_model(str(saved[name]))
    given, labels = images(model), torch.tensor([0, 1, 2, 0, 1, 2])
    result = pk.analyze(model, [(given, labels)])
    assert result["units"].sizes["unit"] > 0
    if name == "clip":
        assert "accuracy" not in result
        return
    assert model.classes == ("cat", "dog", "owl")
    with torch.no_grad():
        right = model(given).logits.argmax(1) == labels
    assert float(result["accuracy"]) == pytest.approx(float(right.float().mean()))


CLASSIFIERS = sorted(MODELS.keys() - {"clip"})


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_attacks_corruptions_and_ablation_find_the_logits(
    name: str, saved: dict[str, Path]
) -> None:
    model = pk.load_model(saved[name])
    with torch.no_grad():
        found = model(images(model)).logits.argmax(1)
    labels = found.clone()
    labels[0] = (labels[1] + 1) % 3  # at least two classes, whatever the random weights are
    data, right = [(images(model), labels)], float((found == labels).float().mean())
    result = pk.robustness(model, data, None, (1,), ["fgsm"], [0.0, 1.0], dimensionality=False)
    assert result["robustness"]["attack_accuracy"].sel(epsilon=0.0).item() == pytest.approx(right)
    units = pk.analyze(model, data)["units"]
    curves = pk.ablate(model, data, units["selectivity"], fractions=(0, 1), random=0)
    assert curves["accuracy"].values[0, 0] == pytest.approx(right)


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("alpha", [-1.0, 1.0])
def test_a_model_is_trained_with_the_regularizer(
    name: str, alpha: float, saved: dict[str, Path]
) -> None:
    module = pk.load_model(saved[name]).module.double()
    given = images(pk.load_model(saved[name]), 12).double()
    labels, step = torch.tensor([0, 1, 2] * 4), 1e-5
    terms: list[float] = []
    slopes: list[float] = []
    optimizer = torch.optim.SGD(module.parameters(), 1.0)
    with pk.SelectivityRegularizer(module, alpha=alpha, negative="clip") as penalty:
        for _ in range(2):
            loss = torch.nn.functional.cross_entropy(module(given).logits, labels)
            term = penalty(labels)
            terms.append(float(term.detach()))
            optimizer.zero_grad()
            (0 * loss + term).backward()
            slopes.append(float(torch.nn.utils.clip_grad_norm_(module.parameters(), step)))
            optimizer.step()
    assert all(0 <= -one / alpha <= 1 for one in terms)
    # A short step along the gradient changes the penalty by minus the product of their lengths.
    assert terms[1] - terms[0] == pytest.approx(-step * slopes[0], rel=0.1)


def test_an_image_tower_without_logits_is_recorded_and_regularized(saved: dict[str, Path]) -> None:
    tower = pk.load_model(saved["clip"])
    recording = pk.record(tower, (images(tower), torch.arange(6)), "*.activation_fn")
    assert np.isfinite(recording["activation"]).all()
    with pk.SelectivityRegularizer(tower.module, alpha=1.0, negative="clip") as penalty:
        tower(images(tower))
        penalty(torch.tensor([0, 1, 2] * 2)).backward()
    assert any(one.grad is not None and one.grad.any() for one in tower.module.parameters())


def test_an_embedding_as_wide_as_the_classes_is_not_logits(saved: dict[str, Path]) -> None:
    tower = pk.load_model(saved["clip"])
    data = [(images(tower, 16), torch.arange(16))]  # pooler_output is (batch, 16)
    with pytest.raises(ModelError, match="pooler_output"):
        pk.robustness(tower, data, ["fog"], (1,))


def test_random_weights_and_another_number_of_labels(saved: dict[str, Path]) -> None:
    model = pk.load_model(saved["vit"], pretrained=False, num_labels=7)
    assert model(images(model)).logits.shape == (6, 7)
    assert model.provenance["weights"] == "random"
    assert model.classes == ()


def test_models_without_vision_are_refused(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"cannot load .* as a vision model"):
        pk.load_model(tmp_path)
    with pytest.raises(ModelError, match="cannot load 'nobody/nothing'"):
        pk.load_model("hf:nobody/nothing")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackageError, match=r"probekit\[huggingface\]"):
        pk.load_model("hf:nobody/nothing")


@pytest.mark.parametrize("name", MODELS)
def test_photographs_are_resized_as_by_the_processor(name: str, saved: dict[str, Path]) -> None:
    """Also where it changes their aspect ratio."""
    coarse = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    photograph = Image.fromarray(coarse).resize((60, 40), Image.Resampling.BICUBIC)
    model = pk.load_model(f"hf:{saved[name]}")
    decode = ImageDecoder.of(model)
    assert decode is not None
    found = model.normalize(decode(photograph, "a photograph")[None])
    processed = MODELS[name][1](photograph, return_tensors="pt")["pixel_values"]
    assert model.crop_mode == ("squash" if name in ("vit", "swin") else "center")
    # It resizes tensors, and this package images; 0.05 is 3 of 255 levels.
    torch.testing.assert_close(found, processed, atol=0.05, rtol=0)
