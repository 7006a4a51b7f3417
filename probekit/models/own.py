"""Loads a user-defined model, named as `package.module:function`."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from probekit.errors import ModelError, close_matches, first_line
from probekit.models.image_model import ImageModel

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


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
