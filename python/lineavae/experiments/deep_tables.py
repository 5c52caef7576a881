"""The rows of the paper's tables of deep VAEs: what was trained, over seeds, beside what is printed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lineavae.experiments.deep_vae import EPSILONS, DeepConfig, DeepData, Evaluation, Outcome
from lineavae.experiments.published import (
    Kind,
    PublishedRow,
    PublishedTable,
    gaussian_elbo,
    implied_squared_error,
)
from lineavae.experiments.runs import NATS, Quantity, Results, Table, quantity
from lineavae.linear import Moments, forecast_collapse


class _Column(NamedTuple):
    """A column of a table: what of a model, in which unit, and where the paper has it."""

    of: Callable[[Evaluation], float]
    unit: str
    published: str | None = None


_COLUMNS = {
    "final σ²": _Column(lambda model: model.sigma2, "1", "final_sigma2"),
    "ELBO": _Column(lambda model: model.elbo, NATS, "elbo"),
    "σ²-tuned ELBO": _Column(lambda model: model.tuned_elbo, NATS, "tuned_elbo"),
    "tuned σ²": _Column(lambda model: model.tuned_sigma2, "1", "tuned_sigma2"),
    "collapse, ε = 0.01": _Column(lambda model: model.collapse(0.01), "%", "collapse"),
    "collapse proven": _Column(lambda model: model.collapse_interval[0], "%"),
    "collapse not disproven": _Column(lambda model: model.collapse_interval[1], "%"),
    "collapse, ε = 0.1": _Column(lambda model: model.collapse(0.1), "%"),
    "collapse, ε = 1": _Column(lambda model: model.collapse(1.0), "%"),
    "KL": _Column(lambda model: model.kl, NATS, "kl"),
    "bits per dimension": _Column(lambda model: model.bits_per_dimension, "bits"),
}


@dataclass(frozen=True)
class Row:
    """The models of one initial σ², one for each seed, trained with the best of the learning rates."""

    kind: Kind
    sigma2: float
    learning_rate: float
    evaluations: Sequence[Evaluation]
    curves: NDArray[np.float64]
    """Percentage collapsed against `EPSILONS` in the course of the training, (seeds, E, P)."""

    @property
    def label(self) -> str:
        """What tables call it."""
        return label(self.kind, self.sigma2)

    def quantity(
        self,
        of: Callable[[Evaluation], float],
        unit: str,
        published: float | None = None,
        published_spread: float | None = None,
        note: str | None = None,
    ) -> Quantity:
        """Give the mean over seeds and the standard deviation between them."""
        values = [of(evaluation) for evaluation in self.evaluations]
        spread = statistics.stdev(values) if len(values) > 1 else None
        return quantity(
            statistics.fmean(values),
            unit,
            published,
            spread=spread,
            published_spread=published_spread,
            note=note,
        )

    def mean(self, of: Callable[[Evaluation], float]) -> float:
        """Mean over seeds."""
        return self.quantity(of, "")["measured"]


Rows = Mapping[tuple[Kind, float], Row]


def label(kind: Kind, sigma2: float) -> str:
    """Name the models of an initial σ²."""
    return f"{kind} {sigma2:g}"


def rows_of(config: DeepConfig, outcomes: Sequence[Outcome]) -> Rows:
    """Sort trained models into rows; each takes the learning rate with the best mean ELBO, as the paper."""
    rows: dict[tuple[Kind, float], Row] = {}
    for sigma2 in config.sigma2:
        for kind in dict.fromkeys(outcome.chunk.kind for outcome in outcomes):
            candidates = [
                Row(
                    kind,
                    sigma2,
                    lr,
                    [outcome.evaluations[index] for outcome, index in found],
                    np.stack([outcome.collapse[index] for outcome, index in found]),
                )
                for lr in config.learning_rates
                if (
                    found := [
                        (outcome, outcome.chunk.sigma2.index(sigma2))
                        for outcome in outcomes
                        if (outcome.chunk.kind, outcome.chunk.learning_rate) == (kind, lr)
                        and sigma2 in outcome.chunk.sigma2
                    ]
                )
            ]
            rows[kind, sigma2] = max(candidates, key=lambda row: row.mean(lambda model: model.elbo))
    return dict(sorted(rows.items(), key=lambda item: (item[0][0], -item[0][1])))


def forecasts(config: DeepConfig, data: DeepData) -> dict[float, float]:
    """Give for each σ² the percentage of the latents that a linear VAE would lose to it, held fixed."""
    moments = Moments.from_data(data.x.double().flatten(1))
    return {
        sigma2: 100
        * forecast_collapse(moments, config.latent_dim, sigma2=sigma2).num_collapsed
        / config.latent_dim
        for sigma2 in config.sigma2
    }


def table(
    caption: str, config: DeepConfig, rows: Rows, published: PublishedTable, forecast: Mapping[float, float]
) -> Table:
    """Give the rows as a table beside those published; the linear forecast is beside each fixed σ²."""
    return {
        "caption": f"{caption}, after {config.steps} steps",
        "columns": [*_COLUMNS, "linear forecast of collapse", "learning rate"],
        "rows": {
            row.label: [
                *_entries(row, published.get(key)),
                quantity(forecast[row.sigma2], "%") if row.kind == "fixed" else None,
                quantity(row.learning_rate, "per step"),
            ]
            for key, row in rows.items()
        },
    }


def _entries(row: Row, published: PublishedRow | None) -> Iterator[Quantity]:
    for column in _COLUMNS.values():
        name = column.published
        if name is None or published is None:
            yield row.quantity(column.of, column.unit)
            continue
        yield row.quantity(
            column.of,
            column.unit,
            getattr(published, name),
            getattr(published, f"{name}_spread", None),
            published.notes.get(name),
        )


def consistency(
    caption: str, published: PublishedTable, num_features: int, log_det: float
) -> tuple[Table, list[str]]:
    """Compare the tuned columns of a published table with what closed-form tuning makes of the others.

    A row's σ², ELBO and KL imply the mean squared error, which is the best σ², and with it the tuned ELBO.

    Returns
    -------
    table : Table
        What is implied, as measured, beside what is printed.
    inconsistent : list of str
        The rows whose tuned σ² deviates by more than 1 % or whose tuned ELBO by more than 2.5 nats.
    """
    rows: dict[str, list[Quantity | None]] = {}
    inconsistent = []
    for (kind, sigma2), row in published.items():
        final = sigma2 if row.final_sigma2 is None else row.final_sigma2
        error = implied_squared_error(num_features, final, row.elbo - log_det, row.kl)
        tuned = gaussian_elbo(num_features, error, error, row.kl) + log_det
        if abs(error / row.tuned_sigma2 - 1) > 0.01 or abs(tuned - row.tuned_elbo) > 2.5:
            inconsistent.append(label(kind, sigma2))
        rows[label(kind, sigma2)] = [
            quantity(error, "1", row.tuned_sigma2, 0.01 * row.tuned_sigma2),
            quantity(tuned, NATS, row.tuned_elbo, 2.5, published_spread=row.tuned_elbo_spread),
        ]
    return {"caption": caption, "columns": ["tuned σ²", "σ²-tuned ELBO"], "rows": rows}, inconsistent


def curves_of(rows: Rows) -> dict[str, NDArray[np.float64]]:
    """Give what figures need of the collapse at the end: percentages (seeds, E) against ε."""
    curves = {
        row.label: np.array([[model.collapse(epsilon) for epsilon in EPSILONS] for model in row.evaluations])
        for row in rows.values()
    }
    return {"ε": np.array(EPSILONS), **curves}


def axes_of(curves: Mapping[str, NDArray[Any]]) -> dict[str, tuple[str, ...]]:
    """Name the axes of such curves; images, (N, C, H, W), have none in common."""
    names = {1: ("ε",), 2: ("seed", "ε")}
    return {name: names[curve.ndim] for name, curve in curves.items() if curve.ndim in names}


def describe(results: Results) -> str:
    """Say of which models a figure is."""
    steps = results["quantities"]["steps"]["measured"]
    return rf"Deep VAEs, $K$ = {results['config']['latent_dim']}, after {steps:.0f} steps; $\delta$ = 0.01"
