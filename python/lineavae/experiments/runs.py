"""What a run is: an experiment, its configuration, its results. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from lineavae.data import Images

NATS = "nats per image"


class RunDirectoryError(ValueError):
    """A run directory does not fit what is asked of it; the message says what to do."""


class RunWriteError(OSError):
    """A run has ended, and a file of it cannot be written.

    Attributes
    ----------
    run
        The run; its results are in memory alone.
    """

    def __init__(self, error: OSError, run: Run) -> None:
        super().__init__(error.errno, error.strerror, error.filename)
        self.run = run


@dataclass(frozen=True, kw_only=True)
class Config:
    """What every experiment has to be told; each adds its own.

    Attributes
    ----------
    num_images
        Size N of the seeded subset that the models are fitted to.
    data_dir
        Folder of MNIST's files; None for MNIST-5k.
    seed
        Everything random is a function of it.
    device
        Where the models are trained.
    """

    num_images: int = 1000
    data_dir: str | None = None
    seed: int = 0
    device: str = "cpu"

    @cached_property
    def images(self) -> Images:
        """The training images: ``num_images`` drawn by ``seed``."""
        from lineavae.data import DataError, load_mnist, load_mnist5k

        everything = load_mnist5k() if self.data_dir is None else load_mnist(self.data_dir)
        if len(everything) < self.num_images:
            source = self.data_dir or everything.name
            raise DataError(
                f"{source} has {len(everything)} images, {self.num_images} are needed: "
                "MNIST's own files, in the folder that --data-dir names, hold 60000"
            )
        return everything.subset(self.num_images, self.seed)

    def results(self, quantities: dict[str, Quantity], curves: dict[str, NDArray[Any]]) -> Results:
        """Give what a run with this configuration found."""
        return {"data": self.images.name, "config": asdict(self), "quantities": quantities, "curves": curves}


class Quantity(TypedDict):
    """One number of a result beside the paper's, and how far from it still counts as reproduced."""

    measured: float
    published: float | None
    unit: str
    tolerance: float | None


class Results(TypedDict):
    """What a run found: everything that its figure needs."""

    data: str
    config: dict[str, Any]
    quantities: dict[str, Quantity]
    curves: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Experiment:
    """One figure of the paper.

    Attributes
    ----------
    name
        What ``lineavae reproduce`` calls it.
    figure
        The paper's figure and its subject.
    presets
        Configurations by name: "quick" and "full".
    run
        Runs a configuration; checkpoints go into the run directory, from where a second call continues.
    plot
        Draws the figure from the results alone.
    paper
        What the paper reports, in one line.
    headline
        The quantities that the command line shows, of all in ``results.json``; all where empty.
    """

    name: str
    figure: str
    presets: Mapping[str, Config]
    run: Callable[[Any, Path], Results]
    plot: Callable[[Results], Figure]
    paper: str = ""
    headline: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """A finished run; ``skipped`` where it was found finished."""

    directory: Path
    results: Results
    skipped: bool

    @property
    def figure(self) -> Path:
        """The figure's file."""
        return self.directory / "figure.png"


def quantity(
    measured: float, unit: str, published: float | None = None, tolerance: float | None = None
) -> Quantity:
    """One entry of ``Results["quantities"]``."""
    return {"measured": float(measured), "published": published, "unit": unit, "tolerance": tolerance}
