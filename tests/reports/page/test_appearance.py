"""The report page in a browser: themes, paper, narrow screens, missing values, without scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from probekit.data.images import TensorImages
from report_pages import column

UNKNOWN = "\N{EN DASH}"


def test_the_theme_can_be_switched(look: Any, usual: Path) -> None:
    seen = look(usual)
    paper = "getComputedStyle(document.body).backgroundColor"
    before = seen.page.evaluate(paper)
    seen.page.click("#theme")
    assert seen.page.evaluate(paper) != before
    seen.page.click("#theme")
    assert seen.page.evaluate(paper) == before
    assert seen.quiet()


def test_prints_the_first_units_on_white_without_controls(
    look: Any, page_of: Any, make_result: Any, result: xr.DataTree
) -> None:
    path = page_of(make_result(300))
    page = look(path, color_scheme="dark", viewport={"width": 720, "height": 1000}).page
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("#body tr[data-place]").count() == 60
    assert page.inner_text("#count") == "300 units, the first 60 of them here"
    assert page.locator("#filters").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.inner_text("#count") == "300 units"


@pytest.mark.parametrize("width", [360, 800, 1300])
def test_the_page_never_scrolls_horizontally(
    look: Any, page_of: Any, make_result: Any, result: xr.DataTree, images: TensorImages, width: int
) -> None:
    path = page_of({"one": result, "two": make_result(seed=1)}, data=images)
    page = look(path, viewport={"width": width, "height": 800}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#body tr[data-place]").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_without_scripts_figures_are_shown_and_the_table_is_explained(
    look: Any, usual: Path
) -> None:
    page = look(usual, java_script_enabled=False).page
    assert page.locator("#layers .ridge").count() == 3
    assert "needs JavaScript" in page.inner_text("#units")


def test_the_table_is_exported_without_formulas(look: Any, page_of: Any, make_result: Any) -> None:
    result = make_result(layers=["=1+1", "b", "c"])
    counts, about = 2**24 + 1 + np.arange(60), {"short_name": "spikes"}
    spikes = xr.DataArray(counts, dims="unit", attrs=about)
    result["units"] = xr.DataTree(result["units"].to_dataset().assign(spikes=spikes))
    page = look(page_of(result)).page
    with page.expect_download() as waited:
        page.click("#csv")
    lines = Path(waited.value.path()).read_bytes().decode().split("\r\n")
    assert lines[0].startswith('"layer","channel","selectivity","preferred_class"')
    assert len(lines) == 61
    assert sum(line.startswith('"\'=1+1",') for line in lines) == 20
    place = lines[0].split(",").index('"spikes"')
    exported = sorted(int(line.split(",")[place]) for line in lines[1:])
    assert exported == counts.tolist()


def test_a_dossier_without_images_has_no_empty_sections(
    look: Any, page_of: Any, result: xr.DataTree
) -> None:
    units = result["units"].to_dataset()
    units = units.drop_dims(["rank", "drawn"]).drop_vars("class_mean")
    bare = xr.DataTree.from_dict({"units": units, "layers": result["layers"].to_dataset()})
    seen = look(page_of(bare), anchor="#unit=0.1.2")
    text = seen.page.locator("#dossier").inner_text()
    assert "Unit 2" in text
    assert "null" not in text
    assert seen.quiet()


def test_a_phone_shows_the_navigation_and_the_preferred_class(
    look: Any, page_of: Any, result: xr.DataTree, images: TensorImages
) -> None:
    seen = look(page_of(result, data=images), viewport={"width": 390, "height": 844})
    width = seen.page.evaluate("document.documentElement.clientWidth")
    boxes = [one.bounding_box() for one in seen.page.locator(".topbar a").all()]
    boxes.append(seen.page.locator("#head th[data-name=preferred_class]").bounding_box())
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    layer = seen.page.locator("#body tr[data-place] td").first
    assert layer.inner_text() in ("stem.relu", "block1.relu", "block2.relu")
    assert layer.evaluate("cell => cell.scrollWidth <= cell.clientWidth")
    assert seen.quiet()


def test_long_names_of_layers_stay_distinct_on_a_phone(
    look: Any, page_of: Any, result: xr.DataTree
) -> None:
    names = [f"blocks.5.{number}.bn3.act" for number in range(result["layers"].sizes["layer"])]
    rename = dict(zip(result["layers"]["layer"].values.tolist(), names, strict=True))

    def renamed(table: xr.Dataset) -> xr.Dataset:
        layer = table["layer"]
        return table.assign_coords(layer=(layer.dims, [rename[name] for name in layer.values]))

    tables = {name: renamed(result[name].to_dataset()) for name in ("units", "layers")}
    page = page_of(xr.DataTree.from_dict(tables))
    seen = look(page, viewport={"width": 390, "height": 844})
    shown = set(column(seen.page, "layer"))
    assert len(shown) > 1
    assert all("\N{HORIZONTAL ELLIPSIS}" in name and name.endswith(".bn3.act") for name in shown)
    assert {name.removesuffix(".bn3.act")[-1] for name in shown} <= set("012")
    assert len({name.removesuffix(".bn3.act")[-1] for name in shown}) == len(shown)
    cell = seen.page.locator("#body tr[data-place] td").first
    assert cell.evaluate("cell => cell.scrollWidth <= cell.clientWidth")
    assert seen.quiet()


def test_units_that_a_merged_result_did_not_measure_show_dashes(
    look: Any, page_of: Any, partly_measured: tuple[xr.DataTree, TensorImages]
) -> None:
    result, data = partly_measured
    seen = look(page_of(result, data=data), "#unit=0.0.2")
    text = seen.page.locator("#dossier").inner_text()
    assert "Unit 2" in text
    assert "NaN" not in text
    assert "TUNING" not in text.upper()
    assert "BEST IMAGES" not in text.upper()
    assert seen.page.locator("#dossier .photos").count() == 0
    assert "NaN" not in seen.page.locator("#body").inner_text()
    assert seen.quiet(), seen.said
