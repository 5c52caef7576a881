"""What the paper claims of σ² in deep VAEs, judged by models of several initial values.

A verdict is on the models at hand; the evidence names their number of steps, on which collapse depends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lineavae.experiments.deep_tables import Row, Rows
from lineavae.experiments.deep_vae import DeepConfig, Evaluation
from lineavae.experiments.published import Kind
from lineavae.experiments.runs import NATS, Claim, claim

# A difference between percentages of collapsed latents that counts as one.
LEAST_DIFFERENCE = 5.0


def elbo(model: Evaluation) -> float:
    """Give the ELBO of a model."""
    return model.elbo


def tuned_elbo(model: Evaluation) -> float:
    """Give the ELBO of a model with the best σ²."""
    return model.tuned_elbo


def collapse_at(epsilon: float) -> Callable[[Evaluation], float]:
    """Give what tells the percentage of a model's latents that are collapsed at ε."""
    return lambda model: model.collapse(epsilon)


def tuned_sigma2(model: Evaluation) -> float:
    """Give the σ² that is best for a model."""
    return model.tuned_sigma2


def final_sigma2(model: Evaluation) -> float:
    """Give the σ² of a model."""
    return model.sigma2


def of_kind(rows: Rows, kind: Kind) -> list[Row]:
    """Give the rows of a kind, from the largest initial σ² to the smallest."""
    return [row for row in rows.values() if row.kind == kind]


def by_sigma2(rows: Sequence[Row], numbers: Sequence[float], digits: int = 0) -> str:
    """List numbers by the initial σ² of the rows that they are of."""
    pairs = zip(rows, numbers, strict=True)
    return ", ".join(f"{number:.{digits}f} ({row.sigma2:g})" for row, number in pairs)


def claims_on_noise(config: DeepConfig, rows: Rows) -> list[Claim]:
    """Judge what the paper says of σ² in section 6.2."""
    fixed, learned = of_kind(rows, "fixed"), of_kind(rows, "learned")
    if min(len(fixed), len(learned)) < 2:
        return []
    seeds = "1 seed" if len(config.seeds) == 1 else f"{len(config.seeds)} seeds"
    after = f"after {config.steps} steps, {seeds}, by initial σ² in brackets"
    return [
        _larger_noise_collapses_more(fixed, after),
        _tuning_does_not_make_up(fixed, after),
        _initial_noise_decides(fixed, learned, after),
        _learned_noise_collapses(learned, after),
    ]


def _larger_noise_collapses_more(fixed: Sequence[Row], after: str) -> Claim:
    collapse = [row.mean(collapse_at(0.1)) for row in fixed]
    falls = bool((np.diff(collapse) <= 0).all())
    return claim(
        "With σ² fixed, the larger it is the more latents are collapsed",
        "Sections 4.1 and 6.2, Figure 5",
        falls and collapse[0] - collapse[-1] >= LEAST_DIFFERENCE,
        f"collapsed in % at ε = 0.1 {after}: {by_sigma2(fixed, collapse)}",
    )


def _tuning_does_not_make_up(fixed: Sequence[Row], after: str) -> Claim:
    tuned = [row.mean(tuned_elbo) for row in fixed]
    best = int(np.argmax(tuned))
    gap, spread = tuned[best] - tuned[0], _spread((fixed[0], fixed[best]), tuned_elbo)
    return claim(
        "Too large a fixed σ² makes for worse latents: tuning σ² afterwards does not make up for it",
        "Section 6.2, Table 1",
        None if spread is None else best > 0 and gap > 2 * spread,
        f"σ²-tuned ELBO {after}: {by_sigma2(fixed, tuned)}; the largest σ² is {gap:.0f} nats below the best, "
        + _say(spread),
    )


def _initial_noise_decides(fixed: Sequence[Row], learned: Sequence[Row], after: str) -> Claim:
    # a step moves log σ² by about the learning rate at most: from far away it takes longer than the network
    settled = [row for row in learned if abs(row.mean(final_sigma2) / row.mean(tuned_sigma2) - 1) < 0.1]
    elbos = [row.mean(elbo) for row in settled]
    elbos_fixed = [row.mean(elbo) for row in fixed if row.sigma2 in {other.sigma2 for other in settled}]
    rest = [row for row in learned if row not in settled]
    moving = by_sigma2(rest, [row.mean(final_sigma2) for row in rest], 3)
    evidence = f"ELBO {after}, where σ² has settled: {by_sigma2(settled, elbos)}"
    if moving:
        evidence += f"; elsewhere σ² is still moving: {moving}"
    holds = None
    if len(elbos) > 1:
        gap, gap_fixed = max(elbos) - min(elbos), max(elbos_fixed) - min(elbos_fixed)
        spread = _spread(settled, elbo)
        holds = None if spread is None else 2 * spread < gap < gap_fixed
        evidence += (
            f"; they differ by {gap:.0f} nats, those with σ² fixed at the same values by {gap_fixed:.0f}, "
            + _say(spread)
        )
    return claim(
        "With σ² learned, ELBOs still depend on its initial value, if less than with σ² fixed",
        "Section 6.2, Table 1",
        holds,
        evidence,
    )


def _learned_noise_collapses(learned: Sequence[Row], after: str) -> Claim:
    collapse = [row.mean(collapse_at(0.1)) for row in learned]
    final = [row.mean(final_sigma2) for row in learned]
    return claim(
        "From a large initial σ² latents collapse even where σ² is learned",
        "Section 6.2, Figure 6",
        collapse[0] - min(collapse) >= LEAST_DIFFERENCE,
        f"collapsed in % at ε = 0.1 {after}: {by_sigma2(learned, collapse)}; "
        f"σ² at the end: {by_sigma2(learned, final, 3)}",
    )


def _spread(rows: Sequence[Row], of: Callable[[Evaluation], float]) -> float | None:
    """Give the largest standard deviation over seeds, of which one has none."""
    spreads = [row.quantity(of, NATS)["spread"] for row in rows]
    return max((spread for spread in spreads if spread is not None), default=None)


def _say(spread: float | None) -> str:
    return "one seed has no spread" if spread is None else f"the spread over seeds is at most {spread:.0f}"
