"""Curves as CSV, for other programs than NumPy."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np

from lineavae._io import write_text
from lineavae.experiments.runs import Results


def write_tables(results: Results, folder: Path) -> None:
    """Write the curves of a run as CSV files, one for all curves with the same axes.

    A row has the place on each axis, counted from 0 where the run tells no values, then the value of each
    curve there, with all digits. The file is called by the axes, or by the curve if its axes have no names.

    Parameters
    ----------
    results
        What a run found.
    folder
        Where the files go.

    Raises
    ------
    OSError
        A file cannot be written.
    """
    curves, axes = results["curves"], results.get("axes", {})
    tables: dict[str, list[str]] = {}
    for name in curves:
        tables.setdefault("-".join(axes.get(name, [name])), []).append(name)
    for title, names in tables.items():
        shape = curves[names[0]].shape
        along = axes.get(names[0], [f"axis {index}" for index in range(len(shape))])
        places = [
            curves[name] if axes.get(name) == [name] else np.arange(size)
            for name, size in zip(along, shape, strict=True)
        ]
        values = [name for name in names if name not in along]
        columns = [*np.meshgrid(*places, indexing="ij"), *(curves[name] for name in values)]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*along, *values])
        writer.writerows(zip(*(column.ravel().tolist() for column in columns), strict=True))
        write_text(folder / f"{re.sub(r'[^-.,=()+²σεa-zA-Z0-9]+', '_', title)}.csv", text.getvalue())
