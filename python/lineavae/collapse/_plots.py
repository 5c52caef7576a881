"""The report as figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lineavae._colours import BLACK, BLUE, GREEN, PURPLE, VERMILION
from lineavae._optional import make_figure, require
from lineavae._paper import DELTA, EPSILON
from lineavae.collapse.verdicts import CollapseCurve, CollapseSurface, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Floats = NDArray[np.float64]

_GREY = "0.5"

# Indices of latents, and names of models, that have room on an axis; names that have in a legend.
_MOST_INDICES, _MOST_MODELS, _MOST_NAMES = 50, 25, 12

_EPSILON = r"$\varepsilon$ (nats)"

_PALETTE = (BLUE, VERMILION, GREEN, PURPLE, BLACK)

# the histogram does not resolve what is below
_FLOOR = 2.0**-24


def plot_curve(title: str, curve: CollapseCurve, critical: _Floats, epsilon: float) -> Figure:
    """Draw the percentage of collapsed latents against ε, with one ε marked."""
    figure, axes = _panel(title)
    axes.plot(curve.epsilons, curve.lower, color=BLUE, linewidth=1.8, drawstyle="steps-post")
    _mark(axes, critical, epsilon)
    axes.legend(frameon=False, fontsize=9)
    return figure


def plot_curves(title: str, curves: Mapping[str, CollapseCurve], critical: _Floats, epsilon: float) -> Figure:
    """Draw the curves of several models in one: in the colours of their order where they are many."""
    figure, axes = _panel(title)
    colours = _PALETTE
    if len(curves) > len(_PALETTE):
        colours = require("matplotlib", "experiments").colormaps["viridis_r"](
            np.linspace(0.05, 1, len(curves))
        )
    # of very many models some are named
    step = -(-len(curves) // _MOST_NAMES)
    for index, ((name, curve), colour) in enumerate(zip(curves.items(), colours, strict=False)):
        label = _literal(name) if index % step == 0 else "_"
        axes.plot(
            curve.epsilons, curve.lower, color=colour, linewidth=1.5, drawstyle="steps-post", label=label
        )
    _mark(axes, critical, epsilon)
    axes.legend(frameon=False, fontsize=9 if len(curves) <= len(_PALETTE) else 7)
    return figure


def plot_heat_map(title: str, models: Sequence[str], critical: _Floats, epsilon: float) -> Figure:
    """Draw the critical ε of each latent in each model, (K, M), latents ordered by the last."""
    order = np.argsort(-critical[:, -1], kind="stable")
    figure = make_figure(figsize=(6.4, np.clip(1.6 + 0.16 * len(order), 3.2, 8.0)))
    axes: Axes = figure.subplots()
    axes.set_title(rf"{title}; the line is at $\varepsilon = {epsilon:g}$", loc="left", fontsize=10)
    colors = require("matplotlib.colors", "experiments")
    bottom, top = _range(np.append(critical, epsilon))
    # what is far below the ε that anyone asks for is all the same
    norm = colors.LogNorm(max(bottom, 1e-3 * min(epsilon or EPSILON, top)), top, clip=True)
    shown = np.ma.masked_invalid(np.where(np.isposinf(critical), top, critical)[order])
    image = axes.imshow(
        np.maximum(shown, norm.vmin), cmap="viridis", norm=norm, aspect="auto", interpolation="nearest"
    )
    step = _name_latents(axes.set_yticks, order)
    axes.set_ylabel("latent, by the last model" + _named(step))
    named = range(0, len(models), -(-len(models) // _MOST_MODELS))
    names = [_literal(models[index]) for index in named]
    crowded = sum(map(len, names)) > 60
    axes.set_xticks(
        named,
        names,
        fontsize=8,
        rotation=45 if crowded else 0,
        ha="right" if crowded else "center",
        rotation_mode="anchor",
    )
    bar = figure.colorbar(image, ax=axes, label=r"critical $\varepsilon$ (nats)")
    if epsilon > 0:
        bar.ax.axhline(epsilon, color="white", linewidth=3)
        bar.ax.axhline(epsilon, color="black", linewidth=1)
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
            label=rf"critical $\varepsilon$, {name}",
        )
        axes.plot(rank, mean_kl[latents], color=color, marker=".", linestyle="none", label=f"mean KL, {name}")
    axes.axhline(epsilon, color=_GREY, linestyle=":", linewidth=1.2, label=rf"$\varepsilon = {epsilon:g}$")
    values = np.concatenate([mean_kl, critical, [epsilon]])
    bottom, top = _range(values)
    # linear below the smallest decade, so that zero has a place
    decade = 10 ** np.floor(np.log10(bottom))
    axes.set_yscale("symlog", linthresh=decade, linscale=0.5)
    axes.set_ylim(-0.3 * decade if (values < _FLOOR).any() else bottom, top)
    step = _name_latents(axes.set_xticks, order)
    axes.tick_params("x", rotation=90 if len(order) > 20 else 0)
    axes.set_xlabel("latent, by mean KL" + _named(step))
    axes.set_ylabel("nats")
    axes.legend(frameon=False, fontsize=9)
    return figure


def plot_surface(size: str, surface: CollapseSurface, critical: _Floats) -> Figure:
    """Draw the percentage of collapsed latents in colours over ε and δ; all critical ε have room."""
    figure, axes = _panel(rf"{size}; the cross is at $\varepsilon = \delta = {EPSILON:g}$")
    mesh = axes.pcolormesh(
        surface.epsilons, surface.deltas, surface.lower.T, cmap="cividis", vmin=0, vmax=100, shading="nearest"
    )
    axes.plot(EPSILON, DELTA, color="white", markeredgecolor="black", marker="P", markersize=9)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*_range(critical))
    axes.set_xlabel(_EPSILON)
    axes.set_ylabel(r"$\delta$")
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


def _mark(axes: Axes, critical: _Floats, epsilon: float) -> None:
    """Give curves their axes, on which all critical ε have room, and mark one ε."""
    axes.axvline(epsilon, color=_GREY, linestyle=":", linewidth=1.2, label=rf"$\varepsilon = {epsilon:g}$")
    axes.set_xscale("log")
    axes.set_xlim(*_range(np.append(critical, epsilon)))
    axes.set_ylim(-3, 103)
    axes.set_xlabel(_EPSILON)
    axes.set_ylabel("collapsed latents (%)")


def _name_latents(set_ticks: Callable[..., Any], order: NDArray[np.int64]) -> int:
    """Name the latents on an axis, in this order; of very many each ``step``-th, which is returned."""
    step = -(-len(order) // _MOST_INDICES)
    ranks = np.arange(0, len(order), step)
    set_ticks(ranks, order[ranks].tolist(), fontsize=9 if len(ranks) <= 20 else 7)
    return step


def _named(step: int) -> str:
    return "" if step == 1 else f"; one in {step} is named"


def _literal(name: str) -> str:
    """Give a name to matplotlib, which would read a dollar as the beginning of mathematics."""
    return name.replace("$", r"\$")


def _range(values: _Floats) -> tuple[float, float]:
    """Give the range of those above the floor of these values and the paper's ε, with room at both ends."""
    shown = np.append(values, EPSILON)
    shown = shown[(shown >= _FLOOR) & np.isfinite(shown)]
    return shown.min() / 2, shown.max() * 2
