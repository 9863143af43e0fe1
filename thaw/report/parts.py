"""What a report is made of, before it is HTML or Markdown: sections of text, tables, pictures and code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A cell with a bar behind its text, from `start` to `end` as shares of the cell's width."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text. `align` has one letter a column, l or r; `folded` is the line a hidden table shows.

    `totals` says that the last row adds up the others.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Bar]]
    align: str
    folded: str = ""
    totals: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of a report. `pictures` maps names in RunSummary.pictures to what they show."""

    name: str
    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
