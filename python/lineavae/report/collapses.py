"""From the JSON of a collapse report to what a report shows of it."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lineavae._io import read_json
from lineavae.collapse._plots import plot_curve
from lineavae.collapse._tables import ANSWERS, NUMBERS, Summary
from lineavae.collapse.verdicts import CollapseCurve, CriticalEpsilon, CriticalGap, Verdict
from lineavae.report.numbers import Number, write
from lineavae.report.pictures import Picture, png
from lineavae.report.view import CollapseView, FigureView, LatentView

# Bytes of a file at the most: that of some 50 000 latents.
_MOST_BYTES = 1 << 28

# Latents that have a row.
_MOST_LATENTS = 500


class CollapseFileError(ValueError):
    """A file holds no collapse report; the message names it."""


def read_collapse(path: Path) -> CollapseView:
    """Read what ``lineavae collapse --json`` or `lineavae.collapse.CollapseAt.to_json` wrote.

    Raises
    ------
    CollapseFileError
        The file cannot be read, or holds something else.
    """
    try:
        document = read_json(path, _MOST_BYTES)
    except ValueError as error:
        raise CollapseFileError(str(error)) from error
    try:
        return _view(path, document)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CollapseFileError(
            f"{path} is not what lineavae collapse --json writes ({type(error).__name__}: {error})"
        ) from error


def _view(path: Path, document: Mapping[str, Any]) -> CollapseView:
    summary = _summary(document)
    facts = [(label.strip() or "namely", text) for label, text in summary.facts()]
    largest, smallest = summary.ends(_MOST_LATENTS)
    latents = [
        LatentView(
            latent,
            [Number(write(value, ".3g"), float(value)) for value in summary.numbers(latent)],
            summary.answers(latent),
        )
        for latent in (*largest, *smallest)
    ]
    caption = (
        f"Latents that are collapsed for certain, in percent of all, against ε, at δ = {summary.delta:g}. "
        f"The dotted line is at ε = {summary.epsilon:g}."
    )
    curve = FigureView("Collapse curve", caption, f"The collapse curve of {path.name}", _draw(summary))
    return CollapseView(
        path.name,
        summary.size,
        ": ".join(facts[0]),
        summary.warnings(),
        [*_files(document), *facts],
        curve,
        (NUMBERS, ANSWERS),
        latents,
        len(summary.mean_kl) - len(latents),
    )


def _summary(document: Mapping[str, Any]) -> Summary:
    latents, latent_dim, gap = document["latents"], document["latent_dim"], document["gap"]
    epsilon, delta = float(document["epsilon"]), float(document["delta"])
    if not (0 <= epsilon < math.inf and 0 <= delta < 1 and latent_dim > 0):
        raise ValueError(f"ε = {epsilon}, δ = {delta}, {latent_dim} latents")

    def column(name: str) -> NDArray[Any]:
        if len(latents[name]) != latent_dim:
            raise ValueError(f"{name!r} of {latent_dim} latents has {len(latents[name])} values")
        return np.array(latents[name], dtype=object)

    def floats(name: str, missing: ArrayLike) -> NDArray[np.float64]:
        """Give a column in which JSON lacks what is not finite."""
        values = column(name).astype(np.float64)
        return np.where(np.isnan(values), missing, values)

    nan = column("nan") > 0
    unknown = np.where(nan, np.nan, np.inf)
    collapsed = column("collapsed").tolist()
    return Summary(
        epsilon=epsilon,
        delta=delta,
        num_samples=int(document["num_samples"]),
        is_wider_than_prior=bool(document["is_wider_than_prior"]),
        gap=None if gap is None else CriticalGap(*(gap[name] for name in CriticalGap._fields)),
        nan=nan,
        infinite=column("infinite") > 0,
        mean_kl=floats("mean_kl", unknown),
        critical=CriticalEpsilon(
            floats("critical_epsilon", unknown),
            floats("critical_epsilon_lower", np.inf),
            floats("critical_epsilon_upper", np.inf),
        ),
        verdict=Verdict(
            np.array([answer is True for answer in collapsed]),
            np.array([answer is not None for answer in collapsed]),
        ),
        test=column("collapse_test"),
        active=column("active").astype(bool),
        kinds=column("classification"),
    )


def _files(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name the files that the report is of, if it was made by the command."""
    files = zip(document.get("files", ()), document.get("rows", ()), strict=True)
    text = ", ".join(f"{name} ({rows})" for name, rows in files)
    if text:
        yield "files (samples)", text


def _draw(summary: Summary) -> Picture:
    """Draw the curve: what is collapsed for certain rises at the upper bounds of the critical ε."""
    upper = np.sort(summary.critical.upper)
    curve = CollapseCurve(upper, *[100 * np.arange(1, len(upper) + 1) / len(upper)] * 2)
    title = f"{summary.size}, δ = {summary.delta:g}"
    figure, file = plot_curve(title, curve, summary.critical.estimate, summary.epsilon), io.BytesIO()
    figure.savefig(file, format="png", dpi=200)
    return png(file.getvalue())
