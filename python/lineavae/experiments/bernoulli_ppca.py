"""Bernoulli probabilistic PCA (appendix C.3): linear VAEs of binary images, trained without and by sampling.

The paper leaves this model aside because its ELBO has no closed form. It is a sum of one-dimensional
integrals, though, and training needs no samples. Both trainings here begin with the same parameters, see all
images at every step and differ in nothing but the noise of the gradient. Every ELBO reported is the one
without sampling, in float64, of the images trained on.

Each pixel is one with the probability pixel / 255, drawn once by the seed: static binarisation. Pixels that
are the same in all images are left out, as their likelihood is 1 at its best, with an infinite μ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from lineavae._paper import DELTA, EPSILON
from lineavae.collapse import CollapseReport
from lineavae.experiments.figures import BLACK, OBJECTIVES, Objective, make_panels
from lineavae.experiments.runs import NATS, Config, Quantity, Results, quantity
from lineavae.linear import BernoulliHistory, BernoulliLinearVAE
from lineavae.ops import collapse_statistics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HISTORY_POINTS = 80

# Draws of the gradient by which its noise is judged.
_GRADIENT_DRAWS = 10


@dataclass(frozen=True, kw_only=True)
class BernoulliPPCAConfig(Config):
    """The model and its training, the same for both objectives.

    Attributes
    ----------
    latent_dim
        Latent dimensions K.
    steps
        Full-batch steps of Adam.
    learning_rate
        Of Adam.
    bound_samples
        Numbers of posterior samples for the importance-weighted bound on the likelihood.
    """

    latent_dim: int
    steps: int
    learning_rate: float
    bound_samples: tuple[int, ...]


def run(config: BernoulliPPCAConfig, run_dir: Path) -> Results:
    """Train by both objectives from one start; compare ELBO, bound, gradient noise and collapse."""
    x = binarise(config.images.to_tensor(torch.float64), config.seed)
    x = x[:, x.min(0).values < x.max(0).values]
    quantities = {
        "independent pixels: ELBO": quantity(_elbo_of_independent_pixels(x), NATS),
        "correlation matrix: eigenvalues above 1": quantity(_eigenvalues_above_one(x), "directions"),
    }
    curves = {"bound_samples": np.array(config.bound_samples)}
    quantities |= _judge_gradient("start", _initial_model(config, x).double(), x, config.seed)
    for objective in OBJECTIVES:
        model, history = _train(config, x, objective, run_dir / f"{objective}.safetensors")
        elbo = model.elbo(x).mean().item()
        quantities[f"{objective}: ELBO"] = quantity(elbo, NATS)
        report = _collapse(model, x)
        at = report.at()
        live = config.latent_dim - at.collapsed.sum()
        quantities[f"{objective}: KL"] = quantity(report.mean_kl.sum(), NATS)
        quantities[f"{objective}: live latents"] = quantity(live, f"of {config.latent_dim}")
        bounds = list(_bounds(model, x, config))
        for size, bound in zip(config.bound_samples, bounds, strict=True):
            quantities[f"{objective}: bound of {size} samples above the ELBO"] = quantity(bound - elbo, NATS)
        quantities |= _judge_gradient(objective, model, x, config.seed)
        curves["steps"] = history.steps
        curves |= {
            f"{objective}: ELBO": history.elbo,
            f"{objective}: bound": np.array(bounds),
            f"{objective}: critical ε": np.sort(at.critical_epsilon.estimate)[::-1],
        }
    final = curves["stochastic: ELBO"][-1]
    overtaken = curves["steps"][(curves["analytic: ELBO"] >= final).argmax()]
    quantities["analytic: steps to stochastic end"] = quantity(overtaken, f"of {config.steps}")
    return config.results(quantities, curves)


def plot(results: Results) -> Figure:
    """Draw the ELBO in the course of training, the bounds on the likelihood, and which latents live."""
    config, curves, quantities = results["config"], results["curves"], results["quantities"]
    figure, (course, bound, spectrum) = make_panels(
        f"Bernoulli linear VAE, K={config['latent_dim']}, on binarised {results['data']}, "
        f"N={config['num_images']}",
        3,
    )
    independent = quantities["independent pixels: ELBO"]["measured"]
    course.axhline(independent, color=BLACK, linestyle="--", linewidth=1, label="independent pixels")
    for objective, colour in OBJECTIVES.items():
        elbo = quantities[f"{objective}: ELBO"]["measured"]
        live = quantities[f"{objective}: live latents"]["measured"]
        course.plot(
            curves["steps"],
            curves[f"{objective}: ELBO"],
            color=colour,
            linewidth=1.8,
            label=f"{objective}, ends at {elbo:.2f}",
        )
        bound.plot(
            curves["bound_samples"],
            curves[f"{objective}: bound"],
            color=colour,
            marker="o",
            markersize=4,
            label=objective,
        )
        bound.axhline(elbo, color=colour, linestyle=":", linewidth=1.2)
        critical = curves[f"{objective}: critical ε"]
        label = f"{objective}, {live:.0f} live"
        spectrum.plot(np.arange(1, len(critical) + 1), critical, color=colour, linewidth=1.8, label=label)
    best = quantities["analytic: ELBO"]["measured"]
    course.set_ylim(independent - 0.06 * (best - independent), best + 0.06 * (best - independent))
    course.set_xlim(0, config["steps"])
    course.set_title("ELBO in the course of training", loc="left", fontsize=10)
    course.set_xlabel("step of Adam, full batch")
    course.set_ylabel(NATS)
    course.legend(loc="center right", frameon=False, fontsize=9)
    bound.set_xscale("log")
    bound.set_title("importance-weighted bound; dotted: ELBO", loc="left", fontsize=10)
    bound.set_xlabel("posterior samples")
    bound.set_ylabel(NATS)
    bound.legend(loc="upper left", frameon=False, fontsize=9)
    spectrum.axhline(EPSILON, color=BLACK, linestyle="--", linewidth=1, label=f"ε = {EPSILON}")
    spectrum.set_yscale("log")
    spectrum.set_title(f"KL of each latent, exceeded by {DELTA:.0%} of images", loc="left", fontsize=10)
    spectrum.set_xlabel("latent, in descending order")
    spectrum.set_ylabel("critical ε, nats")
    spectrum.legend(loc="lower left", frameon=False, fontsize=9)
    return figure


def binarise(pixels: Tensor, seed: int) -> Tensor:
    """Draw each pixel once, as one with the probability that it names.

    Parameters
    ----------
    pixels
        Grey values in [0, 1], of any shape, on the CPU.
    seed
        Fixes the draw.

    Returns
    -------
    Tensor
        Zeros and ones of the shape and dtype of ``pixels``.

    Examples
    --------
    >>> import torch
    >>> from lineavae.experiments.bernoulli_ppca import binarise
    >>> binarise(torch.tensor([[0.0, 0.5, 0.5, 1.0]]), seed=0).shape
    torch.Size([1, 4])
    """
    return torch.bernoulli(pixels, generator=torch.Generator().manual_seed(seed))


def _initial_model(config: BernoulliPPCAConfig, x: Tensor) -> BernoulliLinearVAE:
    generator = torch.Generator().manual_seed(config.seed)
    sizes = (x.shape[1], config.latent_dim)
    return BernoulliLinearVAE(*sizes, center=x.mean(0), generator=generator, dtype=torch.float32)


def _train(
    config: BernoulliPPCAConfig, x: Tensor, objective: Objective, checkpoint: Path
) -> tuple[BernoulliLinearVAE, BernoulliHistory]:
    """Train in float32; give the model in float64 on the CPU, for judgement."""
    Console(stderr=True).print(f"{objective} training: K={config.latent_dim}, {config.steps} steps")
    model = _initial_model(config, x).to(config.device)
    history = model.fit(
        x,
        objective=objective,
        lr=config.learning_rate,
        steps=config.steps,
        seed=config.seed,
        history_every=max(1, config.steps // _HISTORY_POINTS),
        checkpoint=checkpoint,
        resume=True,
    )
    return model.cpu().double(), history


@torch.no_grad()
def _collapse(model: BernoulliLinearVAE, x: Tensor) -> CollapseReport:
    mean, logvar = model.encode(x)
    return CollapseReport(collapse_statistics(mean, logvar, [EPSILON]), [EPSILON])


def _elbo_of_independent_pixels(x: Tensor) -> float:
    """Give the best ELBO without latents: minus the entropies of the pixels."""
    frequency = x.mean(0)
    return -float((torch.special.entr(frequency) + torch.special.entr(1 - frequency)).sum())


def _eigenvalues_above_one(x: Tensor) -> int:
    """Count directions of ascent of the ELBO where all latents are collapsed: no forecast of the end."""
    return int((torch.linalg.eigvalsh(torch.corrcoef(x.mT)) > 1).sum())


def _bounds(model: BernoulliLinearVAE, x: Tensor, config: BernoulliPPCAConfig) -> Iterator[float]:
    generator = torch.Generator().manual_seed(config.seed)
    for size in config.bound_samples:
        yield model.importance_weighted_bound(x, size, generator=generator).mean().item()


def _judge_gradient(name: str, model: BernoulliLinearVAE, x: Tensor, seed: int) -> dict[str, Quantity]:
    """Compare the gradient of the mean ELBO with the noise of its estimate by one draw per image."""
    generator = torch.Generator().manual_seed(seed)

    def gradient(elbo: Tensor) -> Tensor:
        parts = torch.autograd.grad(elbo.mean(), list(model.parameters()))
        return torch.cat([part.flatten() for part in parts])

    exact = gradient(model.elbo(x))
    squares = [
        (gradient(model.stochastic_elbo(x, generator=generator)) - exact).square().sum().item()
        for _ in range(_GRADIENT_DRAWS)
    ]
    return {
        f"{name}: norm of gradient": quantity(exact.norm().item(), "nats"),
        f"{name}: norm of sampling noise": quantity(math.sqrt(np.mean(squares)), "nats"),
    }


PRESETS = {
    "quick": BernoulliPPCAConfig(latent_dim=150, steps=800, learning_rate=0.01, bound_samples=(1, 10, 100)),
    "full": BernoulliPPCAConfig(
        num_images=5000,
        latent_dim=200,
        steps=6000,
        learning_rate=3e-3,
        bound_samples=(1, 10, 100, 1000),
    ),
}

FIGURES = {"bernoulli-ppca": plot}

PAPER = "The paper calls this ELBO intractable and reports nothing for it."

HEADLINE = (
    "independent pixels: ELBO",
    "analytic: ELBO",
    "stochastic: ELBO",
    "analytic: steps to stochastic end",
    "analytic: live latents",
    "stochastic: live latents",
    "analytic: norm of gradient",
    "analytic: norm of sampling noise",
)
