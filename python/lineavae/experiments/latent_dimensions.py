"""Figure 2: likelihood and optimal ELBO of probabilistic PCA over the number of latent dimensions.

With the best noise for each K both rise together, as theorem 1 has it. With the noise frozen at the best
for one small K, more latent dimensions end by lowering the likelihood: a collapsed one is then better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from lineavae._colours import BLACK, BLUE, GREEN
from lineavae.experiments.figures import draw, end_of, label_ends, make_panels, setting
from lineavae.experiments.runs import NATS, Claim, Config, Quantity, Results, claim, quantity
from lineavae.experiments.training import train
from lineavae.linear import PPCA, LinearVAE, Moments

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_REPORTED = (50, 100, 200, 500)

# Read from the paper's text for the noise of K=50: the likelihood falls "after 200"; the curve is flat there.
_PUBLISHED_PEAK = (200.0, 50.0)


_AXES = {
    "latent_dims": ("latent_dims",),
    "likelihood": ("latent_dims",),
    "optimal_elbo": ("latent_dims",),
    "frozen_likelihood": ("latent_dims",),
    "trained_latent_dims": ("trained_latent_dims",),
    "trained_elbo": ("trained_latent_dims",),
}

# Largest gap in nats to the optimum at which training counts as having ended there.
_NEGLIGIBLE = 1.0


@dataclass(frozen=True, kw_only=True)
class LatentDimensionsConfig(Config):
    """The numbers of latent dimensions.

    Attributes
    ----------
    latent_dims
        Values of K, ascending, at which the closed forms are drawn; those below D count.
    frozen_latent_dim
        The K, one of them, from whose maximum the frozen noise is taken.
    trained_latent_dims
        Values of K, all among ``latent_dims``, at which a linear VAE is trained by its analytic ELBO.
    steps, learning_rate
        Full-batch steps of Adam in that training.
    """

    takes_samples: ClassVar[bool] = True

    latent_dims: tuple[int, ...]
    frozen_latent_dim: int = 50
    trained_latent_dims: tuple[int, ...] = ()
    steps: int = 12_000
    learning_rate: float = 1e-3

    @property
    def min_features(self) -> int:
        """Dimensions D that the data must have."""
        return max((self.frozen_latent_dim, *self.trained_latent_dims)) + 1


def run(config: LatentDimensionsConfig, run_dir: Path) -> Results:
    """Evaluate the closed forms at each K, and train at some."""
    x = config.samples.to_tensor(torch.float64)
    moments = Moments.from_data(x)
    frozen_noise = PPCA(config.frozen_latent_dim).fit(moments).noise_variance_
    latent_dims = [latent_dim for latent_dim in config.latent_dims if latent_dim < x.shape[1]]
    likelihood, optimal_elbo, frozen = (np.empty(len(latent_dims)) for _ in range(3))
    progress = track(latent_dims, "closed forms", console=Console(stderr=True), transient=True)
    for index, latent_dim in enumerate(progress):
        ppca = PPCA(latent_dim).fit(moments)
        model = LinearVAE.from_ppca(ppca)
        likelihood[index] = ppca.score(moments)
        optimal_elbo[index] = model.elbo(moments).item()
        # W keeps the noise it was made with; only the model's noise is another
        model.log_sigma2.data.fill_(math.log(frozen_noise))
        frozen[index] = model.log_marginal_likelihood(moments).item()
    trained = np.empty(len(config.trained_latent_dims))
    for index, latent_dim in enumerate(config.trained_latent_dims):
        checkpoint = run_dir / f"analytic-K{latent_dim}.safetensors"
        model, _ = train(
            config, x, latent_dim, lr=config.learning_rate, steps=config.steps, checkpoint=checkpoint
        )
        trained[index] = model.elbo(moments).item()
    curves = {
        "latent_dims": np.array(latent_dims),
        "likelihood": likelihood,
        "optimal_elbo": optimal_elbo,
        "frozen_likelihood": frozen,
        "trained_latent_dims": np.array(config.trained_latent_dims, dtype=np.int64),
        "trained_elbo": trained,
    }
    quantities = _judge(curves, config.frozen_latent_dim)
    return config.results(quantities, curves, claims=_claims(curves, config.frozen_latent_dim), axes=_AXES)


def plot(results: Results) -> Figure:
    """Draw likelihoods and ELBOs against K, and the likelihood under the frozen noise enlarged."""
    config, curves = results["config"], results["curves"]
    latent_dims, frozen_latent_dim = curves["latent_dims"], config["frozen_latent_dim"]
    peak = latent_dims[curves["frozen_likelihood"].argmax()]
    figure, (everything, enlarged) = make_panels(
        f"With the noise of K = {frozen_latent_dim} the likelihood is highest at K = {peak}",
        2,
        setting(results, "Probabilistic PCA"),
    )
    best = draw(everything, curves, "latent_dims", "likelihood", color=GREEN, linewidth=4, alpha=0.5)
    optimal_elbo = draw(
        everything, curves, "latent_dims", "optimal_elbo", color=BLACK, linestyle="--", linewidth=1.2
    )
    frozen = draw(everything, curves, "latent_dims", "frozen_likelihood", color=BLUE, linewidth=1.8)
    everything.set_xlim(0, latent_dims[-1])
    if config["trained_latent_dims"]:
        trained = draw(
            everything,
            curves,
            "trained_latent_dims",
            "trained_elbo",
            color=BLACK,
            linestyle="none",
            marker="o",
            markerfacecolor="white",
        )
        everything.annotate(
            "ELBO of trained\nlinear VAEs",
            end_of(trained),
            xytext=(-8, 12),
            textcoords="offset points",
            ha="right",
            fontsize=9,
        )
    label_ends(
        everything,
        {
            "likelihood,\nbest $\\sigma^2$ for each $K$": best,
            "optimal ELBO": optimal_elbo,
            f"likelihood, $\\sigma^2$\nof $K$ = {frozen_latent_dim}": frozen,
        },
    )
    everything.set_title(r"$\sigma^2$ at its best for each $K$, and frozen", loc="left", fontsize=10)

    beyond = latent_dims >= frozen_latent_dim
    part = {name: curve[beyond] for name, curve in curves.items() if len(curve) == len(latent_dims)}
    draw(enlarged, part, "latent_dims", "frozen_likelihood", color=BLUE, linewidth=1.8, marker=".")
    enlarged.annotate(
        f"highest at $K$ = {peak}",
        (peak, curves["frozen_likelihood"].max()),
        xytext=(0, 8),
        textcoords="offset points",
        color=BLUE,
        ha="center",
        fontsize=9,
    )
    enlarged.set_title(rf"$\sigma^2$ of $K$ = {frozen_latent_dim}, enlarged", loc="left", fontsize=10)
    enlarged.set_xlim(frozen_latent_dim, latent_dims[-1])
    enlarged.margins(y=0.12)
    for axes, what in ((everything, "log-likelihood or ELBO"), (enlarged, "log-likelihood")):
        axes.set_xlabel("latent dimensions $K$")
        axes.set_ylabel(f"{what} ({NATS})")
    return figure


def _claims(curves: dict[str, NDArray[Any]], frozen_latent_dim: int) -> list[Claim]:
    latent_dims, frozen = curves["latent_dims"], curves["frozen_likelihood"]
    deviation = np.abs(curves["likelihood"] - curves["optimal_elbo"]).max()
    peak = frozen.argmax()
    trained = curves["trained_latent_dims"]
    gaps = curves["optimal_elbo"][np.isin(latent_dims, trained)] - curves["trained_elbo"]
    return [
        claim(
            "The optimal ELBO of a linear VAE is the maximum likelihood of probabilistic PCA",
            "Lemma 1, Figure 2",
            bool(deviation < 1e-6),
            f"they differ by at most {deviation:.1g} nats at {len(latent_dims)} values of K",
        ),
        claim(
            f"With the noise of K = {frozen_latent_dim} more latents at first raise the likelihood, "
            "in the end they lower it",
            "Section 6.1, Figure 2",
            bool(frozen_latent_dim < latent_dims[peak] < latent_dims[-1]),
            f"highest at K = {latent_dims[peak]}, {frozen[peak] - frozen[-1]:.1f} nats above K = "
            f"{latent_dims[-1]}",
        ),
        claim(
            "Trained linear VAEs end at the maximum likelihood",
            "Section 6.1, Figure 2",
            bool(gaps.max() < _NEGLIGIBLE) if len(gaps) else None,
            ", ".join(f"K = {k}: {gap:.2f} nats below" for k, gap in zip(trained, gaps, strict=True))
            or "none is trained",
        ),
    ]


def _judge(curves: dict[str, NDArray[Any]], frozen_latent_dim: int) -> dict[str, Quantity]:
    latent_dims, likelihood, frozen = curves["latent_dims"], curves["likelihood"], curves["frozen_likelihood"]
    quantities = {
        f"likelihood, K={latent_dim}": quantity(likelihood[index], NATS)
        for index, latent_dim in enumerate(latent_dims)
        if latent_dim in _REPORTED
    }
    quantities["optimal ELBO: largest deviation"] = quantity(
        np.abs(likelihood - curves["optimal_elbo"]).max(), NATS
    )
    frozen_name = f"noise of K={frozen_latent_dim}"
    quantities[f"{frozen_name}: best K"] = quantity(
        latent_dims[frozen.argmax()], "latent dimensions", *_PUBLISHED_PEAK
    )
    quantities[f"{frozen_name}: lost from there to K={latent_dims[-1]}"] = quantity(
        frozen.max() - frozen[-1], NATS
    )
    for latent_dim, elbo in zip(curves["trained_latent_dims"], curves["trained_elbo"], strict=True):
        optimum = curves["optimal_elbo"][latent_dims == latent_dim].item()
        quantities[f"trained VAE, K={latent_dim}: gap to the optimum"] = quantity(optimum - elbo, NATS)
    return quantities


PRESETS = {
    "quick": LatentDimensionsConfig(latent_dims=(1, 5, 10, 25, *range(50, 250, 25), *range(250, 501, 50))),
    "full": LatentDimensionsConfig(
        latent_dims=(1, *range(5, 501, 5)), trained_latent_dims=(10, 50, 100, 200)
    ),
}

FIGURES = {"figure-2": plot}

PAPER = "In the paper: with the noise of K=50 the likelihood rises to about K=200, then falls."

HEADLINE = ()  # all
