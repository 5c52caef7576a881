"""``lineavae collapse``: which latents of posteriors on disk are collapsed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from lineavae._io import atomic_path
from lineavae._optional import require
from lineavae._paper import DELTA, EPSILON
from lineavae.collapse import CollapseAt, CollapseReport
from lineavae.collapse._posterior import WIDE
from lineavae.collapse.files import PosteriorFileError, Shard, find_shards
from lineavae.collapse.names import Keys
from lineavae.collapse.pooling import pooling_warnings
from lineavae.collapse.scan import ShardResults, scan_each
from lineavae.collapse.statistics import DEFAULT_THRESHOLDS
from lineavae.commands._common import (
    cannot_write,
    check_device,
    check_output,
    fail,
    processes,
    show,
    show_json,
)
from lineavae.ops import LatentStatistics, collapse_statistics

# Files that have a line in the printed report.
_MOST_FILES = 20

EPILOG = (
    "Examples: [bold]lineavae collapse posterior.safetensors[/bold]; "
    "[bold]torchrun --nproc-per-node 4 -m lineavae collapse shards/ --resume state/[/bold] reads the files "
    "of a folder with four processes, and after a kill continues where it was."
)


def collapse(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILES...",
            help=".safetensors, .npz or .pt files, pairs of .npy files such as x_mean.npy and x_logvar.npy, "
            "glob patterns, or folders of them; they may be larger than memory.",
        ),
    ],
    epsilon: Annotated[
        list[float],
        typer.Option(help="Threshold ε in nats; repeated, the first is that of the report."),
    ] = [EPSILON],  # noqa: B006 (typer copies it)
    delta: Annotated[
        float, typer.Option(help="Fraction δ, below 1, of the samples that may have a larger KL.")
    ] = DELTA,
    mean_key: Annotated[
        str | None, typer.Option(help="Name of the means; by default one of mean, mu, loc, qz_m, ...")
    ] = None,
    logvar_key: Annotated[
        str | None,
        typer.Option(
            help="Name of the log-variances. Without this and the next three, one of logvar, std, variance, "
            "log_std, or of others that are usual, such as log_var, sigma, scale, var, qz_v."
        ),
    ] = None,
    std_key: Annotated[str | None, typer.Option(help="Name of the standard deviations.")] = None,
    var_key: Annotated[str | None, typer.Option(help="Name of the variances.")] = None,
    log_std_key: Annotated[
        str | None, typer.Option(help="Name of the logarithms of the standard deviations.")
    ] = None,
    event_dim: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of last dimensions that are the latents, of arrays of more than two: "
            "3 makes K = CHW of (N, C, H, W).",
        ),
    ] = None,
    allow_wide: Annotated[
        bool,
        typer.Option(
            "--allow-wide",
            help="Take log-variances that look like variances or standard deviations as they are.",
        ),
    ] = False,
    all_latents: Annotated[
        bool, typer.Option("--all-latents", help="Print a row for every latent, however many there are.")
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            file_okay=False,
            help="Keep the results of finished files here; the same command continues from them.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where to compute, for example cuda; under torchrun, each process on its own.")
    ] = "cpu",
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", dir_okay=False, help="Draw the percentage collapsed against ε."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; all other text goes to stderr.")
    ] = False,
) -> None:
    """Check, find, scan and show."""
    thresholds = sorted({*epsilon, *DEFAULT_THRESHOLDS})
    keys = Keys(mean_key, logvar_key, std_key, var_key, log_std_key)
    try:
        keys.check()
    except ValueError as error:
        fail(str(error))
    _check(thresholds, delta, plot, resume)
    results = None if resume is None else ShardResults(resume, thresholds)
    with processes(device) as (rank, device):
        check_device(device)
        try:
            shards = _find_shards(files, keys, event_dim)
            num_samples, latent_dim = sum(shard.num_samples for shard in shards), shards[0].latent_dim
            if rank == 0 and latent_dim > num_samples:
                remark = (
                    f"there are more latents, {latent_dim}, than samples, {num_samples}: arrays are (N, K)"
                )
                typer.echo(f"lineavae: {remark}", err=True)
            statistics, each = _scan(shards, thresholds, results, device, rank)
        except PosteriorFileError as error:
            fail(str(error))
        except KeyboardInterrupt:
            how = "the same command" if resume else "a command with --resume DIR"
            fail(f"interrupted; {how} continues after the finished files", 130)
    if rank == 0:
        report = CollapseReport(statistics, thresholds)
        if report.is_wider_than_prior and not allow_wide:
            fail(f"{WIDE} --var-key and --std-key name them; --allow-wide takes them as they are")
        for warning in pooling_warnings(shards, each, thresholds.index(epsilon[0]), delta):
            typer.echo(f"warning: {warning}", err=True)
        at = report.at(epsilon[0], delta)
        _show(at, shards, as_json, all_latents)
        if plot is not None:
            _plot(at, plot, as_json)
    if results is not None and results.failure is not None:
        fail(f"{cannot_write(results.folder, results.failure)}; later files are not kept as finished", 1)


def _check(thresholds: Sequence[float], delta: float, plot: Path | None, resume: Path | None) -> None:
    """End the command, before the work rather than after it, where its options cannot be served."""
    try:
        collapse_statistics(torch.empty(0, 1), torch.empty(0, 1), thresholds)
    except ValueError as error:
        fail(f"--epsilon: {error}")
    if not 0 <= delta < 1:
        fail(f"--delta must be at least 0 and below 1, got {delta}")
    if resume is not None:
        check_output("--resume", resume / "result.safetensors")
    if plot is None:
        return
    try:
        known = require("matplotlib.figure", "experiments").Figure().canvas.get_supported_filetypes()
    except ModuleNotFoundError as error:
        fail(str(error), 1)
    if plot.suffix.removeprefix(".") not in known:
        fail(f"--plot {plot}: the name must end with one of {', '.join(f'.{kind}' for kind in known)}")
    check_output("--plot", plot)


def _find_shards(files: Sequence[Path], keys: Keys, event_dim: int | None) -> list[Shard]:
    """Find the shards in the first process: the others work on its list, and its errors are said once."""
    if not dist.is_initialized():
        return find_shards(files, keys, event_dim)
    message = b""
    try:
        if dist.get_rank() == 0:
            message = "\n".join(shard.to_json() for shard in find_shards(files, keys, event_dim)).encode()
    except PosteriorFileError as error:
        fail(str(error))
    finally:
        message = _broadcast(message)
    if not message:  # the first process has failed
        raise typer.Exit(2)
    return [Shard.from_json(line) for line in message.decode().splitlines()]


def _broadcast(message: bytes) -> bytes:
    """Give every process the message of the first; torch's broadcast of objects would pickle them."""
    length = torch.tensor(len(message))
    dist.broadcast(length, 0)
    content = torch.zeros(int(length), dtype=torch.uint8)
    if dist.get_rank() == 0:
        content.numpy()[:] = memoryview(message)
    dist.broadcast(content, 0)
    return content.numpy().tobytes()


def _scan(
    shards: Sequence[Shard],
    thresholds: Sequence[float],
    results: ShardResults | None,
    device: str,
    rank: int,
) -> tuple[LatentStatistics, LatentStatistics]:
    """Scan with a progress bar on stderr, which is that of the first process."""
    console = Console(stderr=True)
    finished = sum(results.has(shard) for shard in shards) if results is not None else 0
    if finished and rank == 0:
        console.print(f"{finished} of {len(shards)} files were finished earlier")
    what = f"process 1 of {dist.get_world_size()}" if dist.is_initialized() else "reading"
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=rank > 0 or finished == len(shards)) as bar:
        task = bar.add_task("")
        return scan_each(
            shards,
            thresholds,
            results,
            device,
            progress=lambda read, total: bar.update(task, completed=read, total=total),
        )


def _show(at: CollapseAt, shards: Sequence[Shard], as_json: bool, all_latents: bool) -> None:
    curve = at.collapse_curve(at.report.thresholds)
    if as_json:
        points = {"epsilon": curve.epsilons.tolist(), "collapsed_percent": curve.lower.tolist()}
        files = {"files": [shard.name for shard in shards], "rows": [shard.num_samples for shard in shards]}
        show_json({**files, **at.to_dict(), "curve": points})
    table = Table("ε", "collapsed", title=f"at δ = {at.delta:g}", title_justify="left", box=SIMPLE_HEAD)
    for threshold, percent in zip(curve.epsilons, curve.lower, strict=True):
        table.add_row(f"{threshold:g}", f"{percent:.1f} %")
    pooled = [_pooled(shards)] if len(shards) > 1 else []
    summary = at.summary(max_latents=None) if all_latents else at.summary()
    show(*pooled, summary, table, err=as_json)


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


def _plot(at: CollapseAt, plot: Path, as_json: bool) -> None:
    try:
        with atomic_path(plot) as temporary:
            at.plot_curve().savefig(temporary, dpi=200)
    except OSError as error:
        fail(cannot_write(plot, error), 1)
    show(str(plot), err=as_json)
