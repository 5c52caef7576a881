"""Figure 1: the likelihood around a stationary point of probabilistic PCA under three noises.

W holds three principal components; two more columns are zero. They are perturbed along two further
components. A noise above both eigenvalues makes the zero columns stay zero, for good; under a smaller noise
the likelihood rises along the components whose eigenvalue is above it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from lineavae._colours import BLACK
from lineavae.experiments.figures import make_panels, setting
from lineavae.experiments.runs import NATS, Claim, Config, Quantity, Results, claim, quantity
from lineavae.linear import Landscape, Moments, Stability, StationaryPoint, landscape, stability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# How many of the two components each noise lets the model capture, by the caption of the paper's figure.
_PUBLISHED_CAPTURED = (0.0, 1.0, 2.0)

# The first and the second zero column move along the axes of a plane.
_AXES = {
    "sigma2": ("panel",),
    "coordinates": ("panel", "first"),
    "log_likelihood": ("panel", "first", "second"),
    "elbo": ("panel", "first", "second"),
    "curvature": ("panel", "column", "component"),
    "index": ("panel",),
    "is_maximum": ("panel",),
}

# The planes reach this many times as far as the highest point that any of them has.
_MARGIN = 1.4


@dataclass(frozen=True, kw_only=True)
class StationaryPointsConfig(Config):
    """The stationary point, the noises and the plane; components are counted from 1, the leading one.

    Attributes
    ----------
    kept
        Components that W holds.
    directions
        The two components along which a zero column each is perturbed.
    noise_components
        Components whose eigenvalues are the noises, one for each panel, from the largest noise.
    grid
        Values of each coordinate; odd, so that the point itself is among them.
    """

    takes_samples: ClassVar[bool] = True

    kept: tuple[int, ...] = (1, 2, 3)
    directions: tuple[int, int] = (5, 7)
    noise_components: tuple[int, int, int] = (4, 6, 8)
    grid: int = 121

    @property
    def min_features(self) -> int:
        """Dimensions D that the data must have."""
        return max(*self.kept, *self.directions, *self.noise_components)


def run(config: StationaryPointsConfig, run_dir: Path) -> Results:
    """Evaluate the plane and the verdict under each noise."""
    moments = Moments.from_data(config.samples.to_tensor(torch.float64))
    kept = [component - 1 for component in config.kept]
    directions = [component - 1 for component in config.directions]
    first_empty = len(kept)
    eigenvalues, _ = moments.eigh()
    noises = [eigenvalues[component - 1].item() for component in config.noise_components]
    farthest = math.sqrt(eigenvalues[min(directions)].item() - min(noises))
    quantities: dict[str, Quantity] = {}
    planes: list[Landscape] = []
    verdicts: list[Stability] = []
    point = StationaryPoint(moments, kept, latent_dim=first_empty + 2, sigma2=noises[0])
    for component, sigma2, published in zip(
        config.noise_components, noises, _PUBLISHED_CAPTURED, strict=True
    ):
        point = point.with_sigma2(sigma2)
        changes = tuple(point.perturbation(first_empty + i, j) for i, j in enumerate(directions))
        plane = landscape(point, (changes[0], changes[1]), _MARGIN * farthest, config.grid)
        verdict = stability(point)
        rises = [bool(verdict.curvature[first_empty + i, j] > 0) for i, j in enumerate(directions)]
        name = f"σ² = λ{component}"
        quantities[name] = quantity(sigma2, "variance of a pixel")
        quantities[f"{name}: components captured"] = quantity(sum(rises), "of 2", published, 0.0)
        for i, j in enumerate(directions):
            curvature = verdict.curvature[first_empty + i, j].item()
            quantities[f"{name}: curvature along u{j + 1}"] = quantity(curvature, NATS)
        gain = plane.log_likelihood.max().item() - point.log_likelihood
        quantities[f"{name}: highest above the point"] = quantity(gain, NATS)
        quantities[f"{name}: directions of ascent"] = quantity(verdict.index, f"of {changes[0].numel()}")
        planes.append(plane)
        verdicts.append(verdict)
    deviation = max((plane.log_likelihood - plane.elbo).abs().max().item() for plane in planes)
    quantities["largest deviation of the ELBO"] = quantity(deviation, NATS)
    curves = {
        "sigma2": np.array(noises),
        "coordinates": torch.stack([plane.coordinates for plane in planes]).cpu().numpy(),
        "log_likelihood": torch.stack([plane.log_likelihood for plane in planes]).cpu().numpy(),
        "elbo": torch.stack([plane.elbo for plane in planes]).cpu().numpy(),
        "curvature": torch.stack([verdict.curvature for verdict in verdicts]).cpu().numpy(),
        "index": np.array([verdict.index for verdict in verdicts]),
        "is_maximum": np.array([verdict.kind == "maximum" for verdict in verdicts]),
    }
    return config.results(quantities, curves, claims=[_claim(config, quantities, verdicts)], axes=_AXES)


def _claim(
    config: StationaryPointsConfig, quantities: dict[str, Quantity], verdicts: list[Stability]
) -> Claim:
    names = [f"σ² = λ{component}" for component in config.noise_components]
    captured = [quantities[f"{name}: components captured"]["measured"] for name in names]
    return claim(
        "σ² decides on the stability of a stationary point: where it is too large for a component, a zero "
        "column does not rise along it",
        "Section 4.1, Figure 1",
        tuple(captured) == _PUBLISHED_CAPTURED and verdicts[0].kind == "maximum",
        "; ".join(
            f"{name}: rises along {number:.0f} of 2, a {verdict.kind} over all directions"
            for name, number, verdict in zip(names, captured, verdicts, strict=True)
        ),
    )


def plot(results: Results) -> Figure:
    """Draw the likelihood over the plane under each noise, the largest noise on the left."""
    config, curves, quantities = results["config"], results["curves"], results["quantities"]
    first, second = config["directions"]
    kept = ", ".join(f"u_{component}" for component in config["kept"])
    captured = [
        f"{quantities[f'σ² = λ{component}: components captured']['measured']:g}"
        for component in config["noise_components"]
    ]
    figure, panels = make_panels(
        f"As the noise gets smaller, the likelihood rises along {', '.join(captured[:-1])} and "
        f"{captured[-1]} of two components",
        len(captured),
        setting(results, f"Probabilistic PCA around $W$ = (${kept}$, 0, 0), the cross; black: as high"),
        panel_width=3.5,
    )
    middle = curves["coordinates"].shape[1] // 2
    relative = curves["log_likelihood"] - curves["log_likelihood"][:, middle, middle, None, None]
    # what is far below the point is all of one colour, so that the little that is above it is seen
    span = relative.max() or -relative.min()
    for index, (axes, component) in enumerate(zip(panels, config["noise_components"], strict=True)):
        x, y = curves["coordinates"][index], curves["coordinates"][index]
        mesh = axes.pcolormesh(
            x, y, relative[index].T, cmap="RdBu_r", vmin=-span, vmax=span, shading="gouraud", rasterized=True
        )
        levels = span * np.arange(-20, 4) / 4
        axes.contour(x, y, relative[index].T, levels, colors="0.35", linewidths=0.3, linestyles="solid")
        axes.contour(x, y, relative[index].T, levels=[0], colors=BLACK, linewidths=1)
        axes.plot(0, 0, color=BLACK, marker="+", markersize=9, markeredgewidth=1.5)
        axes.set_title(
            rf"$\sigma^2 = \lambda_{component}$ = {curves['sigma2'][index]:.2f}: "
            f"{_verdict(curves, config, index)}",
            loc="left",
            fontsize=9,
        )
        axes.set_aspect("equal")
        axes.grid(visible=False)
        axes.set_xlabel(f"first zero column, along $u_{first}$")
        axes.set_ylabel(f"second zero column, along $u_{second}$")
    bar = figure.colorbar(mesh, ax=panels, shrink=0.85, extend="min")
    bar.set_label(f"log-likelihood above the point\n({NATS})", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def _verdict(curves: dict[str, Any], config: dict[str, Any], index: int) -> str:
    """Say what the panel shows, and what the point is in all directions together."""
    first_empty = len(config["kept"])
    rises = [
        f"$u_{component}$"
        for column, component in enumerate(config["directions"], first_empty)
        if curves["curvature"][index, column, component - 1] > 0
    ]
    shown = f"rises along {' and '.join(rises)}" if rises else "rises along neither"
    if curves["is_maximum"][index] == 1:
        return f"{shown};\na maximum over all directions"
    return f"{shown};\na saddle with {curves['index'][index]:g} directions of ascent in all"


PRESETS = {
    "quick": StationaryPointsConfig(),
    "full": StationaryPointsConfig(grid=241),
}

FIGURES = {"figure-1": plot}

PAPER = "In the paper: the noise is too large for either component, for one of them, for none."

HEADLINE = tuple(
    f"σ² = λ{component}{subject}"
    for component in StationaryPointsConfig.noise_components
    for subject in ("", ": components captured", ": directions of ascent")
)
