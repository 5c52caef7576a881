"""From paths to what a report shows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lineavae.experiments import RunDirectoryError
from lineavae.report.collapses import CollapseFileError, read_collapse
from lineavae.report.runs import holds_run, read_run
from lineavae.report.view import CollapseView, ReportView, RunView


class ReportError(ValueError):
    """There is nothing to report at a path; the message names it."""


def read(paths: Iterable[Path]) -> ReportView:
    """Read run directories, and JSON files of collapse reports.

    Parameters
    ----------
    paths
        Directories that ``lineavae reproduce`` left, and files that ``lineavae collapse --json`` or
        `CollapseReport.save` wrote; shown in this order, runs first.

    Returns
    -------
    ReportView
        What the report shows. A run that is unfinished or damaged is left out and is among its ``problems``.

    Raises
    ------
    ReportError
        A path does not exist, or is a folder without a run.
    """
    paths = list(paths)
    for path in paths:
        if not path.exists():
            raise ReportError(f"{path} does not exist")
        if path.is_dir() and not holds_run(path):
            others = sorted(str(folder) for folder in path.iterdir() if holds_run(folder))
            raise ReportError(f"{path} holds no run" + (f"; name {' '.join(others)}" if others else ""))
    runs: list[RunView] = []
    collapses: list[CollapseView] = []
    problems: list[str] = []
    for path in paths:
        try:
            if path.is_dir():
                run, missing = read_run(path)
                runs.append(run)
                problems += missing
            else:
                collapses.append(read_collapse(path))
        except (RunDirectoryError, CollapseFileError) as error:
            problems.append(str(error))
    return ReportView(runs, collapses, problems)
