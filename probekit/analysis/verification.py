"""Verifies the recording of activations on many architectures, one line per architecture."""

from __future__ import annotations

import gc
import os
import time
import warnings
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from probekit.capture.plan import plan
from probekit.errors import OutputError, ProbekitError, first_line, foreign_file
from probekit.results.files import writable

COLUMNS = (
    "architecture", "parameters", "image_size", "outcome", "layers", "units", "values", "complete",
    "certain", "evidence", "missing", "sizes", "seconds", "detail",
)  # fmt: skip
_SMALL = 96


def timm_architectures() -> list[str]:
    """The names of all timm architectures: first one of each family, then a second one, ..."""
    import timm

    families = [timm.list_models(module=name) for name in timm.list_modules()]
    return [name for names in zip_longest(*families) for name in names if name is not None]


def verify_architectures(
    names: Iterable[str], out: str | os.PathLike[str], *, most_parameters: float = 1e8
) -> Iterator[dict[str, Any]]:
    """Verifies timm architectures with random weights, as `plan(model, images, verify=True)` does.

    Yields each line as it is written to `out`, a CSV file; architectures that have a line are skipped, and
    those with more parameters than `most_parameters` get a line without measurements. `outcome` is
    `right`, `uncertain` (a unit axis is not certain), `wrong` (values or calls differ from a pass without
    hooks, or an activation function is missing), `refused` (by probekit, with its message in `detail`),
    `too large` or `cannot run`.
    """
    path = Path(out)
    if not path.exists():
        with writable(path):
            pd.DataFrame(columns=COLUMNS).to_csv(path, index=False)
    with foreign_file(f"{str(path)!r} is not a table of verified architectures", OutputError):
        done = set(pd.read_csv(path)["architecture"])
    for name in names:
        if name in done:
            continue
        line = _verified(name, most_parameters)
        with writable(path):
            pd.DataFrame([line], columns=COLUMNS).to_csv(path, mode="a", header=False, index=False)
        gc.collect()
        yield line


def _verified(name: str, most_parameters: float) -> dict[str, Any]:
    import timm

    start = time.monotonic()
    line: dict[str, Any] = {"architecture": name}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                parameters = timm.create_model(name).parameters()
            line["parameters"] = sum(one.numel() for one in parameters)
            if line["parameters"] > most_parameters:
                return line | {"outcome": "too large"}
            module, images = _model_and_images(name)
        except Exception as error:  # the architecture itself does not run here
            return line | {"outcome": "cannot run", "detail": first_line(error)[:200]}
        line["image_size"] = "x".join(map(str, images.shape[2:]))
        try:
            table = plan(module, images, verify=True)
        except ProbekitError as error:
            return line | {"outcome": "refused", "detail": first_line(error)[:200]}
    line |= _summary(table)
    return line | {"seconds": round(time.monotonic() - start, 1)}


def _model_and_images(name: str) -> tuple[nn.Module, Tensor]:
    """The model and two images, of the smallest of the sizes tried that the model accepts."""
    import timm

    torch.manual_seed(0)
    module: nn.Module = timm.create_model(name, num_classes=11).eval()
    about: Any = module.default_cfg
    channels, height, width = about["input_size"]
    size = about.get("test_input_size", (channels, height, width))
    fixed = bool(about.get("fixed_input_size"))
    tried = [] if fixed else [(_SMALL, _SMALL), (160, 160)]
    for place in [*tried, (height, width), tuple(size[1:])]:
        images = torch.randn(2, channels, *place)
        try:
            with torch.no_grad():
                module(images)
        except Exception:
            continue
        return module, images
    module(images)  # raises the error at the largest size
    return module, images


def _summary(table: pd.DataFrame) -> dict[str, Any]:
    values, complete = table["values"], table["complete"]
    certain = ~table["axis"].str.startswith("uncertain")
    notes = "; ".join(table.attrs["notes"])
    missing = [name for name in table.attrs["missing"] if name not in notes]
    right = bool(values.all() and complete.all()) and not missing
    counts = table["axis"].value_counts()
    return {
        "outcome": ("right" if certain.all() else "uncertain") if right else "wrong",
        "layers": len(table),
        "units": int(table["units"].sum()),
        "values": int(values.sum()),
        "complete": int(complete.sum()),
        "certain": int(certain.sum()),
        "evidence": "; ".join(f"{kind}: {count}" for kind, count in counts.items()),
        "missing": len(missing),
        "sizes": len(table.attrs["image_sizes"]),
        "detail": notes[:200] or " ".join(missing[:3]),
    }
