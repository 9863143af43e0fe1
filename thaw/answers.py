"""The answers to a batch of images as a table: CSV or Parquet, as the file's suffix says.

Columns are `path`, `label`, `p_<class>` for each class, and `error`.
"""

import csv
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from thaw.errors import BadConfig
from thaw.records import Record

SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True, kw_only=True)
class LabelledImage(Record):
    """One image's answer: the likeliest class and every class's probability, or why there is none."""

    path: str
    label: str | None = None
    probabilities: tuple[float, ...] | None = None
    error: str | None = None


def check_suffix(file: Path) -> None:
    """See that answers can be written to a file of this name.

    Raises:
        BadConfig: its suffix is neither .csv nor .parquet.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise BadConfig(
            f"answers are written as CSV or Parquet. Give a file that ends in {' or '.join(SUFFIXES)}. "
            f"Received: '{file}'."
        )


def write_answers(file: Path, classes: Sequence[str], rows: Sequence[LabelledImage], suffix: str) -> None:
    """Write rows as a table: CSV with six decimals, or Parquet with float64.

    Args:
        suffix: .csv or .parquet; the file itself may go by another name until it is whole.
    """
    if suffix.lower() == ".parquet":
        _write_parquet(file, classes, rows)
    else:
        _write_csv(file, classes, rows)


def read_answers(file: Path) -> list[LabelledImage]:
    """The rows of a table that `write_answers` wrote.

    Raises:
        BadConfig: its suffix is neither .csv nor .parquet.
    """
    check_suffix(file)
    if file.suffix.lower() == ".parquet":
        import pyarrow.parquet

        # The folders of its path say nothing about the rows.
        table = pyarrow.parquet.read_table(file, partitioning=None).to_pylist()
    else:
        with file.open(newline="", encoding="utf-8") as opened:
            table = list(csv.DictReader(opened))
    return [_read_row(row) for row in table]


@contextmanager
def replace_file(file: Path) -> Iterator[Path]:
    """Yield a path beside `file` to write; what is there at the end replaces it, and nothing does on an error."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        yield partial
        partial.replace(file)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _write_csv(file: Path, classes: Sequence[str], rows: Sequence[LabelledImage]) -> None:
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(_name_columns(classes))
        for row in rows:
            figures = (
                [f"{value:.9g}" for value in row.probabilities] if row.probabilities else [""] * len(classes)
            )
            writer.writerow([row.path, row.label or "", *figures, row.error or ""])


def _write_parquet(file: Path, classes: Sequence[str], rows: Sequence[LabelledImage]) -> None:
    import pyarrow
    import pyarrow.parquet

    nothing = (None,) * len(classes)
    figures = list(zip(*(row.probabilities or nothing for row in rows), strict=True)) or [()] * len(classes)
    columns = [
        pyarrow.array([row.path for row in rows], pyarrow.string()),
        pyarrow.array([row.label for row in rows], pyarrow.string()),
        *(pyarrow.array(column, pyarrow.float64()) for column in figures),
        pyarrow.array([row.error for row in rows], pyarrow.string()),
    ]
    pyarrow.parquet.write_table(pyarrow.table(columns, names=_name_columns(classes)), file)


def _name_columns(classes: Sequence[str]) -> list[str]:
    return ["path", "label", *(f"p_{name}" for name in classes), "error"]


def _read_row(row: dict) -> LabelledImage:
    path, label, *figures, error = row.values()
    known = [float(figure) for figure in figures if figure not in (None, "") and math.isfinite(float(figure))]
    return LabelledImage(
        path=path, label=label or None, probabilities=tuple(known) or None, error=error or None
    )
