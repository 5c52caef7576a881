"""A collapse report as one JSON document.

`CollapseReport.save` writes it, ``lineavae collapse --json`` prints it, `lineavae.report` shows it. All of
the report is there, exact, and what is derived from it for those who read it without lineavae.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lineavae import _io
from lineavae.collapse._counts import blocks
from lineavae.ops import histogram_edges

if TYPE_CHECKING:
    from lineavae.collapse.at import CollapseAt

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]

REPORT, COMPARISON = "lineavae.collapse-report", "lineavae.collapse-comparison"

_SCHEMA = 1

# Bytes of a file at the most: that of some million latents.
_MOST_BYTES = 1 << 32

# Moments and ends of each latent, columns of the document and attributes of the report.
MOMENTS = (
    "mean_kl",
    "kl_variance",
    "min_kl",
    "max_kl",
    "mean_of_mean",
    "variance_of_mean",
    "mean_variance",
    "variance_of_variance",
)

# What a document that is not as it was written makes of it.
DAMAGE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class Parts(NamedTuple):
    """What a report consists of."""

    thresholds: _Floats
    counts: _Ints
    histogram: _Ints
    infinite: _Ints
    nan: _Ints
    moments: Mapping[str, _Floats]


def head(name: str) -> dict[str, Any]:
    """Give what a document begins with."""
    return {"format": name, "schema": _SCHEMA}


def read(path: Path, *formats: str) -> dict[str, Any]:
    """Read a document of one of the formats; a ValueError, which names the file, says why there is none."""
    document = _io.read_json(path, _MOST_BYTES)
    found = document.get("format"), document.get("schema")
    if found not in [(name, _SCHEMA) for name in formats]:
        raise ValueError(f"{path} must be a {' or '.join(formats)} of schema {_SCHEMA}, got {found}")
    return document


def write(at: CollapseAt) -> dict[str, Any]:
    """Give the document of a report."""
    report, gap, live = at.report, at.critical_gap, at._live
    return {
        **head(REPORT),
        "num_samples": report.num_samples,
        "latent_dim": report.latent_dim,
        "epsilon": at.epsilon,
        "delta": at.delta,
        "level": at.level,
        "num_collapsed": int(at.verdict.collapsed.sum()),
        "num_undecided": int((~at.verdict.decided).sum()),
        "num_live": None if live is None else int(live.sum()),
        "num_active": report.num_active() if report.has_moments else None,
        "num_infinite": int((report.infinite > 0).sum()),
        "num_nan": int((report.nan > 0).sum()),
        "is_wider_than_prior": report.is_wider_than_prior,
        "gap": None if gap is None else {**gap._asdict(), "is_clear": gap.is_clear},
        "thresholds": report.thresholds.tolist(),
        "histogram": _runs(at),
        "latents": _io.spelled(at.columns()),
    }


def _runs(at: CollapseAt) -> dict[str, Any]:
    """Give the histogram of each latent from its first bin with a sample to its last."""
    begins, counts = [], []
    low, high = histogram_edges().numel() - 1, 0
    for latents in blocks(at.report.latent_dim):
        histogram = at.report._histogram(latents)
        occupied = histogram > 0
        some = occupied.any(-1)
        begin = np.where(some, occupied.argmax(-1), 0)
        end = np.where(some, histogram.shape[1] - occupied[:, ::-1].argmax(-1), 0)
        low, high = min(low, begin.min(where=some, initial=low)), max(high, end.max())
        begins.append(begin)
        counts += [row[i:j].tolist() for row, i, j in zip(histogram, begin, end, strict=True)]
    low = min(low, high)  # where no KL is known there is one edge
    first = np.maximum(np.concatenate(begins) - low, 0)
    edges = histogram_edges()[low : high + 1].tolist()
    return {"edges": _io.spelled(edges), "first": first.tolist(), "counts": counts}


def parse(document: Mapping[str, Any]) -> Parts:
    """Give the parts of a report; raises one of `DAMAGE` where they cannot be those of one."""
    latents, latent_dim = document["latents"], len(document["latents"]["nan"])
    thresholds = np.array([_io.number(value) for value in document["thresholds"]], np.float64)

    def column(name: str) -> Sequence[Any]:
        values: Sequence[Any] = latents[name]
        if len(values) != latent_dim:
            raise ValueError(f"{name!r} of {latent_dim} latents has {len(values)} values")
        return values

    moments = {name: np.array([_io.number(value) for value in column(name)]) for name in MOMENTS}
    infinite, nan, *counts = (
        _integers(column(name)) for name in ("infinite", "nan", *map(threshold_column, thresholds.tolist()))
    )
    if document["latent_dim"] != latent_dim or not latent_dim or min(infinite.min(), nan.min()) < 0:
        raise ValueError(f"there are {latent_dim} latents, or less than no sample")
    counted = np.stack(counts, -1) if counts else np.empty((latent_dim, 0), np.int64)
    histogram = _histogram(document["histogram"], latent_dim)
    if (histogram.sum(-1) + nan != document["num_samples"]).any():
        raise ValueError(f"not every latent has {document['num_samples']} samples")
    smallest, largest = moments["min_kl"], moments["max_kl"]
    if (np.isnan([smallest, largest]) != (histogram.sum(-1) == 0)).any() or (smallest > largest).any():
        raise ValueError("there are samples and no smallest KL, or a larger one than the largest")
    return Parts(thresholds, counted, histogram, infinite, nan, moments)


def threshold_column(threshold: float) -> str:
    """Give the name of the column that counts the samples below a threshold."""
    return f"count_below_{threshold}"


def _histogram(runs: Mapping[str, Any], latent_dim: int) -> _Ints:
    bins = histogram_edges().tolist()
    edges = [_io.number(edge) for edge in runs["edges"]]
    low = bins.index(edges[0])
    if edges != bins[low : low + len(edges)]:
        raise ValueError("the histogram has other bins")
    if not len(runs["first"]) == len(runs["counts"]) == latent_dim:
        raise ValueError("the histogram is not that of all latents")
    histogram = np.zeros((latent_dim, len(bins) - 1), np.int64)
    for row, first, counts in zip(histogram, _integers(runs["first"]).tolist(), runs["counts"], strict=True):
        if not 0 <= first <= first + len(counts) < len(edges):
            raise ValueError("the histogram has counts outside its bins")
        row[low + first : low + first + len(counts)] = _integers(counts)
    return histogram


def _integers(values: Sequence[Any]) -> _Ints:
    array = np.array(values, dtype=None if len(values) else np.int64)
    if array.dtype != np.int64 or array.ndim != 1:
        raise TypeError(f"{array.dtype} of shape {array.shape} where integers must be")
    return array
