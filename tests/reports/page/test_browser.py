"""The report page in a browser: sorting, filtering, dossiers, keyboard, hostile names, many units."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from probekit.data.images import TensorImages
from report_pages import column

UNKNOWN = "\N{EN DASH}"
HOSTILE = (
    "</script><img src=x onerror=window.hacked=1>",
    "<svg onload=window.hacked=2>",
    "\"'><script>window.hacked=3</script>",
    "{{7*7}}<!-- ]]> --!> \u2028 \u202e =cmd()",
)


def numbers(page: Any, name: str) -> list[float]:
    return [float(text) for text in column(page, name) if text != UNKNOWN]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_opens_without_errors_or_requests(
    look: Any, page_of: Any, result: xr.DataTree, images: TensorImages, scheme: str
) -> None:
    seen = look(page_of(result, data=images), color_scheme=scheme)
    assert seen.page.locator("#body tr[data-place]").count() > 10
    assert seen.page.locator("#body img").count() > 10
    paper = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, paper[4:-1].split(","))) < 60) == (scheme == "dark")
    assert seen.quiet(), (seen.said, seen.asked)


def test_sorts_by_any_column_in_both_directions_with_missing_values_last(
    look: Any, usual: Path, result: xr.DataTree
) -> None:
    seen = look(usual)
    first = numbers(seen.page, "selectivity")
    assert first == sorted(first, reverse=True)
    expected = np.sort(result["units"]["selectivity"].values)[::-1][: len(first)]
    np.testing.assert_allclose(first, expected, atol=5.1e-4)
    head = seen.page.locator("#head th[data-name=selectivity]")
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert numbers(seen.page, "selectivity") == sorted(numbers(seen.page, "selectivity"))
    seen.page.locator("#head th[data-name=gradient_norm_cv] button").focus()
    seen.page.keyboard.press("Enter")
    found = numbers(seen.page, "gradient_norm_cv")
    assert found == sorted(found, reverse=True)
    assert head.get_attribute("aria-sort") == "none"
    for key in ("Enter", "End"):
        target = seen.page.locator("#head th[data-name=gradient_norm_cv] button")
        (target if key == "Enter" else seen.page.locator("#body tr[tabindex='0']")).press(key)
    assert column(seen.page, "gradient_norm_cv")[-1] == UNKNOWN
    assert seen.quiet()


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("block2", lambda units: units["layer"].str.startswith("block2")),
        (
            "BLOCK shoe",
            lambda units: units["layer"].str.startswith("block") & (units["name"] == "shoe"),
        ),
        ("#3", lambda units: units["channel"] == 3),
        (
            "selectivity>0.5 coat",
            lambda units: (units["selectivity"] > 0.5) & (units["name"] == "coat"),
        ),
        ("gradientcv<=0.3", lambda units: units["gradient_norm_cv"] <= 0.3),
        ("nosuchthing", lambda units: units["channel"] < 0),
    ],
)
def test_filters_rows(
    look: Any, usual: Path, result: xr.DataTree, query: str, wanted: Callable[[Any], Any]
) -> None:
    units = result["units"].to_dataset().drop_dims(["class", "rank", "drawn"]).to_dataframe()
    names = dict(enumerate(result["units"]["class_name"].values))
    units["name"] = units["preferred_class"].map(names)
    seen = look(usual)
    seen.page.fill("#query", query)
    count = int(wanted(units).sum())
    said = f"{count} of 60 units" if count else "No unit matches the filter."
    seen.page.locator("#count", has_text=re.compile(f"^{re.escape(said)}$")).wait_for()
    assert seen.page.locator("#body tr[data-place]").count() <= count
    assert seen.quiet()


def test_filters_by_selection_and_from_the_layers(look: Any, usual: Path) -> None:
    page = look(usual).page
    page.select_option("#class", label="bag")
    assert set(column(page, "preferred_class")) == {"bag"}
    page.select_option("#class", "")
    page.check("#dead")
    assert page.inner_text("#count") == "59 of 60 units"
    page.uncheck("#dead")
    page.locator("#layers button", has_text="block1.relu").click()
    assert set(column(page, "layer")) == {"block1.relu"}
    page.click(".menu summary")
    page.uncheck("#columns label:has-text('gradient CV') input")
    assert page.locator("#head th[data-name=gradient_norm_cv]").count() == 0


def test_a_click_opens_the_dossier_of_the_unit(
    look: Any, page_of: Any, result: xr.DataTree, images: TensorImages
) -> None:
    seen = look(page_of(result, data=images))
    seen.page.locator("#body tr[data-place='2']").click()
    units = result["units"]
    unit = int(np.argsort(-units["selectivity"].values, kind="stable")[2])
    dossier = seen.page.locator("#dossier")
    assert dossier.locator("h2").inner_text() == f"Unit {int(units['channel'][unit])}"
    assert dossier.locator(".where").inner_text() == str(units["layer"].values[unit])
    names = units["class_name"].values[np.argsort(-units["class_mean"].values[unit])]
    bars = dossier.locator("section").first.locator("svg").get_attribute("aria-label")
    assert [part.rsplit(" ", 1)[0] for part in bars.split(", ")] == names.tolist()
    shown = dossier.locator(".photos img")
    assert shown.count() == 3
    sample = int(units["top_sample"].values[unit, 0])
    assert shown.first.get_attribute("alt") == f"sample {sample}, {images.classes[sample % 4]}"
    pixels = seen.page.evaluate(
        """async (address) => {
            const image = new Image(); image.src = address; await image.decode();
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.width, image.height];
            const context = canvas.getContext("2d"); context.drawImage(image, 0, 0);
            const data = context.getImageData(0, 0, image.width, image.height).data;
            return [...data].filter((_, at) => at % 4 === 0);
        }""",
        shown.first.get_attribute("src"),
    )
    expected = (images[sample][0].numpy() * 255).round().ravel()
    np.testing.assert_array_equal(pixels, expected)
    assert seen.quiet()


def test_all_controls_are_reachable_by_keyboard(look: Any, usual: Path) -> None:
    seen = look(usual)
    page = seen.page
    page.locator("#body tr[tabindex='0']").focus()
    assert page.locator("#body tr[tabindex='0']").count() == 1
    for key in (
        "ArrowDown",
        "ArrowDown",
        "ArrowUp",
        "PageDown",
        "Home",
        "End",
        "Home",
        "ArrowDown",
    ):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.dataset.place") == "1"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "dossier"
    title = page.inner_text("#dossier h2")
    page.keyboard.press("Escape")
    assert page.locator("#dossier").is_hidden()
    assert page.evaluate("document.activeElement.dataset.place") == "1"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    again = page.inner_text("#dossier h2"), page.inner_text("#dossier .where")
    assert again != (title, "")
    assert page.locator("tr[aria-selected=true]").get_attribute("data-place") == "2"
    page.locator("#layers button").first.focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.textContent") == "block1.relu"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    assert seen.quiet()


def test_focus_survives_removal_of_its_row(look: Any, page_of: Any, make_result: Any) -> None:
    page = look(page_of(make_result(3000))).page
    page.locator("#body tr[tabindex='0']").focus()
    page.evaluate("document.querySelector('#scroller').scrollTop = 50000")
    page.locator("#scroller:focus").wait_for()  # the page forbids scripts that wait
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.dataset.place") == "1"


def test_hostile_names_are_only_text(
    look: Any, page_of: Any, make_result: Any, images: TensorImages
) -> None:
    bad = make_result(layers=HOSTILE[:3], classes=HOSTILE, name=HOSTILE[0])
    path = page_of(
        {HOSTILE[0]: bad, HOSTILE[1]: make_result(seed=1)}, data=images, title=HOSTILE[2]
    )
    seen = look(path)
    page = seen.page
    page.locator("#body tr[data-place]").first.click()
    page.select_option("#layer", "1")
    page.fill("#query", "<svg")
    page.wait_for_timeout(200)
    assert page.locator("#body tr[data-place]").count() == 20
    page.locator("[data-show='1']").click()
    page.locator("[data-show='0']").click()
    assert page.evaluate("window.hacked") is None
    assert page.inner_text("h1") == HOSTILE[2]
    cells = page.locator("#body td.mono").all()
    assert {cell.get_attribute("title") for cell in cells} <= set(HOSTILE[:3])
    assert all(len(text) == 23 for text in column(page, "layer"))
    assert page.locator("img:not(.pic)").count() == 0
    assert page.locator("script").count() == 2
    assert seen.quiet(), (seen.said, seen.asked)


def test_the_page_forbids_external_scripts_and_requests(look: Any, usual: Path) -> None:
    seen = look(usual)
    seen.page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.hacked = 1"; document.body.append(script);
            const image = new Image(); image.src = "https://example.org/x.png";
            fetch("https://example.org/").catch(() => {});
        }"""
    )
    seen.page.wait_for_timeout(200)
    assert seen.page.evaluate("window.hacked") is None
    assert sum("Content Security Policy" in one for one in seen.said) >= 3


@pytest.mark.slow
def test_ten_thousand_units_stay_responsive(look: Any, page_of: Any, make_result: Any) -> None:
    """The time limits are generous; the point is that only few rows are elements of the page."""
    layers = [f"features.{number}.relu" for number in range(50)]
    seen = look(page_of(make_result(10_000, layers)))
    page = seen.page
    assert page.inner_text("#count") == "10,000 units"
    assert page.get_attribute("#table", "aria-rowcount") == "10001"
    assert page.locator("#body tr").count() < 80
    took = page.evaluate(
        """async () => {
            const start = performance.now();
            document.querySelector("#head th[data-name=gradient_norm_cv] button").click();
            const sorted = performance.now();
            const scroller = document.querySelector("#scroller");
            for (let at = 1; at <= 20; at++) {
                scroller.scrollTop = at * scroller.scrollHeight / 20;
                await new Promise(requestAnimationFrame);
                await new Promise(requestAnimationFrame);
            }
            return [sorted - start, (performance.now() - sorted) / 20];
        }"""
    )
    assert took[0] < 3000
    assert took[1] < 1000
    assert page.locator("#body tr").count() < 80
    assert page.locator("#body tr[data-place='9999']").count() == 1
    assert seen.quiet()


def test_models_are_shown_side_by_side(look: Any, page_of: Any, make_result: Any) -> None:
    seen = look(page_of({"one": make_result(), "two": make_result(90, seed=3)}))
    page = seen.page
    assert page.locator("#compare thead th").first.inner_text() == "one"
    assert page.locator("#compare .ridge").count() == 6
    assert page.inner_text("#count") == "60 units"
    page.locator("[data-show='1']").click()
    assert page.inner_text("#count") == "90 units"
    assert page.locator("#layers .model:visible").count() == 1
    assert page.get_attribute("[data-show='1']", "aria-pressed") == "true"
    page.locator("#body tr[data-place]").first.click()
    assert page.inner_text("#dossier .where").startswith("two: ")
    assert seen.quiet()


def test_a_link_opens_a_unit(look: Any, usual: Path) -> None:
    page = look(usual, "#unit=0.2.7").page
    assert page.inner_text("#dossier h2") == "Unit 7"
    assert page.inner_text("#dossier .where") == "block2.relu"
