"""Figures 5 and 6: how much of the posterior is collapsed, for every threshold ε at once.

The models are those of Tables 1 and 2. Whether a unit that no image uses counts as collapsed at ε = 0.01 is a
matter of how long it had time to sink; at larger ε the curves differ much earlier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lineavae.experiments import deep_mnist
from lineavae.experiments.deep_claims import claims_on_noise, collapse_at, of_kind
from lineavae.experiments.deep_tables import Rows, axes_of, curves_of, describe, label, rows_of
from lineavae.experiments.deep_vae import EPSILONS, DeepConfig, chunks_of, prepare, train
from lineavae.experiments.figures import label_ends, make_panels, setting
from lineavae.experiments.published import Kind
from lineavae.experiments.runs import Claim, Results, claim, quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_THRESHOLDS = (0.01, 0.1, 1.0)


def run(config: DeepConfig, run_dir: Path) -> Results:
    """Train all models; measure their collapse against ε."""
    data = prepare(config)
    rows = rows_of(config, train(config, chunks_of(config), data, run_dir))
    quantities = {"steps": quantity(config.steps, "1")}
    for row in rows.values():
        for epsilon in _THRESHOLDS:
            quantities[f"{row.label}: collapse, ε = {epsilon:g}"] = row.quantity(collapse_at(epsilon), "%")
    claims = [*claims_on_noise(config, rows), _claim_of_robustness(config, rows)]
    curves = curves_of(rows)
    return config.results(quantities, curves, {}, claims, axes_of(curves))


def _claim_of_robustness(config: DeepConfig, rows: Rows) -> Claim:
    """Judge whether the order of the σ² is the same for all ε at which the curves are apart."""
    fixed = of_kind(rows, "fixed")
    epsilons = [epsilon for epsilon in EPSILONS if epsilon >= 0.01]
    ordered = [
        epsilon
        for epsilon in epsilons
        if (np.diff([row.mean(collapse_at(epsilon)) for row in fixed]) <= 0.5).all()
    ]
    return claim(
        "For all ε the collapse has the same order in σ²",
        "Section 6.2, Figure 5",
        None if len(fixed) < 2 else len(ordered) == len(epsilons),
        f"after {config.steps} steps more σ² means no less collapse at {len(ordered)} of {len(epsilons)} "
        f"thresholds from 0.01 to {EPSILONS[-1]:.2g}",
    )


def draw_curves(axes: Axes, results: Results, lines: Mapping[float, tuple[str, str]]) -> None:
    """Draw the collapse of the models of each σ² against ε, and give the panel its axes.

    A line is the mean over seeds, its band one standard deviation between them. ``lines`` has for each σ² the
    name of its curve, (seeds, E), and what is written beside it.
    """
    curves, drawn = results["curves"], {}
    for sigma2, colour in colours(list(lines)).items():
        name, text = lines[sigma2]
        percent = curves[name]
        middle = percent.mean(0)
        (drawn[text],) = axes.plot(curves["ε"], middle, color=colour, linewidth=1.8)
        if len(percent) > 1:
            spread = percent.std(0, ddof=1)
            band = (middle - spread).clip(0, 100), (middle + spread).clip(0, 100)
            axes.fill_between(curves["ε"], *band, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_xlabel(r"$\varepsilon$, nats")
    axes.set_ylabel("collapsed latents, %")
    axes.set_ylim(-2, 102)
    label_ends(axes, drawn)


def colours(sigma2: Sequence[float]) -> dict[float, tuple[float, ...]]:
    """Give each σ² a colour, from dark for the largest to light."""
    from matplotlib import colormaps

    shades = np.linspace(0, 0.85, len(sigma2))
    return {value: colormaps["viridis"](shade) for value, shade in zip(sigma2, shades, strict=True)}


def _plot(results: Results, kind: Kind) -> Figure:
    config, quantities = results["config"], results["quantities"]
    initial = "initial " if kind == "learned" else ""
    largest, smallest = (label(kind, value) for value in (config["sigma2"][0], config["sigma2"][-1]))
    most, least = (
        f"{quantities[f'{name}: collapse, ε = 0.1']['measured']:.0f} %" for name in (largest, smallest)
    )
    how = "fixed at" if kind == "fixed" else "learned from"
    figure, (axes,) = make_panels(
        f"With σ² {how} {config['sigma2'][0]:g}, {most} of the latents are within 0.1 nats of the prior; "
        f"{how} {config['sigma2'][-1]:g}, {least}",
        1,
        setting(results, describe(results)),
    )
    lines = {
        sigma2: (label(kind, sigma2), rf"{initial}$\sigma^2$ = {sigma2:g}") for sigma2 in config["sigma2"]
    }
    draw_curves(axes, results, lines)
    return figure


def plot_fixed(results: Results) -> Figure:
    """Draw collapse against ε for σ² held fixed."""
    return _plot(results, "fixed")


def plot_learned(results: Results) -> Figure:
    """Draw collapse against ε for σ² learned."""
    return _plot(results, "learned")


PRESETS = deep_mnist.PRESETS

FIGURES = {"figure-5": plot_fixed, "figure-6": plot_learned}

PAPER = "In the paper: the larger σ², the more latents are collapsed, at every ε; fewer where σ² is learned."

HEADLINE = ()
