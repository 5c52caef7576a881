"""Run directories: what a run was asked, where it ran, what came out.

``config.json`` is written first and ``results.json`` last, so the first alone means an unfinished run. Every
file is written whole or not at all, and none is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from lineavae._array_files import StoredArray, npz_arrays
from lineavae._io import atomic_path, check_writable, read_json, write_text
from lineavae._optional import require
from lineavae.data import Images
from lineavae.diagnostics import diagnose
from lineavae.experiments import processes
from lineavae.experiments.runs import (
    Config,
    Experiment,
    Quantity,
    Results,
    Run,
    RunDirectoryError,
    RunWriteError,
)

# 3: with tables, claims and the spread of quantities
SCHEMA = 3


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
        The directory holds a run of another configuration, an unfinished one without ``resume``, a damaged
        one, or other files; or it cannot be written.
    DataError
        The images cannot be read; nothing was written.
    RunWriteError
        The run has ended, and its results cannot be written.
    OSError
        A checkpoint cannot be written.
    """
    asked = json.loads(json.dumps(asdict(config)))
    figures = {name: directory / f"{name}.png" for name in experiment.figures}
    is_first = processes.rank() == 0
    if processes.tell(is_first and _is_finished(directory, asked, resume)):
        run = Run(directory, load_results(directory), skipped=True, figures=figures)
        missing = {name: path for name, path in figures.items() if not path.exists()}
        if missing and is_first:
            require("matplotlib", "experiments")
            try:
                _draw(experiment, run.results, missing)
            except OSError as error:
                raise RunWriteError(error, run) from error
        return run
    if not is_first:  # the others take part in the work; the first writes what comes of it
        experiment.run(config, directory)
        processes.wait_for_all()
        return Run(directory, load_results(directory), skipped=False, figures=figures)
    require("matplotlib", "experiments")  # before the work rather than after it
    try:
        check_writable(directory / "config.json")
    except OSError as error:
        raise RunDirectoryError(f"{directory} cannot be written: {error.strerror}") from error
    environment = _environment(config)
    _write_json(directory / "config.json", asked)
    _write_json(directory / "environment.json", environment)
    results = experiment.run(config, directory)
    if results["data"] not in config.published_data:
        for entry in _quantities(results):
            entry["published"] = entry["tolerance"] = entry["published_spread"] = entry["note"] = None
    run = Run(directory, results, skipped=False, figures=figures)
    summary = {key: value for key, value in results.items() if key != "curves"}
    curves: dict[str, Any] = results["curves"]  # no allow_pickle beside them: NumPy 1 would store it
    try:
        with atomic_path(directory / "curves.npz") as temporary:
            np.savez_compressed(temporary, **curves)
        _draw(experiment, results, figures)
        document = {"schema": SCHEMA, "experiment": experiment.name, **summary}
        document["checksum"] = _checksum(document, curves)
        _write_json(directory / "results.json", document)
    except OSError as error:
        raise RunWriteError(error, run) from error
    processes.wait_for_all()
    return Run(directory, load_results(directory), skipped=False, figures=figures)


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
    fields = ("data", "config", "quantities", "tables", "claims")
    return cast(Results, {"curves": curves, **{field: document[field] for field in fields}})


def _read_curve(array: StoredArray) -> NDArray[Any]:
    curve = np.empty(array.shape, cast("np.dtype[Any]", array.dtype), order="F" if array.is_fortran else "C")
    with ExitStack() as stack:
        array.read(array.open(stack), curve.T if array.is_fortran else curve)
    return curve


def _draw(experiment: Experiment, results: Results, figures: Mapping[str, Path]) -> None:
    for name, path in figures.items():
        with atomic_path(path) as temporary:
            experiment.figures[name](results).savefig(temporary, dpi=200)


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


def _is_finished(directory: Path, asked: dict[str, Any], resume: bool) -> bool:
    """Whether there is nothing left to do; raises where there is nothing that may be done."""
    config_path = directory / "config.json"
    if not config_path.exists():
        # a run killed while it wrote config.json leaves a hidden temporary file
        if directory.is_dir() and any(not path.name.startswith(".") for path in directory.iterdir()):
            raise RunDirectoryError(f"{directory} holds files but no run: choose another --out")
        return False
    try:
        found = read_json(config_path)
    except ValueError as error:
        raise RunDirectoryError(f"{error}: delete that folder") from error
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
    data = config.samples
    pixels = data.images if isinstance(data, Images) else data.samples
    return {
        **diagnose().to_dict(),
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "data": {
            "name": data.name,
            "sha256": hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest(),
            "remarks": data.remarks,
        },
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
