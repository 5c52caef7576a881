"""What ``lineavae collapse`` gives out: text, JSON, tables, figures and a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table

from lineavae._io import atomic_path, write_text
from lineavae.collapse import CollapseAt, CollapseComparison
from lineavae.collapse.files import Shard
from lineavae.commands._common import cannot_write, fail, show, show_json
from lineavae.commands._models import Model
from lineavae.commands.collapse import Drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Files that have a line in the printed report.
_MOST_FILES = 20


def show_found(
    found: CollapseAt | CollapseComparison, models: Sequence[Model], as_json: bool, all_latents: bool
) -> None:
    """Print what was found, as text and as JSON."""
    document = found.to_dict() if as_json else {}
    if isinstance(found, CollapseComparison):
        for model in models if as_json else ():
            document["models"][model.name] |= _sources(model.shards)
        parts: list[RenderableType] = [found]
    else:
        (model,) = models
        curve = found.collapse_curve(found.report.thresholds)
        points = {"epsilon": curve.epsilons.tolist(), "collapsed_percent": curve.lower.tolist()}
        document = {**_sources(model.shards), **document, "curve": points}
        pooled = [_pooled(model.shards)] if len(model.shards) > 1 else []
        summary = found.summary(max_latents=None) if all_latents else found.summary()
        at_thresholds = Table(
            "ε", "collapsed", title=f"at δ = {found.delta:g}", title_justify="left", box=SIMPLE_HEAD
        )
        for threshold, percent in zip(curve.epsilons, curve.lower, strict=True):
            at_thresholds.add_row(f"{threshold:g}", f"{percent:.1f} %")
        parts = [*pooled, summary, "", at_thresholds]
    if as_json:
        show_json(document)
    show(*parts, err=as_json)


def _sources(shards: Sequence[Shard]) -> dict[str, Any]:
    """Name the files that a report is of, in its document; of one that was saved they are not known."""
    names, rows = [shard.name for shard in shards], [shard.num_samples for shard in shards]
    return {"files": names, "rows": rows} if names else {}


def _pooled(shards: Sequence[Shard]) -> Table:
    """Say which files the report is of, and how many rows each has."""
    table = Table("rows", "file", title=f"{len(shards)} files, pooled", title_justify="left", box=SIMPLE_HEAD)
    table.columns[0].justify = "right"
    for shard in shards[:_MOST_FILES]:
        table.add_row(str(shard.num_samples), shard.name)
    rest = shards[_MOST_FILES:]
    if rest:
        table.add_row(str(sum(shard.num_samples for shard in rest)), f"in {len(rest)} more")
    return table


def write_found(
    found: CollapseAt | CollapseComparison,
    models: Sequence[Model],
    plot: Path | None,
    draw: Drawing,
    html: Path | None,
    table: Path | None,
    as_json: bool,
) -> None:
    """Write what else was asked for, and name it."""
    try:
        for path in filter(None, (table, html, plot)):
            if path is plot:
                with atomic_path(path) as temporary:
                    _drawings(found)[draw]().savefig(temporary)
            else:
                write_text(path, _csv(found) if path is table else _page(found, models))
            show(str(path), err=as_json)
    except OSError as error:
        fail(cannot_write(path, error), 1)
    except ValueError as error:  # a heat map of models whose latents are not matched
        fail(str(error), 1)


def _csv(found: CollapseAt | CollapseComparison) -> str:
    columns, text = found.columns(), io.StringIO()
    if isinstance(found, CollapseAt):
        columns = {"latent": list(range(found.report.latent_dim)), **columns}
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _page(found: CollapseAt | CollapseComparison, models: Sequence[Model]) -> str:
    from lineavae.report import ReportView, to_html
    from lineavae.report.collapses import show_comparison, show_report

    if isinstance(found, CollapseComparison):
        first, *_, last = names = [model.name for model in models]
        name = ", ".join(names) if len(names) <= 3 else f"{first} to {last}"
        view = show_comparison(name, found)
    else:
        (model,) = models
        more = f" and {len(model.shards) - 1} more" if len(model.shards) > 1 else ""
        name = model.name or Path(model.shards[0].name).name + more
        files = [(shard.name, shard.num_samples) for shard in model.shards]
        view = show_report(name, found, files)
    return to_html(ReportView([], [view], []))


def _drawings(found: CollapseAt | CollapseComparison) -> dict[Drawing, Callable[[], Figure]]:
    if isinstance(found, CollapseComparison):
        return {Drawing.curve: found.plot_curves, Drawing.heat_map: found.plot_heat_map}
    return {
        Drawing.curve: found.plot_curve,
        Drawing.spectrum: found.plot_spectrum,
        Drawing.surface: found.report.plot_surface,
    }
