"""Is the posterior collapsed, in which latents, and how certain is that: one pass over it, of any size."""

from lineavae.collapse.monitor import CollapseCheck, CollapseMonitor
from lineavae.collapse.mutual_information import (
    InformationBoundWarning,
    MutualInformation,
    mutual_information,
)
from lineavae.collapse.report import CollapseReport
from lineavae.collapse.statistics import CollapseStatistics

__all__ = [
    "CollapseCheck",
    "CollapseMonitor",
    "CollapseReport",
    "CollapseStatistics",
    "InformationBoundWarning",
    "MutualInformation",
    "mutual_information",
]
