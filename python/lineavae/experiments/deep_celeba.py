"""Tables 3 and 5, Figures 9 to 13: deep convolutional VAEs on CelebA, on logits and on pixels.

Images are 64 x 64 pixels in colour. The reconstructions and the interpolation plane are those of the model
with σ² learned and the KL annealed, from the initial σ² that ended with the best ELBO.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from lineavae.experiments import deep_mnist
from lineavae.experiments.collapse_curves import draw_curves, plot_fixed, plot_learned
from lineavae.experiments.deep_claims import claims_on_noise, collapse_at, elbo, final_sigma2
from lineavae.experiments.deep_tables import axes_of, curves_of, describe, forecasts, rows_of, table
from lineavae.experiments.deep_vae import DeepData, chunks_of, grey_levels, models_of, prepare, train
from lineavae.experiments.figures import make_panels, setting
from lineavae.experiments.kl_annealing import KLAnnealingConfig, claim_on_learned_noise
from lineavae.experiments.published import TABLE_1_CELEBA, TABLE_3, TABLE_5
from lineavae.experiments.runs import NATS, Results, quantity
from lineavae.nn import GaussianVAE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NUM_RECONSTRUCTED = 8
_PLANE = np.linspace(0, 1, 7)


@dataclass(frozen=True, kw_only=True)
class DeepCelebAConfig(KLAnnealingConfig):
    """The models, their training and its annealing; ``logits`` is of the figures, the tables have both."""

    published_data: ClassVar[tuple[str, ...]] = ("CelebA",)


def run(config: DeepCelebAConfig, run_dir: Path) -> Results:
    """Train on logits, with annealing too, and on pixels; make the tables, curves and pictures."""
    data = prepare(config)
    plain = chunks_of(config)
    annealed = [
        replace(chunk, annealing_epochs=config.annealing_epochs) for chunk in chunks_of(config, ("learned",))
    ]
    outcomes = train(config, plain + annealed, data, run_dir)
    rows, rows_annealed = rows_of(config, outcomes[: len(plain)]), rows_of(config, outcomes[len(plain) :])
    curves: dict[str, NDArray[Any]] = {**curves_of(rows)}
    for row in rows_annealed.values():
        curves[f"{row.label}, annealed"] = row.curves[:, :, -1]
    best = max(rows_annealed.values(), key=lambda row: row.mean(elbo))
    chunk = next(
        chunk
        for chunk in annealed
        if chunk.learning_rate == best.learning_rate and best.sigma2 in chunk.sigma2
    )
    vae = models_of(config, chunk, data, run_dir)[chunk.sigma2.index(best.sigma2)]
    curves |= _pictures(config, data, vae)

    of_pixels = replace(config, logits=False)
    pixels = prepare(of_pixels)
    rows_of_pixels = rows_of(of_pixels, train(of_pixels, chunks_of(of_pixels), pixels, run_dir))
    of_table_1 = {key: row for key, row in rows.items() if key in TABLE_1_CELEBA}
    forecast = forecasts(config, data)
    tables = {
        "table-1": table("Table 1, CelebA", config, of_table_1, TABLE_1_CELEBA, forecast),
        "table-3": table("Table 3", config, rows, TABLE_3, forecast),
        "table-5": table("Table 5", config, rows_of_pixels, TABLE_5, forecasts(of_pixels, pixels)),
    }
    quantities = {"steps": quantity(config.steps, "1")}
    for name, of in (("", rows), (", annealed", rows_annealed), (", pixels", rows_of_pixels)):
        for row in of.values():
            quantities[f"{row.label}{name}: ELBO"] = row.quantity(elbo, NATS)
            quantities[f"{row.label}{name}: final σ²"] = row.quantity(final_sigma2, "1")
            quantities[f"{row.label}{name}: collapse, ε = 0.1"] = row.quantity(collapse_at(0.1), "%")
    claims = [
        *claims_on_noise(config, rows),
        claim_on_learned_noise(config, rows_annealed, rows, "Appendix E.1.1, Figure 9"),
    ]
    return config.results(quantities, curves, tables, claims, axes_of(curves))


@torch.no_grad()
def _pictures(config: DeepCelebAConfig, data: DeepData, vae: GaussianVAE) -> dict[str, NDArray[np.uint8]]:
    """Give images with their reconstructions, and the decoded plane through three posterior means."""
    x = data.x[:_NUM_RECONSTRUCTED]
    mean, _ = vae.encode(x)
    start, right, down = mean[:3]
    plane = [start + s * (right - start) + t * (down - start) for t in _PLANE for s in _PLANE]
    shown = {"images": x, "reconstructions": vae.decode(mean), "plane": vae.decode(torch.stack(plane))}
    return {name: grey_levels(config, data, images) for name, images in shown.items()}


def plot_annealing(results: Results) -> Figure:
    """Draw collapse against ε where σ² is learned, annealed and not."""
    config, quantities = results["config"], results["quantities"]
    first = f"learned {config['sigma2'][0]:g}"
    annealed, plain = (
        f"{quantities[f'{first}{suffix}: collapse, ε = 0.1']['measured']:.0f}"
        for suffix in (", annealed", "")
    )
    figure, panels = make_panels(
        f"With σ² learned from {config['sigma2'][0]:g}, {annealed} of the latents end within 0.1 nats of "
        f"the prior after annealing, {plain} without",
        2,
        setting(results, describe(results)),
    )
    for axes, suffix, how in zip(panels, (", annealed", ""), ("annealed", "not annealed"), strict=True):
        lines = {}
        for sigma2 in config["sigma2"]:
            name = f"learned {sigma2:g}{suffix}"
            final = results["quantities"][f"{name}: final σ²"]["measured"]
            lines[sigma2] = (name, rf"$\sigma^2$ = {sigma2:g} to {final:.3g}")
        draw_curves(axes, results, lines)
        axes.set_title(how, loc="left", fontsize=9)
    return figure


def plot_reconstructions(results: Results) -> Figure:
    """Draw images above their reconstructions."""
    curves = results["curves"]
    return _grid("Images, and their reconstructions below", curves["images"], curves["reconstructions"])


def plot_plane(results: Results) -> Figure:
    """Draw what the plane through three posterior means decodes to; the fourth corner is extrapolated."""
    plane = results["curves"]["plane"]
    rows = plane.reshape(len(_PLANE), len(_PLANE), *plane.shape[1:])
    return _grid("The plane through three images: top left, top right, bottom left", *rows)


def _grid(title: str, *rows: NDArray[np.uint8]) -> Figure:
    """Draw rows of images, (C, H, W) each, without axes."""
    figure, (axes,) = make_panels(title, 1)
    tiles = np.concatenate([np.concatenate(list(row), axis=2) for row in rows], axis=1)
    axes.imshow(np.moveaxis(tiles, 0, -1).squeeze(), cmap="gray", interpolation="nearest")
    axes.set_axis_off()
    return figure


PRESETS = {
    # a training of this size is for a GPU: this is what two cores can do, and shows that all works
    "quick": DeepCelebAConfig(
        num_images=1000,
        logits=True,
        sigma2=(10.0, 1.0, 0.1),
        seeds=(0,),
        latent_dim=500,
        hidden=None,
        epochs=10,
        batch_size=100,
        learning_rates=(1e-3,),
        standardise=False,
        record_every=4,
        annealing_epochs=5,
        snapshot_epoch=4,
    ),
    "full": DeepCelebAConfig(
        num_images=200_000,
        logits=True,
        sigma2=deep_mnist.PRESETS["full"].sigma2,
        seeds=(0, 1, 2, 3, 4),
        latent_dim=500,
        hidden=None,
        epochs=1000,
        batch_size=500,
        learning_rates=(1e-4, 3e-4, 1e-3, 3e-3),
        standardise=False,
        annealing_epochs=100,
        snapshot_epoch=80,
    ),
}

FIGURES = {
    "figure-9": plot_annealing,
    "figure-10": plot_fixed,
    "figure-11": plot_learned,
    "figure-12": plot_reconstructions,
    "figure-13": plot_plane,
}

PAPER = "In the paper: the largest σ² leave 6 to 20 % of the latents alive, and learning it helps."

HEADLINE = ()
