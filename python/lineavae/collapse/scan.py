"""Collapse statistics of posteriors on disk: larger than memory, on several processes, and across a kill.

A shard's statistics are those of its blocks, merged in order; what is known of all shards is their sum, and
their moments merged in the order of the shards. So the result is the same to the bit for any number of
processes, and for any number of interruptions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

import lineavae
from lineavae._tensor_file import read_tensors, write_tensors
from lineavae.collapse._counts import blocks
from lineavae.collapse.files import RESULT_KIND, PosteriorFileError, Shard
from lineavae.collapse.report import CollapseReport
from lineavae.ops import LatentStatistics, collapse_statistics, histogram_edges, merge_moments

# Called with the bytes read so far and the bytes to be read by this process.
Progress = Callable[[int, int], None]

_LATENTS_AT_ONCE = 1 << 14  # of a block: the histogram of each takes 5 kB

# How the statistics of several processes combine, where not by adding. There is one row per shard, which is
# that of no data but in one process.
_REDUCTIONS = {"minimum": dist.ReduceOp.MIN, "maximum": dist.ReduceOp.MAX}


class ShardResults:
    """Statistics of finished shards, one file each in a folder, from which a scan continues.

    The name of a file tells what it is the result of: the shard's files with their sizes and times, the
    arrays in them, the thresholds, which statistics there are, and this version of lineavae. So nothing out
    of date is ever used, and several processes may share a folder, which may be that of the shards.

    Attributes
    ----------
    folder : Path
        The folder; made when the first result is written.
    failure : OSError or None
        Why a result could not be written. The scan goes on, and writes no more results.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lineavae.collapse.files import find_shards
    >>> from lineavae.collapse.scan import ShardResults, scan
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/test.npz", mean=np.zeros((3, 2)), logvar=np.zeros((3, 2)))
    ...     (shard,) = find_shards([folder])
    ...     results = ShardResults(f"{folder}/results", thresholds=[0.0])
    ...     results.has(shard)
    ...     statistics = scan([shard], [0.0], results)
    ...     results.load(shard).counts.tolist()
    False
    [[3], [3]]
    """

    def __init__(self, folder: str | Path, thresholds: Sequence[float]) -> None:
        self.folder = Path(folder)
        self.failure: OSError | None = None
        self._thresholds = [float(threshold) for threshold in thresholds]

    def has(self, shard: Shard) -> bool:
        """Tell whether the shard was finished before."""
        return self._path(shard).exists()

    def load(self, shard: Shard) -> LatentStatistics:
        """Read the statistics of a shard that was finished before."""
        try:
            tensors, _ = read_tensors("ShardResults", self._path(shard), RESULT_KIND, "shard")
            statistics = LatentStatistics(**tensors)
            self._check(shard, statistics)
        except (ValueError, TypeError) as error:
            raise PosteriorFileError(f"{error}: delete it, and {shard.name} is read again") from error
        return statistics

    def save(self, shard: Shard, statistics: LatentStatistics) -> None:
        """Write the statistics of a finished shard, whole or not at all."""
        if self.failure is not None:
            return
        name = shard.name.encode(errors="backslashreplace").decode()  # may not be UTF-8
        try:
            write_tensors(self._path(shard), RESULT_KIND, statistics._asdict(), shard=name)
        except OSError as error:
            self.failure = error

    def _check(self, shard: Shard, statistics: LatentStatistics) -> None:
        """Check that they can be the statistics of the shard, so that they can be merged and reported."""
        fit = all(part.shape[:1] == (shard.latent_dim,) for part in statistics)
        try:
            for some in blocks(shard.latent_dim) if fit else ():
                report = CollapseReport(
                    LatentStatistics(*(part[some] for part in statistics)), self._thresholds
                )
                fit = fit and report.num_samples == shard.num_samples
        except (TypeError, ValueError):
            fit = False
        if not fit:
            raise ValueError(f"{self._path(shard)} must hold statistics of {shard.num_samples} samples")

    def _path(self, shard: Shard) -> Path:
        arrays = [(str(array.dtype), array.shape, array.offset, array.member) for array in shard.arrays]
        statistics = LatentStatistics._fields
        parts = [shard.stamp, arrays, shard.kind, self._thresholds, statistics, lineavae.__version__]
        fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return self.folder / f"{fingerprint[:32]}.safetensors"


def scan(
    shards: Sequence[Shard],
    thresholds: Sequence[float],
    results: ShardResults | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> LatentStatistics:
    """Collapse statistics of shards, read once, block by block.

    Where ``torch.distributed`` is initialised this is a collective call: every process reads its part of
    the shards, which all must name in the same order, and every one returns the statistics of all.

    Parameters
    ----------
    shards
        At least one, as `find_shards` gives them.
    thresholds
        Thresholds ε in nats, at most 64; see `lineavae.ops.collapse_statistics`.
    results
        Where to keep the statistics of finished shards. A shard whose statistics are there is not read again.
    device
        Where to compute. In a group of processes its backend must be able to send from there.
    progress
        Called with the bytes read so far and the bytes to be read, by this process.

    Returns
    -------
    LatentStatistics
        Those of one model, on ``device``: the same to the bit for any number of processes, and of
        interruptions; all but the moments are also the same however the rows are split into shards.

    Raises
    ------
    PosteriorFileError
        A file cannot be read, or is damaged. Nothing of its shard was counted or kept.
    ValueError
        There is no shard; a threshold is negative or not finite, or there are too many.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lineavae.collapse import CollapseReport
    >>> from lineavae.collapse.files import find_shards
    >>> from lineavae.collapse.scan import scan
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("a.npz", "b.npz"):
    ...         np.savez(f"{folder}/{name}", mean=np.eye(3), std=np.ones((3, 3)))
    ...     statistics = scan(find_shards([folder]), thresholds=[0.01])
    >>> CollapseReport(statistics, [0.01])
    CollapseReport(num_samples=6, latent_dim=3)
    """
    return scan_each(shards, thresholds, results, device, progress)[0]


@torch.no_grad()
def scan_each(
    shards: Sequence[Shard],
    thresholds: Sequence[float],
    results: ShardResults | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> tuple[LatentStatistics, LatentStatistics]:
    """`scan`, and the statistics of each shard: with a leading dimension, and without their histograms."""
    if not shards:
        raise ValueError("scan: shards must be at least one, got none")
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    mine = range(rank, len(shards), size)
    nothing = _nothing(shards[0].latent_dim, thresholds, device, histogram=False)
    # all but the histogram, of which no more are kept than must be: that of 600 000 latents takes 3 GB. The
    # others are merged in the order of the shards wherever these were counted
    each = LatentStatistics(*(part.expand(len(shards), *part.shape).clone() for part in nothing))
    histogram = nothing.histogram.new_zeros(shards[0].latent_dim, len(histogram_edges()) - 1)
    unread = sum(shards[i].num_bytes for i in mine if results is None or not results.has(shards[i]))
    read = 0

    def count(num_bytes: int) -> None:
        nonlocal read
        read += num_bytes
        if progress is not None:
            progress(read, unread)

    count(0)
    for index in mine:
        shard = shards[index]
        if results is not None and results.has(shard):
            part = results.load(shard)
        else:
            own = histogram if results is None else torch.zeros_like(histogram)
            part = LatentStatistics(*(tensor.clone() for tensor in nothing))._replace(histogram=own)
            _scan_shard(shard, part, thresholds, device, count)
            if results is not None:
                results.save(shard, part)
        if part.histogram is not histogram:
            histogram.add_(part.histogram.to(device))
        for kept, tensor in zip(each, part._replace(histogram=nothing.histogram), strict=True):
            kept[index] = tensor
    if size > 1:
        for name, tensor in each._replace(histogram=histogram)._asdict().items():
            dist.all_reduce(tensor, _REDUCTIONS.get(name, dist.ReduceOp.SUM))
    pooled = LatentStatistics(
        counts=each.counts.sum(0),
        histogram=histogram,
        moments=merge_moments(each.moments),
        minimum=each.minimum.amin(0),
        maximum=each.maximum.amax(0),
        infinite=each.infinite.sum(0),
        nan=each.nan.sum(0),
    )
    return pooled, each


def _scan_shard(
    shard: Shard,
    total: LatentStatistics,
    thresholds: Sequence[float],
    device: torch.device | str,
    count: Callable[[int], None],
) -> None:
    """Merge the statistics of a shard's posteriors into ``total``."""
    for mean, logvar in shard.blocks():
        for columns in range(0, shard.latent_dim, _LATENTS_AT_ONCE):
            some = slice(columns, columns + _LATENTS_AT_ONCE)
            part = collapse_statistics(mean[:, some].to(device), logvar[:, some].to(device), thresholds)
            _add(LatentStatistics(*(statistic[some] for statistic in total)), part)
        count(len(mean) * shard.row_bytes)


def _nothing(
    latent_dim: int, thresholds: Sequence[float], device: torch.device | str, *, histogram: bool = True
) -> LatentStatistics:
    """Give the statistics of no rows, after the operator's checks of the thresholds."""
    empty = torch.empty(0, latent_dim, device=device)
    return collapse_statistics(empty, empty, thresholds, histogram=histogram)


def _add(total: LatentStatistics, part: LatentStatistics) -> None:
    """Merge the statistics of more posteriors into those of some, in place: histograms are large."""
    total.counts.add_(part.counts)
    total.histogram.add_(part.histogram)
    total.moments.copy_(merge_moments(torch.stack([total.moments, part.moments])))
    torch.minimum(total.minimum, part.minimum, out=total.minimum)
    torch.maximum(total.maximum, part.maximum, out=total.maximum)
    total.infinite.add_(part.infinite)
    total.nan.add_(part.nan)
