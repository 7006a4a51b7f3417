"""Tables with one row per image file: its path and its label."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from probekit.data.decoding import ImageDecoder
from probekit.data.folders import FileImages, numbered_after
from probekit.data.labels import LABEL_KEYS, ClassNames, dense_names, label_table, names_of_text
from probekit.errors import DataError, foreign_file, optional, some_of, warn

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
_PATHS = (
    "path", "paths", "file", "filename", "file_name", "filepath", "file_path", "image_path", "image", "img",
)  # fmt: skip


def is_table(data: Any) -> bool:
    """Whether data is a table of pandas or polars."""
    return hasattr(data, "columns") and hasattr(data, "to_numpy")


def read_table(file: Path, labels: Sequence[str]) -> pd.DataFrame:
    """Reads a CSV, TSV or Parquet file; a class may be called NA or None.

    A number in the columns of labels must not be written in several ways, such as 1 and 01.
    """
    with foreign_file(f"{str(file)!r} cannot be read as a table", DataError):
        if file.suffix == ".parquet":
            with optional("pyarrow", "a Parquet file"):
                import pyarrow.parquet  # noqa: F401
            return pd.read_parquet(file)
        separator = "\t" if file.suffix == ".tsv" else ","
        options: Any = {"sep": separator, "keep_default_na": False, "na_values": [""]}
        table, texts = (pd.read_csv(file, dtype=kind, **options) for kind in (None, str))
    for column in table.columns.intersection(list(labels)):
        if table[column].dtype.kind not in "iu":
            continue
        for number, written in texts[column].groupby(table[column]).unique().items():
            if len(written) > 1:
                raise DataError(
                    f"the column {column!r} of {str(file)!r} has the number {number} as "
                    f"{some_of(sorted(written))}; write each class in one way, or name it with letters"
                )
    return table


def table_images(
    table: Any,
    name: str,
    root: Path,
    decode: ImageDecoder,
    *,
    split: str | None,
    skip_bad: bool,
    attributes: Sequence[str],
    beside: Path | None,
) -> FileImages:
    """The images that a table lists, in its order.

    Paths are in a column `path`, `file`, `filename`, `image`, ...; labels, as numbers or text, in a
    column `label`, `target`, `class`, ..., or in the columns `attributes`. Without any, images have no
    labels. Paths are relative to `root`; `split` selects rows by the column `split`; the classes of
    `beside`, the file with the table of the training split, come first.
    """
    given = {str(column): table[column] for column in table.columns}
    columns = {column: list(values) for column, values in given.items()}
    if missing := [column for column in attributes if column not in columns]:
        raise DataError(
            f"{name!r} has no column {missing[0]!r} for an attribute; its columns are "
            f"{some_of(list(columns), 10)}"
        )
    chosen = attributes or [column for column in LABEL_KEYS if column in columns][:1]
    names_of, notes = _class_names({column: given[column] for column in chosen}, beside, name)
    for sentence in notes:
        warn(sentence)
    if "split" in columns or split is not None:
        columns = _rows_of(columns, split, name)
    paths, files = _files(columns, root, name)
    for column in chosen:
        if any(pd.isna(one) for one in columns[column]):
            raise DataError(f"the column {column!r} of {name!r} lacks the label of some images")
    names: ClassNames = {}
    labels: Any = None
    if attributes:
        labels = columns
    elif chosen:
        names, labels = names_of[chosen[0]], columns[chosen[0]]
    numbers = label_table(labels, len(files), names, names_of if attributes else {})
    keys = zip(paths, numbers.tolist(), strict=True)
    images = FileImages(
        files,
        numbers,
        dense_names(names),
        name,
        [os.fsencode(path) + f"|{number}".encode() for path, number in keys],
        decode,
        skip_bad,
    )
    images.attributes = names_of if attributes else {}
    images.notes = notes
    return images


def _class_names(
    columns: Mapping[str, Any], beside: Path | None, name: str
) -> tuple[dict[str, ClassNames], list[str]]:
    """The names of the classes in each column of labels, and messages about them.

    A class has the same number in every split: those of the table `beside` come first.
    """
    names_of = {column: names_of_text(labels) for column, labels in columns.items()}
    notes: list[str] = []
    training = pd.DataFrame()
    if beside is not None and any(names_of.values()):
        try:
            training = read_table(beside, list(columns))
        except DataError as error:
            notes.append(f"{error}; the classes in {name!r} are numbered without it")
    for column, own in names_of.items():
        if own and column in training.columns:
            trained = names_of_text(training[column]).values()
            classes, unknown = numbered_after(trained, own.values(), name)
            names_of[column] = dict(enumerate(classes))
            notes += unknown
    return names_of, notes


def _files(columns: Mapping[str, list[Any]], root: Path, name: str) -> tuple[list[Any], list[Path]]:
    """The paths of the images as the table has them, and the files that they name."""
    found = next((column for column in _PATHS if column in columns), None)
    if found is None:
        raise DataError(
            f"{name!r} has the columns {some_of(list(columns))}, and none of {', '.join(_PATHS)}, which "
            "hold the paths of images"
        )
    paths = columns[found]
    wrong = [one for one in paths if not isinstance(one, str | os.PathLike)]
    if not paths:
        raise DataError(f"{name!r} has no rows; give one row per image file")
    if wrong:
        raise DataError(
            f"the column {found!r} of {name!r} holds {type(wrong[0]).__name__} where a path of an image "
            "should be"
        )
    files = [root / path for path in paths]
    lost = [str(file) for file in files if not file.is_file()]
    if lost:
        raise DataError(
            f"{len(lost)} of {len(files)} files that {name!r} lists do not exist: {some_of(lost)}; paths "
            "are relative to the folder of the table, or to root=DIR (--data-root)"
        )
    return paths, files


def _rows_of(columns: dict[str, list[Any]], split: str | None, name: str) -> dict[str, list[Any]]:
    splits = columns.get("split", [])
    if split not in splits:
        there = ", ".join(sorted({str(one) for one in splits})) or "no column `split`"
        raise DataError(f"{name!r} has the splits {there}, not {split!r}; choose one with split=")
    rows = [row for row, one in enumerate(splits) if one == split]
    return {column: [values[row] for row in rows] for column, values in columns.items()}
