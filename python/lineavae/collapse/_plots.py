"""The report as figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lineavae._colours import BLUE, VERMILION
from lineavae._optional import make_figure
from lineavae._paper import DELTA, EPSILON
from lineavae.collapse.verdicts import CollapseCurve, CollapseSurface, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Floats = NDArray[np.float64]

_GREY = "0.5"

# Indices of latents that have room on an axis.
_MOST_INDICES = 50

# the histogram does not resolve what is below
_FLOOR = 2.0**-24


def plot_curve(title: str, curve: CollapseCurve, critical: _Floats, epsilon: float) -> Figure:
    """Draw the percentage of collapsed latents against ε, with one ε marked."""
    figure, axes = _panel(title)
    axes.plot(curve.epsilons, curve.lower, color=BLUE, linewidth=1.8, drawstyle="steps-post")
    axes.axvline(epsilon, color=_GREY, linestyle=":", linewidth=1.2, label=f"ε = {epsilon:g}")
    axes.set_xscale("log")
    axes.set_xlim(*_range(np.append(critical, epsilon)))
    axes.set_ylim(-3, 103)
    axes.set_xlabel("ε (nats)")
    axes.set_ylabel("collapsed latents (%)")
    axes.legend(frameon=False, fontsize=9)
    return figure


def plot_spectrum(
    title: str, mean_kl: _Floats, critical: _Floats, verdict: Verdict, epsilon: float
) -> Figure:
    """Draw mean KL and critical ε of each latent, ordered by mean KL and coloured by verdict."""
    figure, axes = _panel(title)
    order = np.argsort(-mean_kl, kind="stable")
    groups = (
        (verdict.collapsed, VERMILION, "collapsed"),
        (verdict.decided & ~verdict.collapsed, BLUE, "not collapsed"),
        (~verdict.decided, _GREY, "open"),
    )
    for group, color, name in groups:
        rank = np.flatnonzero(group[order])
        if not len(rank):
            continue
        latents = order[rank]
        axes.plot(
            rank,
            critical[latents],
            color=color,
            marker="_",
            linestyle="none",
            label=f"critical ε, {name}",
        )
        axes.plot(rank, mean_kl[latents], color=color, marker=".", linestyle="none", label=f"mean KL, {name}")
    axes.axhline(epsilon, color=_GREY, linestyle=":", linewidth=1.2, label=f"ε = {epsilon:g}")
    values = np.concatenate([mean_kl, critical, [epsilon]])
    bottom, top = _range(values)
    # linear below the smallest decade, so that zero has a place
    decade = 10 ** np.floor(np.log10(bottom))
    axes.set_yscale("symlog", linthresh=decade, linscale=0.5)
    axes.set_ylim(-0.3 * decade if (values < _FLOOR).any() else bottom, top)
    # of very many latents an index has no room under each
    step = -(-len(order) // _MOST_INDICES)
    ranks = np.arange(0, len(order), step)
    size = 9 if len(ranks) <= 20 else 7
    axes.set_xticks(ranks, order[ranks].tolist(), rotation=90 if len(ranks) > 20 else 0, fontsize=size)
    axes.set_xlabel("latent, by mean KL" if step == 1 else f"latent, by mean KL; every {step}th is named")
    axes.set_ylabel("nats")
    axes.legend(frameon=False, fontsize=9)
    return figure


def plot_surface(size: str, surface: CollapseSurface, critical: _Floats) -> Figure:
    """Draw the percentage of collapsed latents in colours over ε and δ; all critical ε have room."""
    figure, axes = _panel(f"{size}; the cross is at ε = δ = {EPSILON:g}")
    mesh = axes.pcolormesh(
        surface.epsilons, surface.deltas, surface.lower.T, cmap="cividis", vmin=0, vmax=100, shading="nearest"
    )
    axes.plot(EPSILON, DELTA, color="white", markeredgecolor="black", marker="P", markersize=9)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*_range(critical))
    axes.set_xlabel("ε (nats)")
    axes.set_ylabel("δ")
    figure.colorbar(mesh, ax=axes, label="collapsed latents (%)")
    return figure


def _panel(title: str) -> tuple[Figure, Axes]:
    figure = make_figure(figsize=(6.4, 4.2))
    axes: Axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)
    return figure, axes


def _range(values: _Floats) -> tuple[float, float]:
    """Give the range of those above the floor of these values and the paper's ε, with room at both ends."""
    shown = np.append(values, EPSILON)
    shown = shown[(shown >= _FLOOR) & np.isfinite(shown)]
    return shown.min() / 2, shown.max() * 2
