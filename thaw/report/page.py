"""The report as one HTML file that opens anywhere, and as Markdown for the Prefect UI."""

import re
from base64 import b64encode
from collections.abc import Mapping
from html import escape
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from thaw.report.canvas import shrink_picture
from thaw.report.parts import Bar, Section, Table
from thaw.report.sections import list_sections
from thaw.report.summary import RunSummary, list_figures, list_notices, say_outcome

# Prefect keeps its artifacts in its database; both of its UIs show PNG and JPEG alike (3.8.8).
_MARKDOWN_BYTES = 300_000
_MARKDOWN_ROWS = 200


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
        pictures={name: write_data_uri(picture) for name, picture in summary.pictures.items()},
    )
    return drop_surrogates(page)


def render_markdown(summary: RunSummary) -> str:
    """The report as Markdown, below 300,000 bytes of UTF-8.

    Pictures share what room the words leave, as JPEG where they are too large. A picture that would
    become illegible, a folded or very long table and the configuration are left to `report.html`, and
    their places say so.
    """
    blocks = [f"**{escape_markdown(say_outcome(summary))}**"]
    blocks += [f"> {escape_markdown(notice)}" for notice in list_notices(summary)]
    for section in list_sections(summary):
        blocks += list_blocks(section)
    text = drop_surrogates("\n\n".join(blocks) + "\n")
    room_bytes = _MARKDOWN_BYTES - len(text.encode())
    for name, inlined in inline_pictures(summary.pictures, room_bytes).items():
        text = text.replace(_place(name), inlined)
    return text


def inline_pictures(pictures: Mapping[str, bytes], room_bytes: int) -> dict[str, str]:
    """Each picture as Markdown. The smallest goes first, and what it leaves of its share, others get."""
    inlined = {}
    for name in sorted(pictures, key=lambda name: len(pictures[name])):
        share_bytes = room_bytes // (len(pictures) - len(inlined))
        # Base64 makes four bytes of three; a little is for what stands around them.
        fitting = shrink_picture(pictures[name], (share_bytes - 100) * 3 // 4)
        inlined[name] = f"![{name}]({write_data_uri(fitting)})" if fitting else _refer(f"The picture {name}")
        room_bytes -= len(inlined[name])
    return inlined


def list_blocks(section: Section) -> list[str]:
    blocks = [f"## {escape_markdown(section.title)}", *(escape_markdown(line) for line in section.text)]
    blocks += [_markdown_table(table) for table in section.tables]
    blocks += [_place(name) for name in section.pictures]
    return blocks + ([_refer("The full configuration")] if section.code else [])


def _markdown_table(table: Table) -> str:
    if table.folded or len(table.rows) > _MARKDOWN_ROWS:
        return _refer(table.folded or f"The table of {len(table.rows):,} rows")
    rules = ["---:" if side == "r" else "---" for side in table.align]
    cells = [[cell.text if isinstance(cell, Bar) else cell for cell in row] for row in table.rows]
    plain = [[escape_markdown(cell) for cell in row] for row in (table.columns, *cells)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (plain[0], rules, *plain[1:]))


def _refer(what: str) -> str:
    """What stands in the place of something left out."""
    return f"({escape_markdown(what)}: see report.html.)"


def _place(name: str) -> str:
    return f"<!-- picture {name} -->"


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", escape(" ".join(text.split()), quote=False))


def drop_surrogates(text: str) -> str:
    """Text without the lone surrogates that Python carries undecodable bytes of names in."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def write_data_uri(picture: bytes) -> str:
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{b64encode(picture).decode()}"
