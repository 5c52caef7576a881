"""One experiment with several seeds: a run for each, and what they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lineavae.experiments.runs import POINTS, Claim, Quantity, Results, Table, Verdict


def combine(runs: Sequence[Results], seeds: Sequence[int]) -> Results:
    """Give means and standard deviations over seeds as one result.

    Parameters
    ----------
    runs
        Results of one configuration with each seed.
    seeds
        The seeds, in the same order.

    Returns
    -------
    Results
        Quantities, cells of tables and curves are means over the seeds; their spread is the standard
        deviation with n - 1, absent with one seed. What a curve has along it is one for all, and points are
        pooled. A claim holds where it does with all seeds.

    Raises
    ------
    ValueError
        The runs are not of one configuration: what they have along a curve differs.
    """
    first = runs[0]
    axes = dict(first.get("axes", {}))
    curves: dict[str, NDArray[Any]] = {}
    for name in first["curves"]:
        found = [run["curves"][name] for run in runs]
        if axes.get(name) == [name]:
            if any(not np.array_equal(curve, found[0]) for curve in found):
                raise ValueError(f"runs with several seeds must have the same {name!r} along their curves")
            curves[name] = found[0]
        elif axes.get(name, [""])[0].startswith(POINTS):
            curves[name] = np.concatenate(found)
        else:
            curves[name] = np.mean(found, axis=0)
            if len(runs) > 1:
                curves[f"{name}.spread"] = np.std(found, axis=0, ddof=1)
                if name in axes:
                    axes[f"{name}.spread"] = axes[name]
    config = {key: value for key, value in first["config"].items() if key != "seed"}
    return {
        "data": first["data"],
        "config": {**config, "seeds": list(seeds)},
        "quantities": {
            name: _mean([run["quantities"][name] for run in runs]) for name in first["quantities"]
        },
        "curves": curves,
        "tables": {name: _table([run["tables"][name] for run in runs]) for name in first["tables"]},
        "claims": [
            _judge([run["claims"][index] for run in runs], seeds) for index in range(len(first["claims"]))
        ],
        "axes": axes,
    }


def _mean(entries: Sequence[Quantity]) -> Quantity:
    measured = [entry["measured"] for entry in entries]
    spread = float(np.std(measured, ddof=1)) if len(measured) > 1 else None
    return {**entries[0], "measured": float(np.mean(measured)), "spread": spread}


def _table(tables: Sequence[Table]) -> Table:
    def mean(label: str, column: int) -> Quantity | None:
        cells = [table["rows"][label][column] for table in tables]
        present = [cell for cell in cells if cell is not None]
        return _mean(present) if len(present) == len(cells) else None

    first = tables[0]
    rows = {
        label: [mean(label, column) for column in range(len(row))] for label, row in first["rows"].items()
    }
    return {**first, "rows": rows}


def _judge(claims: Sequence[Claim], seeds: Sequence[int]) -> Claim:
    """Judge by the weakest verdict, and give the evidence of the first seed that has it."""
    verdicts = [claim["verdict"] for claim in claims]
    weakest_first: tuple[Verdict, ...] = ("does not hold", "not tested", "holds")
    verdict = next(verdict for verdict in weakest_first if verdict in verdicts)
    index = verdicts.index(verdict)
    evidence = (
        f"holds with {verdicts.count('holds')} of {len(seeds)} seeds; with seed {seeds[index]}: "
        f"{claims[index]['evidence']}"
    )
    return {**claims[index], "verdict": verdict, "evidence": evidence}
