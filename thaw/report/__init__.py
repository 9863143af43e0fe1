"""The report of a run: what it says (`sections`), what it shows (`pictures`), and the `page` that carries both."""

from thaw.report.page import render_html, render_markdown, write_report
from thaw.report.summary import RunSummary

__all__ = ["RunSummary", "render_html", "render_markdown", "write_report"]
