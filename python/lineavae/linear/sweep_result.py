"""What a sweep gives: statistics of each model by its settings, and the theory beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lineavae._arguments import check_number
from lineavae._optional import require
from lineavae._sweep_settings import SETTINGS
from lineavae._tensor_file import read_tensors, write_tensors
from lineavae.linear import sweep_plot
from lineavae.linear.parameters import LinearParameters
from lineavae.linear.vae import LinearVAE
from lineavae.reference.linear_vae_ascent import num_parameters, split_parameters

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from xarray import DataArray, Dataset

_KIND = "Sweep"


@dataclass(frozen=True, eq=False)
class Sweep:
    """The models of `sweep`, by their settings.

    Attributes
    ----------
    dataset : xarray.Dataset
        A dimension for each axis of the grid, by its name, with the other settings as coordinates, and the
        dimension ``step``. The variables are the statistics that were asked for, float64, ``kl`` with the
        dimension ``latent`` and ``gap`` with ``part``; and

        - ``steps_taken``: all steps, or those up to the first whose gradient was below the tolerance, int64;
        - ``gradient_norm``: norm of the gradient of the last step taken;
        - ``diverged``: 1 where a parameter is infinite or NaN in the end, int64;
        - ``eigenvalues`` of the covariance of the data, descending, (D,), and their ``sample_mean``, (D,).

        A statistic is NaN where a model has none, and of a model that diverged.

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import Moments, sweep
    >>> x = torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0]))
    >>> moments = Moments.from_data(torch.cat([x, -x]))
    >>> grid = {"sigma2": [0.5, 8.0], "latent_dim": 2, "lr": 0.01}
    >>> found = sweep(moments, grid, steps=1500, learn_sigma2=False, progress=False)
    >>> found
    Sweep(sigma2=2: elbo, live, log_sigma2)
    >>> found.to_dataframe()[["sigma2", "step", "live"]]
       sigma2  step  live
    0     0.5  1500   2.0
    1     8.0  1500   1.0
    """

    dataset: Dataset

    def __repr__(self) -> str:
        axes = ", ".join(f"{name}={self.dataset.sizes[name]}" for name in self.axes)
        return f"Sweep({axes}: {', '.join(self.statistics)})"

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes, in the order of the grid."""
        return tuple(map(str, self.dataset.steps_taken.dims))

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of what was recorded."""
        return tuple(str(name) for name, values in self.dataset.data_vars.items() if "step" in values.dims)

    @property
    def num_models(self) -> int:
        """Number of models."""
        return int(self.dataset.steps_taken.size)

    @property
    def num_diverged(self) -> int:
        """Number of models of which a parameter became infinite or NaN."""
        return int(self.dataset.diverged.sum())

    def theory(self) -> DataArray:
        """Latents that can live, min(K, #{λ_j > βσ²}), where σ² is held fixed: over the axes it depends on.

        Raises
        ------
        ValueError
            σ² was learned: it has no value on the grid.
        """
        return (self._excess() > 0).sum("component").rename("theory")

    def distance(self) -> DataArray:
        """How far βσ² is from the nearest of the first K eigenvalues: the smallest abs(λ_j / βσ² - 1).

        The closer, the slower is the training: a latent lives or dies at a rate of λ_j - βσ².
        """
        return abs(self._excess()).min("component").rename("distance")

    def _excess(self) -> DataArray:
        """Give λ_j / βσ² - 1 for the first K eigenvalues."""
        if self.dataset.attrs["learn_sigma2"]:
            raise ValueError("Sweep.theory: σ² must have been held fixed, got a learned one")
        dataset, xarray = self.dataset, require("xarray", "dataframe")
        component = xarray.DataArray(np.arange(dataset.sizes["component"]), dims="component")
        with np.errstate(divide="ignore", invalid="ignore"):  # at β = 0 all lie above that are not 0
            excess = dataset.eigenvalues / (dataset.beta * dataset.sigma2) - 1
        of_latents: DataArray = excess.where(component < dataset.latent_dim)
        return of_latents

    def model(self, **point: float) -> LinearVAE:
        """Give the trained model at a point of the grid, of which every axis has to be given.

        Raises
        ------
        ValueError
            An axis is missing or unknown, there is no such point, or the sweep did not keep its models.
        """
        if "parameters" not in self.dataset:
            raise ValueError("Sweep.model: sweep must be called with keep_models=True to keep its models")
        if point.keys() != set(self.axes):
            raise ValueError(
                f"Sweep.model: point must have {', '.join(self.axes)}, got {', '.join(point) or 'none'}"
            )
        found = self._select("model", point)
        latent_dim, num_features = int(found.latent_dim), found.attrs["num_features"]
        size = num_parameters(num_features, latent_dim)
        flat = torch.from_numpy(found.parameters.values[:size].copy()).unsqueeze(0)
        weight, encoder_t, log_d, log_sigma2 = split_parameters(flat, num_features)
        mu = weight.new_tensor(found.sample_mean.values)
        return LinearVAE.from_parameters(
            LinearParameters(weight[0], encoder_t[0].mT, mu, log_d[0], log_sigma2[0])
        )

    def _select(self, caller: str, point: Mapping[str, float]) -> Dataset:
        """Give the part of the dataset with these values on these axes."""
        places = {}
        for name, value in point.items():
            if name not in self.axes:
                raise ValueError(f"Sweep.{caller}: {name} must be an axis, {', '.join(self.axes)}")
            values = self.dataset[name].values
            value = check_number(f"Sweep.{caller}", name, value)
            place = int(abs(values - value).argmin())
            found = values[place].item()
            if found != value if SETTINGS[name].is_integer else not math.isclose(found, value, rel_tol=1e-9):
                raise ValueError(
                    f"Sweep.{caller}: {name} must be one of its {len(values)} values from {values.min()} "
                    f"to {values.max()}, got {value}"
                )
            places[name] = place
        return self.dataset.isel(places)

    def plot_phase(self, x: str, y: str | None = None, value: str = "live", **point: float) -> Figure:
        """Draw a phase diagram: a statistic over two axes, or over one, with the theory on top.

        The statistic is that of the last step recorded, and a mean over all axes that are neither drawn nor
        given, as the seeds. Over two axes, where σ² was held fixed, lines are where a latent comes to live by
        the theory, at βσ² = λ_j. Over one axis the number of live latents is drawn with the staircase of the
        theory, #{λ_j > βσ²} of the K latents.

        Parameters
        ----------
        x, y
            Names of axes.
        value
            A statistic with one number for each model, ``"steps_taken"`` or ``"gradient_norm"``.
        **point
            Values of other axes at which to draw. σ², β and K must be among them, or be drawn, for a theory.

        Raises
        ------
        ValueError
            A name is not one of those, or there is no such value on an axis.
        ModuleNotFoundError
            matplotlib is not installed.
        """
        return sweep_plot.plot_phase(self, x, y, value, point)

    def to_dataframe(self) -> DataFrame:
        """Give settings and statistics as a pandas DataFrame, a row for each model and step recorded.

        The KL of latent 0 is the column ``kl_0``, the part of the gap that is the encoder's ``gap_encoder``.
        Where σ² was held fixed, ``theory`` and ``distance`` are those of the methods.
        """
        columns = {}
        for name in self.statistics:
            values = self.dataset[name]
            if values.dims[-1] == "step":
                columns[name] = values
                continue
            labels = values.part.values if name == "gap" else range(values.sizes["latent"])
            columns |= {f"{name}_{label}": values[..., place] for place, label in enumerate(labels)}
        columns |= {name: self.dataset[name] for name in ("steps_taken", "gradient_norm")}
        if not self.dataset.attrs["learn_sigma2"]:
            columns |= {"theory": self.theory(), "distance": self.distance()}
        settings = {name: self.dataset[name] for name in SETTINGS if name not in self.axes}
        xarray = require("xarray", "dataframe")
        table = xarray.Dataset({name: values.variable for name, values in (settings | columns).items()})
        table = table.assign_coords({name: self.dataset[name].variable for name in (*self.axes, "step")})
        frame: DataFrame = table.to_dataframe(dim_order=[*self.axes, "step"]).reset_index()
        return frame[[*self.axes, *settings, "step", *columns]]

    def save(self, path: str | Path) -> None:
        """Write the sweep to a safetensors file, atomically; `load` gives it back to the bit."""
        tensors, texts, dims = {}, {}, {}
        for name, values in self.dataset.variables.items():
            dims[str(name)] = list(map(str, values.dims))
            if values.dtype.kind in "OUT":
                texts[str(name)] = values.values.tolist()
            else:
                tensors[str(name)] = torch.from_numpy(np.array(values.values))
        layout = {"dims": dims, "texts": texts, "attrs": self.dataset.attrs}
        write_tensors(
            Path(path),
            _KIND,
            tensors,
            coordinates=json.dumps(list(map(str, self.dataset.coords))),
            layout=json.dumps(layout),
        )

    @classmethod
    def load(cls, path: str | Path) -> Sweep:
        """Read a sweep that `save` wrote.

        Raises
        ------
        OSError
            The file cannot be read: there is none, or it is a folder.
        ValueError
            The file is not such a file, or it is damaged.
        """
        tensors, metadata = read_tensors("Sweep.load", Path(path), _KIND, "coordinates", "layout")
        xarray = require("xarray", "dataframe")
        try:
            layout, coordinates = json.loads(metadata["layout"]), json.loads(metadata["coordinates"])
            values: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
            values |= layout["texts"]
            variables = {name: (dims, values[name]) for name, dims in layout["dims"].items()}
            coords = {name: variables.pop(name) for name in coordinates}
            found = cls(xarray.Dataset(variables, coords, layout["attrs"]))
            found.axes  # noqa: B018
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"Sweep.load: {path} must hold a sweep ({error})") from error
        return found
