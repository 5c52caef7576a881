"""Figures 7 and 8: KL annealing, with σ² fixed and learned, always beside the same training without it.

The weight β of the KL rises from 0 to 1 in a straight line. At an early epoch annealed models may be less
collapsed only because all models are at first, so that every comparison is with models of the same seed that
were trained without annealing for as many steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lineavae.experiments import deep_mnist
from lineavae.experiments.collapse_curves import colours, draw_curves
from lineavae.experiments.deep_claims import (
    LEAST_DIFFERENCE,
    by_sigma2,
    collapse_at,
    elbo,
    final_sigma2,
    of_kind,
)
from lineavae.experiments.deep_tables import Row, Rows, axes_of, describe, label, rows_of
from lineavae.experiments.deep_vae import EPSILONS, DeepConfig, chunks_of, prepare, train
from lineavae.experiments.figures import make_panels, setting
from lineavae.experiments.published import Kind
from lineavae.experiments.runs import NATS, Claim, Results, claim, quantity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_THRESHOLDS = (0.01, 0.1, 1.0)


@dataclass(frozen=True, kw_only=True)
class KLAnnealingConfig(DeepConfig):
    """The models, their training and its annealing.

    Attributes
    ----------
    annealing_epochs
        Epochs over which β rises from 0 to 1.
    snapshot_epoch
        Epoch at which collapse is looked at before the end; a multiple of ``record_every``.
    """

    annealing_epochs: int
    snapshot_epoch: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.snapshot_epoch % self.record_every or not 0 < self.snapshot_epoch <= self.epochs:
            raise ValueError(
                f"snapshot_epoch must be a multiple of record_every, {self.record_every}, up to "
                f"{self.epochs}, got {self.snapshot_epoch}"
            )


def run(config: KLAnnealingConfig, run_dir: Path) -> Results:
    """Train all models with annealing and without; compare them at the snapshot and at the end."""
    data = prepare(config)
    plain = chunks_of(config)
    annealed = [replace(chunk, annealing_epochs=config.annealing_epochs) for chunk in plain]
    outcomes = train(config, plain + annealed, data, run_dir)
    snapshot = int(np.flatnonzero(outcomes[0].epochs == config.snapshot_epoch)[0])
    of = {
        "plain": rows_of(config, outcomes[: len(plain)]),
        "annealed": rows_of(config, outcomes[len(plain) :]),
    }
    quantities = {"steps": quantity(config.steps, "1")}
    curves: dict[str, NDArray[np.float64]] = {"ε": np.array(EPSILONS)}
    for name, rows in of.items():
        for row in rows.values():
            curves[f"{row.label}, {name}"] = row.curves[:, :, -1]
            curves[f"{row.label}, {name}, epoch {config.snapshot_epoch}"] = row.curves[:, :, snapshot]
            quantities[f"{row.label}, {name}: ELBO"] = row.quantity(elbo, NATS)
            quantities[f"{row.label}, {name}: final σ²"] = row.quantity(final_sigma2, "1")
            for epsilon in _THRESHOLDS:
                for when, index in (("end", -1), (f"epoch {config.snapshot_epoch}", snapshot)):
                    found = row.curves[:, EPSILONS.index(epsilon), index]
                    quantities[f"{row.label}, {name}: collapse, ε = {epsilon:g}, {when}"] = quantity(
                        found.mean(), "%", spread=float(found.std(ddof=1)) if len(found) > 1 else None
                    )
    return config.results(quantities, curves, {}, _claims(config, of, snapshot), axes_of(curves))


def _claims(config: KLAnnealingConfig, of: Mapping[str, Rows], snapshot: int) -> list[Claim]:
    early = f"at epoch {config.snapshot_epoch}, {config.snapshot_epoch * config.steps_per_epoch} steps"
    pair = [of_kind(of[name], "fixed") for name in ("annealed", "plain")]
    first, last = ([_collapse(rows, index) for rows in pair] for index in (snapshot, -1))
    at_001 = [[row.mean(collapse_at(0.01)) for row in rows] for rows in pair]
    return [
        claim(
            "With σ² fixed, KL annealing makes for less collapse early in training",
            "Appendix E.1.1, Figure 7",
            first[1][0] - first[0][0] >= LEAST_DIFFERENCE,
            f"collapsed in % at ε = 0.1 {early}, by σ² in brackets: {_compare(pair[0], first)}",
        ),
        claim(
            "With σ² fixed, latents collapse again once β is 1",
            "Appendix E.1.1, Figure 7",
            last[0][0] - first[0][0] >= LEAST_DIFFERENCE and last[1][0] - last[0][0] <= 2 * LEAST_DIFFERENCE,
            f"collapsed in % at ε = 0.1 after {config.steps} steps, by σ² in brackets: "
            f"{_compare(pair[0], last)}; at ε = 0.01 {_compare(pair[0], at_001)}",
        ),
        claim_on_learned_noise(config, of["annealed"], of["plain"], "Appendix E.1.1, Figure 8"),
    ]


def claim_on_learned_noise(config: KLAnnealingConfig, annealed: Rows, plain: Rows, source: str) -> Claim:
    """Judge what annealing does where σ² is learned, from the largest initial value."""
    pair = [of_kind(rows, "learned") for rows in (annealed, plain)]
    sigma2, elbos = ([[row.mean(of) for row in rows] for rows in pair] for of in (final_sigma2, elbo))
    collapse = [_collapse(rows, -1) for rows in pair]
    return claim(
        "With σ² learned from a large value, annealing leads to a smaller σ² and to less collapse",
        source,
        sigma2[0][0] < sigma2[1][0] and collapse[1][0] - collapse[0][0] >= LEAST_DIFFERENCE,
        f"σ² after {config.steps} steps, by initial σ² in brackets: {_compare(pair[0], sigma2, 3)}; "
        f"collapsed in % at ε = 0.1 {_compare(pair[0], collapse)}; ELBO {_compare(pair[0], elbos)}",
    )


def _collapse(rows: Sequence[Row], index: int) -> list[float]:
    """Percentage collapsed at ε = 0.1 in an evaluation of the training, a mean over seeds."""
    return [float(row.curves[:, EPSILONS.index(0.1), index].mean()) for row in rows]


def _compare(rows: Sequence[Row], pair: Sequence[Sequence[float]], digits: int = 0) -> str:
    """List numbers with annealing and without, by the initial σ² of the rows."""
    annealed, plain = (by_sigma2(rows, numbers, digits) for numbers in pair)
    return f"{annealed}; not annealed {plain}"


def _plot(results: Results, kind: Kind) -> Figure:
    config, curves, quantities = results["config"], results["curves"], results["quantities"]
    snapshot = f"epoch {config['snapshot_epoch']}"
    first = label(kind, config["sigma2"][0])
    collapse = {
        (name, when): f"{quantities[f'{first}, {name}: collapse, ε = 0.1, {when}']['measured']:.0f}"
        for name in ("annealed", "plain")
        for when in (snapshot, "end")
    }
    how = "fixed at" if kind == "fixed" else "learned from"
    figure, panels = make_panels(
        f"With σ² {how} {config['sigma2'][0]:g}, annealing leaves {collapse['annealed', snapshot]} % of the "
        f"latents within 0.1 nats of the prior at {snapshot}, without it there are "
        f"{collapse['plain', snapshot]} %; at the end {collapse['annealed', 'end']} and "
        f"{collapse['plain', 'end']} %",
        2,
        setting(results, describe(results)),
    )
    initial = "initial " if kind == "learned" else ""
    for axes, name in zip(panels, ("annealed", "plain"), strict=True):
        lines = {
            sigma2: (f"{label(kind, sigma2)}, {name}", rf"{initial}$\sigma^2$ = {sigma2:g}")
            for sigma2 in config["sigma2"]
        }
        draw_curves(axes, results, lines)
        for sigma2, colour in colours(config["sigma2"]).items():
            early = curves[f"{lines[sigma2][0]}, {snapshot}"].mean(0)
            axes.plot(curves["ε"], early, color=colour, linestyle="--", linewidth=1.2)
        how = f"annealed over {config['annealing_epochs']} epochs" if name == "annealed" else "not annealed"
        axes.set_title(f"{how}; dashed: {snapshot}", loc="left", fontsize=9)
    return figure


def plot_fixed(results: Results) -> Figure:
    """Draw collapse against ε for σ² held fixed, annealed and not."""
    return _plot(results, "fixed")


def plot_learned(results: Results) -> Figure:
    """Draw collapse against ε for σ² learned, annealed and not."""
    return _plot(results, "learned")


def _with_annealing(preset: DeepConfig, **changes: object) -> KLAnnealingConfig:
    settings = {field.name: getattr(preset, field.name) for field in fields(preset)}
    return KLAnnealingConfig(**settings | {"annealing_epochs": 100, "snapshot_epoch": 80, **changes})


PRESETS = {
    "quick": _with_annealing(deep_mnist.PRESETS["quick"], seeds=(0,)),
    "full": _with_annealing(deep_mnist.PRESETS["full"]),
}

FIGURES = {"figure-7": plot_fixed, "figure-8": plot_learned}

PAPER = "In the paper: annealing helps for a while, and for good only where σ² is learned."

HEADLINE = ()
