"""Posteriors to disk, batch by batch, in the form in which ``lineavae collapse`` reads them."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lineavae._arguments import check_integer
from lineavae._tensor_file import write_tensors
from lineavae.collapse._posterior import Array, Posterior, as_posterior, check_latent_dim

_NAME = "PosteriorWriter"
_KIND = "posterior"


class PosteriorWriter:
    """Writes posteriors into a folder of safetensors shards, as ``mean`` and ``logvar``, (N, K) each.

    A shard holds whole batches. It is written when it is full, whole or not at all; the last one is written
    at the end of the ``with`` statement. If an exception ends it, rows that no shard holds yet are dropped.
    So a loop that was stopped goes on from ``num_samples``.

    Parameters
    ----------
    folder
        Where the shards go, for those of one model and data set: they are pooled when they are read. Each
        process of several needs a folder of its own.
    rows_per_shard
        Rows at which a shard is full.
    resume
        Continue after the shards that are in the folder; otherwise there must be none.

    Attributes
    ----------
    num_samples : int
        Rows written so far, those in the folder from before included.

    Raises
    ------
    ValueError
        The folder holds files of posteriors already and ``resume`` is not set, or they are not this class's.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lineavae.collapse import PosteriorWriter
    >>> from lineavae.collapse.files import find_shards
    >>> mean_and_std = np.random.default_rng(0).random((1000, 8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with PosteriorWriter(folder, rows_per_shard=400) as writer:
    ...         for batch in np.split(mean_and_std, 10):
    ...             mean, std = np.split(batch, 2, axis=1)  # views, of any strides
    ...             writer.write(mean, std=std)
    ...     [shard.num_samples for shard in find_shards([folder])]
    [400, 400, 200]
    """

    def __init__(self, folder: str | Path, *, rows_per_shard: int = 65536, resume: bool = False) -> None:
        self.folder = Path(folder)
        self.rows_per_shard = check_integer(_NAME, "rows_per_shard", rows_per_shard, 1)
        self.num_samples = 0
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._pending_rows = 0
        self._latent_dim: int | None = None
        shards = sorted(self.folder.glob("[!.]*.safetensors"))
        if shards and not resume:
            raise ValueError(
                f"{_NAME}: folder must hold no posteriors, got {shards[0]}; resume=True continues after it"
            )
        self._num_shards = len(shards)
        for index, shard in enumerate(shards):
            num_rows, self._latent_dim = _shape_of(shard, index)
            self.num_samples += num_rows

    def write(
        self,
        mean: Posterior,
        logvar: Array | None = None,
        *,
        variance: Array | None = None,
        std: Array | None = None,
        event_dim: int | None = None,
    ) -> None:
        """Write a batch of posteriors; the arguments and errors are those of `CollapseStatistics.update`.

        The arrays are copied, to the CPU. Every batch has the same K.
        """
        means, logvars = as_posterior(_NAME, mean, logvar, variance, std, event_dim)
        if self._latent_dim is None:
            self._latent_dim = means.shape[1]
        check_latent_dim(_NAME, means, self._latent_dim)
        self._pending.append((means.to("cpu", copy=True), logvars.to("cpu", copy=True)))
        self._pending_rows += len(means)
        self.num_samples += len(means)
        if self._pending_rows >= self.rows_per_shard:
            self._write_shard()

    def __enter__(self) -> PosteriorWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._pending_rows:
            self._write_shard()

    def _write_shard(self) -> None:
        mean, logvar = (torch.cat(parts) for parts in zip(*self._pending, strict=True))
        path = self.folder / _file_name(self._num_shards)
        write_tensors(path, _KIND, {"mean": mean, "logvar": logvar})
        self._num_shards += 1
        self._pending.clear()
        self._pending_rows = 0


def _file_name(index: int) -> str:
    return f"shard-{index:06d}.safetensors"


def _shape_of(path: Path, index: int) -> tuple[int, int]:
    """Give the rows and latents of a shard that was written before, from its header alone."""
    try:
        with safe_open(path, framework="pt") as file:
            if path.name == _file_name(index) and file.metadata()["format"] == f"lineavae.{_KIND}":
                num_rows, latent_dim = file.get_slice("mean").get_shape()
                return num_rows, latent_dim
    except (SafetensorError, TypeError, KeyError):
        pass
    raise ValueError(f"{_NAME}: folder must hold shards of this class alone to continue, got {path}")
