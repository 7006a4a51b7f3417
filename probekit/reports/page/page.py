"""Reports: results as one self-contained HTML page."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from importlib import resources
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

from probekit._version import __version__
from probekit.errors import DataError, OptionError, OutputError
from probekit.models.image_model import Model
from probekit.reports.model_results import ModelResults, Results, model_results
from probekit.reports.page.payload import thumbnails, unit_table, wanted_samples
from probekit.reports.page.sections import sections
from probekit.reports.page.svg import number
from probekit.reports.page.tables import Section, take_sections
from probekit.results.files import check_output_path, whole

# Email attachments grow by a third when encoded, and messages are limited to 25 MB.
BUDGET = 16 * 2**20
_LEAST = 2**20
_SIZE = "@@@ size @@@"


def report(
    results: Results,
    out: str | Path = "report.html",
    *,
    data: Any = None,
    model: Model | None = None,
    names: Sequence[str] | None = None,
    title: str | None = None,
    budget: int = BUDGET,
    overwrite: bool = False,
) -> Path:
    """Writes results as one HTML file that works offline, also as an email attachment.

    The page shows key numbers, layers, robustness, and a table of all units. The table can be sorted
    and filtered, and opens the dossier of each unit. Several models are shown side by side. The page
    makes no network requests.

    Args:
        results: A result of `analyze` or `robustness` or its file, a sequence of these, or a mapping from
            names to these. A robustness run is merged with the analysis of its model. The outputs of
            `compare` and `survey` get a section of their own.
        out: Path of the `.html` file.
        data: The analyzed data, used for the images that activate units most (metric `top_images`), as
            for `images_at`.
        model: The model, used for the size of the images if `data` is a name or a folder.
        names: Names of the models.
        title: Title of the page.
        budget: Maximum size of the file in bytes. If necessary, images are left out, first those of
            lower ranks and less selective units, and then class means. The page reports omissions.
        overwrite: Replace an existing file.

    Returns:
        The path of the file.

    Raises:
        OutputError: The file exists, cannot be written, or would be larger than `budget` even without
            images and class means; or a result cannot be read.
        DataError: The data does not match the results, or a tree is not a result.
        OptionError: There are no results, too few names, or a budget below 1 MiB.

    Example:
        >>> import tempfile
        >>> import probekit as pk
        >>> model = pk.load_model("probekit:resnet20-fashion-mnist")
        >>> data = pk.load_data("fashion-mnist", model)
        >>> metrics = ["selectivity", "top_images"]
        >>> result = pk.analyze(model, data, "layer3.2.relu2", metrics, limit=100)
        >>> page = pk.report(result, f"{tempfile.mkdtemp()}/report.html", data=data)
        >>> page.read_text()[:15]
        '<!doctype html>'
    """
    if not isinstance(budget, int) or budget < _LEAST:
        raise OptionError(f"budget must be a number of bytes from {_LEAST}, not {budget!r}")
    path = check_page(out, overwrite=overwrite)
    rest, extra = take_sections(results)
    models = model_results(rest, names) if rest or not extra else []
    page = _fitted(models, extra, data, model, title, budget)
    with whole(path) as draft:
        draft.write_bytes(page)
    return path


def check_page(path: str | Path, *, overwrite: bool) -> Path:
    """Checks in advance that a page can be written."""
    return check_output_path(
        path, (".html", ".htm"), "a report", overwrite=overwrite, any_case=True
    )


def _fitted(
    models: Sequence[ModelResults],
    extra: Sequence[Section],
    data: Any,
    model: Model | None,
    title: str | None,
    budget: int,
) -> bytes:
    """The page within its budget; images are left out first, then class means."""
    tables = [unit_table(one) for one in models]
    left_out = []
    bare = len(_page(models, extra, {"models": tables}, title, budget, ""))
    if bare > budget:
        for table, name in product(tables, ("tuning", "drawn")):
            table.pop(name, None)
        left_out.append("class means and random samples are left out to keep within it")
        bare = len(_page(models, extra, {"models": tables}, title, budget, left_out[0]))
    if bare > budget:
        raise OutputError(
            f"the report would have {_mib(bare)} MiB without any image, and budget allows "
            f"{_mib(budget)} MiB; analyze fewer layers, or raise budget (--budget)"
        )
    images, note = _images(models, tables, data, model, budget - bare - 2**16)
    notes = "; ".join([*left_out, note])
    return _page(models, extra, {"models": tables, "images": images}, title, budget, notes)


def _images(
    models: Sequence[ModelResults],
    tables: Sequence[dict[str, Any]],
    data: Any,
    model: Model | None,
    room: int,
) -> tuple[dict[int, str], str]:
    """Thumbnails by sample, shared by all models, and a note on those left out."""
    shown = [one for one in models if "top_sample" in one.units]
    if data is None or not shown:
        missing = "the data was not given" if shown else "the metric top_images was not measured"
        return {}, f"no images, as {missing}"
    ranked = [wanted_samples(one) for one in shown]
    # Alternate between models, so that each gets its top images.
    mixed = (one for together in zip_longest(*ranked) for one in together if one is not None)
    wanted = list(dict.fromkeys(mixed))
    found = thumbnails(wanted, _labels(shown), data, model, max(room, 0))
    for table in tables:
        if "top" in table:
            table["top"]["images"] = True
    if len(found) == len(wanted):
        return found, f"all {len(found):,} images"
    return found, (
        f"{len(found):,} of {len(wanted):,} images, the others left out to keep within it: those of "
        "lower rank and of less selective units"
    )


def _labels(models: Sequence[ModelResults]) -> dict[int, int]:
    """The label of every sample shown."""
    known: dict[int, int] = {}
    for one in models:
        if "top_label" not in one.units:
            continue
        measured = one.units[["top_sample", "top_label"]].dropna("unit")
        both = (measured[f"top_{x}"].values.ravel().tolist() for x in ("sample", "label"))
        for sample, label in zip(*both, strict=True):
            if known.setdefault(sample, label) != label:
                raise DataError(
                    "the results are of different data, whose images one report cannot show; make the "
                    "report without data, or one report for each"
                )
    return known


def _page(
    models: Sequence[ModelResults],
    extra: Sequence[Section],
    payload: dict[str, Any],
    title: str | None,
    budget: int,
    left_out: str,
) -> bytes:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("probekit.reports.page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = _asset("report.css")
    parts = "\n".join(_asset(f"{name}.js") for name in ("page", "table", "dossier"))
    script = f'(() => {{\n"use strict";\n{parts}}})();'
    embedded = json.dumps(payload, separators=(",", ":"), allow_nan=False)
    for character in "<>&":  # so that it cannot end the script element
        embedded = embedded.replace(character, f"\\u{ord(character):04x}")
    text = environment.get_template("report.html.j2").render(
        sections(models),
        extra=extra,
        number=number,
        title=title or _title([one.name for one in models] or [one.title for one in extra]),
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        payload=Markup(embedded),
        size=_SIZE,
        budget=_mib(budget),
        left_out=left_out,
        version=__version__,
    )
    page = text.encode("utf-8", "replace")
    return page.replace(_SIZE.encode(), f"{len(page) / 2**20:.1f} MiB".encode(), 1)


def _title(names: Sequence[str]) -> str:
    if len(names) > 4:
        return f"{len(names)} models"
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def _asset(name: str) -> str:
    return (resources.files("probekit.reports.page") / "templates" / name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode('ascii')}"


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f}"
