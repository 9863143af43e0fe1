"""The report as one HTML file that opens anywhere, and as Markdown for the Prefect UI."""

import re
from base64 import b64encode
from html import escape
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from thaw.report.sections import Bar, Section, Table, list_sections
from thaw.report.summary import RunSummary, list_figures, list_notices, say_outcome

_IN_MARKDOWN = ("split", "gate", "curves", "evaluation")
_MARKDOWN_CHARACTERS = 300_000


def write_report(folder: Path, summary: RunSummary) -> Path:
    """Write `report.html` into the folder: self-contained, without scripts, fit for phone and paper."""
    target = folder / "report.html"
    target.write_text(render_html(summary), encoding="utf-8")
    return target


def render_html(summary: RunSummary) -> str:
    """The report as one HTML page."""
    loader = FileSystemLoader(Path(__file__).parent)
    # Names of files and classes come from strangers' dumps: everything is escaped.
    pages = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = pages.get_template("page.html.j2").render(
        title=summary.title,
        outcome=say_outcome(summary),
        tone="good" if summary.verdict.state == "plateaued" else "caution",
        notices=list_notices(summary),
        figures=list_figures(summary),
        sections=list_sections(summary),
        pictures={name: _data_uri(picture) for name, picture in summary.pictures.items()},
    )
    return _writable(page)


def render_markdown(summary: RunSummary) -> str:
    """The report's core as Markdown, below 300,000 characters: pictures that don't fit are left out."""
    blocks = [f"**{_plain(say_outcome(summary))}**"]
    blocks += [f"> {_plain(notice)}" for notice in list_notices(summary)]
    for section in list_sections(summary):
        if section.name in _IN_MARKDOWN:
            blocks += _section_blocks(section)
    text = "\n\n".join(blocks)
    for name, picture in summary.pictures.items():
        inlined = f"![{name}]({_data_uri(picture)})"
        fits = len(text) + len(inlined) < _MARKDOWN_CHARACTERS
        text = text.replace(
            _place(name), inlined if fits else f"(The picture is in the report: {_plain(name)}.)"
        )
    return _writable(text + "\n")


def _section_blocks(section: Section) -> list[str]:
    blocks = [f"## {_plain(section.title)}", *(_plain(line) for line in section.text)]
    blocks += [_markdown_table(table) for table in section.tables if not table.folded]
    return blocks + [_place(name) for name in section.pictures]


def _markdown_table(table: Table) -> str:
    rules = ["---:" if side == "r" else "---" for side in table.align]
    cells = [[cell.text if isinstance(cell, Bar) else cell for cell in row] for row in table.rows]
    plain = [[_plain(cell) for cell in row] for row in (table.columns, *cells)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (plain[0], rules, *plain[1:]))


def _place(name: str) -> str:
    return f"<!-- picture {name} -->"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", escape(" ".join(text.split()), quote=False))


def _writable(text: str) -> str:
    """Text without the lone surrogates that Python carries undecodable bytes of names in."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _data_uri(picture: bytes) -> str:
    return f"data:image/png;base64,{b64encode(picture).decode()}"
