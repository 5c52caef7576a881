"""What all figures share: size, colours, axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from lineavae._optional import make_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with every kind of colour vision, and in grey
BLUE, VERMILION, GREEN, PURPLE, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000"

Objective = Literal["analytic", "stochastic"]
OBJECTIVES: dict[Objective, str] = {"analytic": BLUE, "stochastic": VERMILION}


def make_panels(title: str, num_panels: int) -> tuple[Figure, list[Axes]]:
    """Make a figure with panels side by side.

    It has no window and no global state: pyplot is not involved.
    """
    figure = make_figure(figsize=(1 + 4.4 * num_panels, 3.9))
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    panels = list(figure.subplots(1, num_panels, squeeze=False)[0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9)
    return figure, panels
