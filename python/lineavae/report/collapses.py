"""From collapse reports, and comparisons of them, to what a page shows of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lineavae._io import number
from lineavae.collapse import CollapseAt, CollapseComparison, CollapseReport
from lineavae.collapse import _document as documents
from lineavae.collapse._tables import Summary, interval
from lineavae.report.numbers import Number, write
from lineavae.report.pictures import Picture, png
from lineavae.report.view import CollapseView, FigureView, RowView

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Latents that have a row.
_MOST_LATENTS = 500

# For readers of a page who know of VAEs, and not of this package.
_DEFINITION = (
    "A latent is (ε, δ)-collapsed if its KL to the prior is below ε for at least the fraction 1 - δ of the "
    "samples; for every ε above its critical ε it is."
)


class CollapseFileError(ValueError):
    """A file holds no collapse report; the message names it."""


def read_collapse(path: Path) -> CollapseView:
    """Read what ``lineavae collapse --json`` or `lineavae.collapse.CollapseReport.save` wrote.

    Raises
    ------
    CollapseFileError
        The file cannot be read, or holds something else.
    """
    try:
        document = documents.read(path, documents.REPORT, documents.COMPARISON)
    except ValueError as error:
        raise CollapseFileError(str(error)) from error
    try:
        if document["format"] == documents.REPORT:
            return show_report(path.name, _at(document, document), _files(document))
        reports = {name: _at(model, document) for name, model in document["models"].items()}
    except documents.DAMAGE as error:
        raise CollapseFileError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    return show_comparison(path.name, CollapseComparison(reports))


def show_report(name: str, at: CollapseAt, files: Sequence[tuple[str, int]] = ()) -> CollapseView:
    """Show a report; ``files`` are those that it is of, with their numbers of samples."""
    summary = Summary(at)
    facts = [(label.strip() or "namely", text) for label, text in summary.facts()]
    first, last = summary.ends(_MOST_LATENTS)
    rows = [
        RowView(
            Number(str(latent), latent),
            [
                Number(interval(write(end, ".3g") for end in ends), float(ends[-1]))
                for ends in summary.numbers(latent)
            ],
            summary.answers(latent),
        )
        for latent in (*first, *last)
    ]
    hidden = at.report.latent_dim - len(rows)
    left_out = f"; {hidden} between the smallest and the largest are left out" if hidden else ""
    marked = f"at δ = {at.delta:g}. The dotted line is at ε = {at.epsilon:g}."
    curve = f"Latents that are collapsed for certain, in percent of all, against ε, {marked}"
    spectrum = f"Mean KL and critical ε of each latent {marked}"
    pooled = ", ".join(f"{file} ({num_samples})" for file, num_samples in files)
    return CollapseView(
        name=name,
        size=summary.size,
        verdict=": ".join(facts[0]),
        warnings=summary.warnings(),
        facts=[*([("files (samples)", pooled)] if pooled else []), *facts],
        row_kind="latent",
        caption=f"By critical ε; KL and ε in nats{left_out}. {_DEFINITION}",
        headings=summary.headings,
        rows=rows,
        figures=[
            FigureView("Collapse curve", curve, f"The collapse curve of {name}", _draw(at.plot_curve)),
            FigureView("Spectrum", spectrum, f"KL of the latents of {name}", _draw(at.plot_spectrum)),
        ],
    )


def show_comparison(name: str, comparison: CollapseComparison) -> CollapseView:
    """Show several models side by side."""
    shown, marked = comparison.table(), f"ε = {comparison.epsilon:g}."
    curves = (
        "Latents that are collapsed for certain, in percent of all, against ε, "
        f"at δ = {comparison.delta:g}. The dotted line is at {marked}"
    )
    alt = f"The collapse curves of {name}"
    figures = [FigureView("Collapse curves", curves, alt, _draw(comparison.plot_curves))]
    dims = {at.report.latent_dim for at in comparison.models.values()}
    if len(dims) == 1:
        heat_map = f"Critical ε of each latent in each model, by that of the last. The line is at {marked}"
        alt = f"The critical ε of {name}"
        figures.append(FigureView("Heat map", heat_map, alt, _draw(comparison.plot_heat_map)))
    return CollapseView(
        name=name,
        size=comparison.size,
        verdict=f"at ε = {comparison.epsilon:g}, δ = {comparison.delta:g}",
        warnings=[],
        facts=[(label or "and", text) for label, text in comparison.course()],
        row_kind="model",
        caption=f"Mean KL in nats; {'; '.join(comparison.meaning())}. {_DEFINITION}",
        headings=(list(shown), []),
        rows=[
            RowView(Number(model, index), [_shown(value) for value in values], ())
            for index, (model, *values) in enumerate(zip(comparison.models, *shown.values(), strict=True))
        ],
        figures=figures,
    )


def _at(report: Mapping[str, Any], question: Mapping[str, Any]) -> CollapseAt:
    """Read a report, and what it says where the question was asked."""
    asked = (number(question[name]) for name in ("epsilon", "delta", "level"))
    return CollapseReport._of(report).at(*asked)


def _files(document: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Name the files that the report is of, if it was made by the command."""
    return list(zip(document.get("files", ()), document.get("rows", ()), strict=True))


def _shown(value: float | None) -> Number:
    return Number("?", -1) if value is None else Number(write(value, ".5g"), value)


def _draw(plot: Callable[[], Figure]) -> Picture:
    file = io.BytesIO()
    plot().savefig(file, format="png")
    return png(file.getvalue())
