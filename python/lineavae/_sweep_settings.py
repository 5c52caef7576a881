"""What may stand on the axes of a sweep: the command line names it without loading torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """What may stand on an axis: its meaning, the numbers that it takes, and its value without an axis."""

    meaning: str
    default: float | None
    minimum: int | None = None
    bounds: Mapping[str, float] | None = None

    @property
    def is_integer(self) -> bool:
        """Whether its values are whole numbers."""
        return self.minimum is not None


SETTINGS = {
    "sigma2": Setting("observation noise σ², fixed or initial", 1.0, bounds={"above": 0}),
    "beta": Setting("weight β of the KL term", 1.0, bounds={"at_least": 0}),
    "annealing_steps": Setting("steps over which β rises from 0, in a straight line", 0, 0),
    "lr": Setting("step size", 1e-3, bounds={"above": 0}),
    "init_scale": Setting("factor of the initial W and V", 1.0, bounds={"above": 0}),
    "latent_dim": Setting("latents K", None, 1),
    "seed": Setting("seed of the initial parameters", 0, 0),
}
