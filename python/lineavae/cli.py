"""The command ``lineavae``: look at an installation, data or a posterior, reproduce the paper's figures.

Exit codes: 0 done, 1 a run failed or cannot run here, 2 bad usage or input, 130 interrupted.
"""

from __future__ import annotations

import atexit
import errno
import io
import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from lineavae import __version__
from lineavae._loading import INTERRUPTED, loading

# What each command is for. Its options, and all that it needs, are in lineavae.commands.<name>.
_COMMANDS = {
    "diagnose": "Show versions, devices and which operators run natively; exit code 1 if the native module "
    "is broken.",
    "collapse": "Tell which latents are (ε, δ)-collapsed, from posteriors on disk, in one pass.",
    "forecast": "Forecast posterior collapse: how many latents can live on the data, at which σ², at what "
    "cost.",
    "sweep": "Train thousands of linear VAEs together, one at each point of a grid, and draw where latents "
    "collapse.",
    "reproduce": "Reproduce the paper's figures and tables. A finished run is skipped, a killed one "
    "continues with --resume.",
    "report": "Write finished runs and collapse reports as one HTML page, measured beside published.",
}


# Columns of a terminal below which a table of options would cut off their names.
_WIDE = 80


class _Help:
    """A command whose help is plain text in a narrow terminal, and otherwise gives flags no type."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        command: Any = self
        parameters = command.get_params(ctx)
        if Console().width < _WIDE:
            command.rich_markup_mode = None
            for part in (command, *parameters):
                part.help = part.help and Text.from_markup(part.help).plain
            command.epilog = command.epilog and Text.from_markup(command.epilog).plain
        for parameter in parameters:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
        super().format_help(ctx, formatter)  # type: ignore[misc]


class _Command(_Help, TyperCommand):
    pass


class _LazyCommand(TyperCommand):
    """A command whose module is imported when it runs: to list the commands, torch is not loaded."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        return self._load().make_context(*args, **kwargs)

    def _load(self) -> Any:
        try:
            with loading():
                module = import_module(f"lineavae.commands.{self.name}")
        except ImportError as error:  # the native module does not load, or a dependency is missing
            typer.echo(f"lineavae: {error}", err=True)
            raise typer.Exit(1) from None
        alone = typer.Typer(add_completion=False, **_STYLE)
        command = alone.command(self.name, cls=_Command, help=self.help, epilog=module.EPILOG)
        command(getattr(module, str(self.name)))
        return typer.main.get_command(alone)


class _Group(_Help, TyperGroup):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {name: _LazyCommand(name, help=text) for name, text in _COMMANDS.items()}


_STYLE: dict[str, Any] = {
    "rich_markup_mode": "rich",  # said, since typer before 0.20 takes an epilog as plain text otherwise
    # a run that fails shows Python's own traceback
    "pretty_exceptions_enable": False,
}

app = typer.Typer(
    cls=_Group,
    help="Linear VAEs and posterior collapse: exact, fused C++/CUDA operators for PyTorch.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    **_STYLE,
)


def main() -> None:
    """Run the command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a letter that the terminal lacks is no reason to lose a report
        sys.stdout.reconfigure(errors="replace")
    try:
        app()
    except SystemExit as error:
        if error.code == INTERRUPTED:
            _exit_at_once()
        raise
    except OSError as error:
        # where a file cannot be written the commands say which; what has no name is stdout
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename is not None:
            raise
        sys.exit(f"lineavae: the output cannot be written: {error.strerror}")


def _exit_at_once() -> None:
    """End the process without a wait for threads.

    Python before 3.13 no longer waits for a thread in whose ``join`` Ctrl-C came. If that lets go of a tensor
    while Python is shut down, torch aborts the process.
    """
    atexit._run_exitfuncs()  # among them the one that ends child processes
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)


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
