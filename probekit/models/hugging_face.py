"""Vision models of Hugging Face transformers, from the hub or a local folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from probekit.errors import ModelError, first_line, optional, warn
from probekit.models.image_model import ImageModel

# Image processors identify the filters of PIL by number.
_INTERPOLATION = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_COLOR = (51, 102, 204)


def is_saved_model(folder: str | Path) -> bool:
    """Whether a folder was written by `save_pretrained` of transformers."""
    file = Path(folder) / "config.json"
    try:
        return "model_type" in json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def hugging_face_model(name: str, pretrained: bool, options: Mapping[str, Any]) -> ImageModel:
    """Loads a vision model with the mean, standard deviation and size of its image processor.

    A classifier is loaded with its head, other models as their backbone. For a model of images and
    text (CLIP, SigLIP), the image encoder is loaded.
    """
    with optional("transformers", f"the model 'hf:{name}'"):
        import transformers
    try:
        config = transformers.AutoConfig.from_pretrained(name, **options)
        processors: Any = transformers.AutoImageProcessor
        processor = processors.from_pretrained(name)
        architecture = str((getattr(config, "architectures", None) or [""])[0])
        kind: Any = (
            transformers.AutoModelForImageClassification
            if architecture.endswith("ForImageClassification")
            else transformers.AutoModel
        )
        module = (
            kind.from_pretrained(name, config=config) if pretrained else kind.from_config(config)
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
        raise ModelError(
            f"transformers cannot load {name!r} as a vision model ({first_line(error)}); pass a folder "
            "to which save_pretrained wrote the model and its image processor, or the name of a vision "
            "model on the hub"
        ) from error
    module = getattr(module, "vision_model", module)
    if getattr(module, "main_input_name", "pixel_values") != "pixel_values":
        raise ModelError(
            f"{name!r} is a {type(module).__name__}, whose input is {module.main_input_name}, not images; "
            "load it with transformers, and pass the module with tokenized data"
        )
    size, crop_pct, crop_mode = _size(processor, name)
    std = tuple(processor.image_std) if processor.do_normalize else (1.0,) * 3
    if getattr(processor, "include_top", False):  # that of EfficientNet divides by std once more
        std = tuple(one * more for one, more in zip(std, processor.image_std, strict=True))
    model = ImageModel(
        module=module,
        mean=tuple(processor.image_mean) if processor.do_normalize else (0.0,) * 3,
        std=std,
        input_size=(int(getattr(module.config, "num_channels", 3)), *size),
        classes=_classes(module),
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        interpolation=_INTERPOLATION.get(processor.resample, "bilinear"),
        provenance={"name": f"hf:{name}", "weights": "transformers" if pretrained else "random"},
    )
    if _prepares_differently(processor, model):
        warn(
            f"the image processor of {name!r} prepares images in a way that an ImageModel cannot, such as "
            "channels in the order BGR or padding, so results on image files are not those of the model; "
            "load it with transformers, and pass the module with tensors that its processor prepared"
        )
    return model


def _prepares_differently(processor: Any, model: ImageModel) -> bool:
    """Whether the processor makes another tensor of an image of one color, whatever its resizing."""
    found = wanted = torch.empty(0)
    with suppress(Exception):  # some processors need more than an image
        wanted = model.normalize(torch.tensor(_COLOR)[:, None, None] / 255).expand(model.input_size)
        photograph = Image.new("RGB", (400, 300), _COLOR)
        found = processor(photograph, return_tensors="pt")["pixel_values"][0]
    return bool(len(found)) and (
        found.shape != wanted.shape or not torch.allclose(found.to(wanted), wanted, atol=1e-3)
    )


def _size(processor: Any, name: str) -> tuple[tuple[int, int], float, str]:
    """Height and width of the images, their share of the resized photograph, and how it is resized."""
    resized = _pair(processor.size)
    shown = resized
    if getattr(processor, "do_center_crop", None):
        shown = _pair(processor.crop_size)
    if resized is None or shown is None:
        raise ModelError(
            f"the image processor of {name!r} has no fixed size ({processor.size}); wrap the module in "
            "pk.ImageModel(module, mean=..., std=..., input_size=...)"
        )
    # ConvNeXT's processor defines its own share, for images below this size.
    share = getattr(processor, "crop_pct", None)
    squashed = share is not None and max(shown) >= 384
    if share is None or squashed:
        share = shown[0] / resized[0]
    if type(processor).__name__.startswith("Levit"):  # which enlarges the shorter side
        share *= 224 / 256
    # Processors with both a height and a width, and ConvNeXT's for large images, change the aspect ratio.
    squashed |= "height" in _known(processor.size)
    return shown, float(share), "squash" if squashed else "center"


def _pair(size: object) -> tuple[int, int] | None:
    known = _known(size)
    if known.get("height") and known.get("width"):
        return int(known["height"]), int(known["width"])
    edge = known.get("shortest_edge")
    return (int(edge), int(edge)) if edge else None


def _known(size: object) -> dict[str, Any]:
    """The given numbers of a size, which may be an object with None for the others."""
    named = size if isinstance(size, Mapping) else getattr(size, "__dict__", {})
    return {name: value for name, value in named.items() if value is not None}


def _classes(module: nn.Module) -> tuple[str, ...]:
    """The names of the outputs of a classifier, unless they are only numbers."""
    if not type(module).__name__.endswith("ForImageClassification"):
        return ()
    config: Any = module.config
    names = [str(config.id2label[label]) for label in sorted(config.id2label)]
    numbered = [f"LABEL_{label}" for label in range(len(names))]
    return () if names == numbered else tuple(names)
