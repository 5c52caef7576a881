"""Optional libraries: imported where they are used, by one helper whose error names the extra to install."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def require(module: str, extra: str) -> ModuleType:
    """Import ``module`` or say which extra of lineavae brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (module, module.partition(".")[0]):
            raise
        raise ModuleNotFoundError(
            f"{module} is needed here and is not installed: pip install 'lineavae[{extra}]'",
            name=error.name,
        ) from error


def make_figure(figsize: tuple[float, float]) -> Figure:
    """Make a figure of matplotlib, of this size in inches, which a notebook shows."""
    require("matplotlib.figure", "experiments")
    figure: Figure = require("lineavae._figure", "experiments").Figure(figsize=figsize, layout="constrained")
    return figure
