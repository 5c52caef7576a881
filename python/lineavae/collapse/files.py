"""Posteriors on disk: which files there are, what they hold, and their rows in blocks.

A shard holds the mean and the log-variance, or another spread, of some posteriors: two arrays (N, K)
in a ``.safetensors`` or ``.npz`` file, in a dict by ``torch.save``, in the ``obsm`` of an ``.h5ad`` file, in
HDF5, parquet, Arrow's IPC or a zarr store, or in a pair of ``.npy`` files whose names differ in their endings
alone, such as ``test_mean.npy`` and ``test_logvar.npy``. All is checked when a shard is found, before any row
is read; nothing is unpickled but by torch's loader of weights only.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from lineavae._array_files import (
    ArrayFileError,
    Contents,
    StoredArray,
    npy_array,
    npz_arrays,
    safetensors_arrays,
    torch_arrays,
)
from lineavae._formats.zarr import is_store
from lineavae.collapse._posterior import fold, log_variance
from lineavae.collapse.names import OPTIONS, USUAL_NAMES, Keys, Spread

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
        Where the array that tells the variances lies.
    kind
        What that array holds: "logvar", "std", "variance" or "log_std".
    stamp
        Path, size in bytes and time of the last change in ns, of each file; of a folder a digest of those
        that are in it stands for the time.
    """

    name: str
    mean: StoredArray
    spread: StoredArray
    kind: Spread
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
            dtype = getattr(torch, array["dtype"].removeprefix("torch."))
            given = {"path": Path(array["path"]), "dtype": dtype, "shape": tuple(array["shape"])}
            fields[name] = StoredArray(**{**array, **given})
        fields["stamp"] = tuple(map(tuple, fields["stamp"]))
        return cls(**fields)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Read the rows in order, in blocks, while the caller works on the block before.

        Yields
        ------
        mean, logvar : Tensor
            A block of rows, (n, K) each, in the wider dtype of the two arrays. The next block overwrites
            it. The sizes of blocks depend on K alone. If the spread is another one, logvar is computed from
            it, in float32 for half precision.

        Raises
        ------
        PosteriorFileError
            The file cannot be read to its end, does not match its checksum, was changed since it was found,
            or holds a negative variance or standard deviation.
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
                logvar = self._log_variance(spread, start)
                dtype = torch.promote_types(mean.dtype, logvar.dtype)
                yield mean.to(dtype), logvar.to(dtype)
        with _reading(Path(self.name)):
            if _stamp(self.mean.path, self.spread.path) != self.stamp:
                raise PosteriorFileError(f"{self.name} was changed while it was read")

    def _log_variance(self, spread: Tensor, start: int) -> Tensor:
        try:
            return log_variance(self.kind, spread, start)
        except ValueError as error:
            raise PosteriorFileError(f"{self.name}: {error}") from None


def find_shards(
    paths: Iterable[str | Path],
    keys: Keys = Keys(),  # noqa: B008 (immutable)
    event_dim: int | None = None,
) -> list[Shard]:
    """Find the shards of some files, folders and patterns, and check them all.

    Parameters
    ----------
    paths
        Files, glob patterns (``**`` reaches into folders), and folders. A folder stands for all its files
        but those that may be a model's, ``.pt``, ``.pth``, ``.h5`` and ``.hdf5``, and for the ``.npy`` files
        whose names end with a key. A zarr store counts as a file. One of a pair of ``.npy`` files stands for
        both. A file that is named twice is taken once.
    keys
        Names of the arrays.
    event_dim
        Number of last dimensions that are the latents; arrays of more than two dimensions need it.

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
    >>> shard.num_samples, shard.latent_dim, shard.kind
    (3, 2, 'std')
    >>> logvar
    tensor([[0., 0.],
            [0., 0.],
            [0., 0.]], dtype=torch.float64)
    """
    keys.check()
    named = [Path(path) for path in paths]
    # sorted by where they are, not by how they were named
    files = {os.path.abspath(file): file for path in named for file in _expand(path, keys)}  # noqa: PTH100
    shards: dict[tuple[object, ...], Shard] = {}
    for _, file in sorted(files.items()):
        with _reading(file):
            shard = _shard(file, keys, event_dim)
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
    if path.is_dir() and not is_store(path):
        # one that begins with a dot is a file that is being written
        with _reading(path):
            files = [file for file in path.iterdir() if file.name[0] != "." and _may_be_shard(file, keys)]
        files = [file for file in files if not _is_result(file)]
        if not files:
            names = ", ".join((*_IN_FOLDERS, *(f"*{name}.npy" for name in keys.first_names)))
            raise PosteriorFileError(f"{path}: the folder holds none of {names}")
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
    """Tell whether a file of a folder is meant: .pt and .h5 files may be models, and must be named."""
    suffix = _suffix(file)
    if suffix == ".npy" and file.is_file():
        return file.stem.endswith(keys.first_names) or _is_of_a_pair(file, keys)
    return f"*{suffix}" in _IN_FOLDERS and (file.is_file() or is_store(file))


def _is_of_a_pair(file: Path, keys: Keys) -> bool:
    """Tell whether an .npy file and another one have usual names of a mean and a spread."""
    try:
        keys.choose(_npy_contents(file, keys))
    except ValueError:
        return False
    return True


def _is_result(file: Path) -> bool:
    """Whether it is a result that `ShardResults` keeps, maybe in the folder of the shards."""
    if file.suffix.lower() != ".safetensors":
        return False
    try:
        return safetensors_arrays(file)[1].get("format") == f"lineavae.{RESULT_KIND}"
    except ArrayFileError:
        return False  # as a shard it is named, and the reason is said


def _shard(file: Path, keys: Keys, event_dim: int | None) -> Shard:
    contents = _CONTENTS.get(_suffix(file))
    if contents is None:
        raise PosteriorFileError(
            f"{file}: the file must be a {', '.join(_CONTENTS)} file; "
            "lineavae.collapse.PosteriorWriter writes one from arrays of any other"
        )
    arrays = contents(file, keys)
    try:
        mean_key, kind, spread_key = keys.choose(arrays)
    except ValueError as error:
        hint = ""
        if len(arrays) == 1 and file.suffix.lower() == ".npy":
            hint = "; where it is no part of a shard, name the shards themselves, or a pattern"
        raise PosteriorFileError(f"{file}: {error}{hint}") from None
    mean, spread = (_posterior_array(file, key, arrays[key](), event_dim) for key in (mean_key, spread_key))
    if mean.shape != spread.shape:
        raise PosteriorFileError(
            f"{file}: {spread_key!r} must have the shape of {mean_key!r}, {mean.shape}, got {spread.shape}"
        )
    return Shard(str(file), mean, spread, kind, _stamp(mean.path, spread.path))


def _npy_contents(file: Path, keys: Keys) -> Contents:
    endings = keys.endings(file.stem)
    if not endings:
        names = ", ".join(f"{name}.npy" for name in keys.first_names)
        options = ", ".join(OPTIONS.values())
        raise PosteriorFileError(
            f"{file}: the name of an .npy file must end with one of {names}; {options} tell others"
        )
    # the longest: one name may be the ending of another
    prefix = file.stem.removesuffix(endings[0])
    known = {*keys.given.values(), *(name for usual in USUAL_NAMES.values() for name in usual)}
    paths = {name: file.with_name(f"{prefix}{name}{file.suffix}") for name in sorted(known)}
    return {name: partial(npy_array, path) for name, path in paths.items() if path.exists()}


def _suffix(file: Path) -> str:
    return ".zarr" if is_store(file) else file.suffix.lower()


def _contents_by(reader: str) -> Callable[[Path, Keys], Contents]:
    """Give the function of a module of `lineavae._formats`, which is imported when it is called."""
    return lambda file, _: import_module(f"lineavae._formats.{reader}").arrays(file)


_CONTENTS: dict[str, Callable[[Path, Keys], Contents]] = {
    ".safetensors": lambda file, _: safetensors_arrays(file)[0],
    ".npz": lambda file, _: npz_arrays(file),
    ".npy": _npy_contents,
    ".pt": lambda file, _: torch_arrays(file),
    ".pth": lambda file, _: torch_arrays(file),
    ".h5ad": _contents_by("hdf5"),
    ".h5": _contents_by("hdf5"),
    ".hdf5": _contents_by("hdf5"),
    ".parquet": _contents_by("arrow"),
    ".arrow": _contents_by("arrow"),
    ".feather": _contents_by("arrow"),
    ".zarr": _contents_by("zarr"),
}
_IN_FOLDERS = tuple(
    f"*{suffix}" for suffix in _CONTENTS if suffix not in (".npy", ".pt", ".pth", ".h5", ".hdf5")
)


def _posterior_array(file: Path, key: str, array: StoredArray, event_dim: int | None) -> StoredArray:
    """Check that an array is one of posteriors, and give it as (N, K) with a dtype of torch."""
    where = str(array.path) if file.suffix.lower() == ".npy" else f"{file}: {key!r}"
    dtype = _DTYPES.get(array.dtype)
    if dtype is None:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dict.fromkeys(_DTYPES.values()))
        got = str(array.dtype).removeprefix("torch.")
        if got == "|V2":
            got += (
                ", as NumPy saves bfloat16, which its formats do not record: save float32 of it, "
                "or safetensors by lineavae.collapse.PosteriorWriter"
            )
        raise PosteriorFileError(f"{where} must be of one of the dtypes {names}, got {got}")
    if array.is_fortran:
        raise PosteriorFileError(f"{where} is in Fortran order: save np.ascontiguousarray of it")
    try:
        num_samples, latent_dim = fold(array.shape, event_dim)
    except ValueError as error:
        raise PosteriorFileError(f"{where} {error}; --event-dim gives it") from None
    if len(array.shape) < 2 or latent_dim == 0:
        raise PosteriorFileError(f"{where} must have shape (N, K) with K >= 1, got {array.shape}")
    return replace(array, dtype=dtype, shape=(num_samples, latent_dim))


def _stamp(*paths: Path) -> tuple[tuple[str, int, int], ...]:
    return tuple((str(path), *_size_and_time(path)) for path in dict.fromkeys(map(Path.resolve, paths)))


def _size_and_time(path: Path) -> tuple[int, int]:
    if not path.is_dir():
        status = path.stat()
        return status.st_size, status.st_mtime_ns
    files = {}
    for file in sorted(path.rglob("*")):
        if file.is_symlink() and file.is_dir():  # a change of what is in it would not be seen
            raise PosteriorFileError(f"{file} is a link to a folder, which is not followed")
        files[file] = file.stat()
    parts = [
        (str(file.relative_to(path)), status.st_size, status.st_mtime_ns) for file, status in files.items()
    ]
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()[:8]
    return sum(status.st_size for status in files.values()), int.from_bytes(digest, "big")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Errors of reading a file as errors of this module, which name it."""
    try:
        yield
    except ArrayFileError as error:
        raise PosteriorFileError(str(error)) from error
    except ModuleNotFoundError as error:
        raise PosteriorFileError(f"{path}: {error}") from error
    except OSError as error:
        raise PosteriorFileError(f"{path}: cannot be read: {error.strerror or error}") from error
