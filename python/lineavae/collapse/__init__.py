"""Is the posterior collapsed, in which latents, and how certain is that: one pass over it, of any size."""

from lineavae.collapse.report import (
    CollapseCurve,
    CollapseReport,
    CollapseSurface,
    CriticalEpsilon,
    Interval,
    Verdict,
)
from lineavae.collapse.statistics import CollapseStatistics

__all__ = [
    "CollapseCurve",
    "CollapseReport",
    "CollapseStatistics",
    "CollapseSurface",
    "CriticalEpsilon",
    "Interval",
    "Verdict",
]
