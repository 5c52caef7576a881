"""``lineavae reproduce --list``: what there is, what it takes, what is done. This needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from lineavae.commands._common import show, show_json
from lineavae.experiments import EXPERIMENTS, MACHINE, PAPER
from lineavae.experiments.runs import directory_of, state_of

_PRESETS = ("quick", "full")


def show_list(out: Path, as_json: bool) -> None:
    """List the experiments; runs are sought where they go by default below ``out``."""
    rows = [_describe(name, out) for name in EXPERIMENTS]
    shown = {name for row in rows for name in row["shows"]}
    missing = [name for name in PAPER if name not in shown]
    if as_json:
        show_json({"experiments": rows, "not_reproduced": missing, "machine": MACHINE})
        return
    table = Table("name", "shows", "what", *_PRESETS, box=SIMPLE_HEAD)
    for row in rows:
        presets = [_cell(row["presets"][preset]) for preset in _PRESETS]
        table.add_row(row["name"], ", ".join(row["shows"]), row["title"], *presets)
    lines = [f"Times are of {MACHINE}; what is done is that below {out}."]
    if missing:
        lines.append(f"No experiment gives these of the paper: {', '.join(missing)}.")
    show(table, *lines)


def _describe(name: str, out: Path) -> dict[str, Any]:
    entry = EXPERIMENTS.entry(name)
    presets = {}
    for preset in _PRESETS:
        directory = directory_of(out, name, preset)
        of_seeds = directory_of(out, name, preset, seeds=True)
        seconds = entry.seconds.get(preset)
        presets[preset] = {
            "seconds": seconds,
            "needs_gpu": seconds is None and preset in entry.seconds,
            "state": state_of(directory),
            "seeds": {
                path.name.removeprefix("seed-"): state_of(path)
                for path in sorted(of_seeds.glob("seed-*"), key=lambda path: (len(path.name), path.name))
            },
        }
    return {"name": name, "title": entry.title, "shows": list(entry.shows), "presets": presets}


def _cell(preset: dict[str, Any]) -> str:
    words = []
    if preset["needs_gpu"]:
        words.append("needs a GPU")
    elif preset["seconds"] is not None:
        words.append(_duration(preset["seconds"]))
    if preset["state"]:
        words.append(preset["state"])
    for state in ("finished", "unfinished"):
        seeds = [seed for seed, found in preset["seeds"].items() if found == state]
        if seeds:
            words.append(f"{'seeds' if len(seeds) > 1 else 'seed'} {' '.join(seeds)} {state}")
    return ", ".join(words)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
