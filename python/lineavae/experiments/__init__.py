"""The paper's figures and tables, an experiment for each training, and the directories that their runs leave.

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
phase-diagram
deep-mnist
deep-mnist-pixels
collapse-curves
kl-annealing
deep-celeba
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lineavae.experiments.runs import (
    Claim,
    Config,
    Experiment,
    Quantity,
    Results,
    Run,
    RunDirectoryError,
    RunWriteError,
    Table,
)

if TYPE_CHECKING:
    from lineavae.experiments.directories import execute, execute_seeds, load_results

# All figures and tables of the paper, by what a run calls them.
PAPER = (*(f"figure-{number}" for number in range(1, 14)), *(f"table-{number}" for number in range(1, 6)))

# Where `Entry.seconds` were measured: deep VAEs on both cores, all else in processor time with one thread.
MACHINE = "two cores of an Intel Xeon, torch 2.13"


@dataclass(frozen=True)
class Entry:
    """What is known of an experiment before its module, which needs torch, is imported.

    Attributes
    ----------
    title
        The paper's figures and tables, and their subject.
    shows
        Those figures and tables by name, each of which names the experiment too.
    seconds
        What presets take on `MACHINE`, about, where it was measured; None for one that needs a GPU.
    """

    title: str
    shows: tuple[str, ...] = ()
    seconds: Mapping[str, float | None] = field(default_factory=dict)


class Experiments(UserDict[str, Experiment]):
    """Experiments by name; each is imported when it is asked for.

    A module has PRESETS, run, FIGURES, PAPER and HEADLINE, as `Experiment` explains them.
    """

    data: dict[str, Any]

    def __init__(self, entries: dict[str, Entry]) -> None:
        super().__init__()
        self.data.update(entries)

    def __getitem__(self, name: str) -> Experiment:
        found: Experiment | Entry = self.data[name]
        if isinstance(found, Entry):
            module = import_module(f"{__name__}.{name.replace('-', '_')}")
            parts = (module.PRESETS, module.run, module.FIGURES, module.PAPER, module.HEADLINE)
            found = self.data[name] = Experiment(name, found.title, *parts, found.shows, found.seconds)
        return found

    def entry(self, name: str) -> Entry:
        """Give what is known of an experiment, and import nothing."""
        found: Experiment | Entry = self.data[name]
        return found if isinstance(found, Entry) else Entry(found.title, found.shows, found.seconds)


EXPERIMENTS = Experiments(
    {
        "stationary-points": Entry(
            "Figure 1: stability of a stationary point under three noises",
            ("figure-1",),
            {"quick": 10, "full": 10},
        ),
        "latent-dimensions": Entry(
            "Figure 2: likelihood and optimal ELBO over latent dimensions",
            ("figure-2",),
            {"quick": 15},
        ),
        "analytic-vs-stochastic": Entry(
            "Figure 3: analytic against stochastic training", ("figure-3",), {"quick": 60}
        ),
        "nonlinear-encoders": Entry(
            "Figure 4: linear decoders trained with linear and deeper encoders",
            ("figure-4",),
            {"quick": 115, "full": None},
        ),
        "theorem-1": Entry(
            "Theorem 1: stationary points of the ELBO, and the rotations of its proof",
            seconds={"quick": 40},
        ),
        "bernoulli-ppca": Entry(
            "Appendix C.3: Bernoulli probabilistic PCA without sampling", seconds={"quick": 55}
        ),
        "phase-diagram": Entry(
            "Phase diagram: which latents of linear VAEs live, over σ², β and K",
            seconds={"quick": 80},
        ),
        "deep-mnist": Entry(
            "Tables 1 and 2: deep VAEs on logits of MNIST, σ² fixed and learned",
            ("table-1", "table-2"),
            {"quick": 325, "full": None},
        ),
        "deep-mnist-pixels": Entry(
            "Table 4: deep VAEs on pixels of MNIST", ("table-4",), {"quick": 255, "full": None}
        ),
        "collapse-curves": Entry(
            "Figures 5 and 6: collapse of deep VAEs against its threshold",
            ("figure-5", "figure-6"),
            {"quick": 325, "full": None},
        ),
        "kl-annealing": Entry(
            "Figures 7 and 8: KL annealing, with σ² fixed and learned",
            ("figure-7", "figure-8"),
            {"quick": 250, "full": None},
        ),
        "deep-celeba": Entry(
            "Tables 3 and 5, Figures 9 to 13: deep VAEs on CelebA",
            ("table-3", "table-5", "figure-9", "figure-10", "figure-11", "figure-12", "figure-13"),
            {"full": None},
        ),
    }
)

__all__ = [
    "EXPERIMENTS",
    "MACHINE",
    "PAPER",
    "Claim",
    "Config",
    "Entry",
    "Experiment",
    "Experiments",
    "Quantity",
    "Results",
    "Run",
    "RunDirectoryError",
    "RunWriteError",
    "Table",
    "execute",
    "execute_seeds",
    "load_results",
]


def __getattr__(name: str) -> object:
    if name in ("execute", "execute_seeds", "load_results"):  # which need torch
        return getattr(import_module("lineavae.experiments.directories"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
