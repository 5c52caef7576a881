"""Run directories: what a run was asked, where it ran, what came out.

``config.json`` is written first and ``results.json`` last, so the first alone means an unfinished run. Every
file is written whole or not at all, and none is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from lineavae._io import atomic_path, write_text
from lineavae._optional import require
from lineavae.data import DataError, Images, load_mnist, load_mnist5k
from lineavae.diagnostics import diagnose

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1


class RunDirectoryError(ValueError):
    """A run directory does not fit what is asked of it; the message says what to do."""


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
        everything = load_mnist5k() if self.data_dir is None else load_mnist(self.data_dir)
        if len(everything) < self.num_images:
            source = self.data_dir or everything.name
            raise DataError(
                f"{source} has {len(everything)} images, {self.num_images} are needed: "
                "MNIST's own files, in the folder that --data-dir names, hold 60000"
            )
        return everything.subset(self.num_images, self.seed)


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


def execute(experiment: Experiment, config: Config, directory: Path, *, resume: bool = False) -> Run:
    """Run an experiment into its directory, unless it is finished there already.

    Parameters
    ----------
    experiment
        What to run.
    config
        One of its presets, or a variation.
    directory
        The run directory; made where it does not exist.
    resume
        Continue an unfinished run from its checkpoints instead of refusing it.

    Returns
    -------
    Run
        The results, read back from the files.

    Raises
    ------
    RunDirectoryError
        The directory holds a run of another configuration, an unfinished one without ``resume``, or other
        files.
    DataError
        The images cannot be read; nothing was written.
    """
    asked = json.loads(json.dumps(asdict(config)))
    if _is_finished(directory, asked, resume):
        return Run(directory, load_results(directory), skipped=True)
    require("matplotlib", "experiments")  # before the work rather than after it
    environment = _environment(config)
    _write_json(directory / "config.json", asked)
    _write_json(directory / "environment.json", environment)
    results = experiment.run(config, directory)
    with atomic_path(directory / "curves.npz") as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **results["curves"])
    with atomic_path(directory / "figure.png") as temporary:
        experiment.plot(results).savefig(temporary, dpi=200)
    summary = {key: value for key, value in results.items() if key != "curves"}
    _write_json(directory / "results.json", {"schema": SCHEMA, "experiment": experiment.name, **summary})
    return Run(directory, load_results(directory), skipped=False)


def load_results(directory: Path) -> Results:
    """Read the results of a finished run.

    Parameters
    ----------
    directory
        A run directory with ``results.json`` and ``curves.npz``.

    Returns
    -------
    Results
        As the run returned them.

    Raises
    ------
    RunDirectoryError
        The results were written under another schema.
    """
    summary = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    if summary["schema"] != SCHEMA:
        raise RunDirectoryError(
            f"{directory} holds results of schema {summary['schema']} where this lineavae reads {SCHEMA}: "
            "choose another --out"
        )
    with np.load(directory / "curves.npz", allow_pickle=False) as file:
        curves = dict(file)
    return {
        "data": summary["data"],
        "config": summary["config"],
        "quantities": summary["quantities"],
        "curves": curves,
    }


def _is_finished(directory: Path, asked: dict[str, Any], resume: bool) -> bool:
    """Whether there is nothing left to do; raises where there is nothing that may be done."""
    config_path = directory / "config.json"
    if not config_path.exists():
        # a run killed while it wrote config.json leaves a hidden temporary file
        if directory.is_dir() and any(not path.name.startswith(".") for path in directory.iterdir()):
            raise RunDirectoryError(f"{directory} holds files but no run: choose another --out")
        return False
    try:
        found = dict(json.loads(config_path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise RunDirectoryError(f"{config_path} is damaged ({error}): delete that folder") from error
    if found != asked:
        differences = ", ".join(
            f"{key} {found.get(key)!r} instead of {asked.get(key)!r}"
            for key in {**asked, **found}
            if found.get(key) != asked.get(key)
        )
        raise RunDirectoryError(
            f"{directory} holds a run with {differences}: choose another --out, or delete that folder"
        )
    if (directory / "results.json").exists():
        return True
    if not resume:
        raise RunDirectoryError(
            f"{directory} holds an unfinished run: pass --resume, or choose another --out"
        )
    return False


def _environment(config: Config) -> dict[str, Any]:
    images = config.images
    return {
        **diagnose().to_dict(),
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "data": {"name": images.name, "sha256": hashlib.sha256(images.images.tobytes()).hexdigest()},
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
