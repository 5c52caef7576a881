"""A report as HTML and as Markdown. What runs say is the text of others: both escape all of it."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lineavae._optional import require
from lineavae.report.numbers import in_words
from lineavae.report.view import ReportView

_FOLDER = Path(__file__).parent

# What Markdown, or GitHub's, takes for something else than text.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>|~$&#])")


def to_html(report: ReportView) -> str:
    """Give a page that needs nothing but itself; a browser runs and loads nothing else for it."""
    environment = _environment(autoescape=True)
    # JavaScript has another name for infinity
    environment.filters["key"] = lambda number: str(number.value).replace("inf", "Infinity")
    parts = {
        name: (_FOLDER / file).read_text(encoding="utf-8")
        for name, file in (("style", "page.css"), ("script", "page.js"))
    }
    text: str = environment.get_template("page.html").render(
        report=report,
        policy=f"default-src 'none'; img-src data:; style-src {_hash(parts['style'])}; "
        f"script-src {_hash(parts['script'])}; base-uri 'none'; form-action 'none'",
        **{name: require("markupsafe", "experiments").Markup(text) for name, text in parts.items()},
    )
    return text


def to_markdown(report: ReportView, folder: Path) -> str:
    """Give Markdown, for a file in ``folder``: its figures are links to those of the runs."""

    def link(path: Path) -> _Plain:
        return _Plain(quote(Path(os.path.relpath(path, folder)).as_posix()))

    environment = _environment(autoescape=False, finalize=_escape)
    environment.filters.update(link=link, code=lambda text: _Plain(_in_one_line(text)))
    text: str = environment.get_template("page.md").render(report=report)
    return text


class _Plain(str):
    """Text that is Markdown already."""


def _escape(value: Any) -> str:
    if isinstance(value, _Plain):
        return value
    return _MARKUP.sub(r"\\\1", _in_one_line(str(value)))


def _in_one_line(text: str) -> str:
    return " ".join(text.split())


def _environment(**options: Any) -> Any:
    jinja2 = require("jinja2", "experiments")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    environment.filters["in_words"] = in_words
    return environment


def _hash(text: str) -> str:
    """Give what the page's policy calls the only style, or script, that may be."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
