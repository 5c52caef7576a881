"""Reports of finished runs and of posterior collapse: one HTML page that needs no network, and Markdown.

Examples
--------
>>> from lineavae import report
>>> page = report.to_html(report.read([]))
>>> page[:15]
'<!doctype html>'
"""

from __future__ import annotations

from lineavae.report.reading import ReportError, read
from lineavae.report.rendering import to_html, to_markdown
from lineavae.report.view import ReportView

__all__ = ["ReportError", "ReportView", "read", "to_html", "to_markdown"]
