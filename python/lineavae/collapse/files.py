"""Posteriors on disk: which files there are, what they hold, and their rows in blocks.

A shard holds the mean and the log-variance, or the standard deviation, of some posteriors: two arrays (N, K)
in a ``.safetensors`` file, in an ``.npz`` file, or in a pair of ``.npy`` files whose names differ in their
endings alone, such as ``test_mean.npy`` and ``test_logvar.npy``. All is checked when a shard is found, before
any row is read; nothing is ever unpickled.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from lineavae._array_files import (
    ArrayFileError,
    StoredArray,
    npy_array,
    npz_arrays,
    safetensors_arrays,
)

# Elements of a block of rows: four arrays of as many are all that is held of a file.
_BLOCK_ELEMENTS = 1 << 21

# Rows of a block at the least: the statistics of a block take as much memory as some 1300 rows in float32,
# and as much time as some 1000.
_BLOCK_ROWS = 8192

# What the file of a finished shard's result is.
RESULT_KIND = "shard-statistics"

# What an array may consist of, by the file's name for it.
_DTYPES: dict[object, torch.dtype] = {
    np.dtype("<f8"): torch.float64,
    np.dtype("<f4"): torch.float32,
    np.dtype("<f2"): torch.float16,
    **{dtype: dtype for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)},
}


class PosteriorFileError(ValueError):
    """A file of posteriors is missing or is not what it should be; the message names it and the rule.

    Examples
    --------
    >>> from lineavae.collapse.files import PosteriorFileError, find_shards
    >>> try:
    ...     find_shards(["no-such-file.npz"])
    ... except PosteriorFileError as error:
    ...     print(error)
    no-such-file.npz: there is no such file or folder
    """


class Keys(NamedTuple):
    """Names of the arrays of a shard; logvar is taken where there are both logvar and std.

    Examples
    --------
    >>> from lineavae.collapse.files import Keys
    >>> Keys(mean="mu").logvar
    'logvar'
    """

    mean: str = "mean"
    logvar: str = "logvar"
    std: str = "std"


@dataclass(frozen=True)
class Shard:
    """Posteriors of one file, or one pair of files: N rows of K latents.

    Attributes
    ----------
    name
        The file, as it was named.
    mean
        Where the means lie.
    spread
        Where the log-variances lie, or the standard deviations.
    has_std
        Whether ``spread`` are standard deviations.
    stamp
        Path, size in bytes and time of the last change in ns, of each file.
    """

    name: str
    mean: StoredArray
    spread: StoredArray
    has_std: bool
    stamp: tuple[tuple[str, int, int], ...]

    @property
    def num_samples(self) -> int:
        """Number of rows N."""
        return self.mean.shape[0]

    @property
    def latent_dim(self) -> int:
        """Number of latents K."""
        return self.mean.shape[1]

    @property
    def arrays(self) -> tuple[StoredArray, StoredArray]:
        """Where the rows lie: mean and spread."""
        return self.mean, self.spread

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of both arrays, decompressed."""
        return self.latent_dim * sum(array.dtype.itemsize for array in self.arrays)

    @property
    def num_bytes(self) -> int:
        """Bytes of all rows."""
        return self.num_samples * self.row_bytes

    def to_json(self) -> str:
        """Describe the shard to another process, of which `from_json` gives it back."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Shard:
        """Give back the shard that `to_json` describes, without a look at its files."""
        fields = json.loads(text)
        for name in ("mean", "spread"):
            array = fields[name]
            path, dtype = Path(array["path"]), getattr(torch, array["dtype"].removeprefix("torch."))
            fields[name] = StoredArray(path, dtype, tuple(array["shape"]), array["offset"], array["member"])
        fields["stamp"] = tuple(map(tuple, fields["stamp"]))
        return cls(**fields)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Read the rows in order, in blocks, while the caller works on the block before.

        Yields
        ------
        mean, logvar : Tensor
            A block of rows, (n, K) each, in the wider dtype of the two arrays. The next block overwrites
            it. The sizes of blocks depend on K alone. Of a standard deviation, logvar is 2 log std, taken in
            float32 for half precision.

        Raises
        ------
        PosteriorFileError
            The file cannot be read to its end, does not match its checksum, was changed since it was found,
            or holds a standard deviation that is not positive.
        """
        rows = max(_BLOCK_ROWS, _BLOCK_ELEMENTS // self.latent_dim)
        starts = range(0, self.num_samples, rows)
        with _reading(Path(self.name)), ExitStack() as stack:
            streams = [array.open(stack) for array in self.arrays]
            slots = [
                [
                    torch.empty(min(rows, self.num_samples), self.latent_dim, dtype=dtype, device="cpu")
                    for dtype in (cast(torch.dtype, array.dtype) for array in self.arrays)
                ]
                for _ in range(2)
            ]
            # one thread for each array: two members of a zip file are decompressed at once
            reader = stack.enter_context(ThreadPoolExecutor(2))

            def read(index: int) -> list[Future[Tensor]]:
                count = max(0, self.num_samples - index * rows)
                reads = zip(self.arrays, streams, slots[index % 2], strict=True)
                return [reader.submit(array.read, stream, buffer[:count]) for array, stream, buffer in reads]

            following = read(0)
            for index, start in enumerate(starts):
                mean, spread = (future.result() for future in following)
                following = read(index + 1)
                logvar = self._logvar_of_std(spread, start) if self.has_std else spread
                dtype = torch.promote_types(mean.dtype, logvar.dtype)
                yield mean.to(dtype), logvar.to(dtype)
        with _reading(Path(self.name)):
            if _stamp(self.mean.path, self.spread.path) != self.stamp:
                raise PosteriorFileError(f"{self.name} was changed while it was read")

    def _logvar_of_std(self, std: Tensor, start: int) -> Tensor:
        invalid = (std <= 0).nonzero()
        if len(invalid):
            row, column = invalid[0].tolist()
            raise PosteriorFileError(
                f"{self.name}: a standard deviation must be positive, got {std[row, column].item()} "
                f"in row {start + row}, latent {column}"
            )
        return 2 * (std.float() if std.dtype.itemsize == 2 else std).log()


def find_shards(paths: Iterable[str | Path], keys: Keys = Keys()) -> list[Shard]:  # noqa: B008 (immutable)
    """Find the shards of some files, folders and patterns, and check them all.

    Parameters
    ----------
    paths
        Files, glob patterns (``**`` reaches into folders), and folders, of which are taken all
        ``.safetensors`` and ``.npz`` files and the ``.npy`` files whose names end with a key. One of a pair
        of ``.npy`` files stands for both. A file that is named twice is taken once.
    keys
        Names of the arrays.

    Returns
    -------
    list[Shard]
        Sorted by path, however they were named.

    Raises
    ------
    PosteriorFileError
        There is no such file, or none of a known kind; an array is missing, is not floating, not of shape
        (N, K), in Fortran or big-endian order, or not as long as its header says; the two of a shard differ
        in shape, or two shards in K; there is not a single row.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lineavae.collapse.files import find_shards
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/mean.npy", np.zeros((3, 2)))
    ...     np.save(f"{folder}/std.npy", np.ones((3, 2)))
    ...     (shard,) = find_shards([folder])
    ...     [(mean, logvar)] = shard.blocks()
    >>> shard.num_samples, shard.latent_dim, shard.has_std
    (3, 2, True)
    >>> logvar
    tensor([[0., 0.],
            [0., 0.],
            [0., 0.]], dtype=torch.float64)
    """
    if len(set(keys)) < len(keys):
        raise ValueError(f"find_shards: keys must differ from each other, got {tuple(keys)}")
    named = [Path(path) for path in paths]
    # sorted by where they are, not by how they were named
    files = {os.path.abspath(file): file for path in named for file in _expand(path, keys)}  # noqa: PTH100
    shards: dict[tuple[object, ...], Shard] = {}
    for _, file in sorted(files.items()):
        with _reading(file):
            shard = _shard(file, keys)
            status = shard.mean.path.stat()
        # one file may have several names, and one of a pair stands for both
        shards.setdefault((status.st_dev, status.st_ino), shard)
    found = list(shards.values())
    if not any(shard.num_samples for shard in found):
        raise PosteriorFileError(f"{', '.join(map(str, named))}: there is no row in any array")
    for shard in found:
        if shard.latent_dim != found[0].latent_dim:
            raise PosteriorFileError(
                f"{shard.name} has K={shard.latent_dim} latents where {found[0].name} has "
                f"K={found[0].latent_dim}: they are of different models"
            )
    return found


def _expand(path: Path, keys: Keys) -> list[Path]:
    if path.is_dir():
        names = ("*.safetensors", "*.npz", *(f"*{key}.npy" for key in keys))
        # one that begins with a dot is a file that is being written
        with _reading(path):
            files = [file for file in path.iterdir() if file.name[0] != "." and _may_be_shard(file, keys)]
        files = [file for file in files if not _is_result(file)]
        if not files:
            raise PosteriorFileError(f"{path}: the folder holds none of {', '.join(names)}")
        return files
    if path.exists():
        return [path]
    if glob.has_magic(str(path)):
        files = [Path(file) for file in glob.glob(str(path), recursive=True)]  # noqa: PTH207 (** as in a shell)
        files = [file for file in files if not _is_result(file)]
        if not files:
            raise PosteriorFileError(f"{path}: no file matches")
        return files
    raise PosteriorFileError(f"{path}: there is no such file or folder")


def _may_be_shard(file: Path, keys: Keys) -> bool:
    suffix = file.suffix.lower()
    return suffix in (".safetensors", ".npz") or (suffix == ".npy" and file.stem.endswith(tuple(keys)))


def _is_result(file: Path) -> bool:
    """Whether it is a result that `ShardResults` keeps, maybe in the folder of the shards."""
    if file.suffix.lower() != ".safetensors":
        return False
    try:
        return safetensors_arrays(file)[1].get("format") == f"lineavae.{RESULT_KIND}"
    except ArrayFileError:
        return False  # as a shard it is named, and the reason is said


def _shard(file: Path, keys: Keys) -> Shard:
    contents = _CONTENTS.get(file.suffix.lower())
    if contents is None:
        raise PosteriorFileError(f"{file}: the file must be a .safetensors, .npz or .npy file")
    arrays = contents(file, keys)
    has_std = keys.logvar not in arrays
    spread_key = keys.std if has_std else keys.logvar
    if keys.mean not in arrays or spread_key not in arrays:
        if len(arrays) == 1 and file.suffix.lower() == ".npy":
            raise PosteriorFileError(
                f"{file}: beside it there must be {keys.mean!r} and either {keys.logvar!r} or {keys.std!r} "
                "of the same name; where it is no part of a shard, name the shards themselves, or a pattern"
            )
        names = ", ".join(map(repr, arrays)) or "no arrays"
        raise PosteriorFileError(
            f"{file}: it must hold {keys.mean!r} and either {keys.logvar!r} or {keys.std!r}, got {names}"
        )
    mean, spread = (_posterior_array(file, key, arrays[key]()) for key in (keys.mean, spread_key))
    if mean.shape != spread.shape:
        raise PosteriorFileError(
            f"{file}: {spread_key!r} must have the shape of {keys.mean!r}, {mean.shape}, got {spread.shape}"
        )
    return Shard(str(file), mean, spread, has_std, _stamp(mean.path, spread.path))


# What a file holds by name; an array is looked at when it is asked for, whatever the others are.
_Contents = Mapping[str, Callable[[], StoredArray]]


def _safetensors_contents(file: Path, keys: Keys) -> _Contents:
    return safetensors_arrays(file)[0]


def _npz_contents(file: Path, keys: Keys) -> _Contents:
    return npz_arrays(file)


def _npy_contents(file: Path, keys: Keys) -> _Contents:
    endings = [key for key in keys if file.stem.endswith(key)]
    if not endings:
        names = ", ".join(f"{key}.npy" for key in keys)
        raise PosteriorFileError(f"{file}: the name of an .npy file must end with one of {names}")
    # the longest: one key may be the ending of another
    prefix = file.stem.removesuffix(max(endings, key=len))
    paths = {key: file.with_name(f"{prefix}{key}{file.suffix}") for key in keys}
    return {key: partial(npy_array, path) for key, path in paths.items() if path.exists()}


_CONTENTS = {".safetensors": _safetensors_contents, ".npz": _npz_contents, ".npy": _npy_contents}


def _posterior_array(file: Path, key: str, array: StoredArray) -> StoredArray:
    """Check that an array is one of posteriors, and give it with a dtype of torch."""
    where = str(array.path) if file.suffix.lower() == ".npy" else f"{file}: {key!r}"
    dtype = _DTYPES.get(array.dtype)
    if dtype is None:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dict.fromkeys(_DTYPES.values()))
        got = str(array.dtype).removeprefix("torch.")
        if got == "|V2":
            got += ", as NumPy saves bfloat16: save float32 or in safetensors"
        raise PosteriorFileError(f"{where} must be of one of the dtypes {names}, got {got}")
    if len(array.shape) != 2 or array.shape[1] == 0:
        raise PosteriorFileError(f"{where} must have shape (N, K) with K >= 1, got {array.shape}")
    if array.is_fortran:
        raise PosteriorFileError(f"{where} is in Fortran order: save np.ascontiguousarray of it")
    return replace(array, dtype=dtype)


def _stamp(*paths: Path) -> tuple[tuple[str, int, int], ...]:
    statuses = {str(path.resolve()): path.stat() for path in paths}
    return tuple((path, status.st_size, status.st_mtime_ns) for path, status in statuses.items())


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Errors of reading a file as errors of this module, which name it."""
    try:
        yield
    except ArrayFileError as error:
        raise PosteriorFileError(str(error)) from error
    except OSError as error:
        raise PosteriorFileError(f"{path}: cannot be read: {error.strerror or error}") from error
