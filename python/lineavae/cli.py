"""The command ``lineavae``: look at an installation, data or a posterior, reproduce the paper's figures.

Exit codes: 0 done, 1 a run failed or cannot run here, 2 bad usage or input, 130 interrupted.
"""

from __future__ import annotations

import errno
import io
import json
import sys
from typing import Annotated

import typer

from lineavae import __version__
from lineavae.commands.collapse import EPILOG as COLLAPSE_EPILOG
from lineavae.commands.collapse import collapse
from lineavae.commands.forecast import EPILOG as FORECAST_EPILOG
from lineavae.commands.forecast import forecast
from lineavae.commands.reproduce import EPILOG as REPRODUCE_EPILOG
from lineavae.commands.reproduce import reproduce
from lineavae.diagnostics import diagnose as diagnose_installation

app = typer.Typer(
    help="Linear VAEs and posterior collapse: exact, fused C++/CUDA operators for PyTorch.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",  # said, since typer before 0.20 takes an epilog as plain text otherwise
    # a run that fails shows Python's own traceback
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a letter that the terminal lacks is no reason to lose a report
        sys.stdout.reconfigure(errors="replace")
    try:
        app()
    except OSError as error:
        # where a file cannot be written the commands say which; what has no name is stdout
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename is not None:
            raise
        sys.exit(f"lineavae: the output cannot be written: {error.strerror}")


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"lineavae {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def diagnose(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show versions, devices and which operators run natively; exit code 1 if the native module is broken."""
    diagnosis = diagnose_installation()
    typer.echo(json.dumps(diagnosis.to_dict(), indent=2) if as_json else str(diagnosis))
    raise typer.Exit(0 if diagnosis.native_error is None else 1)


app.command(epilog=COLLAPSE_EPILOG)(collapse)
app.command(epilog=FORECAST_EPILOG)(forecast)
app.command(epilog=REPRODUCE_EPILOG)(reproduce)
