"""Figure 3: a linear VAE trained by its analytic ELBO against one trained by the sampled ELBO.

Both see all images at every step and differ in nothing but the noise of the gradient. Every ELBO reported is
the analytic one, in float64, of the images trained on; their optimum is that of probabilistic PCA.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lineavae.experiments.figures import OBJECTIVES, Objective, draw, label_ends, make_panels, setting
from lineavae.experiments.runs import NATS, Claim, Config, Quantity, Results, claim, quantity, with_spread
from lineavae.experiments.training import train
from lineavae.linear import PPCA, LinearVAE, Moments, align

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The paper's ELBO at its K, and three standard deviations of the optimum over subsets of 1000 images.
_PUBLISHED = {("analytic", 200): (950.7, 12.0), ("stochastic", 200): (939.3, 12.0)}


_AXES: dict[str, tuple[str, ...]] = {
    "learning_rates": ("learning_rates",),
    "steps": ("steps",),
    **dict.fromkeys(OBJECTIVES, ("learning_rates", "steps")),
    **{f"{objective}: gap": ("steps",) for objective in OBJECTIVES},
}


@dataclass(frozen=True, kw_only=True)
class AnalyticVsStochasticConfig(Config):
    """The models and their training; both objectives get the same.

    Attributes
    ----------
    latent_dim
        Latent dimensions K.
    steps
        Full-batch steps of Adam.
    learning_rates
        Grid, from which each objective takes what ends with the best ELBO.
    """

    takes_samples: ClassVar[bool] = True

    latent_dim: int
    steps: int
    learning_rates: tuple[float, ...]

    @property
    def min_features(self) -> int:
        """Dimensions D that the data must have."""
        return self.latent_dim + 1


def run(config: AnalyticVsStochasticConfig, run_dir: Path) -> Results:
    """Train with every objective and learning rate; compare the best of each objective with the optimum."""
    x = config.samples.to_tensor(torch.float64)
    moments = Moments.from_data(x)
    optimum = LinearVAE.from_ppca(PPCA(config.latent_dim).fit(moments))
    quantities = {"pPCA optimum": quantity(optimum.elbo(moments).item(), NATS)}
    maximum = quantities["pPCA optimum"]["measured"]
    curves: dict[str, NDArray[Any]] = {"learning_rates": np.array(config.learning_rates)}
    for objective in OBJECTIVES:
        trained = [
            train(
                config,
                x,
                config.latent_dim,
                objective=objective,
                lr=lr,
                steps=config.steps,
                checkpoint=run_dir / f"{objective}-{lr:g}.safetensors",
            )
            for lr in config.learning_rates
        ]
        elbos = np.stack([history.elbo for _, history in trained])
        best = elbos[:, -1].argmax()
        quantities[f"{objective}: learning rate"] = quantity(config.learning_rates[best], "per step")
        quantities |= _judge(objective, trained[best][0], optimum, moments)
        curves["steps"] = trained[best][1].steps
        curves[objective] = elbos
        curves[f"{objective}: gap"] = maximum - elbos[best]
    return config.results(quantities, curves, claims=[_claim(quantities, curves)], axes=_AXES)


def plot(results: Results) -> Figure:
    """Draw what the ELBO lacks to the optimum against steps, for the best learning rate of each objective."""
    config, curves, quantities = results["config"], results["curves"], results["quantities"]
    gaps = {objective: quantities[f"{objective}: gap to the optimum"] for objective in OBJECTIVES}
    ends = [f"{gap['measured']:.2g}" for gap in gaps.values()]
    figure, (axes,) = make_panels(
        f"Analytic training ends {ends[0]} nats below the optimum, stochastic {ends[1]}",
        1,
        setting(results, f"Linear VAE, $K$ = {config['latent_dim']}"),
    )
    lines = {}
    for objective, colour in OBJECTIVES.items():
        line = draw(axes, curves, "steps", f"{objective}: gap", color=colour, linewidth=1.8)
        gap, elbo = gaps[objective], quantities[f"{objective}: ELBO"]
        text = f"{objective}: {with_spread(gap['measured'], gap['spread'])}\nELBO {elbo['measured']:.2f}"
        if elbo["published"] is not None:
            text += f"\n(paper: {elbo['published']})"
        lines[text] = line
    axes.set_yscale("log")
    axes.set_xlim(0, config["steps"])
    axes.set_xlabel("step of Adam, all images at each")
    axes.set_ylabel(f"below the pPCA optimum ({NATS})")
    label_ends(axes, lines)
    return figure


def _claim(quantities: dict[str, Quantity], curves: dict[str, NDArray[Any]]) -> Claim:
    analytic, stochastic = (quantities[f"{objective}: ELBO"]["measured"] for objective in OBJECTIVES)
    last = curves["stochastic: gap"][-1]
    overtaken = curves["steps"][(curves["analytic: gap"] <= last).argmax()]
    holds = analytic > stochastic
    evidence = f"the analytic ends at {analytic:.2f}, the stochastic at {stochastic:.2f} {NATS}"
    if holds:
        evidence += f", where the analytic is by step {overtaken} of {curves['steps'][-1]}"
    return claim(
        "Training by the analytic ELBO is faster than by the stochastic one, and ends higher",
        "Section 6.1, Figure 3",
        holds,
        evidence,
    )


def _judge(
    objective: Objective, model: LinearVAE, optimum: LinearVAE, moments: Moments
) -> dict[str, Quantity]:
    """Compare a trained model with the optimum: its ELBO, its noise, its directions."""
    maximum, elbo = optimum.elbo(moments).item(), model.elbo(moments).item()
    rotated = copy.deepcopy(model).canonicalize_()
    quantities = {
        f"{objective}: ELBO": quantity(elbo, NATS, *_PUBLISHED.get((objective, model.latent_dim), ())),
        f"{objective}: gap to the optimum": quantity(maximum - elbo, NATS),
        f"{objective}: gap after SVD rotation": quantity(maximum - rotated.elbo(moments).item(), NATS),
        f"{objective}: σ² / σ²_MLE": quantity((model.log_sigma2 - optimum.log_sigma2).exp().item(), "ratio"),
    }
    targets = _separated_directions(moments, model.latent_dim)
    for source, columns, threshold in (
        ("raw W", model.weight, 0.99),
        ("SVD rotation", rotated.weight, 0.99),
        ("Rayleigh-Ritz", model.principal_components(moments)[1], 0.999),
    ):
        num_matched = (align(columns, targets).cosines > threshold).sum().item()
        quantities[f"{objective}: axes by {source}"] = quantity(100 * num_matched / targets.shape[1], "%")
    return quantities


def _separated_directions(moments: Moments, latent_dim: int) -> Tensor:
    """Leading eigenvectors whose eigenvalues keep more than 2 % of themselves from both neighbours."""
    eigenvalues, eigenvectors = moments.eigh()
    padded = torch.nn.functional.pad(eigenvalues, (1, 1))
    padded[0] = torch.inf
    gaps = torch.minimum(padded[:-2] - eigenvalues, eigenvalues - padded[2:])
    separated = (gaps > 0.02 * eigenvalues)[:latent_dim]
    return eigenvectors[:, :latent_dim][:, separated]


PRESETS = {
    "quick": AnalyticVsStochasticConfig(latent_dim=50, steps=3000, learning_rates=(3e-3,)),
    "full": AnalyticVsStochasticConfig(latent_dim=200, steps=12_000, learning_rates=(1e-4, 3e-4, 1e-3, 3e-3)),
}

FIGURES = {"figure-3": plot}

PAPER = "In the paper, with K=200: analytic 950.7, stochastic 939.3 nats per image."

HEADLINE = (
    "pPCA optimum",
    "analytic: ELBO",
    "analytic: gap to the optimum",
    "analytic: gap after SVD rotation",
    "stochastic: ELBO",
    "stochastic: gap to the optimum",
)
