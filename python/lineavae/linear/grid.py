"""The grid of a sweep: named axes of settings, of which each combination is a model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lineavae._arguments import check_integer, check_number
from lineavae._sweep_settings import SETTINGS, Setting

CALLER = "sweep"

_LARGEST = 2**63


@dataclass(frozen=True)
class Grid:
    """Checked settings: those on axes, in the order of the axes, and those with one value for all models."""

    axes: dict[str, NDArray[Any]]
    fixed: dict[str, float]

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return tuple(map(len, self.axes.values()))

    @property
    def num_models(self) -> int:
        """How many models there are."""
        return math.prod(self.shape)

    @property
    def latent_dims(self) -> list[int]:
        """All K, ascending."""
        if "latent_dim" in self.axes:
            return sorted(self.axes["latent_dim"].tolist())
        return [int(self.fixed["latent_dim"])]

    def of(self, models: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Give the settings of models by their numbers, which count with the last axis fastest."""
        places = np.unravel_index(models, self.shape) if self.axes else ()
        on_axes = {name: axis[place] for (name, axis), place in zip(self.axes.items(), places, strict=True)}
        return {name: on_axes.get(name, np.full(len(models), self.fixed.get(name))) for name in SETTINGS}

    def chunks(self, most: Mapping[int, int]) -> Iterator[NDArray[np.int64]]:
        """Cut the models into chunks of one K each, of at most so many models for each K."""
        every = np.arange(self.num_models)
        latent_dims = self.of(every)["latent_dim"]
        for latent_dim in self.latent_dims:
            models = every[latent_dims == latent_dim]
            for start in range(0, len(models), most[latent_dim]):
                yield models[start : start + most[latent_dim]]


def read_grid(
    grid: Mapping[str, Any] | Sequence[tuple[str, Any]], num_features: int, most_models: int
) -> Grid:
    """Check a grid, before anything as long as it is made."""
    given = list(grid.items()) if isinstance(grid, Mapping) else grid
    if not isinstance(given, Sequence) or not all(
        isinstance(pair, Sequence) and len(pair) == 2 for pair in given
    ):
        raise TypeError(f"{CALLER}: grid must be a mapping, or pairs of a name and values, got {grid!r}")
    names = [name for name, _ in given]
    for name in names:
        if name not in SETTINGS:
            raise ValueError(f"{CALLER}: grid must have axes among {', '.join(SETTINGS)}, got {name!r}")
        if names.count(name) > 1:
            raise ValueError(f"{CALLER}: grid must have each axis once, got {name!r} more often")
    if "latent_dim" not in names:
        raise ValueError(f"{CALLER}: grid must have latent_dim, the latents K, got {', '.join(names)}")
    lengths = {name: _length(name, values) for name, values in given}
    num_models = math.prod(length for length in lengths.values() if length is not None)
    if num_models > most_models:
        sizes = " × ".join(str(length) for length in lengths.values() if length is not None)
        raise ValueError(
            f"{CALLER}: grid must have at most {most_models} models for their results to fit in memory, "
            f"got {sizes} = {num_models:.4g}"
        )
    axes, fixed = {}, {name: setting.default for name, setting in SETTINGS.items()}
    for name, values in given:
        setting = SETTINGS[name]
        if lengths[name] is None:
            fixed[name] = _check(setting, name, _number(values))
            continue
        fixed.pop(name)
        checked = [_check(setting, name, _number(value)) for value in values]
        axes[name] = np.array(checked, np.int64 if setting.is_integer else np.float64)
        if len(set(checked)) < len(checked):
            twice = next(value for value in checked if checked.count(value) > 1)
            raise ValueError(f"{CALLER}: {name} must have each value once, got {twice} twice")
    found = Grid(axes, {name: value for name, value in fixed.items() if value is not None})
    if found.latent_dims[-1] > num_features:
        raise ValueError(
            f"{CALLER}: latent_dim must be at most the {num_features} features of the data, "
            f"got {found.latent_dims[-1]}"
        )
    return found


def _length(name: str, values: Any) -> int | None:
    """Give the number of values of an axis, None for a setting that is none."""
    if isinstance(values, Number) or (isinstance(values, np.ndarray | Tensor) and not values.ndim):
        return None
    if isinstance(values, np.ndarray | Tensor):
        if values.ndim > 1:
            raise ValueError(f"{CALLER}: {name} must have shape (n,), got {tuple(values.shape)}")
    elif isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"{CALLER}: {name} must be a number or several, got {type(values).__name__}")
    if not len(values):
        raise ValueError(f"{CALLER}: {name} must have at least one value, got none")
    return len(values)


def _number(value: Any) -> Any:
    """Give an entry of an array, or a tensor of one number, as Python's."""
    return value.item() if isinstance(value, np.ndarray | np.generic | Tensor) else value


def _check(setting: Setting, name: str, value: Any) -> float:
    """Give a value of a setting as a number of Python's."""
    if setting.minimum is not None:
        whole = check_integer(CALLER, name, value, setting.minimum)
        if whole >= _LARGEST:
            raise ValueError(f"{CALLER}: {name} must be below 2**63, got {whole}")
        return whole
    return check_number(CALLER, name, value, **(setting.bounds or {}))
