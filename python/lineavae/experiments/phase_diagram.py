"""The phase diagram of collapse: how many latents of a linear VAE live, over σ², β and K, against the theory.

With σ² held fixed, a latent lives where the eigenvalue that belongs to it is above βσ². So the collapsed part
of K latents climbs a staircase as σ² rises, whose steps are the eigenvalues of the data. It does so whatever
the seed, with the KL annealed, and in stochastic training; where σ² is learned, no latent collapses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from lineavae._colours import BLACK, BLUE, GREEN, PURPLE, VERMILION
from lineavae._optional import require
from lineavae._paper import EPSILON
from lineavae.data import Images, Samples, load_digits
from lineavae.experiments import processes
from lineavae.experiments.figures import make_panels
from lineavae.experiments.runs import Claim, Config, Quantity, Results, claim, quantity
from lineavae.linear import LinearVAE, Moments, Sweep, sweep
from lineavae.ops import gaussian_kl_per_dimension

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Relative distance of βσ² from the nearest eigenvalue from which on a model counts as away from a step of the
# staircase: there a latent lives with a KL of ½ log 1.02 = 0.0099 nats, which is hardly more than nothing.
_MARGIN = 0.02

# How far σ² goes below the smallest eigenvalue that matters, and above the largest.
_BEYOND = 3.0


@dataclass(frozen=True, kw_only=True)
class PhaseDiagramConfig(Config):
    """The grids and the training; ``data`` of None is ``embedded``.

    Attributes
    ----------
    embedded
        "digits": the 8 x 8 pixels of scikit-learn; "mnist5k".
    latent_dims
        Latents K, of which the last but one is drawn over β, with σ² learned, annealed and stochastic.
    num_sigma2, num_beta
        Values of σ² from below the smallest eigenvalue of the first K to above the largest; of β from 0.1 to
        10, in the map.
    seeds
        Of the initial parameters.
    steps, learning_rate
        Of Adam.
    rank
        Principal directions of the data along which the grids train, as `sweep` does; None: all features.
    annealing_steps
        Steps over which β rises from 0 to 1, at most ``steps``.
    num_stochastic, stochastic_steps, batch_size
        Values of σ² of the models that are trained by samples, their steps, and the samples of each.
    """

    published_data: ClassVar[tuple[str, ...]] = ()
    takes_samples: ClassVar[bool] = True

    embedded: Literal["digits", "mnist5k"] = "digits"
    latent_dims: tuple[int, ...] = (4, 16, 32)
    num_sigma2: int = 40
    num_beta: int = 24
    seeds: tuple[int, ...] = tuple(range(25))
    steps: int = 16_000
    learning_rate: float = 3e-3
    rank: int | None = None
    annealing_steps: int = 8000
    num_stochastic: int = 8
    stochastic_steps: int = 20_000
    batch_size: int = 200

    @property
    def min_features(self) -> int:
        """Dimensions D that the data must have."""
        return max(self.latent_dims)

    @property
    def latent_dim(self) -> int:
        """K of all that is trained for one K alone."""
        return self.latent_dims[-2:][0]

    @cached_property
    def samples(self) -> Images | Samples:
        """What the models are fitted to."""
        if self.data is None and self.embedded == "digits":
            return load_digits().subset(self.num_images, self.seed)
        return super().samples


# The axes of the curves.
_OF_SIGMA2, _OF_K = ("sigma2",), ("latent_dim", "sigma2")
_AXES = {
    "sigma2": _OF_SIGMA2,
    "latent_dim": ("latent_dim",),
    "beta": ("beta",),
    "stochastic_sigma2": ("stochastic_sigma2",),
    "theory": _OF_K,
    "fixed": _OF_K,
    "fixed.least": _OF_K,
    "fixed.most": _OF_K,
    "map": ("beta", "sigma2"),
    "learned": _OF_SIGMA2,
    "half annealed": _OF_SIGMA2,
    "annealed": _OF_SIGMA2,
    "stochastic": ("stochastic_sigma2",),
    "eigenvalues": ("component",),
}

_COLOURS = (GREEN, BLUE, PURPLE)

# Seeds of what is no staircase of its own.
_FEW = 5


def run(config: PhaseDiagramConfig, run_dir: Path) -> Results:
    """Train all grids, and compare the number of live latents with the theory at every point."""
    x = config.samples.to_tensor(torch.float64)
    moments = Moments.from_data(x)
    eigenvalues = moments.eigh()[0].numpy()
    positive = eigenvalues[: min(max(config.latent_dims), moments.rank)]
    sigma2 = np.geomspace(positive[-1] / _BEYOND, positive[0] * _BEYOND, config.num_sigma2)
    beta = np.geomspace(0.1, 10, config.num_beta)

    def train(name: str, grid: Mapping[str, Any], learn_sigma2: bool, record_at: list[int]) -> Sweep:
        return sweep(
            moments,
            {"sigma2": sigma2, "lr": config.learning_rate, "latent_dim": config.latent_dim, **grid},
            steps=config.steps,
            learn_sigma2=learn_sigma2,
            rank=config.rank,
            record=("live",),
            record_at=record_at,
            device=config.device,
            checkpoint=run_dir / name,
            resume=True,
        )

    end, few = [config.steps], config.seeds[:_FEW]
    fixed = train("fixed", {"seed": config.seeds, "latent_dim": config.latent_dims}, False, end)
    mapped = train("map", {"beta": beta, "seed": config.seeds[0]}, False, end)
    learned = train("learned", {"seed": few}, True, end)
    annealing = {"seed": few, "annealing_steps": config.annealing_steps}
    annealed = train("annealed", annealing, False, sorted({config.annealing_steps // 2, *end}))
    places = np.linspace(0, len(sigma2) - 1, config.num_stochastic).round().astype(int)
    few_sigma2 = sigma2[places]
    stochastic = _train_by_samples(config, x.to(config.device, torch.float32), few_sigma2, run_dir)

    live = {"fixed": _last(fixed), "learned": _last(learned), "annealed": _last(annealed)}
    curves: dict[str, NDArray[Any]] = {
        "sigma2": sigma2,
        "latent_dim": np.array(config.latent_dims),
        "beta": beta,
        "stochastic_sigma2": few_sigma2,
        "theory": fixed.theory().transpose(*_OF_K).values,
        "fixed": live["fixed"].mean("seed").transpose(*_OF_K).values,
        "fixed.least": live["fixed"].min("seed").transpose(*_OF_K).values,
        "fixed.most": live["fixed"].max("seed").transpose(*_OF_K).values,
        "map": _last(mapped).transpose("beta", "sigma2").values,
        "learned": live["learned"].mean("seed").values,
        "half annealed": annealed.dataset.live.isel(step=0).mean("seed").values,
        "annealed": live["annealed"].mean("seed").values,
        "stochastic": stochastic,
        "eigenvalues": eigenvalues,
    }
    quantities = {
        **_agreement("σ² fixed", fixed),
        **_agreement("σ² fixed, map over β", mapped),
        **_agreement("annealed", annealed),
    }
    latent_dim = config.latent_dim
    quantities["σ² learned: fewest live latents"] = quantity(live["learned"].min().item(), f"of {latent_dim}")
    theory, distance = (
        values.sel(latent_dim=latent_dim).values[places] for values in (fixed.theory(), fixed.distance())
    )
    quantities |= _count("by samples", stochastic == theory, distance > _MARGIN)
    return config.results(quantities, curves, claims=_claims(quantities, latent_dim), axes=_AXES)


def _last(found: Sweep) -> Any:
    """Live latents at the end."""
    return found.dataset.live.isel(step=-1)


def _agreement(name: str, found: Sweep) -> dict[str, Quantity]:
    """Count the models that have as many live latents as in theory."""
    frame = found.to_dataframe()
    frame = frame[frame.step == frame.step.max()]
    return _count(name, (frame.live == frame.theory).values, (frame.distance > _MARGIN).values)


def _count(name: str, agrees: NDArray[np.bool_], is_away: NDArray[np.bool_]) -> dict[str, Quantity]:
    """Count the models that are not as in theory, away from its steps and close to one."""
    return {
        f"{name}: models away from a step": quantity(is_away.sum(), f"of {len(is_away)}"),
        f"{name}: of these not as in theory": quantity((is_away & ~agrees).sum(), "models"),
        f"{name}: of the others not as in theory": quantity((~is_away & ~agrees).sum(), "models"),
    }


def _train_by_samples(
    config: PhaseDiagramConfig, x: torch.Tensor, sigma2: NDArray[np.float64], run_dir: Path
) -> NDArray[np.float64]:
    """Train a model at each σ² by the stochastic ELBO; count its live latents."""

    def train(index: int) -> int:
        generator = torch.Generator().manual_seed(config.seeds[0])
        model = LinearVAE(x.shape[1], config.latent_dim, generator=generator, dtype=torch.float32)
        model.to(config.device)
        model.log_sigma2.data.fill_(math.log(sigma2[index]))
        model.fit(
            x,
            objective="stochastic",
            lr=config.learning_rate,
            steps=config.stochastic_steps,
            batch_size=config.batch_size,
            learn_sigma2=False,
            seed=config.seeds[0],
            history_every=config.stochastic_steps,
            checkpoint=run_dir / f"stochastic-{index}.safetensors",
            resume=True,
        )
        mean, logvar = (values.detach().double() for values in model.encode(x))
        return int((gaussian_kl_per_dimension(mean, logvar).mean(0) >= EPSILON).sum())

    for index in range(processes.rank(), len(sigma2), processes.world_size()):
        train(index)
    processes.wait_for_all()
    return np.array([train(index) for index in range(len(sigma2))], dtype=np.float64)  # from the checkpoints


def _claims(quantities: Mapping[str, Quantity], latent_dim: int) -> list[Claim]:
    def measured(name: str) -> int:
        return round(quantities[name]["measured"])

    def claim_on(name: str, text: str, source: str) -> Claim:
        away, wrong = (
            measured(f"{name}: {what}") for what in ("models away from a step", "of these not as in theory")
        )
        others = measured(f"{name}: of the others not as in theory")
        return claim(
            text,
            source,
            wrong == 0,
            f"{away - wrong} of {away} models whose βσ² is more than {100 * _MARGIN:g} % from every "
            f"eigenvalue have as many live latents; {others} of the others have not",
        )

    fewest = measured("σ² learned: fewest live latents")
    return [
        claim_on("σ² fixed", "At a fixed σ² the latents with λ_j > σ² live, and no others", "Section 4.1"),
        claim_on("σ² fixed, map over β", "With a KL weight β those with λ_j > βσ² live", "Section 4.1"),
        claim_on("annealed", "Annealing β to 1 ends with as many live latents", "Section 6.2"),
        claim(
            "Where σ² is learned, no latent collapses",
            "Section 6.2",
            fewest == latent_dim,
            f"at least {fewest} of {latent_dim} live, from whatever initial σ²",
        ),
        claim_on("by samples", "Stochastic training ends with as many live latents", "Section 6.1"),
    ]


def plot(results: Results) -> Figure:
    """Draw live latents over σ² and β, the staircases of the theory with what was measured, and the rest."""
    config, curves, quantities = results["config"], results["curves"], results["quantities"]
    away, wrong = (
        round(sum(quantities[f"{name}: {what}"]["measured"] for name in ("σ² fixed", "σ² fixed, map over β")))
        for what in ("models away from a step", "of these not as in theory")
    )
    latent_dim = config["latent_dims"][-2:][0]
    latents = f"a latent is live with a mean KL of {EPSILON:g} nats or more"
    figure, (mapped, stairs, others) = make_panels(
        r"A latent lives where its eigenvalue is above $\beta\sigma^2$: "
        f"{away - wrong} of {away} linear VAEs agree",
        3,
        f"Linear VAEs; {results['data']}, N={config['num_images']}; {latents}; dots are means of "
        f"{len(config['seeds'])} seeds in b, {len(config['seeds'][:_FEW])} in c, bars their range; counted "
        f"are those farther than {100 * _MARGIN:g} % from every eigenvalue",
        panel_width=4.0,
    )
    _draw_map(mapped, curves, latent_dim)
    for index, (number, colour) in enumerate(zip(curves["latent_dim"], _COLOURS, strict=False)):
        _draw_stairs(stairs, curves, index, color=colour, alpha=0.8)
        _draw_measured(stairs, curves, index, colour)
        place = (0.02, 0.93 - 0.08 * index)
        stairs.annotate(f"$K$ = {number}", place, xycoords="axes fraction", color=colour, fontsize=9)
    stairs.set_title(r"$\sigma^2$ fixed, $\beta$ = 1: dots on the theory's stairs", loc="left", fontsize=10)
    number = list(curves["latent_dim"]).index(latent_dim)
    _draw_stairs(others, curves, number, color=BLACK, alpha=0.6, label="theory")
    _draw_others(others, curves, latent_dim)
    for axes in (stairs, others):
        axes.set_xscale("log")
        axes.set_ylim(-4, 106)
        axes.set_ylabel("collapsed latents (%)")
    for axes in (mapped, stairs):
        axes.set_xlabel(r"observation noise $\sigma^2$")
    others.set_xlabel(r"observation noise $\sigma^2$, fixed or initial")
    return figure


def _draw_map(axes: Axes, curves: Mapping[str, NDArray[Any]], latent_dim: int) -> None:
    sigma2, beta, live = curves["sigma2"], curves["beta"], curves["map"]
    colours = require("matplotlib", "experiments").colormaps["viridis"].resampled(latent_dim + 1)
    drawn = axes.pcolormesh(
        sigma2, beta, live, shading="nearest", cmap=colours, vmin=-0.5, vmax=latent_dim + 0.5, rasterized=True
    )
    for eigenvalue in curves["eigenvalues"][:latent_dim]:
        axes.plot(eigenvalue / np.array([beta[0], beta[-1]]), beta[[0, -1]], color="white", linewidth=0.7)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(sigma2[0], sigma2[-1])
    axes.set_ylim(beta[0], beta[-1])
    axes.grid(visible=False)
    axes.set_ylabel(r"KL weight $\beta$")
    axes.set_title(
        rf"Live latents of {latent_dim}; lines: $\beta\sigma^2 = \lambda_j$", loc="left", fontsize=10
    )
    cast("Figure", axes.get_figure()).colorbar(drawn, ax=axes, ticks=range(0, latent_dim + 1, 4), pad=0.02)


def _collapsed(live: NDArray[Any], latent_dim: int) -> NDArray[Any]:
    percent: NDArray[Any] = 100 * (1 - live / latent_dim)
    return percent


def _draw_stairs(axes: Axes, curves: Mapping[str, NDArray[Any]], index: int, **style: Any) -> None:
    """Draw the theory for one K: at each eigenvalue a step up."""
    latent_dim, sigma2 = int(curves["latent_dim"][index]), curves["sigma2"]
    eigenvalues = curves["eigenvalues"][:latent_dim][::-1]
    steps = eigenvalues[eigenvalues > sigma2[0]]
    live = np.arange(len(steps), -1, -1) + 0.0
    edges = np.concatenate([sigma2[:1], steps, sigma2[-1:]])
    axes.stairs(_collapsed(live, latent_dim), edges, linewidth=1.2, baseline=None, **style)


def _draw_measured(axes: Axes, curves: Mapping[str, NDArray[Any]], index: int, colour: str) -> None:
    """Draw each σ² as a dot, with the range of its seeds."""
    latent_dim, sigma2 = int(curves["latent_dim"][index]), curves["sigma2"]
    mean, least, most = (
        _collapsed(curves[name][index], latent_dim) for name in ("fixed", "fixed.most", "fixed.least")
    )
    axes.vlines(sigma2, least, most, color=colour, linewidth=1.2)
    axes.plot(sigma2, mean, "o", color=colour, markersize=4.5, markeredgecolor="white", markeredgewidth=0.6)


def _draw_others(axes: Axes, curves: Mapping[str, NDArray[Any]], latent_dim: int) -> None:
    """Draw models of one K with σ² learned, with annealing, and trained by samples."""
    hollow = {"markerfacecolor": "none"}
    for name, colour, marker, label, more in (
        ("half annealed", VERMILION, "o", r"annealing, $\beta$ at ½", hollow),
        ("annealed", VERMILION, "o", r"annealed, $\beta$ at 1", {}),
        ("stochastic", PURPLE, "x", "trained by samples", {"markersize": 7}),
        ("learned", GREEN, "s", r"$\sigma^2$ learned", {}),
    ):
        x = curves["stochastic_sigma2" if name == "stochastic" else "sigma2"]
        style: dict[str, Any] = {"linestyle": "none", "marker": marker, "markersize": 4.5, "color": colour}
        axes.plot(x, _collapsed(curves[name], latent_dim), **style | more, label=label)
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    axes.set_title(f"$K$ = {latent_dim}: annealed, by samples, learned", loc="left", fontsize=10)


PRESETS = {
    "quick": PhaseDiagramConfig(
        num_images=1797,
        latent_dims=(4, 16, 32),
        num_sigma2=20,
        num_beta=10,
        seeds=(0, 1, 2),
        num_stochastic=3,
        stochastic_steps=6000,
    ),
    "full": PhaseDiagramConfig(num_images=1797),
}

FIGURES = {"phase-diagram": plot}

PAPER = ""

HEADLINE = ()  # all
