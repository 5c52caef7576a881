"""What the commands share."""

from __future__ import annotations

from typing import NoReturn

import torch
import typer


def fail(message: str, code: int = 2) -> NoReturn:
    """End the command with one sentence on stderr."""
    typer.echo(f"lineavae: {message}", err=True)
    raise typer.Exit(code)


def check_device(device: str) -> None:
    """End the command where torch cannot use the device."""
    try:
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        fail(f"--device {device}: {str(error).splitlines()[0]}")
