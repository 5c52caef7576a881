"""What a run is: an experiment, its configuration, its results. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict, cast

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from lineavae.data import Images, Samples

NATS = "nats per image"

POINTS = "points"


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
    data
        Folder of MNIST's files, of CelebA's, or of other images, or a ``.npy`` file; None for MNIST-5k.
    image_size
        Side to which the image files of a folder are resized; None for 64 of CelebA, for their own of others.
    seed
        Everything random is a function of it.
    device
        Where the models are trained.
    """

    #: Names of the data that the published numbers are of.
    published_data: ClassVar[tuple[str, ...]] = ("MNIST", "MNIST-5k")
    #: Whether rows of real numbers do in the place of images.
    takes_samples: ClassVar[bool] = False

    num_images: int = 1000
    data: str | None = None
    image_size: int | None = None
    seed: int = 0
    device: str = "cpu"

    @property
    def min_features(self) -> int:
        """Dimensions D that the data must have."""
        return 1

    @cached_property
    def samples(self) -> Images | Samples:
        """What the models are fitted to: ``num_images`` images, or rows, drawn by ``seed``."""
        from rich.console import Console

        from lineavae.data import DataError, Samples, load_data

        everything = load_data(self.data, image_size=self.image_size)
        if isinstance(everything, Samples) and not self.takes_samples:
            raise DataError(
                f"{self.data} must hold the pixels of images, uint8, for this experiment, "
                f"got {everything.samples.dtype}"
            )
        source = self.data or everything.name
        if len(everything) < self.num_images:
            remedy = "" if self.data else ": --data takes all of MNIST"
            raise DataError(f"{source} has {len(everything)} images, {self.num_images} are needed{remedy}")
        if everything.num_features < self.min_features:
            raise DataError(
                f"{source} has {everything.num_features} features, {self.min_features} are needed for as "
                "many components"
            )
        for remark in everything.remarks:
            Console(stderr=True).print(remark, markup=False, highlight=False)
        return everything.subset(self.num_images, self.seed)

    @property
    def images(self) -> Images:
        """The same, where the experiment does not take samples that are no images."""
        return cast("Images", self.samples)

    def results(
        self,
        quantities: dict[str, Quantity],
        curves: dict[str, NDArray[Any]],
        tables: Mapping[str, Table] | None = None,
        claims: Sequence[Claim] = (),
        axes: Mapping[str, Sequence[str]] | None = None,
    ) -> Results:
        """Give what a run with this configuration found."""
        return {
            "data": self.samples.name,
            "config": asdict(self),
            "quantities": quantities,
            "curves": curves,
            "tables": dict(tables or {}),
            "claims": list(claims),
            "axes": {name: list(names) for name, names in (axes or {}).items()},
        }


class Quantity(TypedDict):
    """One number of a result beside the paper's.

    ``tolerance`` is how far from the published number still counts as reproduced; ``spread`` and
    ``published_spread`` are standard deviations over seeds; ``note`` says what is wrong with the published
    number. Where there is none of these it is None.
    """

    measured: float
    published: float | None
    unit: str
    tolerance: float | None
    spread: float | None
    published_spread: float | None
    note: str | None


class Table(TypedDict):
    """One of the paper's tables: rows by their labels, a quantity or nothing in each column."""

    caption: str
    columns: list[str]
    rows: dict[str, list[Quantity | None]]


Verdict = Literal["holds", "does not hold", "not tested"]


class Claim(TypedDict):
    """What the paper claims, and what the run says of it."""

    claim: str
    source: str
    verdict: Verdict
    evidence: str


class _Axes(TypedDict, total=False):
    axes: dict[str, list[str]]


class Results(_Axes):
    """What a run found: everything that its figures and tables need.

    ``axes`` names the axes of curves, one name for each dimension. A curve that is its own only axis holds
    the values along it, such as the steps of a training; those are the same whatever the seed. Entries along
    an axis whose name begins with `POINTS` have no order. Where there are several seeds, ``<name>.spread``
    beside a curve is its standard deviation over them.
    """

    data: str
    config: dict[str, Any]
    quantities: dict[str, Quantity]
    curves: dict[str, NDArray[Any]]
    tables: dict[str, Table]
    claims: list[Claim]


@dataclass(frozen=True)
class Experiment:
    """Figures and tables of the paper that one training, or one calculation, gives.

    Attributes
    ----------
    name
        What ``lineavae reproduce`` calls it.
    title
        The paper's figures and tables, and their subject.
    presets
        Configurations by name: "quick" and "full".
    run
        Runs a configuration; checkpoints go into the run directory, from where a second call continues.
    figures
        By the names under which the paper has them, "figure-1": what draws each from the results alone.
    paper
        What the paper reports, in one line.
    headline
        The quantities that the command line shows, of all in ``results.json``; all where empty.
    shows
        All figures and tables by the paper's names, each of which names the experiment too.
    seconds
        What presets take, about, where it was measured; None for one that needs a GPU.
    """

    name: str
    title: str
    presets: Mapping[str, Config]
    run: Callable[[Any, Path], Results]
    figures: Mapping[str, Callable[[Results], Figure]]
    paper: str = ""
    headline: tuple[str, ...] = ()
    shows: tuple[str, ...] = ()
    seconds: Mapping[str, float | None] = field(default_factory=dict)

    def paper_on(self, data: str) -> str:
        """Give what the paper reports if it is of these data, else nothing."""
        config = next(iter(self.presets.values()))
        return self.paper if data in config.published_data else ""


@dataclass(frozen=True)
class Run:
    """A finished run; ``skipped`` where it was found finished.

    ``figures`` are files by the paper's names, one for each format.
    """

    directory: Path
    results: Results
    skipped: bool
    figures: Mapping[str, tuple[Path, ...]]


def directory_of(out: Path, name: str, preset: str, *, seeds: bool = False) -> Path:
    """Give the directory of an experiment's run, or of its runs with several seeds."""
    return out / f"{name}-{preset}{'-seeds' if seeds else ''}"


def state_of(directory: Path) -> Literal["finished", "unfinished"] | None:
    """Tell how far the run in a directory is; None where there is none."""
    if (directory / "results.json").exists():
        return "finished"
    return "unfinished" if (directory / "config.json").exists() else None


def quantity(
    measured: float,
    unit: str,
    published: float | None = None,
    tolerance: float | None = None,
    *,
    spread: float | None = None,
    published_spread: float | None = None,
    note: str | None = None,
) -> Quantity:
    """One entry of ``Results["quantities"]``, or of a table."""
    return {
        "measured": float(measured),
        "published": published,
        "unit": unit,
        "tolerance": tolerance,
        "spread": spread,
        "published_spread": published_spread,
        "note": note,
    }


def claim(text: str, source: str, holds: bool | None, evidence: str) -> Claim:
    """Give a claim of the paper with its verdict; None is for one that the run cannot test."""
    verdict: Verdict = "not tested" if holds is None else "holds" if holds else "does not hold"
    return {"claim": text, "source": source, "verdict": verdict, "evidence": evidence}


def with_spread(measured: float, spread: float | None, digits: int = 2) -> str:
    """Write a number for a figure, with its standard deviation where there is one."""
    words = f"{measured:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")
    return words.replace("-", "−")
