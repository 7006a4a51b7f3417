"""Loads models by name: timm, torchvision, bundled and user-defined models, and training runs."""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module, resources
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from probekit.errors import ModelError, close_matches, first_line, foreign_file, some_of, warn
from probekit.models.architectures import ARCHITECTURES
from probekit.models.hugging_face import hugging_face_model, is_saved_model
from probekit.models.image_model import ImageModel, content_hash
from probekit.models.names import list_models
from probekit.runtime.settings import on_own_device

DEFAULT_MODEL = "probekit:resnet20-fashion-mnist"

_FACTS = (
    "name", "recipe", "alpha", "alpha_schedule", "seed", "data", "test_accuracy", "selectivity_mean",
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@on_own_device
def load_model(
    name: str | os.PathLike[str],
    weights: str | Path | None = None,
    *,
    pretrained: bool = True,
    classes: Sequence[str] | None = None,
    **options: Any,
) -> ImageModel:
    """Loads a model by name, with the preprocessing it was trained with.

    Args:
        name: A timm name (`resnet18.a1_in1k`, `timm:NAME`, `hf-hub:...`), `torchvision:NAME`, `probekit:NAME`
            (bundled), the folder of a training run, `module:function` of your own code that
            returns an `ImageModel`, `hf:NAME` for a vision model of Hugging Face transformers, or a
            folder written by its `save_pretrained`.
        weights: A safetensors file, or a pickle of tensors, to load instead of pretrained weights.
        pretrained: Load the published weights if no `weights` are given; False keeps the random
            initialization.
        classes: Names of the outputs, if the model does not define them.
        **options: Passed to the constructor of a timm or torchvision model (`num_classes`, ...), or to
            the configuration of a transformers model (`num_labels`, ...).

    Returns:
        The model in eval mode on the CPU; it takes images in [0, 1].

    Raises:
        ModelError: The model does not exist, the weights do not fit it, a file cannot be read or
            would run code, or the published weights cannot be reached.

    Example:
        >>> model = load_model("probekit:resnet20-fashion-mnist")
        >>> model.input_size, model.classes[0]
        ((1, 28, 28), 'T-shirt/top')
    """
    if not isinstance(name, str | os.PathLike):
        raise ModelError(
            f"load_model takes a name or a folder, not {type(name).__name__}; every function takes a module "
            "itself, and pk.ImageModel(module, mean=..., std=..., input_size=...) adds its normalization"
        )
    text, published = os.fspath(name).removeprefix("timm:"), pretrained and not weights
    if text.startswith("probekit:"):
        model = _bundled(text.removeprefix("probekit:"), published)
    elif text.startswith("torchvision:"):
        model = _torchvision(text.removeprefix("torchvision:"), published, options)
    elif text.startswith("hf:") or is_saved_model(text):
        model = hugging_face_model(text.removeprefix("hf:"), published, options)
    elif is_own_model(text):
        model = own_model(text)
    elif os.path.isdir(text):
        folder = Path(text)
        card = folder / "model.json"
        if not card.is_file():
            raise ModelError(
                f"{str(folder)!r} is not a training run: it has no model.json; "
                "give the model first, then the data"
            )
        model = _from_card(card, folder, published)
    else:
        model = _timm(text, published, options)
    provenance = dict(model.provenance)
    if weights is not None:
        _fit(model.module, read_weights(weights), str(weights))
        provenance["weights"] = str(weights)
    provenance["hash"] = content_hash(model.module)
    known = model.classes if classes is None else tuple(classes)
    return replace(model, module=model.module.eval(), classes=known, provenance=provenance)


def read_weights(file: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a safetensors file, or of a pickle that contains only tensors."""
    if not isinstance(file, str | os.PathLike) or not os.path.isfile(file):
        raise ModelError(f"there is no weights file {str(file)!r}")
    file = Path(file)
    with foreign_file(f"weights {str(file)!r} cannot be read", ModelError), catch_warnings():
        simplefilter("ignore")  # torch warns about pickles that are rejected anyway
        if file.suffix == ".safetensors":
            return load_file(file)
        try:
            found = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise ModelError(
                f"weights {str(file)!r} are not tensors, or are a pickle that would run code; save the "
                "model's state_dict() with safetensors instead"
            ) from None
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(x, Tensor) for x in found.values()):
        raise ModelError(f"weights {str(file)!r} contain {type(found).__name__}, not a state_dict")
    return dict(found)


def _fit(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    own = module.state_dict()
    for prefix in ("module.", "_orig_mod."):
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    # torch starts the batch count of batch norms at 0 if the saved weights lack it.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    extra = [key for key in state if key not in own]
    other = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    problems = {"missing": missing, "not in the model": extra, "shape": other}
    parts = [f"{what}: {some_of(names, 3)}" for what, names in problems.items() if names]
    if parts:
        raise ModelError(
            f"weights {source!r} do not fit {type(module).__name__}; {'; '.join(parts)}"
        )
    module.load_state_dict(state)


def _bundled(name: str, pretrained: bool) -> ImageModel:
    if name not in list_models():
        raise ModelError(
            f"no bundled model is named {name!r}; {close_matches(name, list_models(), what='model')}"
        )
    folder = resources.files("probekit.models") / "zoo"
    with resources.as_file(folder) as path:
        return _from_card(path / f"{name}.json", path, pretrained)


def _from_card(file: Path, folder: Path, pretrained: bool) -> ImageModel:
    """Loads a model from its card: architecture, preprocessing, and the adjacent or random weights."""
    with foreign_file(f"card {str(file)!r} cannot be used", ModelError):
        card = json.loads(file.read_text())
        architecture = dict(card["architecture"])
        module = ARCHITECTURES[architecture.pop("name")](**architecture)
        channels, height, width = map(int, card["input_size"])
        weights = folder / Path(card.get("weights", f"{file.stem}.safetensors")).name
        model = ImageModel(
            module=module,
            mean=tuple(map(float, card["mean"])),
            std=tuple(map(float, card["std"])),
            input_size=(channels, height, width),
            classes=tuple(map(str, card["classes"])),
            provenance={
                "weights": weights.name, **{fact: card[fact] for fact in _FACTS if fact in card},
            },
        )  # fmt: skip
    if not pretrained:
        return replace(
            model, provenance={"name": model.provenance.get("name"), "weights": "random"}
        )
    _fit(module, read_weights(weights), str(weights))
    if not card.get("finished", True):
        warn(
            f"the training run in {str(folder)!r} has not ended; these are the weights of its best epoch "
            "so far"
        )
    elif "hash" in card and card["hash"] != content_hash(module):
        warn(
            f"the weights in {str(weights)!r} are not those that {file.name} describes, so its accuracy and "
            "selectivity are of other weights; restore the file"
        )
    return model


def _timm(name: str, pretrained: bool, options: dict[str, Any]) -> ImageModel:
    import timm
    from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config

    hub = name.startswith(("hf-hub:", "hf_hub:"))
    if not hub and not timm.is_model(name):
        bundled = [f"probekit:{known}" for known in list_models()]
        known = [*timm.list_models(), *timm.list_pretrained(), *bundled]
        raise ModelError(f"no model is named {name!r}; {_advice(name, known)}")
    try:
        module = timm.create_model(name, pretrained=pretrained, **options)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        if not pretrained or isinstance(error, TypeError):
            raise ModelError(f"timm cannot build {name!r}: {first_line(error)}") from None
        raise ModelError(
            f"the pretrained weights of {name!r} cannot be loaded ({first_line(error)}); pass "
            "weights=FILE (--weights), or pretrained=False (--random) for random weights"
        ) from None
    config = resolve_model_data_config(module)
    channels, height, width = config["input_size"]
    classes: tuple[str, ...] = ()
    if subset := infer_imagenet_subset(module):
        info = ImageNetInfo(subset)
        count = info.num_classes()
        classes = tuple(info.index_to_description(i) for i in range(count))
    return ImageModel(
        module=module,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        input_size=(channels, height, width),
        classes=classes,
        crop_pct=config["crop_pct"],
        interpolation=config["interpolation"],
        crop_mode=config["crop_mode"],
        provenance={"name": name, "weights": "timm" if pretrained else "random"},
    )


def _advice(name: str, known: list[str]) -> str:
    if os.path.isfile(name):
        return f"to load this file into a model, give the model's name and weights={name!r} (--weights)"
    if "/" in name:
        return f"write hf:{name} for a model of transformers, hf-hub:{name} for one of timm"
    near = close_matches(name, known, what="model")
    return near if near.startswith("close") else "timm.list_models() lists those of timm"


def _torchvision(name: str, pretrained: bool, options: dict[str, Any]) -> ImageModel:
    from torchvision.models import get_model, get_model_weights
    from torchvision.models import list_models as known_models

    known = known_models()
    if name not in known:
        raise ModelError(
            f"torchvision has no model {name!r}; {close_matches(name, known, what='model')}"
        )
    published = get_model_weights(name)["DEFAULT"]
    preset = published.transforms()
    crop, size = preset.crop_size[0], preset.resize_size[0]
    try:
        module = get_model(name, weights=published if pretrained else None, **options)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"torchvision cannot build {name!r} ({first_line(error)}); pass weights=FILE (--weights), "
            "or pretrained=False (--random) for random weights"
        ) from None
    outputs = options.get("num_classes", 1000)
    categories = tuple(published.meta.get("categories", ()))
    return ImageModel(
        module=module,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        input_size=(3, crop, crop),
        classes=categories if len(categories) == outputs else (),
        crop_pct=crop / size,
        interpolation=preset.interpolation.value,
        provenance={
            "name": f"torchvision:{name}",
            "weights": str(published) if pretrained else "random",
        },
    )


def is_own_model(name: str) -> bool:
    """Whether a name has the form `module:function`; the module may contain dots."""
    return bool(_NAME.fullmatch(name))


def own_model(name: str) -> ImageModel:
    """Loads a model that a function of an importable module returns, or that is a module attribute.

    The working directory is searched first, then the installed packages. The function is called without
    arguments.
    """
    module_name, _, attribute = name.partition(":")
    place = str(Path.cwd())
    if place not in sys.path:
        sys.path.insert(0, place)
    try:
        module = import_module(module_name)
    except Exception as error:
        raise ModelError(
            f"model {name!r}: the module {module_name!r} cannot be imported: {first_line(error)}; run "
            "probekit in its folder, or install it"
        ) from error
    if not hasattr(module, attribute):
        near = close_matches(attribute, [one for one in vars(module) if one[0] != "_"], what="name")
        raise ModelError(f"model {name!r}: {module_name!r} has no {attribute!r}; {near}")
    found: Any = getattr(module, attribute)
    if not isinstance(found, nn.Module | ImageModel):
        try:
            found = found()
        except Exception as error:
            raise ModelError(f"model {name!r} cannot be created: {first_line(error)}") from error
    if isinstance(found, nn.Module):
        raise ModelError(
            f"model {name!r} is a {type(found).__name__}, whose image size and normalization are not "
            "known; return pk.ImageModel(module, mean=..., std=..., input_size=...) instead"
        )
    if not isinstance(found, ImageModel):
        raise ModelError(f"model {name!r} is a {type(found).__name__}, not an ImageModel")
    return replace(found, provenance={"name": name, **found.provenance})
