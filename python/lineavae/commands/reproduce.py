"""``lineavae reproduce``: the paper's figures."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from lineavae._io import finite
from lineavae._loading import loading
from lineavae.commands._common import cannot_write, check_device, fail, processes, show, show_json
from lineavae.experiments import EXPERIMENTS, Experiment, Run, RunDirectoryError, RunWriteError

EPILOG = (
    "Example: [bold]lineavae reproduce analytic-vs-stochastic --preset quick[/bold] takes about a "
    "minute, needs no data files, and ends with a figure in runs/analytic-vs-stochastic-quick/."
)


class Preset(str, Enum):
    """How much of the paper's experiment to run."""

    quick = "quick"
    full = "full"


def reproduce(
    context: typer.Context,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Experiments, run in this order.")
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List the experiments, run nothing.")] = False,
    preset: Annotated[
        Preset, typer.Option(help="[bold]quick[/bold]: about a minute; [bold]full[/bold]: as in the paper.")
    ] = Preset.quick,
    data: Annotated[
        Path | None,
        typer.Option(
            envvar="LINEAVAE_DATA",
            help="Folder with MNIST's four files, with CelebA's img_align_celeba, or with other images, JPEG "
            "or PNG; or a .npy file of images, uint8 (N, H, W) or (N, H, W, C), or of samples, "
            "floats (N, D). Without it, the 5000 images of MNIST-5k.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(file_okay=False, help="Runs go into <out>/<name>-<preset>/.")] = Path(
        "runs"
    ),
    seed: Annotated[
        int, typer.Option(min=0, help="Chooses the images, the initial parameters and all noise.")
    ] = 0,
    device: Annotated[str, typer.Option(help="Where to train, for example cuda.")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished run.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; all other text goes to stderr.")
    ] = False,
) -> None:
    """Run the experiments that are named, in this order."""
    if list_all:
        _list(as_json)
        return
    if not names:
        fail(f"name an experiment: {', '.join(EXPERIMENTS)}")
    for name in names:
        if name not in EXPERIMENTS:
            fail(f"there is no experiment {name!r}, only {', '.join(EXPERIMENTS)}")
    try:
        with loading():  # torch, which a list can do without
            experiments = {name: EXPERIMENTS[name] for name in names}
    except ImportError as error:
        fail(str(error), 1)
    rank, _ = context.with_resource(processes(device))
    check_device(device)
    settings = {"data": data and str(data.resolve()), "seed": seed, "device": device}
    done, failure = [], None
    for name in names:
        experiment = experiments[name]
        run, failure = _run(experiment, preset, settings, out / f"{name}-{preset.value}", resume)
        if rank == 0:
            _report(experiment, run, err=as_json)
        done.append(
            {
                "name": name,
                "preset": preset.value,
                "directory": str(run.directory),
                "figures": {name: str(path) for name, path in run.figures.items() if path.exists()},
                "skipped": run.skipped,
                "data": run.results["data"],
                "quantities": run.results["quantities"],
                "tables": run.results["tables"],
                "claims": run.results["claims"],
            }
        )
        if failure is not None:
            break
    if as_json and rank == 0:
        show_json(finite({"runs": done}))
    if failure is not None:
        fail(failure, 1)


def _run(
    experiment: Experiment, preset: Preset, settings: dict[str, Any], directory: Path, resume: bool
) -> tuple[Run, str | None]:
    """Give the run, and what of it could not be written."""
    from lineavae.data import DataError
    from lineavae.experiments import execute

    config = replace(experiment.presets[preset.value], **settings)
    try:
        return execute(experiment, config, directory, resume=resume), None
    except RunWriteError as error:
        return error.run, cannot_write(directory, error)
    except OSError as error:
        fail(cannot_write(directory, error), 1)
    except (DataError, RunDirectoryError) as error:
        fail(str(error))
    except ModuleNotFoundError as error:
        fail(str(error), 1)
    except KeyboardInterrupt:
        fail("interrupted; the same command with --resume continues", 130)


def _list(as_json: bool) -> None:
    entries = {name: EXPERIMENTS.entry(name) for name in EXPERIMENTS}
    presets = [preset.value for preset in Preset]
    if as_json:
        rows = [
            {"name": name, "title": entry.title, "shows": entry.shows, "presets": presets}
            for name, entry in entries.items()
        ]
        show_json({"experiments": rows})
        return
    table = Table("name", "what", "presets", box=SIMPLE_HEAD)
    for name, entry in entries.items():
        table.add_row(name, entry.title, ", ".join(presets))
    show(table)


def _report(experiment: Experiment, run: Run, *, err: bool) -> None:
    data = f"{run.results['data']}, N={run.results['config']['num_images']}"
    table = Table("quantity", title=f"{experiment.title} ({data})", title_justify="left", box=SIMPLE_HEAD)
    for column in ("measured", "published"):
        table.add_column(column, justify="right")
    table.add_column("unit")
    quantities = run.results["quantities"]
    for name in experiment.headline or quantities:
        value = quantities[name]
        published = "" if value["published"] is None else f"{value['published']:.5g}"
        table.add_row(name, f"{value['measured']:.5g}", published, value["unit"])
    config = experiment.presets["quick"]
    lines = [experiment.paper] if run.results["data"] in config.published_data else []
    if run.skipped:
        lines.append(f"{experiment.name}: finished earlier, not run again")
    lines += [str(path) for path in run.figures.values() if path.exists()]
    show(table, *lines, err=err)
