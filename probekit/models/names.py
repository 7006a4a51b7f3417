"""Names of models, bundled or from globs, without importing torch."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable
from glob import glob
from importlib import resources
from pathlib import Path

from probekit.errors import ModelError, OptionError, close_matches


def list_models(pattern: str = "*") -> list[str]:
    """Lists the bundled models whose names match a glob.

    Example:
        >>> list_models("resnet20-fashion-mnist")
        ['resnet20-fashion-mnist']
    """
    files = (resources.files("probekit.models") / "zoo").iterdir()
    names = [file.name.removesuffix(".json") for file in files if file.name.endswith(".json")]
    return sorted(fnmatch.filter(names, pattern))


def model_names(models: str | Path | Iterable[str | Path], *, pretrained: bool = True) -> list[str]:
    """The names of models in order, once each, with globs replaced by the names that they match.

    Globs match folders (`sweep/runs/*`), bundled models (`probekit:*`), torchvision
    (`torchvision:resnet*`) or timm (`resnet*`): the names of its `pretrained` weights, or of all
    architectures.
    """
    given = [models] if isinstance(models, str | Path) else list(models)
    if not given or not all(isinstance(one, str | Path) for one in given):
        raise OptionError(f"models must be one or more names or folders, not {models!r}")
    found = [name for one in given for name in _matching(str(one), pretrained)]
    return list(dict.fromkeys(found))


def _matching(text: str, pretrained: bool) -> list[str]:
    text = text.removeprefix("timm:")
    if os.path.isdir(text):
        return [os.path.normpath(text)]
    if not any(mark in text for mark in "*?["):
        return [text]
    source, colon, pattern = text.rpartition(":")
    if source == "probekit":
        known = list_models()
    elif source == "torchvision":
        from torchvision.models import list_models as torchvision_models

        known = torchvision_models()
    elif folders := sorted(path for path in glob(text) if os.path.isdir(path)):  # noqa: PTH207  # also absolute
        return [os.path.normpath(path) for path in folders]
    else:
        import timm

        if found := timm.list_models(text, pretrained=pretrained):
            return list(found)
        known = timm.list_models(pretrained=pretrained)
    if not (matching := fnmatch.filter(known, pattern)):
        near = close_matches(pattern.strip("*"), known, what="model")
        raise ModelError(f"no model matches {text!r}; {near}")
    return [f"{source}{colon}{name}" for name in sorted(matching)]
