"""Posteriors on disk: which files there are, what they hold, and their rows in blocks.

A shard holds the mean and the log-variance, or the standard deviation, of some posteriors: two arrays (N, K)
in a ``.safetensors`` file, in an ``.npz`` file, or in a pair of ``.npy`` files whose names differ in their
endings alone, such as ``test_mean.npy`` and ``test_logvar.npy``. All is checked when a shard is found, before
any row is read; nothing is ever unpickled.
"""

from __future__ import annotations

import glob
import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

# Elements of a block of rows: four arrays of as many are all that is held of a file.
_BLOCK_ELEMENTS = 1 << 21

# Rows of a block at the least: the statistics of a block take as much memory as some 1300 rows in float32,
# and as much time as some 1000.
_BLOCK_ROWS = 8192

# Bytes of one read. A zip member makes a copy of as many.
_READ_BYTES = 1 << 20

_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_NPY_DTYPES = {"<f8": torch.float64, "<f4": torch.float32, "<f2": torch.float16}


_Stream = io.RawIOBase | io.BufferedIOBase


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
class StoredArray:
    """Where an array (N, K) lies: in a file from byte ``offset`` on, or so in a member of a zip file."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, int]
    offset: int
    member: str | None = None

    def open(self, stack: ExitStack) -> _Stream:
        """Open the file at the beginning of the data, until the stack is closed."""
        with _reading(self.path):
            if self.member is None:
                file = stack.enter_context(self.path.open("rb", buffering=0))
                file.seek(self.offset)
                return file
            archive = stack.enter_context(zipfile.ZipFile(self.path))
            member = stack.enter_context(archive.open(self.member))
            member.read(self.offset)  # a seek would give up the checksum
            return cast(io.BufferedIOBase, member)

    def read(self, stream: _Stream, buffer: Tensor) -> Tensor:
        """Fill a contiguous buffer with what comes next, and give it back."""
        # not mapped: where a mapped file shrinks, or its disk fails, the process is killed without a word
        view = buffer.view(torch.uint8).flatten().numpy().data
        with _reading(self.path):
            while view:
                count = stream.readinto(view[:_READ_BYTES])
                if not count:
                    raise PosteriorFileError(f"{self.path} is truncated: {len(view)} bytes are missing")
                view = view[count:]
        return buffer


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
        with ExitStack() as stack:
            streams = [array.open(stack) for array in self.arrays]
            slots = [
                [torch.empty(rows, self.latent_dim, dtype=array.dtype) for array in self.arrays]
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
        names = ("*.safetensors", "*.npz", *(f"*{glob.escape(key)}.npy" for key in keys))
        # one that begins with a dot is a file that is being written
        files = [file for name in names for file in path.glob(name) if not file.name.startswith(".")]
        if not files:
            raise PosteriorFileError(f"{path}: the folder holds none of {', '.join(names)}")
        return files
    if path.exists():
        return [path]
    if glob.has_magic(str(path)):
        files = [Path(file) for file in glob.glob(str(path), recursive=True)]  # noqa: PTH207 (** as in a shell)
        if not files:
            raise PosteriorFileError(f"{path}: no file matches")
        return files
    raise PosteriorFileError(f"{path}: there is no such file or folder")


def _shard(file: Path, keys: Keys) -> Shard:
    contents = _CONTENTS.get(file.suffix)
    if contents is None:
        raise PosteriorFileError(f"{file}: the file must be a .safetensors, .npz or .npy file")
    arrays = contents(file, keys)
    has_std = keys.logvar not in arrays
    spread_key = keys.std if has_std else keys.logvar
    if keys.mean not in arrays or spread_key not in arrays:
        names = ", ".join(map(repr, arrays)) or "no arrays"
        raise PosteriorFileError(
            f"{file}: it must hold {keys.mean!r} and either {keys.logvar!r} or {keys.std!r}, got {names}"
        )
    mean, spread = arrays[keys.mean](), arrays[spread_key]()
    if mean.shape != spread.shape:
        raise PosteriorFileError(
            f"{file}: {spread_key!r} must have the shape of {keys.mean!r}, {mean.shape}, got {spread.shape}"
        )
    return Shard(str(file), mean, spread, has_std, _stamp(mean.path, spread.path))


# What a file holds by name; an array is looked at when it is asked for, whatever the others are.
_Contents = Mapping[str, Callable[[], StoredArray]]


def _safetensors_contents(file: Path, keys: Keys) -> _Contents:
    try:
        with safe_open(file, framework="pt"):
            pass  # checks the header, and the size of the file against it
    except SafetensorError as error:
        raise PosteriorFileError(f"{file} is not a whole safetensors file: {error}") from error
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))

    def describe(key: str) -> StoredArray:
        entry = header[key]
        dtype = _dtype(f"{file}: {key!r}", _SAFETENSORS_DTYPES, entry["dtype"])
        shape = _shape(f"{file}: {key!r}", entry["shape"])
        return StoredArray(file, dtype, shape, 8 + size + entry["data_offsets"][0])

    return {key: partial(describe, key) for key in header if key != "__metadata__"}


def _npz_contents(file: Path, keys: Keys) -> _Contents:
    with zipfile.ZipFile(file) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}

    def describe(member: str) -> StoredArray:
        where = f"{file}: {member.removesuffix('.npy')!r}"
        try:
            with zipfile.ZipFile(file) as archive, archive.open(member) as stream:
                return _npy_array(where, stream, sizes[member], file, member)
        except RuntimeError as error:  # encrypted, or compressed in a way that zipfile does not know
            raise PosteriorFileError(f"{where} cannot be read: {error}") from error

    return {name.removesuffix(".npy"): partial(describe, name) for name in sizes if name.endswith(".npy")}


def _npy_contents(file: Path, keys: Keys) -> _Contents:
    endings = [key for key in keys if file.stem.endswith(key)]
    if not endings:
        names = ", ".join(f"{key}.npy" for key in keys)
        raise PosteriorFileError(f"{file}: the name of an .npy file must end with one of {names}")
    # the longest: one key may be the ending of another
    prefix = file.stem.removesuffix(max(endings, key=len))

    def describe(path: Path) -> StoredArray:
        with path.open("rb") as stream:
            return _npy_array(str(path), stream, path.stat().st_size, path)

    paths = {key: file.with_name(f"{prefix}{key}.npy") for key in keys}
    return {key: partial(describe, path) for key, path in paths.items() if path.exists()}


_CONTENTS = {".safetensors": _safetensors_contents, ".npz": _npz_contents, ".npy": _npy_contents}


def _npy_array(
    where: str, stream: IO[bytes], size: int, path: Path, member: str | None = None
) -> StoredArray:
    """Describe an array in NumPy's format; its header and data are ``size`` bytes."""
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, is_fortran, dtype = read_header(stream)
    except (ValueError, KeyError) as error:
        raise PosteriorFileError(f"{where} is not in NumPy's npy format: {error}") from error
    if dtype.hasobject:
        raise PosteriorFileError(f"{where} holds pickled Python objects, which are not read")
    torch_dtype = _dtype(where, _NPY_DTYPES, dtype.str)
    num_samples, latent_dim = _shape(where, shape)
    if is_fortran:
        raise PosteriorFileError(f"{where} is in Fortran order: save np.ascontiguousarray of it")
    offset = stream.tell()
    expected = offset + num_samples * latent_dim * torch_dtype.itemsize
    if size != expected:  # and so a member is read to its end, where zipfile compares the checksum
        state = "truncated" if size < expected else "too long"
        raise PosteriorFileError(f"{where} is {state}: {size} bytes where its header says {expected}")
    return StoredArray(path, torch_dtype, (num_samples, latent_dim), offset, member)


def _dtype(where: str, dtypes: Mapping[str, torch.dtype], name: str) -> torch.dtype:
    if name not in dtypes:
        raise PosteriorFileError(f"{where} must be of one of the dtypes {', '.join(dtypes)}, got {name}")
    return dtypes[name]


def _shape(where: str, shape: Iterable[int]) -> tuple[int, int]:
    shape = tuple(shape)
    if len(shape) != 2 or shape[1] == 0:
        raise PosteriorFileError(f"{where} must have shape (N, K) with K >= 1, got {shape}")
    return shape[0], shape[1]


def _stamp(*paths: Path) -> tuple[tuple[str, int, int], ...]:
    statuses = {str(path.resolve()): path.stat() for path in paths}
    return tuple((path, status.st_size, status.st_mtime_ns) for path, status in statuses.items())


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Errors of reading a file as errors that name it."""
    try:
        yield
    except PosteriorFileError:
        raise
    except OSError as error:
        raise PosteriorFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise PosteriorFileError(f"{path} is damaged: {error}") from error
