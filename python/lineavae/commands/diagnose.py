"""``lineavae diagnose``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lineavae.commands._common import importing

EPILOG = None


def diagnose(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the diagnosis."""
    with importing():
        from lineavae import diagnostics
    diagnosis = diagnostics.diagnose()
    typer.echo(json.dumps(diagnosis.to_dict(), indent=2) if as_json else str(diagnosis))
    raise typer.Exit(1 if diagnosis.native_error or diagnosis.problems else 0)
