"""The paper's figures, one module each, and the directories that their runs leave.

Examples
--------
>>> from lineavae.experiments import EXPERIMENTS
>>> for name in EXPERIMENTS:
...     print(name)
stationary-points
latent-dimensions
analytic-vs-stochastic
nonlinear-encoders
theorem-1
bernoulli-ppca
"""

from __future__ import annotations

from collections import UserDict
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lineavae.experiments.runs import (
    Config,
    Experiment,
    Quantity,
    Results,
    Run,
    RunDirectoryError,
    RunWriteError,
)

if TYPE_CHECKING:
    from lineavae.experiments.directories import execute, load_results


class _Experiments(UserDict[str, Experiment]):
    """Experiments by name; until one is asked for, its figure alone, since its module needs torch.

    The module has PRESETS, run, plot, PAPER and HEADLINE, as `Experiment` explains them.
    """

    data: dict[str, Any]

    def __init__(self, figures: dict[str, str]) -> None:
        super().__init__()
        self.data.update(figures)

    def __getitem__(self, name: str) -> Experiment:
        found: Experiment | str = self.data[name]
        if isinstance(found, str):
            module = import_module(f"{__name__}.{name.replace('-', '_')}")
            parts = (module.PRESETS, module.run, module.plot, module.PAPER, module.HEADLINE)
            found = self.data[name] = Experiment(name, found, *parts)
        return found

    def figures(self) -> dict[str, str]:
        """Give the figure of each, and import nothing."""
        return {name: found if isinstance(found, str) else found.figure for name, found in self.data.items()}


EXPERIMENTS = _Experiments(
    {
        "stationary-points": "Figure 1: stability of a stationary point under three noises",
        "latent-dimensions": "Figure 2: likelihood and optimal ELBO over latent dimensions",
        "analytic-vs-stochastic": "Figure 3: analytic against stochastic training",
        "nonlinear-encoders": "Figure 4: linear decoders trained with linear and deeper encoders",
        "theorem-1": "Theorem 1: stationary points of the ELBO, and the rotations of its proof",
        "bernoulli-ppca": "Appendix C.3: Bernoulli probabilistic PCA without sampling",
    }
)

__all__ = [
    "EXPERIMENTS",
    "Config",
    "Experiment",
    "Quantity",
    "Results",
    "Run",
    "RunDirectoryError",
    "RunWriteError",
    "execute",
    "load_results",
]


def __getattr__(name: str) -> object:
    if name in ("execute", "load_results"):  # which need torch
        return getattr(import_module("lineavae.experiments.directories"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
