"""What all figures share: size, colours, axes, lines with their spread, and how they are saved.

The title of a figure is what it shows, computed from the results; the line below it says of which models and
data. Importing this needs no matplotlib.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from lineavae._colours import BLUE, VERMILION
from lineavae._optional import make_figure, require
from lineavae.experiments.runs import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from numpy.typing import NDArray

Objective = Literal["analytic", "stochastic"]
OBJECTIVES: dict[Objective, str] = {"analytic": BLUE, "stochastic": VERMILION}

FORMATS = ("png", "pdf", "svg")

# Text stays text, in fonts that a journal's printer takes; the same results give the same file.
_SAVED = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "lineavae"}

# By the format, where a file says from which results it was drawn, and that it has no date.
_METADATA: dict[str, tuple[str, dict[str, None]]] = {
    "png": ("Description", {}),
    "pdf": ("Subject", {"CreationDate": None}),
    "svg": ("Description", {"Date": None}),
}

_DPI = 200


def make_panels(
    title: str, num_panels: int, setting: str = "", *, panel_width: float = 4.4
) -> tuple[Figure, list[Axes]]:
    """Make a figure with panels side by side, lettered where there are several.

    It has no window and no global state: pyplot is not involved.

    Parameters
    ----------
    title
        What the figure shows.
    num_panels
        Panels.
    setting
        Of which models and data, in small letters below.
    panel_width
        Of several panels, in inches.

    Returns
    -------
    figure : Figure
        The figure.
    panels : list of Axes
        Its panels, from the left.
    """
    width = 1 + panel_width * num_panels if num_panels > 1 else 6.4
    figure = make_figure(figsize=(width, 4.2))
    lines = textwrap.fill(title, int(10.5 * width))
    figure.suptitle(lines, x=0.01, ha="left", fontsize=11, fontweight="bold")
    if setting:
        figure.supxlabel(textwrap.fill(setting, int(15 * width)), x=0.01, ha="left", fontsize=8, color="0.35")
    panels = list(figure.subplots(1, num_panels, squeeze=False)[0])
    for letter, axes in zip("abcdefgh", panels, strict=False):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9)
        if num_panels > 1:
            axes.annotate(
                letter,
                (0, 1),
                xycoords="axes fraction",
                xytext=(-34, 5),
                textcoords="offset points",
                fontsize=12,
                fontweight="bold",
            )
    return figure, panels


def setting(results: Results, models: str) -> str:
    """Say of which models, data and seeds a figure is."""
    config = results["config"]
    data = results["data"].replace("$", r"\$")  # no mathematics
    words = f"{models}; {data}, N={config['num_images']}"
    seeds = len(config.get("seeds", ()))
    if seeds > 1:
        words += f"; means of {seeds} seeds, ± and bands: one standard deviation over them"
    return words


def draw(axes: Axes, curves: Mapping[str, NDArray[Any]], along: str, name: str, **style: Any) -> Line2D:
    """Draw a curve along another, and a band as wide as its spread over seeds, where it has one."""
    x, y = curves[along], curves[name]
    (line,) = axes.plot(x, y, **style)
    spread = curves.get(f"{name}.spread")
    if spread is not None and len(x):
        axes.fill_between(x, y - spread, y + spread, color=line.get_color(), alpha=0.2, linewidth=0)
    return line


def end_of(line: Line2D) -> tuple[float, float]:
    """Give the last point of a line."""
    x, y = np.asarray(line.get_xydata())[-1]
    return float(x), float(y)


def label_ends(axes: Axes, lines: Mapping[str, Line2D]) -> None:
    """Write beside the right end of each line what it is, in its colour, without overlaps.

    The limits of the axes have to be set before.
    """
    size = 9
    figure = cast("Figure", axes.get_figure())
    # one line of text, as a part of the height that a panel has about
    pitch = 1.3 * size / 72 / (0.7 * figure.get_size_inches()[1])
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = {text: to_axes.transform(end_of(line))[1] for text, line in lines.items()}
    texts = sorted(lines, key=lambda text: heights[text])
    places = [heights[text] for text in texts]
    halves = [pitch * (text.count("\n") + 1) / 2 for text in texts]
    for index in range(1, len(texts)):
        lowest = places[index - 1] + halves[index - 1] + halves[index]
        places[index] = max(places[index], lowest)
    places[-1] = min(places[-1], 1.0)
    for index in reversed(range(len(texts) - 1)):
        highest = places[index + 1] - halves[index + 1] - halves[index]
        places[index] = min(places[index], highest)
    for text, place in zip(texts, places, strict=True):
        axes.annotate(
            text,
            (1.015, place),
            xycoords="axes fraction",
            color=lines[text].get_color(),
            va="center",
            fontsize=size,
            annotation_clip=False,
        )


def save(figure: Figure, path: Path, results: str) -> None:
    """Save a figure in the format that the file's name ends with; it says from which results it was drawn.

    Parameters
    ----------
    figure
        What to save.
    path
        The file.
    results
        Checksum of the results.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    suffix = path.suffix.removeprefix(".")
    key, metadata = _METADATA[suffix]
    with require("matplotlib", "experiments").rc_context(_SAVED):
        figure.savefig(path, dpi=_DPI, metadata={**metadata, key: f"results {results}"})
