"""``lineavae report``: finished runs, and collapse reports, as a page to put before others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lineavae._io import write_text
from lineavae.commands._common import cannot_write, check_distinct, check_output, fail, importing, show

EPILOG = (
    "Example: [bold]lineavae report runs/* --out report.html[/bold] shows every run beside what the paper "
    "published; the page needs no network."
)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUNS...",
            help="Directories that [bold]lineavae reproduce[/bold] left, and files that "
            "[bold]lineavae collapse --json[/bold] wrote; shown in this order.",
        ),
    ],
    out: Annotated[Path, typer.Option(dir_okay=False, help="The page.")] = Path("report.html"),
    markdown: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", dir_okay=False, help="Write Markdown as well, with links to the runs' figures."
        ),
    ] = None,
) -> None:
    """Read the runs, and write what they found."""
    with importing():
        from lineavae.report import ReportError, read, to_html, to_markdown
    check_output("--out", out)
    if markdown is not None:
        check_output("--markdown", markdown)
    check_distinct({"--out": out, "--markdown": markdown}, runs)
    try:
        found = read(runs)
        texts = {out: to_html(found)}
        if markdown is not None:
            texts[markdown] = to_markdown(found, markdown.parent)
    except ReportError as error:
        fail(str(error))
    except ModuleNotFoundError as error:
        fail(str(error), 1)
    for problem in found.problems:
        typer.echo(f"lineavae: {problem}", err=True)
    if not (found.runs or found.collapses):
        fail("there is nothing else to report, and no page", 1)
    for path, text in texts.items():
        try:
            write_text(path, text)
        except OSError as error:
            fail(cannot_write(path, error), 1)
        show(str(path))
    if found.problems:
        raise typer.Exit(1)
