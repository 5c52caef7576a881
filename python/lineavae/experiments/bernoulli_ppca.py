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

from lineavae._colours import BLACK
from lineavae._paper import DELTA, EPSILON
from lineavae.collapse import CollapseReport
from lineavae.experiments.figures import OBJECTIVES, Objective, draw, label_ends, make_panels, setting
from lineavae.experiments.runs import NATS, Config, Quantity, Results, quantity, with_spread
from lineavae.linear import BernoulliHistory, BernoulliLinearVAE
from lineavae.ops import collapse_statistics

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_HISTORY_POINTS = 80

# Latents are in descending order of their critical ε.
_AXES = {name: (name,) for name in ("steps", "bound_samples", "latents")} | {
    f"{objective}: {name}": (along,)
    for objective in OBJECTIVES
    for name, along in (("ELBO", "steps"), ("bound", "bound_samples"), ("critical ε", "latents"))
}

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
    curves = {
        "bound_samples": np.array(config.bound_samples),
        "latents": np.arange(1, config.latent_dim + 1),
    }
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
    return config.results(quantities, curves, axes=_AXES)


def plot(results: Results) -> Figure:
    """Draw the ELBO in the course of training, the bounds on the likelihood, and which latents live."""
    config, curves, quantities = results["config"], results["curves"], results["quantities"]

    def measured(name: str) -> float:
        return quantities[name]["measured"]

    elbos = {objective: quantities[f"{objective}: ELBO"] for objective in OBJECTIVES}
    lives = {objective: quantities[f"{objective}: live latents"] for objective in OBJECTIVES}
    gain = elbos["analytic"]["measured"] - elbos["stochastic"]["measured"]
    figure, (course, bound, spectrum) = make_panels(
        f"Without sampling the ELBO ends {abs(gain):.1f} nats {'higher' if gain > 0 else 'lower'}, and "
        f"{config['latent_dim'] - lives['analytic']['measured']:.0f} of {config['latent_dim']} latents "
        f"collapse; by samples {config['latent_dim'] - lives['stochastic']['measured']:.0f}",
        3,
        setting(results, f"Bernoulli linear VAE, $K$ = {config['latent_dim']}, binarised"),
    )
    independent = measured("independent pixels: ELBO")
    courses: dict[str, Line2D] = {}
    bounds: dict[str, Line2D] = {}
    spectra: dict[str, Line2D] = {}
    for objective, colour in OBJECTIVES.items():
        elbo, live = elbos[objective], lives[objective]
        text = f"{objective}\n{with_spread(elbo['measured'], elbo['spread'])}"
        courses[text] = draw(course, curves, "steps", f"{objective}: ELBO", color=colour, linewidth=1.8)
        bounds[objective] = draw(
            bound, curves, "bound_samples", f"{objective}: bound", color=colour, marker="o", markersize=4
        )
        bound.axhline(elbo["measured"], color=colour, linestyle=":", linewidth=1.2)
        text = f"{objective}\n{with_spread(live['measured'], live['spread'], 0)} live"
        spectra[text] = draw(
            spectrum, curves, "latents", f"{objective}: critical ε", color=colour, linewidth=1.8
        )
    levels = (independent, *(elbo["measured"] for elbo in elbos.values()))
    margin = 0.06 * (max(levels) - min(levels))
    course.axhline(independent, color=BLACK, linestyle="--", linewidth=1)
    course.annotate(
        "independent pixels",
        (config["steps"], independent),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=9,
    )
    course.set_ylim(min(levels) - margin, max(levels) + margin)
    course.set_xlim(0, config["steps"])
    course.set_title("ELBO in the course of training", loc="left", fontsize=10)
    course.set_xlabel("step of Adam, all images at each")
    course.set_ylabel(f"ELBO ({NATS})")
    label_ends(course, courses)
    bound.set_xscale("log")
    bound.set_title("Importance-weighted bound; dotted: ELBO", loc="left", fontsize=10)
    bound.set_xlabel("posterior samples")
    bound.set_ylabel(f"bound on the log-likelihood\n({NATS})")
    label_ends(bound, bounds)
    spectrum.axhline(EPSILON, color=BLACK, linestyle="--", linewidth=1)
    spectrum.annotate(
        rf"$\varepsilon$ = {EPSILON}",
        (1, EPSILON),
        xytext=(4, 3),
        textcoords="offset points",
        fontsize=9,
    )
    spectrum.set_yscale("log")
    spectrum.set_xlim(0, config["latent_dim"])
    spectrum.set_title(f"KL of each latent, exceeded by {DELTA:.0%} of images", loc="left", fontsize=10)
    spectrum.set_xlabel("latent, in descending order")
    spectrum.set_ylabel(r"critical $\varepsilon$ (nats)")
    label_ends(spectrum, spectra)
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
