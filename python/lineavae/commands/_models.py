"""The models that ``lineavae collapse`` is asked about: found on disk, and their posteriors read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column

from lineavae.collapse import CollapseReport
from lineavae.collapse.files import PosteriorFileError, Shard, find_shards
from lineavae.collapse.names import Keys
from lineavae.collapse.pooling import pooling_warnings
from lineavae.collapse.scan import ShardResults, scan_each

Pool: TypeAlias = Literal["all", "path", "file"]


class Model(NamedTuple):
    """Posteriors of one model: in shards, and their report once they are read, or the report alone."""

    name: str
    shards: Sequence[Shard]
    report: CollapseReport | None = None
    warnings: Sequence[str] = ()

    @property
    def prefix(self) -> str:
        """What a message about the model begins with."""
        return f"{self.name}: " if self.name else ""


def find_models(files: Sequence[Path], keys: Keys, event_dim: int | None, pool: Pool) -> list[Model]:
    """Find the models in the first process: the others work on its list, and its errors are said once.

    ``pool`` says what is one model: ``"all"`` files, what each ``"path"`` names, or each ``"file"`` of it.
    """
    if not dist.is_initialized():
        return _find(files, keys, event_dim, pool)
    models: list[Model] = []
    message = b""
    try:
        if dist.get_rank() == 0:
            models = _find(files, keys, event_dim, pool)
            message = json.dumps(
                [[model.name, [shard.to_json() for shard in model.shards]] for model in models]
            ).encode()
    finally:
        message = _broadcast(message)
    if not message:  # the first process has failed
        raise typer.Exit(2)
    return models or [
        Model(name, [Shard.from_json(shard) for shard in shards]) for name, shards in json.loads(message)
    ]


def scan_model(
    model: Model,
    thresholds: Sequence[float],
    threshold: int,
    delta: float,
    results: ShardResults | None,
    device: str,
    rank: int,
) -> Model:
    """Read the shards of a model, with a progress bar on stderr, which is that of the first process.

    That process gives the model with its report, and with the reasons why its shards may be of several
    models, at the threshold of this index and at δ.
    """
    if not model.shards:
        return model
    console = Console(stderr=True)
    finished = sum(results.has(shard) for shard in model.shards) if results is not None else 0
    if finished and rank == 0:
        console.print(f"{finished} of {len(model.shards)} files were finished earlier")
    what = f"process 1 of {dist.get_world_size()}" if dist.is_initialized() else "reading"
    whole = Column(no_wrap=True)  # in a narrow terminal the bar alone gives way
    columns = (
        TextColumn(f"{what} {model.name}".rstrip(), markup=False),
        BarColumn(),
        DownloadColumn(table_column=whole.copy()),
        TransferSpeedColumn(table_column=whole.copy()),
        TimeRemainingColumn(table_column=whole.copy()),
    )
    with Progress(*columns, console=console, disable=rank > 0 or finished == len(model.shards)) as bar:
        task = bar.add_task("")
        pooled, each = scan_each(
            model.shards,
            thresholds,
            results,
            device,
            progress=lambda read, total: bar.update(task, completed=read, total=total),
        )
    if rank > 0:
        return model
    return model._replace(
        report=CollapseReport(pooled, thresholds),
        warnings=pooling_warnings(model.shards, each, threshold, delta),
    )


def _find(files: Sequence[Path], keys: Keys, event_dim: int | None, pool: Pool) -> list[Model]:
    if pool == "all" and len(files) > 1 and any(map(_is_saved, files)):
        raise PosteriorFileError("reports cannot be pooled: --compare shows several models side by side")
    if pool == "all" and not _is_saved(files[0]):
        return [Model("", find_shards(files, keys, event_dim))]
    models: list[Model] = []
    for path in files:
        if _is_saved(path):
            models.append(Model(str(path), [], _load(path)))
            continue
        shards = find_shards([path], keys, event_dim)
        groups = [(shard.name, [shard]) for shard in shards] if pool == "file" else [(str(path), shards)]
        models += [Model(name, group) for name, group in groups]
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise PosteriorFileError(f"{name} is named twice")
    if names == sorted(names):  # as a shell's pattern gives them, which takes epoch=10 before epoch=2
        models.sort(key=lambda model: _by_number(model.name))
    shorter = _shorten([model.name for model in models])
    return [model._replace(name=name) for model, name in zip(models, shorter, strict=True)]


def _is_saved(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def _load(path: Path) -> CollapseReport:
    try:
        return CollapseReport.load(path)
    except OSError as error:
        raise PosteriorFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise PosteriorFileError(str(error)) from error


def _by_number(name: str) -> list[tuple[str, int]]:
    """Give what sorts names by the numbers in them."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name)]


def _shorten(names: Sequence[str]) -> list[str]:
    """Leave out the folders, and the file, that all names have in common."""
    if len(names) < 2:
        return list(names)
    parts = [Path(name).parts for name in names]
    most = min(map(len, parts)) - 1  # of a file beside the folder of another, something is left
    begin = min(_num_common(parts), most)
    end = min(_num_common([part[begin:][::-1] for part in parts]), most - begin)
    return [str(Path(*part[begin : len(part) - end])) for part in parts]


def _num_common(names: Sequence[Sequence[str]]) -> int:
    """Tell how many parts all names begin with."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*names, strict=False)))


def _broadcast(message: bytes) -> bytes:
    """Give every process the message of the first; torch's broadcast of objects would pickle them."""
    length = torch.tensor(len(message))
    dist.broadcast(length, 0)
    content = torch.zeros(int(length), dtype=torch.uint8)
    if dist.get_rank() == 0:
        content.numpy()[:] = memoryview(message)
    dist.broadcast(content, 0)
    return content.numpy().tobytes()
