"""``lineavae reproduce``: the paper's figures and tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from lineavae._io import finite
from lineavae._loading import INTERRUPTED, loading
from lineavae.commands._common import cannot_write, check_device, fail, processes, show, show_json
from lineavae.commands._experiment_list import show_list
from lineavae.experiments import EXPERIMENTS, Config, Experiment, Run, RunDirectoryError, RunWriteError
from lineavae.experiments.runs import directory_of
from lineavae.experiments.settings import change, parse_seeds, resolve

EPILOG = (
    "Example: [bold]lineavae reproduce analytic-vs-stochastic --preset quick[/bold] takes about a "
    "minute, needs no data files, and ends with a figure in runs/analytic-vs-stochastic-quick/. "
    "[bold]lineavae reproduce figure-3 --seeds 0:5 --set latent_dim=20 --format pdf[/bold] runs it with five "
    "seeds and K = 20, and ends with means and their spread in runs/analytic-vs-stochastic-quick-seeds/."
)


class Preset(str, Enum):
    """How much of the paper's experiment to run."""

    quick = "quick"
    full = "full"


class Format(str, Enum):
    """What a figure is saved as."""

    png = "png"
    pdf = "pdf"
    svg = "svg"


def reproduce(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Experiments, or figures and tables as figure-2: in this order."),
    ] = None,
    list_all: Annotated[
        bool,
        typer.Option("--list", help="List the experiments, what they take and what is done; run nothing."),
    ] = False,
    preset: Annotated[
        Preset, typer.Option(help="[bold]quick[/bold]: minutes; [bold]full[/bold]: as in the paper.")
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
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change a setting of the preset; several times. A name that is none lists them all.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Chooses the images, the initial parameters and all noise; 0 if not given."),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="0:5",
            help="A run with each of these seeds, and their means with standard deviations, in "
            "<out>/<name>-<preset>-seeds/; more seeds later run the new ones only.",
        ),
    ] = None,
    formats: Annotated[
        list[Format] | None, typer.Option("--format", help="Of the figures; several times.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to train, for example cuda.")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished run.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; all other text goes to stderr.")
    ] = False,
) -> None:
    """Run the experiments that are named, in this order."""
    if list_all:
        show_list(out, as_json)
        return
    if not names:
        fail(f"name an experiment: {', '.join(EXPERIMENTS)}")
    try:
        found = resolve(names, EXPERIMENTS)
        several = None if seeds is None else parse_seeds(seeds)
        with loading():  # torch, which a list can do without
            experiments = [EXPERIMENTS[name] for name in found]
        options: dict[str, Any] = {
            "data": data and str(data.resolve()),
            "seed": seed or 0,
            "device": device,
        }
        configs = [
            change(replace(experiment.presets[preset.value], **options), settings or ())
            for experiment in experiments
        ]
    except ValueError as error:
        fail(str(error))
    except ImportError as error:
        fail(str(error), 1)
    rank, _ = context.with_resource(processes(device))
    check_device(device)
    suffixes = [choice.value for choice in formats or [Format.png]]
    calls = []
    for name, experiment, config in zip(found, experiments, configs, strict=True):
        if several and seed is not None and not hasattr(config, "seeds"):
            fail(f"{name}: give either --seed or --seeds")
        call, directory = _plan(name, experiment, config, several, out, preset)
        calls.append((name, experiment, partial(call, resume=resume, formats=suffixes), directory))
    done, failure = [], None
    for name, experiment, call, directory in calls:
        run, failure = _run(call, directory, is_changed=bool(settings or data))
        if rank == 0:
            _report(experiment, run, err=as_json)
        done.append(
            {
                "name": name,
                "preset": preset.value,
                "directory": str(run.directory),
                "figures": {
                    figure: [str(path) for path in paths if path.exists()]
                    for figure, paths in run.figures.items()
                },
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


def _plan(
    name: str, experiment: Experiment, config: Config, seeds: Sequence[int] | None, out: Path, preset: Preset
) -> tuple[Callable[..., Run], Path]:
    """Give what runs the experiment, and where its results go."""
    from lineavae.experiments import execute, execute_seeds

    if seeds is not None and hasattr(config, "seeds"):  # it trains all of them together
        together: dict[str, Any] = {"seeds": seeds}
        config, seeds = replace(config, **together), None
    directory = directory_of(out, name, preset.value, seeds=seeds is not None)
    if seeds is None:
        return partial(execute, experiment, config, directory), directory
    return partial(execute_seeds, experiment, config, seeds, directory), directory


def _run(call: Callable[[], Run], directory: Path, *, is_changed: bool) -> tuple[Run, str | None]:
    """Give the run, and what of it could not be written."""
    from lineavae.data import DataError

    try:
        return call(), None
    except RunWriteError as error:
        return error.run, cannot_write(directory, error)
    except OSError as error:
        fail(cannot_write(directory, error), 1)
    except (DataError, RunDirectoryError) as error:
        fail(str(error))
    except ValueError as error:
        if not is_changed:
            raise
        fail(f"these settings or data do not fit the experiment: {error}")
    except ModuleNotFoundError as error:
        fail(str(error), 1)
    except KeyboardInterrupt:
        fail("interrupted; the same command with --resume continues", INTERRUPTED)


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
        spread = "" if value["spread"] is None else f" ± {value['spread']:.2g}"
        table.add_row(name, f"{value['measured']:.5g}{spread}", published, value["unit"])
    lines = [f"{claim['verdict']}: {claim['claim']} ({claim['evidence']})" for claim in run.results["claims"]]
    lines += filter(None, [experiment.paper_on(run.results["data"])])
    if run.skipped:
        lines.append(f"{experiment.name}: finished earlier, not run again")
    lines += [str(path) for paths in run.figures.values() for path in paths if path.exists()]
    show(table, *lines, err=err)
