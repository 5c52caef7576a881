"""Run directories: what a run was asked, where it ran, what came out.

``config.json`` is written first and ``results.json`` last, so the first alone means an unfinished run. Every
file is written whole or not at all, and none is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from lineavae._array_files import StoredArray, npz_arrays
from lineavae._io import atomic_path, check_writable, read_json, write_text
from lineavae._optional import require
from lineavae.data import Images
from lineavae.diagnostics import diagnose
from lineavae.experiments import processes
from lineavae.experiments.curve_tables import write_tables
from lineavae.experiments.figures import FORMATS, save
from lineavae.experiments.runs import (
    Config,
    Experiment,
    Quantity,
    Results,
    Run,
    RunDirectoryError,
    RunWriteError,
    state_of,
)
from lineavae.experiments.seeds import combine

# 3: with tables, claims and the spread of quantities
SCHEMA = 3


def execute(
    experiment: Experiment,
    config: Config,
    directory: Path,
    *,
    resume: bool = False,
    formats: Sequence[str] = ("png",),
) -> Run:
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
    formats
        Of the figures: "png", "pdf", "svg".

    Returns
    -------
    Run
        The results, read back from the files.

    Raises
    ------
    RunDirectoryError
        The directory holds a run of another configuration, an unfinished one without ``resume``, a damaged
        one, or other files; or it cannot be written.
    DataError
        The images cannot be read; nothing was written.
    RunWriteError
        The run has ended, and its results cannot be written.
    OSError
        A checkpoint cannot be written.
    """
    asked = _plain(config)
    if processes.tell(processes.rank() == 0 and _is_finished(directory, asked, resume)):
        return _skip(experiment, directory, formats)
    if processes.rank() > 0:  # takes part in the work; the first writes what comes of it
        experiment.run(config, directory)
        processes.wait_for_all()
        return _read(experiment, directory, formats, skipped=False)
    _begin(directory, asked, {**_environment(), "data": _description(config)})
    try:
        results = experiment.run(config, directory)
    except ValueError:
        _undo(directory)
        raise
    if results["data"] not in config.published_data:
        for entry in _quantities(results):
            entry["published"] = entry["tolerance"] = entry["published_spread"] = entry["note"] = None
    run = _write(experiment, results, directory, formats)
    processes.wait_for_all()
    return run


def execute_seeds(
    experiment: Experiment,
    config: Config,
    seeds: Sequence[int],
    directory: Path,
    *,
    resume: bool = False,
    formats: Sequence[str] = ("png",),
) -> Run:
    """Run an experiment with each seed, in directories of their own, and combine the results beside them.

    A seed that is finished there is not run again, also if it was asked for with others.

    Parameters
    ----------
    experiment, config, resume, formats
        As in `execute`; the seed of the configuration is of no account.
    seeds
        Seeds, all different.
    directory
        Holds ``seed-<seed>`` for each, a run directory, and the files of the combined result.

    Returns
    -------
    Run
        Means over the seeds with their spread, as `lineavae.experiments.seeds.combine` gives them.

    Raises
    ------
    RunDirectoryError, DataError, RunWriteError, OSError
        As in `execute`.
    """
    asked = {**_plain(config), "seeds": list(seeds)}
    del asked["seed"]
    is_first = processes.rank() == 0
    if processes.tell(
        is_first
        and _find(directory, asked, except_for="seeds") == asked
        and state_of(directory) == "finished"
    ):
        return _skip(experiment, directory, formats)
    if is_first:
        (directory / "results.json").unlink(missing_ok=True)
        _begin(directory, asked, _environment())  # each seed has its own images
    console, runs = Console(stderr=True), []
    for number, seed in enumerate(seeds, 1):
        console.print(f"seed {seed}, {number} of {len(seeds)}")
        run_directory = directory / f"seed-{seed}"
        runs.append(
            execute(experiment, replace(config, seed=seed), run_directory, resume=resume, formats=formats)
        )
    if is_first:
        _write(experiment, combine([run.results for run in runs], seeds), directory, formats)
    processes.wait_for_all()
    return _read(experiment, directory, formats, skipped=False)


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
        The results are damaged, or were written under another schema.
    """
    path = directory / "results.json"
    remedy = f"delete {path}, and the same run with --resume makes it anew from its checkpoints"
    try:
        document = read_json(path)
        if document.get("schema") == SCHEMA:
            arrays = npz_arrays(directory / "curves.npz")
            curves = {name: _read_curve(describe()) for name, describe in arrays.items()}
            if document.pop("checksum", None) != _checksum(document, curves):
                raise ValueError(f"{path} and curves.npz beside it do not match their checksum")
    except ValueError as error:
        raise RunDirectoryError(f"{error}: {remedy}") from error
    if document.get("schema") != SCHEMA:
        raise RunDirectoryError(
            f"{directory} holds results of schema {document.get('schema')} where this lineavae reads "
            f"{SCHEMA}: {remedy}"
        )
    fields = ("data", "config", "quantities", "tables", "claims", "axes")
    found = {field: document[field] for field in fields if field in document}
    return cast(Results, {"curves": curves, **found})


def _read_curve(array: StoredArray) -> NDArray[Any]:
    curve = np.empty(array.shape, cast("np.dtype[Any]", array.dtype), order="F" if array.is_fortran else "C")
    with ExitStack() as stack:
        array.read(array.open(stack), curve.T if array.is_fortran else curve)
    return curve


def _plain(config: Config) -> dict[str, Any]:
    """Give a configuration as JSON has it."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def _skip(experiment: Experiment, directory: Path, formats: Sequence[str]) -> Run:
    """Read a finished run; make what else is asked for of it and not there."""
    run = _read(experiment, directory, formats, skipped=True)
    if processes.rank() > 0:
        return run
    missing = {name: [path for path in paths if not path.exists()] for name, paths in run.figures.items()}
    try:
        if any(missing.values()):
            require("matplotlib", "experiments")
            checksum = _document(experiment, run.results)["checksum"]
            _draw(experiment, run.results, missing, checksum)
        if not (directory / "curves").exists():
            write_tables(run.results, directory / "curves")
    except OSError as error:
        raise RunWriteError(error, run) from error
    return run


def _read(experiment: Experiment, directory: Path, formats: Sequence[str], *, skipped: bool) -> Run:
    return Run(directory, load_results(directory), skipped, _figures(experiment, directory, formats))


def _begin(directory: Path, asked: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
    require("matplotlib", "experiments")  # before the work rather than after it
    try:
        check_writable(directory / "config.json")
    except OSError as error:
        raise RunDirectoryError(f"{directory} cannot be written: {error.strerror}") from error
    _write_json(directory / "config.json", asked)
    _write_json(directory / "environment.json", environment)


def _undo(directory: Path) -> None:
    """Remove what `_begin` wrote where nothing came after it: settings that cannot be would block others."""
    begun = {directory / name for name in ("config.json", "environment.json")}
    if set(directory.iterdir()) == begun:
        for path in begun:
            path.unlink()
        directory.rmdir()


def _write(experiment: Experiment, results: Results, directory: Path, formats: Sequence[str]) -> Run:
    figures = _figures(experiment, directory, formats)
    curves: dict[str, Any] = results["curves"]  # no allow_pickle beside them: NumPy 1 would store it
    try:
        with atomic_path(directory / "curves.npz") as temporary:
            np.savez_compressed(temporary, **curves)
        write_tables(results, directory / "curves")
        for path in (directory / f"{name}.{suffix}" for name in figures for suffix in FORMATS):
            path.unlink(missing_ok=True)  # drawn from what seeds had been run before
        document = _document(experiment, results)
        _draw(experiment, results, figures, document["checksum"])
        _write_json(directory / "results.json", document)
    except OSError as error:
        raise RunWriteError(error, Run(directory, results, skipped=False, figures=figures)) from error
    return _read(experiment, directory, formats, skipped=False)


def _figures(experiment: Experiment, directory: Path, formats: Sequence[str]) -> dict[str, tuple[Path, ...]]:
    return {name: tuple(directory / f"{name}.{suffix}" for suffix in formats) for name in experiment.figures}


def _document(experiment: Experiment, results: Results) -> dict[str, Any]:
    """Give the content of ``results.json``."""
    summary = {key: value for key, value in results.items() if key != "curves"}
    document = {"schema": SCHEMA, "experiment": experiment.name, **summary}
    return {**document, "checksum": _checksum(document, results["curves"])}


def _draw(
    experiment: Experiment, results: Results, figures: Mapping[str, Sequence[Path]], checksum: str
) -> None:
    for name, paths in figures.items():
        if paths:
            figure = experiment.figures[name](results)
            for path in paths:
                with atomic_path(path) as temporary:
                    save(figure, temporary, checksum)


def _quantities(results: Results) -> Iterator[Quantity]:
    yield from results["quantities"].values()
    for table in results["tables"].values():
        for row in table["rows"].values():
            yield from filter(None, row)


def _checksum(document: Mapping[str, Any], curves: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.blake2b(json.dumps(document, sort_keys=True).encode(), digest_size=16)
    for name, curve in sorted(curves.items()):
        digest.update(f"{name} {curve.dtype.str} {curve.shape}".encode())
        digest.update(np.ascontiguousarray(curve).tobytes())
    return digest.hexdigest()


def _is_finished(directory: Path, asked: Mapping[str, Any], resume: bool) -> bool:
    """Whether there is nothing left to do; raises where there is nothing that may be done."""
    found = _find(directory, asked)
    if state_of(directory) == "finished":
        return True
    if found and not resume:
        raise RunDirectoryError(
            f"{directory} holds an unfinished run: pass --resume, or choose another --out"
        )
    return False


def _find(directory: Path, asked: Mapping[str, Any], except_for: str = "") -> dict[str, Any] | None:
    """Give the configuration of the run that is there, if any; raises where it is another one."""
    config_path = directory / "config.json"
    if not config_path.exists():
        # a run killed while it wrote config.json leaves a hidden temporary file
        if directory.is_dir() and any(not path.name.startswith(".") for path in directory.iterdir()):
            raise RunDirectoryError(f"{directory} holds files but no run: choose another --out")
        return None
    try:
        found = read_json(config_path)
    except ValueError as error:
        raise RunDirectoryError(f"{error}: delete that folder") from error
    differences = [
        key for key in {**asked, **found} if found.get(key) != asked.get(key) and key != except_for
    ]
    if differences:
        said = ", ".join(f"{key} {found.get(key)!r} instead of {asked.get(key)!r}" for key in differences)
        raise RunDirectoryError(
            f"{directory} holds a run with {said}: choose another --out, or delete that folder"
        )
    return found


def _environment() -> dict[str, Any]:
    return {**diagnose().to_dict(), "numpy": np.__version__, "threads": torch.get_num_threads()}


def _description(config: Config) -> dict[str, Any]:
    """Describe the data that a run sees."""
    data = config.samples
    pixels = data.images if isinstance(data, Images) else data.samples
    return {
        "name": data.name,
        "sha256": hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest(),
        "remarks": data.remarks,
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
