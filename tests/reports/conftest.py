"""Synthetic results, and a browser to inspect pages."""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import probekit as pk
from probekit.data.images import TensorImages
from probekit.metrics.gradient_variability import GradientVariability
from probekit.metrics.selectivity.selectivity import Selectivity
from probekit.metrics.unit_metrics import TopImages

CLASSES = ("shoe", "shirt", "bag", "coat")
SAMPLES = 40


def with_attributes(table: xr.Dataset) -> xr.Dataset:
    """The table with the attributes that `analyze` sets on its variables."""
    for metric in (Selectivity(), GradientVariability(), TopImages()):
        own = [name for name in table.data_vars if name in metric.variables]
        table = table.assign(metric.with_attributes(table[own]))
    return table


def _make_result(
    units: int = 60,
    layers: Sequence[str] = ("stem.relu", "block1.relu", "block2.relu"),
    classes: Sequence[str] = CLASSES,
    seed: int = 0,
    top: int = 3,
    name: str = "toy",
) -> xr.DataTree:
    """A result in the format of `analyze` with random values; the first unit is dead."""
    random = np.random.default_rng(seed)
    layer = np.sort(np.arange(units) % len(layers))
    means = random.gamma(1.0, size=(units, len(classes))).round(4)
    means[0] = 0.0
    highest = means.max(1)
    rest = (means.sum(1) - highest) / (len(classes) - 1)
    index = np.where(highest > 0, (highest - rest) / (highest + rest + 1e-6), 0.0)
    channel = np.concatenate([np.arange((layer == at).sum()) for at in range(len(layers))])
    samples = np.stack([random.permutation(SAMPLES)[:top] for _ in range(units)])
    table = xr.Dataset(
        {
            "selectivity": ("unit", index),
            "preferred_class": ("unit", np.where(highest > 0, means.argmax(1), -1)),
            "dead": ("unit", highest == 0),
            "class_mean": (("unit", "class"), means),
            "gradient_norm_cv": ("unit", np.where(highest > 0, random.random(units), np.nan)),
            "top_sample": (("unit", "rank"), samples),
            "top_label": (("unit", "rank"), samples % len(classes)),
            "top_activation": (("unit", "rank"), -np.sort(-random.random((units, top)))),
            "drawn_activation": (("unit", "drawn"), random.random((units, 5)) / 2),
        },
        coords={
            "layer": ("unit", np.array(layers, dtype=object)[layer]),
            "channel": ("unit", channel),
            "class": np.arange(len(classes)),
            "class_name": ("class", np.array(classes, dtype=object)),
        },
    )
    by_layer = xr.Dataset(
        {
            "n_units": ("layer", np.bincount(layer)),
            "selectivity_mean": ("layer", [index[layer == at].mean() for at in range(len(layers))]),
        },
        coords={"layer": np.array(layers, dtype=object)},
    )
    tree = xr.DataTree.from_dict(
        {
            "/": xr.Dataset({"selectivity_mean": by_layer["selectivity_mean"].mean()}),
            "units": with_attributes(table),
            "layers": with_attributes(by_layer),
        }
    )
    facts = {"model": {"name": name, "hash": f"sha256:{name}{seed}"}, "data": {"name": "toy data"}}
    tree.attrs["provenance"] = json.dumps(facts)
    return tree


@pytest.fixture(scope="session")
def make_result() -> Callable[..., xr.DataTree]:
    """Makes synthetic results."""
    return _make_result


@pytest.fixture
def result() -> xr.DataTree:
    """60 units in three layers, four classes."""
    return _make_result()


@pytest.fixture
def images() -> TensorImages:
    """The data of synthetic results: 40 gray images of 12 px with label = index mod 4."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(SAMPLES, 1, 12, 12, generator=generator)
    return TensorImages(pixels, torch.arange(SAMPLES) % len(CLASSES), CLASSES)


@pytest.fixture
def partly_measured(model: Any) -> tuple[xr.DataTree, TensorImages]:
    """A merged result with the class means and top images of one of its two layers."""
    pictures = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = TensorImages(pictures, torch.arange(24) % 3, "abc")
    with_images, without = (
        pk.analyze(model, data, layer, metrics)
        for layer, metrics in (("4", ["selectivity", "top_images"]), ("1", "dimensionality"))
    )
    return pk.merge_results(without, with_images), data


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium installed on this system."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((place for name in names if (place := shutil.which(name))), None)
    if found is None:
        pytest.skip(
            f"no Chromium on the path ({', '.join(names)}); Debian: apt-get install chromium"
        )
    rights = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=rights)
        yield started
        gc.collect()  # ends reading processes that were forked meanwhile and hold the pipes of the browser
        started.close()


@pytest.fixture(scope="session")
def tab(browser: Any) -> Any:
    """The page that tests share, since each new one starts processes."""
    return browser.new_context().new_page()


class Watched:
    """A page together with its console messages and requests."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.said: list[str] = []
        self.asked: list[str] = []
        self.listeners: dict[str, Callable[[Any], None]] = {
            "console": lambda message: self.said.append(message.text),
            "pageerror": lambda error: self.said.append(str(error)),
            "request": lambda request: self.asked.append(request.url),
        }
        for event, listener in self.listeners.items():
            page.on(event, listener)

    def quiet(self) -> bool:
        """Whether there were no errors and no requests except for the file itself."""
        others = [one for one in self.asked if not one.startswith(("file:", "data:"))]
        return not self.said and not others and len(self.files()) == 1

    def files(self) -> list[str]:
        return [one for one in self.asked if one.startswith("file:")]

    def close(self) -> None:
        """Leaves the page as it was before, with nothing stored."""
        for event, listener in self.listeners.items():
            self.page.remove_listener(event, listener)
        self.page.evaluate("localStorage.clear()")
        self.page.goto("about:blank")


SCREEN = {"width": 1300, "height": 900}


@pytest.fixture
def look(browser: Any, tab: Any) -> Iterator[Callable[..., Watched]]:
    """Opens a file, and records messages and requests of the page from the start."""
    opened: list[Watched] = []

    def open_page(
        path: Path,
        anchor: str = "",
        *,
        viewport: dict[str, int] = SCREEN,
        color_scheme: str = "light",
        java_script_enabled: bool = True,
    ) -> Watched:
        page = tab if java_script_enabled else browser.new_page(java_script_enabled=False)
        page.set_viewport_size(viewport)
        page.emulate_media(media="screen", color_scheme=color_scheme)
        watched = Watched(page)
        opened.append(watched)
        page.goto(path.as_uri() + anchor)
        return watched

    yield open_page
    for watched in opened:
        if watched.page is tab:
            watched.close()
        else:
            watched.page.close()
