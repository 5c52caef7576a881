"""The report as figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lineavae._optional import make_figure
from lineavae._paper import DELTA, EPSILON

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lineavae.collapse.report import CollapseAt, CollapseReport

# Okabe and Ito's palette: told apart with every kind of colour vision, and in grey
_BLUE, _VERMILION, _GREY = "#0072B2", "#D55E00", "0.5"

# Indices of latents that have room on an axis.
_MOST_INDICES = 50

# the histogram does not resolve what is below
_FLOOR = 2.0**-24


def plot_curve(at: CollapseAt) -> Figure:
    """Draw the percentage of collapsed latents against ε, with one ε marked."""
    curve = at.collapse_curve()
    figure, axes = _panel(f"{_size(at.report)}, δ = {at.delta:g}")
    axes.plot(curve.epsilons, curve.lower, color=_BLUE, linewidth=1.8, drawstyle="steps-post")
    axes.axvline(at.epsilon, color=_GREY, linestyle=":", linewidth=1.2, label=f"ε = {at.epsilon:g}")
    axes.set_xscale("log")
    axes.set_xlim(*_range(np.append(at.critical_epsilon.estimate, at.epsilon)))
    axes.set_ylim(-3, 103)
    axes.set_xlabel("ε (nats)")
    axes.set_ylabel("collapsed latents (%)")
    axes.legend(frameon=False, fontsize=9)
    return figure


def plot_spectrum(at: CollapseAt) -> Figure:
    """Draw mean KL and critical ε of each latent, ordered by mean KL and coloured by verdict."""
    report, verdict, critical = at.report, at.verdict, at.critical_epsilon
    figure, axes = _panel(f"{_size(report)}, δ = {at.delta:g}")
    order = np.argsort(-report.mean_kl, kind="stable")
    groups = (
        (verdict.collapsed, _VERMILION, "collapsed"),
        (verdict.decided & ~verdict.collapsed, _BLUE, "not collapsed"),
        (~verdict.decided, _GREY, "open"),
    )
    for group, color, name in groups:
        rank = np.flatnonzero(group[order])
        if not len(rank):
            continue
        latents = order[rank]
        axes.plot(
            rank,
            critical.estimate[latents],
            color=color,
            marker="_",
            linestyle="none",
            label=f"critical ε, {name}",
        )
        axes.plot(
            rank, report.mean_kl[latents], color=color, marker=".", linestyle="none", label=f"mean KL, {name}"
        )
    axes.axhline(at.epsilon, color=_GREY, linestyle=":", linewidth=1.2, label=f"ε = {at.epsilon:g}")
    values = np.concatenate([report.mean_kl, critical.estimate, [at.epsilon]])
    bottom, top = _range(values)
    # linear below the smallest decade, so that zero has a place
    decade = 10 ** np.floor(np.log10(bottom))
    axes.set_yscale("symlog", linthresh=decade, linscale=0.5)
    axes.set_ylim(-0.3 * decade if (values < _FLOOR).any() else bottom, top)
    # of very many latents an index has no room under each
    step = -(-report.latent_dim // _MOST_INDICES)
    ranks = np.arange(0, report.latent_dim, step)
    size = 9 if len(ranks) <= 20 else 7
    axes.set_xticks(ranks, order[ranks].tolist(), rotation=90 if len(ranks) > 20 else 0, fontsize=size)
    axes.set_xlabel("latent, by mean KL" if step == 1 else f"latent, by mean KL; every {step}th is named")
    axes.set_ylabel("nats")
    axes.legend(frameon=False, fontsize=9)
    return figure


def plot_surface(report: CollapseReport) -> Figure:
    """Draw the percentage of collapsed latents in colours over ε and δ."""
    deltas = np.geomspace(1e-3, 0.5, 60)
    epsilons = report.at().collapse_curve().epsilons
    epsilons = epsilons[epsilons > 0]
    surface = report.collapse_surface(epsilons, deltas)
    figure, axes = _panel(f"{_size(report)}; the cross is at ε = δ = {EPSILON:g}")
    mesh = axes.pcolormesh(
        epsilons, deltas, surface.lower.T, cmap="cividis", vmin=0, vmax=100, shading="nearest"
    )
    axes.plot(EPSILON, DELTA, color="white", markeredgecolor="black", marker="P", markersize=9)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*_range(*(report.at(delta=delta).critical_epsilon.estimate for delta in deltas[[0, -1]])))
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


def _size(report: CollapseReport) -> str:
    return f"{report.latent_dim} latents, N = {report.num_samples}"


def _range(*values: NDArray[np.float64]) -> tuple[float, float]:
    """Give the range of those above the floor of these values and the paper's ε, with room at both ends."""
    shown = np.concatenate([*values, [EPSILON]])
    shown = shown[(shown >= _FLOOR) & np.isfinite(shown)]
    return shown.min() / 2, shown.max() * 2
