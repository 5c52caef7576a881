"""``lineavae collapse``: which latents of posteriors on disk are collapsed, in one model or in several."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lineavae._loading import INTERRUPTED
from lineavae._optional import require
from lineavae._paper import DELTA, EPSILON, LEVEL
from lineavae.commands._common import (
    cannot_write,
    check_device,
    check_distinct,
    check_output,
    fail,
    importing,
    processes,
)

if TYPE_CHECKING:
    from lineavae.commands._models import Model, Pool


class Drawing(str, Enum):
    """What ``--plot`` draws."""

    curve = "curve"
    spectrum = "spectrum"
    surface = "surface"
    heat_map = "heat-map"


EPILOG = (
    "Examples: [bold]lineavae collapse posterior.safetensors[/bold]; "
    "[bold]lineavae collapse epoch=*.npz --each --html course.html[/bold] compares checkpoints; "
    "[bold]torchrun --nproc-per-node 4 -m lineavae collapse shards/ --resume state/[/bold] reads the files "
    "of a folder with four processes, and after a kill continues where it was."
)


def collapse(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILES...",
            help=".safetensors, .npz, .pt, .h5ad, .h5, .parquet, .arrow or .feather files, .zarr stores, "
            "pairs of .npy files such as x_mean.npy and x_logvar.npy, glob patterns, or folders of them; "
            "they may be larger than memory. Or a .json file of a report that --json printed.",
        ),
    ],
    compare_paths: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Take each file, folder or pattern for a model, and compare them: which latents died.",
        ),
    ] = False,
    each: Annotated[
        bool, typer.Option("--each", help="As --compare, with each file of a folder or pattern a model.")
    ] = False,
    epsilon: Annotated[
        list[float],
        typer.Option(help="Threshold ε in nats; repeated, the first is that of the report."),
    ] = [EPSILON],  # noqa: B006 (typer copies it)
    delta: Annotated[
        float, typer.Option(help="Fraction δ, below 1, of the samples that may have a larger KL.")
    ] = DELTA,
    level: Annotated[
        float, typer.Option(help="Confidence level of what is said of the population, below 1.")
    ] = LEVEL,
    mean_key: Annotated[
        str | None,
        typer.Option(
            help="Name of the means, that in obsm of .h5ad files; by default one of mean, mu, loc, qz_m, ..."
        ),
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
        bool, typer.Option("--all", help="Print a row for every latent, however many there are.")
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
        typer.Option(metavar="FILE.png", dir_okay=False, help="Draw the figure that --draw names."),
    ] = None,
    draw: Annotated[
        Drawing,
        typer.Option(
            metavar="KIND",
            help="curve: the percentage collapsed against ε; spectrum: KL and critical ε of each latent; "
            "surface: the percentage against ε and δ; heat-map: the critical ε of each latent in each model.",
        ),
    ] = Drawing.curve,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="Write a page for others; it needs no network."),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            metavar="FILE",
            dir_okay=False,
            help="Write a row for each latent, or for each model.",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print one JSON object, which lineavae report reads, and that of one model this command; "
            "other text goes to stderr.",
        ),
    ] = False,
) -> None:
    """Check, find, scan and show."""
    with importing():
        from lineavae.collapse import compare
        from lineavae.collapse._posterior import WIDE
        from lineavae.collapse.files import PosteriorFileError
        from lineavae.collapse.names import Keys
        from lineavae.collapse.scan import ShardResults
        from lineavae.collapse.verdicts import DEFAULT_THRESHOLDS
        from lineavae.commands._models import find_models, scan_model
        from lineavae.commands._results import show_found, write_found

    thresholds = sorted({*epsilon, *DEFAULT_THRESHOLDS})
    keys = Keys(mean_key, logvar_key, std_key, var_key, log_std_key)
    try:
        keys.check()
    except ValueError as error:
        fail(str(error))
    _check(thresholds, delta, level)
    several = compare_paths or each
    _check_outputs(plot, draw, html, table, resume, several)
    results = None if resume is None else ShardResults(resume, thresholds)
    threshold = thresholds.index(epsilon[0])
    pool: Pool = "file" if each else "path" if compare_paths else "all"
    with processes(device) as (rank, device):
        check_device(device)
        try:
            models = find_models(files, keys, event_dim, pool)
            shards = [array.path for model in models for shard in model.shards for array in shard.arrays]
            outputs = {"--plot": plot, "--html": html, "--csv": table}
            check_distinct(outputs, (*files, *shards), is_silent=rank > 0)
            if rank == 0:
                _remark(models)
            read = [
                scan_model(model, thresholds, threshold, delta, results, device, rank) for model in models
            ]
        except PosteriorFileError as error:
            fail(str(error))
        except KeyboardInterrupt:
            how = "the same command" if resume else "a command with --resume DIR"
            fail(f"interrupted; {how} continues after the finished files", INTERRUPTED)
    if rank == 0:
        question = epsilon[0], delta, level
        reports = {model.name: model.report for model in read if model.report is not None}
        for model in read:
            if reports[model.name].is_wider_than_prior and not allow_wide:
                hint = "--var-key and --std-key name them; --allow-wide takes them as they are"
                fail(f"{model.prefix}{WIDE} {hint}")
            for warning in model.warnings:
                typer.echo(f"warning: {model.prefix}{warning}", err=True)
        found = compare(reports, *question) if several else reports[read[0].name].at(*question)
        show_found(found, read, as_json, all_latents)
        write_found(found, read, plot, draw, html, table, as_json)
    if results is not None and results.failure is not None:
        fail(f"{cannot_write(results.folder, results.failure)}; later files are not kept as finished", 1)


def _check(thresholds: Sequence[float], delta: float, level: float) -> None:
    """End the command where its numbers are none to ask for."""
    import torch

    from lineavae.ops import collapse_statistics

    try:
        collapse_statistics(torch.empty(0, 1), torch.empty(0, 1), thresholds)
    except ValueError as error:
        fail(f"--epsilon: {error}")
    if not 0 <= delta < 1:
        fail(f"--delta must be at least 0 and below 1, got {delta}")
    if not 0 < level < 1:
        fail(f"--level must be above 0 and below 1, got {level}")


def _check_outputs(
    plot: Path | None,
    draw: Drawing,
    html: Path | None,
    table: Path | None,
    resume: Path | None,
    several: bool,
) -> None:
    """End the command, before the work rather than after it, where its options cannot be served."""
    of_several = (Drawing.curve, Drawing.heat_map)
    if plot is None and draw is not Drawing.curve:
        fail(f"--draw {draw.value} needs --plot FILE")
    if (several and draw not in of_several) or (not several and draw is Drawing.heat_map):
        fail(f"--draw {draw.value} is of {'one model' if several else 'several, by --compare or --each'}")
    outputs = {"--plot": plot, "--html": html, "--csv": table}
    outputs["--resume"] = None if resume is None else resume / "result.safetensors"
    try:
        if html is not None:
            require("jinja2", "experiments")
        if html is not None or plot is not None:
            known = require("matplotlib.figure", "experiments").Figure().canvas.get_supported_filetypes()
    except ModuleNotFoundError as error:
        fail(str(error), 1)
    if plot is not None and plot.suffix.removeprefix(".") not in known:
        fail(f"--plot {plot}: the name must end with one of {', '.join(f'.{kind}' for kind in known)}")
    for option, path in outputs.items():
        if path is not None:
            check_output(option, path)


def _remark(models: Sequence[Model]) -> None:
    """Say where arrays look transposed."""
    for model in models:
        num_samples = sum(shard.num_samples for shard in model.shards)
        for shard in model.shards[:1]:
            if shard.latent_dim > num_samples:
                what = f"there are more latents, {shard.latent_dim}, than samples, {num_samples}"
                typer.echo(f"lineavae: {model.prefix}{what}: arrays are (N, K)", err=True)
