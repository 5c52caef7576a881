"""What the commands share."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console, RenderableType

from lineavae._io import check_writable
from lineavae._loading import loading

_WIDEST = 10_000


def fail(message: str, code: int = 2) -> NoReturn:
    """End the command with one sentence on stderr."""
    typer.echo(f"lineavae: {' '.join(message.splitlines())}", err=True)
    raise typer.Exit(code)


@contextmanager
def importing() -> Iterator[None]:
    """Import what a command works with when it works: its options, and its help, do without torch."""
    try:
        with loading():
            yield
    except ImportError as error:  # the native module does not load, or a dependency is missing
        fail(str(error), 1)


def show(*parts: RenderableType, err: bool = False) -> None:
    """Print for people: names as they are, and no cell narrower than it is, however narrow the terminal is.

    A number of which a terminal shows the first digits reads as another.
    """
    console = Console(stderr=err, markup=False, emoji=False, highlight=False)
    wide = console.options.update(max_width=_WIDEST)
    widths = [console.measure(part, options=wide).maximum for part in parts]
    console.width = max(console.width, *widths)
    for part in parts:
        console.print(part)


def show_json(document: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout, all of whose numbers are finite."""
    typer.echo(json.dumps(document, allow_nan=False))


def check_device(device: str) -> None:
    """End the command where torch cannot use the device."""
    import torch

    try:
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        fail(f"--device {device}: {str(error).splitlines()[0]}")


def check_output(option: str, path: Path) -> None:
    """End the command, before its work, where a file cannot be written there."""
    try:
        check_writable(path)
    except OSError as error:
        fail(f"{option}: {cannot_write(path, error)}")


def check_distinct(
    outputs: Mapping[str, Path | None], inputs: Iterable[Path], *, is_silent: bool = False
) -> None:
    """End the command where a file that it writes, by its option, is one that it reads, or writes twice."""
    names = {path.resolve(): "one that is read" for path in inputs}
    for option, path in outputs.items():
        if path is None:
            continue
        other = names.setdefault(path.resolve(), f"that of {option}")
        if other != f"that of {option}":
            if is_silent:  # another process says it
                raise typer.Exit(2)
            fail(f"{option} {path}: the file must be another than {other}")


def cannot_write(path: Path, error: OSError) -> str:
    """Say why a file cannot be written."""
    return f"{path} cannot be written: {error.strerror or error}"


@contextmanager
def processes(device: str) -> Iterator[tuple[int, str]]:
    """Join the processes that torchrun started, if it did: gives this one's rank and device."""
    import torch
    import torch.distributed as dist

    if not dist.is_torchelastic_launched():
        yield 0, device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    # processes wait for the slowest as long as it takes; if one dies, torchrun ends the others
    dist.init_process_group("cpu:gloo,cuda:nccl" if "cuda" in device else "gloo", timeout=timedelta(weeks=4))
    try:
        yield dist.get_rank(), device
    finally:
        dist.destroy_process_group()
