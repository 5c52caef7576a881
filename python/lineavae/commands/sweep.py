"""``lineavae sweep``: thousands of linear VAEs trained together, and the phase diagram of their collapse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Column, Table

from lineavae._io import atomic_path, finite
from lineavae._loading import INTERRUPTED
from lineavae._paper import EPSILON
from lineavae._sweep_settings import SETTINGS
from lineavae.commands._common import (
    cannot_write,
    check_device,
    check_distinct,
    check_output,
    fail,
    importing,
    processes,
    show,
    show_json,
)

if TYPE_CHECKING:
    from lineavae.linear import Sweep

EPILOG = (
    "Example: [bold]lineavae sweep --data digits --axis latent_dim=16 --axis sigma2=1e-3:3:log:40 "
    "--axis seed=0:25 --axis lr=0.003 --plot phase.png[/bold] trains 1000 models, and draws how many latents "
    "live at each σ², on the staircase of the theory. Settings for [bold]--axis[/bold]: "
    + "; ".join(f"[bold]{name}[/bold], {setting.meaning}" for name, setting in SETTINGS.items())
    + "."
)

# Relative distance of βσ² from an eigenvalue within which training takes longer than it is given here.
_CLOSE = 0.02

# Values of an axis at the most.
_MOST_VALUES = 1_000_000

# Columns of the table that people see beside the axes, and its longest.
_SHOWN = ("live", "theory", "elbo", "log_sigma2", "alignment", "gradient_norm")
_MOST_ROWS = 60


class Optimizer(str, Enum):
    """What takes the steps."""

    adam = "adam"
    sgd = "sgd"


class Dtype(str, Enum):
    """In what the models are trained."""

    float32 = "float32"
    float64 = "float64"


def sweep(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="[bold]digits[/bold]: scikit-learn's of 8 x 8 pixels; [bold]mnist5k[/bold]: 5000 images of "
            "MNIST; or a file or folder as [bold]lineavae forecast[/bold] takes them.",
        ),
    ],
    axes: Annotated[
        list[str],
        typer.Option(
            "--axis",
            metavar="NAME=VALUES",
            help="A setting: one number for all models; numbers with commas between them; 0:25 for whole "
            "numbers from 0 to 24; 1e-4:10:log:40 or 0:1:lin:11 for so many from one to the other.",
        ),
    ],
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimizer.")] = 4000,
    learn_sigma2: Annotated[
        bool, typer.Option("--learn-sigma2", help="Train σ² too, from the value on its axis.")
    ] = False,
    optimizer: Annotated[Optimizer, typer.Option(help="What takes the steps.")] = Optimizer.adam,
    rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train along so many principal directions of the data alone, for speed. Exact for sgd; with "
            "adam, whose steps depend on the coordinates, another way.",
        ),
    ] = None,
    record: Annotated[
        str,
        typer.Option(metavar="NAMES", help="Of elbo, live, log_sigma2, kl, alignment, gap: with commas."),
    ] = "elbo,live,log_sigma2",
    record_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between two records; by default the end alone.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Norm of the gradient below which a model stops; 0 for never.")
    ] = 0.0,
    epsilon: Annotated[float, typer.Option(help="Mean KL ε in nats from which a latent is live.")] = EPSILON,
    dtype: Annotated[Dtype, typer.Option(help="In what the models are trained.")] = Dtype.float32,
    device: Annotated[str, typer.Option(help="Where to train, for example cuda.")] = "cpu",
    memory: Annotated[
        float, typer.Option(help="GB that the results, and the models that train together, may take each.")
    ] = 1.0,
    out: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="A .safetensors file for the results, for Sweep.load; checkpoints go beside it, into "
            "<out>.parts/, until it is written.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the checkpoints of --out.")] = False,
    csv: Annotated[
        Path | None, typer.Option("--csv", dir_okay=False, help="A file for the results as a table.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="A file for the phase diagram, .png, .pdf or .svg: the first axis, and the second if that "
            "is not the seed.",
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Name of the array, in a file that holds more than one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train a model at each point of the grid, and say how many latents live."""
    with importing():
        import torch

        from lineavae.commands._moments import read_moments
        from lineavae.data import DataError
        from lineavae.linear import sweep as train

    if resume and out is None:
        fail("--resume: give the --out of the sweep that is to be continued")
    if out is not None and out.exists():
        fail(f"--out: {out} exists: choose another file, or delete it")
    if plot is not None and plot.suffix not in (".png", ".pdf", ".svg"):
        fail(f"--plot: the name must end with .png, .pdf or .svg, got {plot.name}")
    parts = out.with_name(f"{out.name}.parts") if out else None
    if parts is not None and parts.exists() and not resume:
        fail(f"--out: {parts} holds an unfinished sweep: pass --resume, or delete it")
    files = {option: path for option, path in (("--out", out), ("--csv", csv), ("--plot", plot)) if path}
    for option, path in files.items():
        check_output(option, path)
    if len({path.resolve() for path in files.values()}) < len(files):
        fail(f"{', '.join(files)}: each must be another file, got {', '.join(map(str, files.values()))}")
    check_distinct(files, [Path(data)])
    names = [name.strip() for name in record.split(",")]
    process, device = context.with_resource(processes(device))
    check_device(device)
    try:
        grid = [_parse_axis(text) for text in axes]
        if plot is not None:
            _check_plot(grid, names)
        found = train(
            read_moments(data, key),
            grid,
            steps=steps,
            learn_sigma2=learn_sigma2,
            optimizer=optimizer.value,
            rank=rank,
            record=names,
            record_at=None if record_every is None else sorted({*range(0, steps, record_every), steps}),
            tolerance=tolerance,
            epsilon=epsilon,
            dtype=getattr(torch, dtype.value),
            device=device,
            memory=memory * 1e9,
            checkpoint=parts,
            resume=resume,
            progress=not as_json,
        )
    except (DataError, ValueError) as error:
        fail(str(error).removeprefix("sweep: "))
    except ModuleNotFoundError as error:
        fail(str(error), 1)
    except OSError as error:
        fail(cannot_write(parts or Path(data), error), 1)
    except KeyboardInterrupt:
        fail("interrupted" + ("; the same command with --resume continues" if out else ""), INTERRUPTED)
    if process > 0:
        return
    try:
        _write(found, out, csv, plot)
    except OSError as error:
        fail(cannot_write(Path(error.filename or "the results"), error), 1)
    except ModuleNotFoundError as error:
        fail(str(error), 1)
    if parts is not None:
        _remove(parts)
    summary = {**_summarise(found), "data": data, "files": [str(path) for path in files.values()]}
    show_json(finite(summary)) if as_json else show(*_describe(summary))


def _parse_axis(text: str) -> tuple[str, float | list[float]]:
    """Read ``name=values``."""
    name, equals, values = text.partition("=")
    name = name.strip()
    if not equals or name not in SETTINGS:
        raise ValueError(f"--axis must be NAME=VALUES with NAME among {', '.join(SETTINGS)}, got {text!r}")
    number = int if SETTINGS[name].is_integer else float
    try:
        found = [value for part in values.split(",") for value in _parse_values(part.strip(), number)]
    except (ValueError, TypeError, OverflowError) as error:
        kind = "whole numbers" if number is int else "numbers"
        raise ValueError(
            f"--axis {name} must be {kind} with commas between them, or first:last:log:count, "
            f"first:last:lin:count, or first:end of whole numbers, at most a million; got {values!r}"
        ) from error
    return name, found[0] if len(found) == 1 and ":" not in values else found


def _parse_values(text: str, number: Callable[[Any], float]) -> Sequence[float]:
    first, *rest = text.split(":")
    if not rest:
        return [number(first)]
    if len(rest) == 1:
        values = range(int(first), int(rest[0]))
        if len(values) > _MOST_VALUES:
            raise ValueError
        return values
    import numpy as np

    last, spacing, count = rest
    if spacing not in ("log", "lin") or int(count) > _MOST_VALUES:
        raise ValueError
    make = np.geomspace if spacing == "log" else np.linspace
    with np.errstate(all="ignore"):  # what is not finite is refused
        spaced = make(float(first), float(last), int(count)).tolist()
    return [round(value) for value in spaced] if number is int else spaced


def _check_plot(grid: Sequence[tuple[str, Any]], names: Sequence[str]) -> None:
    """Refuse, before the work rather than after it, what has no figure."""
    if not any(isinstance(values, Sequence) for _, values in grid):
        raise ValueError("--plot: a setting must be an axis, of several values, to draw along; got none")
    if _value_to_draw(names) is None:
        raise ValueError(
            f"--plot: --record must have a statistic with one number for each model, got {', '.join(names)}"
        )


def _value_to_draw(names: Sequence[str]) -> str | None:
    return "live" if "live" in names else next((name for name in names if name not in ("kl", "gap")), None)


def _remove(parts: Path) -> None:
    """Remove the checkpoints, and their folder if it holds nothing else."""
    for path in parts.glob("chunk-*.safetensors"):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        parts.rmdir()


def _write(found: Sweep, out: Path | None, csv: Path | None, plot: Path | None) -> None:
    """Write the files that are asked for, the results first."""
    if out is not None:
        found.save(out)
    if csv is not None:
        with atomic_path(csv) as temporary:
            found.to_dataframe().to_csv(temporary, index=False)
    if plot is not None:
        first, *others = [name for name in found.axes if name != "seed"] or ["seed"]
        value = _value_to_draw(found.statistics)
        figure = found.plot_phase(first, others[0] if others else None, cast(str, value))
        with atomic_path(plot) as temporary:
            figure.savefig(temporary)


def _summarise(found: Sweep) -> dict[str, Any]:
    """Give means over the seeds of what was recorded last, and how it compares with the theory."""
    dataset = found.dataset
    frame = found.to_dataframe()
    frame = frame[frame.step == frame.step.max()].drop(columns="step")
    summary: dict[str, Any] = {
        **dataset.attrs,
        "learn_sigma2": bool(dataset.attrs["learn_sigma2"]),
        "axes": {name: dataset[name].values.tolist() for name in found.axes},
        "settings": {name: dataset[name].item() for name in SETTINGS if name not in found.axes},
        "num_models": found.num_models,
        "num_diverged": found.num_diverged,
    }
    if {"theory", "live"} <= set(frame):
        agrees, is_far = frame.live == frame.theory, frame.distance > _CLOSE
        summary["theory"] = {
            "margin": _CLOSE,
            "far": int(is_far.sum()),
            "far_agreeing": int((is_far & agrees).sum()),
            "close": int((~is_far).sum()),
            "close_agreeing": int((~is_far & agrees).sum()),
        }
    points = [name for name in found.axes if name != "seed"]
    frame = frame.drop(columns=[*summary["settings"], "seed"], errors="ignore")
    means = frame.groupby(points, sort=False).mean().reset_index() if points else frame.mean().to_frame().T
    return {**summary, "points": means.to_dict("records")}


def _describe(summary: dict[str, Any]) -> list[RenderableType]:
    """Give what people see of a summary: means over the seeds, and the count of what is as in theory."""
    noise = "learned" if summary["learn_sigma2"] else "fixed"
    basis = f" along {summary['rank']} principal directions" if "rank" in summary else ""
    lines: list[RenderableType] = [
        f"{summary['num_models']} models on {summary['data']}: {summary['steps']} steps of "
        f"{summary['optimizer']}{basis}, σ² {noise}"
    ]
    settings = [f"{name} {value:g}" for name, value in summary["settings"].items()]
    if settings:
        lines.append(", ".join(settings))
    columns = [name for name in summary["points"][0] if name in (*summary["axes"], *_SHOWN)]
    if len(summary["points"]) <= _MOST_ROWS:
        table = Table(*(Column(name, justify="right") for name in columns), box=SIMPLE_HEAD)
        for point in summary["points"]:
            table.add_row(*(f"{point[name]:.5g}" for name in columns))
        lines.append(table)
    else:
        lines.append(f"{len(summary['points'])} points: --csv, --json or --out have them")
    theory = summary.get("theory")
    if theory:
        lines.append(
            f"as many live latents as in theory: {theory['far_agreeing']} of {theory['far']} models with "
            f"βσ² farther than {100 * theory['margin']:g} % from every eigenvalue, "
            f"{theory['close_agreeing']} of {theory['close']} others"
        )
    if summary["num_diverged"]:
        lines.append(f"diverged: {summary['num_diverged']} models; a smaller lr helps")
    return [*lines, *summary["files"]]
