"""The report page in a browser: sorting, filtering, dossiers, keyboard, hostile names, many units."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import probekit as pk
from probekit.data.images import TensorImages

UNKNOWN = "\N{EN DASH}"
HOSTILE = (
    "</script><img src=x onerror=window.hacked=1>",
    "<svg onload=window.hacked=2>",
    "\"'><script>window.hacked=3</script>",
    "{{7*7}}<!-- ]]> --!> \u2028 \u202e =cmd()",
)


@pytest.fixture
def page_of(tmp_path: Path) -> Callable[..., Path]:
    """Writes a report."""

    def write(results: Any, **options: Any) -> Path:
        return pk.report(results, tmp_path / "report.html", **options)

    return write


@pytest.fixture(scope="module")
def usual(
    make_result: Callable[..., xr.DataTree], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The report of the usual result, which most tests only open."""
    return pk.report(make_result(), tmp_path_factory.mktemp("usual") / "report.html")


def column(page: Any, name: str) -> list[str]:
    """The contents of a column in the visible rows."""
    heads = page.locator("#head th")
    names = [heads.nth(at).get_attribute("data-name") for at in range(heads.count())]
    cells = page.locator(f"#body tr[data-place] td:nth-child({names.index(name) + 1})")
    return [text.strip() for text in cells.all_inner_texts()]


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
    seen.page.wait_for_function(
        "said => document.querySelector('#count').textContent === said", arg=said
    )
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
    page.wait_for_function("document.activeElement.id === 'scroller'")
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
    page = look(page_of(make_result(layers=["=1+1", "b", "c"]))).page
    with page.expect_download() as waited:
        page.click("#csv")
    lines = Path(waited.value.path()).read_bytes().decode().split("\r\n")
    assert lines[0].startswith('"layer","channel","selectivity","preferred_class"')
    assert len(lines) == 61
    assert sum(line.startswith('"\'=1+1",') for line in lines) == 20


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
