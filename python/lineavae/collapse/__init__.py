"""Is the posterior collapsed, in which latents, and how certain is that: one pass over it, of any size."""

from lineavae.collapse._posterior import WidePosteriorWarning
from lineavae.collapse.at import CollapseAt
from lineavae.collapse.comparison import Change, CollapseComparison, compare
from lineavae.collapse.monitor import CollapseCheck, CollapseMonitor
from lineavae.collapse.mutual_information import (
    InformationBoundWarning,
    MutualInformation,
    mutual_information,
)
from lineavae.collapse.report import CollapseReport
from lineavae.collapse.statistics import CollapseStatistics
from lineavae.collapse.verdicts import CriticalGap
from lineavae.collapse.writer import PosteriorWriter

__all__ = [
    "Change",
    "CollapseAt",
    "CollapseCheck",
    "CollapseComparison",
    "CollapseMonitor",
    "CollapseReport",
    "CollapseStatistics",
    "CriticalGap",
    "InformationBoundWarning",
    "MutualInformation",
    "PosteriorWriter",
    "WidePosteriorWarning",
    "compare",
    "mutual_information",
]
