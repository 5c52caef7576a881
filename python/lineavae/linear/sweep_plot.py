"""Phase diagrams of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lineavae._colours import BLUE, VERMILION
from lineavae._optional import make_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from xarray import DataArray, Dataset

    from lineavae.linear.sweep_result import Sweep

# Settings on which the number of latents that can live depends.
_OF_THEORY = ("sigma2", "beta", "latent_dim")

_LABELS = {
    "sigma2": r"observation noise $\sigma^2$",
    "beta": r"KL weight $\beta$",
    "annealing_steps": r"steps of annealing",
    "lr": "learning rate",
    "init_scale": "scale of the initial $W$ and $V$",
    "latent_dim": "latents $K$",
    "seed": "seed",
    "live": "live latents",
    "elbo": "ELBO (nats per sample)",
    "log_sigma2": r"$\log\,\sigma^2$ at the end",
    "alignment": r"mean $|\cos|$ with principal directions",
    "gradient_norm": "norm of the gradient",
    "steps_taken": "steps taken",
}

# Points along an axis of the theory, which is drawn finer than the grid.
_FINE = 600


def plot_phase(sweep: Sweep, x: str, y: str | None, value: str, point: Mapping[str, float]) -> Figure:
    """Draw what `Sweep.plot_phase` says."""
    drawn = [x] if y is None else [x, y]
    for name in drawn:
        if name not in sweep.axes or name in point:
            raise ValueError(f"Sweep.plot_phase: x and y must be axes, {', '.join(sweep.axes)}, got {name!r}")
    if len(set(drawn)) < len(drawn):
        raise ValueError(f"Sweep.plot_phase: x and y must be different axes, got {x!r} twice")
    found = sweep._select("plot_phase", point)
    found = found.isel(step=-1)
    of_one = [str(name) for name, values in found.data_vars.items() if set(sweep.axes) >= set(values.dims)]
    if value not in of_one:
        raise ValueError(f"Sweep.plot_phase: value must be one of {', '.join(of_one)}, got {value!r}")
    others = [str(dim) for dim in found[value].dims if dim not in drawn]
    mean = found[value].mean(others)
    is_fixed = not sweep.dataset.attrs["learn_sigma2"]
    has_theory = is_fixed and not any(name in others for name in _OF_THEORY)

    figure = make_figure(figsize=(6.4, 4.2))
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    if y is None:
        _draw_dots(axes, found, x, value, mean, has_theory and value == "live")
    else:
        _draw_map(axes, found, x, y, value, mean.transpose(y, x), has_theory)
    axes.set_xlabel(_LABELS[x])
    _set_scale(axes.set_xscale, found[x].values)
    words = [f"{found.step.item()} steps"]
    words += [f"{name} = {number:g}" for name, number in point.items()]
    if others:
        words.append(f"mean over {', '.join(f'{found.sizes[name]} of {name}' for name in others)}")
    figure.supxlabel("; ".join(words), x=0.01, ha="left", fontsize=8, color="0.35")
    return figure


def _draw_dots(axes: Axes, found: Dataset, x: str, value: str, mean: DataArray, has_theory: bool) -> None:
    if has_theory:
        fine = _between(found[x].values)
        axes.plot(fine, _theory(found, {x: fine}), color=VERMILION, linewidth=1.6, label="theory")
    axes.plot(
        mean[x],
        mean,
        "o",
        color=BLUE,
        markersize=4.5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        label="measured",
    )
    axes.set_ylabel(_LABELS.get(value, value))
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    if has_theory:
        axes.legend(frameon=False, fontsize=9)


def _draw_map(
    axes: Axes, found: Dataset, x: str, y: str, value: str, mean: DataArray, has_theory: bool
) -> None:
    _set_scale(axes.set_yscale, found[y].values)
    order = mean.sortby([x, y])
    edges = {name: _edges(order[name].values) for name in (x, y)}
    colours = axes.pcolormesh(edges[x], edges[y], order, cmap="viridis", rasterized=True)
    axes.figure.colorbar(colours, label=_LABELS.get(value, value))
    axes.set_ylabel(_LABELS[y])
    if has_theory and {x, y} & set(_OF_THEORY):
        horizontal, vertical = np.meshgrid(_between(edges[x]), _between(edges[y]))
        settings = {x: horizontal, y: vertical}
        if "latent_dim" in settings:  # there is no K between two rows of the map
            row = np.searchsorted(edges["latent_dim"][1:-1], settings["latent_dim"])
            settings["latent_dim"] = order.latent_dim.values[row]
        theory = _theory(found, settings)
        levels = np.unique(theory)[:-1] + 0.5
        axes.contour(horizontal, vertical, theory, levels, colors="white", linewidths=0.9)


def _edges(values: NDArray[Any]) -> NDArray[Any]:
    """Give the edges of cells around ascending values, on the scale of the axis."""
    is_logarithmic = _is_logarithmic(values)
    places = np.log(values) if is_logarithmic else values.astype(float)
    half = np.diff(places) / 2 if len(places) > 1 else np.array([0.5])
    edges = np.concatenate([places - np.append(half[0], half)[: len(places)], places[-1:] + half[-1]])
    result: NDArray[Any] = np.exp(edges) if is_logarithmic else edges
    return result


def _theory(found: Dataset, settings: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Latents that can live, where these settings are as given and the others as in the dataset."""
    sigma2, beta, latent_dim = (settings.get(name, found[name].values) for name in _OF_THEORY)
    above = found.eigenvalues.values > np.expand_dims(np.asarray(beta * sigma2), -1)
    live: NDArray[Any] = np.minimum(above.sum(-1), latent_dim)
    return live


def _between(values: NDArray[Any]) -> NDArray[Any]:
    make = np.geomspace if _is_logarithmic(values) else np.linspace
    fine: NDArray[Any] = make(values.min(), values.max(), _FINE)
    return fine


def _is_logarithmic(values: NDArray[Any]) -> bool:
    return bool(values.min() > 0 and values.max() > 20 * values.min())


def _set_scale(set_scale: Any, values: NDArray[Any]) -> None:
    if _is_logarithmic(values):
        set_scale("log")
