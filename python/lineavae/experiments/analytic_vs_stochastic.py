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

from lineavae.experiments.figures import BLACK, OBJECTIVES, Objective, make_panels
from lineavae.experiments.runs import NATS, Config, Quantity, Results, quantity
from lineavae.experiments.training import train
from lineavae.linear import PPCA, LinearVAE, Moments, align

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The paper's ELBO at its K, and three standard deviations of the optimum over subsets of 1000 images.
_PUBLISHED = {("analytic", 200): (950.7, 12.0), ("stochastic", 200): (939.3, 12.0)}


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

    takes_samples: ClassVar = True

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
    curves: dict[str, NDArray[Any]] = {}
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
    return config.results(quantities, curves)


def plot(results: Results) -> Figure:
    """Draw ELBO against steps: the whole course, and the last nats below the optimum."""
    config, curves, quantities = results["config"], results["curves"], results["quantities"]
    optimum = quantities["pPCA optimum"]["measured"]
    best = {objective: curves[objective][curves[objective][:, -1].argmax()] for objective in OBJECTIVES}
    figure, (course, end) = make_panels(
        f"Linear VAE, K={config['latent_dim']}, on {results['data']}, N={config['num_images']}", 2
    )
    for axes in (course, end):
        axes.axhline(optimum, color=BLACK, linestyle="--", linewidth=1, label="pPCA optimum")
        for objective, colour in OBJECTIVES.items():
            axes.plot(curves["steps"], best[objective], color=colour, linewidth=1.8, label=objective)
        axes.set_xlabel("step of Adam, full batch")
        axes.set_xlim(0, config["steps"])
    course.set_title("whole course", loc="left", fontsize=10)
    course.set_ylabel(f"ELBO, {NATS}")
    course.legend(loc="lower right", frameon=False)
    end.set_title("last nats below the optimum", loc="left", fontsize=10)
    worst_gap = optimum - min(curve[-1] for curve in best.values())
    end.set_ylim(optimum - 3 * worst_gap, optimum + 0.4 * worst_gap)
    for objective, colour in OBJECTIVES.items():
        elbo = quantities[f"{objective}: ELBO"]
        text = f"{objective} ends {optimum - elbo['measured']:.2g} below"
        if elbo["published"] is not None:
            text += f",\nat {elbo['measured']:.1f} (paper: {elbo['published']})"
        end.annotate(
            text,
            (0.02 * config["steps"], elbo["measured"]),
            xytext=(0, -5),
            textcoords="offset points",
            color=colour,
            va="top",
            fontsize=9,
        )
    return figure


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
