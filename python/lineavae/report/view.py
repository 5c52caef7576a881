"""What a report shows. Both templates, of HTML and of Markdown, print this and calculate nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Literal

from lineavae.experiments.runs import Claim, Verdict
from lineavae.report.numbers import Cell, Number, Outcome
from lineavae.report.pictures import Picture

# What is said of tables that have published numbers.
DIFFERENCE = (
    "The difference is measured minus published, divided by the published ± (×\N{NO-BREAK SPACE}±) or, where "
    "there is none, by the tolerance (×\N{NO-BREAK SPACE}tolerance)."
)

# Label and text, one a line.
Facts = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class FigureView:
    """A figure; ``path`` is its file, None where there is none."""

    label: str
    caption: str
    alt: str
    picture: Picture
    path: Path | None = None


@dataclass(frozen=True)
class TableView:
    """One of the paper's tables. A column has a unit where that of all its cells is the same, else None."""

    label: str
    caption: str
    columns: Sequence[tuple[str, str | None]]
    rows: Sequence[tuple[str, Sequence[Cell | None]]]

    @property
    def legend(self) -> str:
        """What is in a cell."""
        cells = [cell for _, row in self.rows for cell in row if cell is not None]
        if all(cell.published is None for cell in cells):
            return ""
        return f"Measured, below it what was published, and the difference. {DIFFERENCE}"


@dataclass(frozen=True)
class RunView:
    """A run: what it shows of the paper, what it measured, how to run it again."""

    name: str
    title: str
    paper: str
    data: str
    figures: Sequence[FigureView]
    quantities: Sequence[tuple[str, Cell]]
    tables: Sequence[TableView]
    notes: Sequence[str]
    claims: Sequence[Claim]
    command: str
    settings: Facts
    environment: Facts

    @property
    def legend(self) -> str:
        """What is in the columns of the quantities."""
        return DIFFERENCE if self.outcomes else ""

    @cached_property
    def outcomes(self) -> Counter[Outcome]:
        """How many of its published numbers have each."""
        rows: list[Sequence[Cell | None]] = [[cell for _, cell in self.quantities]]
        rows += [row for table in self.tables for _, row in table.rows]
        return Counter(cell.outcome for cell in chain(*rows) if cell is not None and cell.outcome is not None)


@dataclass(frozen=True)
class RowView:
    """One latent, or one model: what it is called, its numbers, and what is said of it."""

    name: Number
    numbers: Sequence[Number]
    answers: Sequence[str]


@dataclass(frozen=True)
class CollapseView:
    """A collapse report, or several models compared.

    ``row_kind`` is what a row is of, and ``headings`` are those of its numbers and of its answers.
    """

    name: str
    size: str
    verdict: str
    warnings: Sequence[str]
    facts: Facts
    row_kind: Literal["latent", "model"]
    caption: str
    headings: tuple[Sequence[str], Sequence[str]]
    rows: Sequence[RowView]
    figures: Sequence[FigureView]


@dataclass(frozen=True)
class ReportView:
    """All of it. ``problems`` say which runs are left out, or what they lack."""

    runs: Sequence[RunView]
    collapses: Sequence[CollapseView]
    problems: Sequence[str]

    @property
    def title(self) -> str:
        """What the report is about."""
        return "Published and measured" if self.runs else "Posterior collapse"

    @property
    def claims(self) -> list[tuple[int, RunView, Claim]]:
        """Every claim, with its run and the number of that from 1."""
        return [(index, run, claim) for index, run in enumerate(self.runs, 1) for claim in run.claims]

    @property
    def verdicts(self) -> dict[Verdict, int]:
        """How many claims have each."""
        counts = Counter(claim["verdict"] for _, _, claim in self.claims)
        verdicts: tuple[Verdict, ...] = ("holds", "does not hold", "not tested")
        return {verdict: counts[verdict] for verdict in verdicts}

    @property
    def outcomes(self) -> Counter[Outcome]:
        """How many published numbers of all runs have each."""
        return sum((run.outcomes for run in self.runs), Counter())
