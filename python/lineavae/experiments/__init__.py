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

from lineavae.experiments import (
    analytic_vs_stochastic,
    bernoulli_ppca,
    latent_dimensions,
    nonlinear_encoders,
    stationary_points,
    theorem_1,
)
from lineavae.experiments.runs import (
    Config,
    Experiment,
    Quantity,
    Results,
    Run,
    RunDirectoryError,
    RunWriteError,
    execute,
    load_results,
)

EXPERIMENTS: dict[str, Experiment] = {
    module.EXPERIMENT.name: module.EXPERIMENT
    for module in (
        stationary_points,
        latent_dimensions,
        analytic_vs_stochastic,
        nonlinear_encoders,
        theorem_1,
        bernoulli_ppca,
    )
}

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
