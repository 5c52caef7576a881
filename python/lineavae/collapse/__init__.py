"""Is the posterior collapsed, in which latents, and how certain is that: one pass over it, of any size."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from lineavae.collapse._posterior import WidePosteriorWarning
from lineavae.collapse.at import CollapseAt
from lineavae.collapse.comparison import Change, CollapseComparison, compare
from lineavae.collapse.mutual_information import (
    InformationBoundWarning,
    MutualInformation,
    mutual_information,
)
from lineavae.collapse.report import CollapseReport
from lineavae.collapse.verdicts import CriticalGap
from lineavae.collapse.writer import PosteriorWriter

if TYPE_CHECKING:
    from lineavae.collapse.metrics import ActiveUnits, CollapsedFraction, MeanKL
    from lineavae.collapse.monitor import CollapseCheck, CollapseMonitor
    from lineavae.collapse.statistics import CollapseStatistics

__all__ = [
    "ActiveUnits",
    "Change",
    "CollapseAt",
    "CollapseCheck",
    "CollapseComparison",
    "CollapseMonitor",
    "CollapseReport",
    "CollapseStatistics",
    "CollapsedFraction",
    "CriticalGap",
    "InformationBoundWarning",
    "MeanKL",
    "MutualInformation",
    "PosteriorWriter",
    "WidePosteriorWarning",
    "compare",
    "mutual_information",
]

# Metrics, by module: torchmetrics takes as long to import as torch, and is imported for these alone.
_METRICS = {
    "ActiveUnits": "metrics",
    "CollapseCheck": "monitor",
    "CollapseMonitor": "monitor",
    "CollapseStatistics": "statistics",
    "CollapsedFraction": "metrics",
    "MeanKL": "metrics",
}


def __getattr__(name: str) -> object:
    if name in _METRICS.values():
        return import_module(f"{__name__}.{name}")
    if name not in _METRICS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_METRICS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
