"""What mkdocs makes of pages that code writes: reference, help texts, the README of the native code."""

import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.structure.pages import Page

NATIVE = Path(__file__).parents[1] / "csrc" / "README.md"


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Give the text of a page as mkdocs is to render it."""
    uri = page.file.src_uri
    if uri == "operators.md":
        return NATIVE.read_text(encoding="utf-8").replace("(../docs/", "(")
    if uri == "reference/command-line.md":
        return re.sub(r"^    \$ lineavae (.*)$", _help, markdown, flags=re.MULTILINE)
    if uri.startswith("reference/"):
        return _reference(f"lineavae.{Path(uri).stem}")
    return markdown.replace("(../csrc/README.md)", "(operators.md)")


def _reference(package: str) -> str:
    """List what a package exports, by the modules of origin: some have the name of a function of theirs."""
    module = import_module(package)
    origins = [f"{getattr(getattr(module, name), '__module__', package)}.{name}" for name in module.__all__]
    return "\n\n".join([f"# {package}", module.__doc__, *(f"::: {origin}" for origin in origins)])


def _help(command: re.Match[str]) -> str:
    os.environ.update(COLUMNS="72", TERMINAL_WIDTH="72", NO_COLOR="1")  # typer reads the second when imported
    from typer.testing import CliRunner

    from lineavae.cli import app

    result = CliRunner().invoke(app, command[1].split(), prog_name="lineavae")
    name = command[1].removesuffix("--help").strip()
    return f"## lineavae {name}\n\n```text\n{result.stdout.strip()}\n```\n"
