"""From a run directory to what a report shows of it."""

from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lineavae._io import read_json
from lineavae.experiments import EXPERIMENTS, Experiment, Quantity, RunDirectoryError, Table, load_results
from lineavae.report.numbers import Cell, cell, show_unit
from lineavae.report.pictures import PictureError, read_picture
from lineavae.report.view import FigureView, RunView, TableView

# Settings that have an option of their own.
_OPTIONS = {"data": "--data", "seed": "--seed", "seeds": "--seeds", "device": "--device"}

# What a page can show, best first.
_SUFFIXES = (".svg", ".png")


def holds_run(directory: Path) -> bool:
    """Whether a run, finished or not, is there."""
    return any((directory / name).exists() for name in ("config.json", "results.json"))


def read_run(directory: Path) -> tuple[RunView, list[str]]:
    """Read a finished run.

    Returns
    -------
    RunView
        What a report shows of it.
    list of str
        The figures that it lacks, each in a sentence.

    Raises
    ------
    RunDirectoryError
        The run is unfinished, damaged, or of an experiment that is not known.
    """
    if not (directory / "results.json").exists():
        raise RunDirectoryError(
            f"{directory} holds an unfinished run: the same command with --resume ends it"
        )
    results = load_results(directory)
    try:
        name = read_json(directory / "results.json")["experiment"]
        environment = read_json(directory / "environment.json")
    except ValueError as error:
        raise RunDirectoryError(f"{error}: delete {directory}, and run it again") from error
    if name not in EXPERIMENTS:
        raise RunDirectoryError(f"{directory} holds a run of {name!r}, which this lineavae does not know")
    experiment, config = EXPERIMENTS[name], results["config"]
    notes: dict[str, int] = {}

    def shown(entry: Quantity) -> Cell:
        note = entry["note"]
        return cell(entry, notes.setdefault(note, len(notes) + 1) if note else 0)

    data = f"{results['data']}, N={config['num_images']}"
    figures, missing = _figures(experiment, directory, data)
    run = RunView(
        name=directory.resolve().name,
        title=experiment.title,
        paper=experiment.paper_on(results["data"]),
        data=data,
        figures=figures,
        quantities=[(name, shown(entry)) for name, entry in results["quantities"].items()],
        tables=[_table(name, table, shown) for name, table in results["tables"].items()],
        notes=list(notes),
        claims=results["claims"],
        command=_command(experiment, config),
        settings=list(_facts(config)),
        environment=list(_facts({**environment, "kernels": None})),
    )
    return run, missing


def _figures(experiment: Experiment, directory: Path, data: str) -> tuple[list[FigureView], list[str]]:
    figures, missing = [], []
    for name, draw in experiment.figures.items():
        path = next(filter(Path.exists, (directory / f"{name}{suffix}" for suffix in _SUFFIXES)), None)
        label = _label(name)
        if path is None:
            missing.append(f"{directory} has no {name}{_SUFFIXES[-1]}: the same command draws it again")
            continue
        try:
            picture = read_picture(path)
        except PictureError as error:
            missing.append(f"{error}: delete it, and the same command draws it again")
            continue
        # "Draw the ELBO against steps." says what is seen
        description = (inspect.getdoc(draw) or "").partition("\n")[0].removeprefix("Draw ")
        caption = description[:1].upper() + description[1:]
        figures.append(FigureView(label, caption, f"{label} as drawn from this run, {data}", picture, path))
    return figures, missing


def _table(name: str, table: Table, shown: Callable[[Quantity], Cell]) -> TableView:
    columns = []
    for index, column in enumerate(table["columns"]):
        units = {entry["unit"] for row in table["rows"].values() if (entry := row[index]) is not None}
        columns.append((column, show_unit(units.pop()) if len(units) == 1 else None))
    rows = [
        (label, [None if entry is None else shown(entry) for entry in row])
        for label, row in table["rows"].items()
    ]
    return TableView(_label(name), table["caption"], columns, rows)


def _label(name: str) -> str:
    """Give "Figure 1" for "figure-1"."""
    return name.replace("-", " ").capitalize()


def _command(experiment: Experiment, config: Mapping[str, Any]) -> str:
    """Give the command that runs this configuration: the closest preset, and what is not as there."""
    presets = {name: json.loads(json.dumps(asdict(preset))) for name, preset in experiment.presets.items()}

    def changed(name: str) -> dict[str, Any]:
        return {key: value for key, value in config.items() if presets[name].get(key) != value}

    preset = min(presets, key=lambda name: len(changed(name)))
    words = ["lineavae", "reproduce", experiment.name, "--preset", preset]
    for key, value in changed(preset).items():
        parts = value if isinstance(value, list) else [value]
        text = ",".join(part if isinstance(part, str) else json.dumps(part) for part in parts)
        words += [_OPTIONS[key], text] if key in _OPTIONS else ["--set", f"{key}={text}"]
    return shlex.join(words)


def _facts(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Give what is known, one a line: of objects their parts, of lists all in one."""
    for key, value in values.items():
        label = prefix + key.replace("_", " ")
        if isinstance(value, Mapping):
            yield from _facts(value, f"{label}: ")
        elif isinstance(value, list):
            yield from [(label, ", ".join(map(str, value)))] if value else []
        elif value not in (None, ""):
            yield label, str(value)
