"""Saves figures and tables as files for papers, spreadsheets and other programs."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from probekit.checks import one_of
from probekit.errors import OptionError, optional
from probekit.results.files import check_output_path, whole, writable
from probekit.results.provenance import Table, with_provenance
from probekit.results.tables import layers_table, units_table
from probekit.results.trees import netcdf


def check_figure(path: str | Path, *, overwrite: bool) -> Path:
    """Checks, before any computation, that a figure can be drawn and written."""
    with optional("matplotlib", "a figure"):
        import matplotlib  # noqa: F401
    return check_output_path(path, (".png", ".pdf", ".svg"), "a figure", overwrite=overwrite)


def save_figure(
    figure: Any, stem: str | Path, *, kinds: str | Sequence[str] = ("png", "svg"), dpi: int = 150
) -> list[Path]:
    """Writes a figure in several formats, and closes it.

    SVG files store text as text and contain no dates or random identifiers, so the same figure always
    produces the same file.

    Args:
        figure: A matplotlib figure, or axes of a figure.
        stem: Path without a file extension. With a known extension (such as `.png`, `.svg` or `.pdf`),
            only that file is written.
        kinds: One or several file extensions.
        dpi: Resolution of raster images.

    Returns:
        The paths of the files.

    Raises:
        OutputError: A file cannot be written.
        OptionError: A kind is unknown.

    Example:
        >>> import tempfile
        >>> import matplotlib.pyplot as plt
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in save_figure(plt.subplots()[1], f"{folder}/empty")]
        ['empty.png', 'empty.svg']
    """
    with optional("matplotlib", "save_figure"):
        import matplotlib.pyplot as plt

    drawn = getattr(figure, "figure", figure)
    known = drawn.canvas.get_supported_filetypes()
    kinds = [kinds] if isinstance(kinds, str) else kinds
    files = [Path(stem)]
    if files[0].suffix[1:].lower() not in known:
        files = [Path(f"{stem}.{one_of('kind of figure', kind, known)}") for kind in kinds]
    try:
        with writable(files[0]):
            files[0].parent.mkdir(parents=True, exist_ok=True)
        with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "probekit"}):
            # The layout is computed once, which takes longer than drawing.
            drawn.set_dpi(dpi)
            drawn.draw_without_rendering()
            drawn.set_layout_engine("none")
            bounds = drawn.get_tightbbox().padded(plt.rcParams["savefig.pad_inches"])
            for file in files:
                dated = {"metadata": {"Date": None}} if file.suffix == ".svg" else {}
                with whole(file) as draft:
                    drawn.savefig(draft, dpi=dpi, bbox_inches=bounds, **dated)
    finally:
        plt.close(drawn)
    return files


def save_tables(
    table: Table, stem: str | Path, *, kinds: str | Sequence[str] = ("csv",), **facts: Any
) -> list[Path]:
    """Writes tables of numbers to netCDF and to CSV or Parquet.

    Args:
        table: A dataset or a result.
        stem: Path without a file extension.
        kinds: `csv`, `parquet` (requires the extra `parquet`), or both. Parquet preserves column types.
        **facts: Additional entries of the provenance, such as the options of a study.

    Returns:
        The paths of the files: `STEM.nc`, and `STEM.AXES.csv` for each set of axes, with one row per
        element. For a result: `STEM.units.csv`, with one row per unit, as in `units_table`;
        `STEM.layers.csv`, with one row per layer; `STEM.samples.csv`; and `STEM.robustness.AXES.csv`.

    Raises:
        OutputError: A file cannot be written.
        OptionError: A kind is unknown, or pyarrow is missing for Parquet.

    Example:
        >>> import tempfile
        >>> table = xr.Dataset({"accuracy": ("alpha", [0.5, 0.6])}, {"alpha": [-1.0, 0.0]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = save_tables(table, f"{folder}/sweep")
        ...     [path.name for path in files], files[1].read_text().splitlines()
        (['sweep.nc', 'sweep.alpha.csv'], ['alpha,accuracy', '-1.0,0.5', '0.0,0.6'])
    """
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if unknown := set(kinds) - {"csv", "parquet"}:
        raise OptionError(
            f"kinds must be csv or parquet, not {', '.join(sorted(map(str, unknown)))}"
        )
    if "parquet" in kinds:
        with optional("pyarrow", "a Parquet file"):
            import pyarrow.parquet  # noqa: F401
    files = [Path(f"{stem}.nc")]
    with writable(files[0]):
        files[0].parent.mkdir(parents=True, exist_ok=True)
    with whole(files[0]) as draft:
        draft.write_bytes(netcdf(with_provenance(table, **facts)))
    frames = _result_frames(table) if isinstance(table, xr.DataTree) else _frames(table)
    for name, frame in frames:
        rows = frame.reset_index() if any(frame.index.names) else frame
        for kind in kinds:
            files.append(Path(f"{stem}.{name}.{kind}"))
            with whole(files[-1]) as draft:
                if kind == "csv":
                    rows.to_csv(draft, index=False)
                else:
                    rows.to_parquet(draft, index=False)
    return files


def _result_frames(result: xr.DataTree) -> Iterator[tuple[str, pd.DataFrame]]:
    """The tables of a result: units, layers, samples and robustness."""
    if "units" in result.children:
        yield "units", units_table(result)
    if "layers" in result.children:
        yield "layers", layers_table(result)
    if "samples" in result.children:
        yield "samples", result.children["samples"].to_dataset(inherit=False).to_dataframe()
    if "robustness" in result.children:
        for name, frame in _frames(result.children["robustness"].to_dataset(inherit=False)):
            yield f"robustness.{name}", frame


def _frames(table: xr.Dataset) -> Iterator[tuple[str, pd.DataFrame]]:
    """A data frame for all variables with the same axes, one row per element."""
    by_axes: dict[tuple[str, ...], list[Hashable]] = {}
    for name, values in table.data_vars.items():
        by_axes.setdefault(tuple(map(str, values.dims)), []).append(name)
    for axes, names in by_axes.items():
        rows = table[names]
        if axes == ("unit",) and {"layer", "channel"} <= set(rows.coords):
            yield "unit", units_table(table)
        elif axes:
            yield "_".join(axes), rows.reset_coords().to_dataframe(dim_order=list(axes))
        else:
            yield "numbers", rows.reset_coords(drop=True).to_pandas().to_frame().T
