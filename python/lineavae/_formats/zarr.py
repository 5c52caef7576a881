"""zarr 2 and 3 stores in folders: the ``obsm`` of an AnnData store, or the arrays of any other group."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lineavae._array_files import ArrayFileError, Contents, StoredArray, reading
from lineavae._formats import num_chunks, row_ranges
from lineavae._io import read_json
from lineavae._optional import require

# Bytes of a number at the most, whatever a filter makes of it.
_LARGEST_NUMBER = 16

# Codecs of numbers. Others may be anything: one unpickles, in zarr 2 as soon as an array is opened.
_CODECS = {
    *("blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd"),
    *("astype", "bitround", "delta", "fixedscaleoffset", "quantize", "shuffle"),
    *("adler32", "crc32", "crc32c", "fletcher32"),
    *("bytes", "sharding_indexed", "transpose"),
}


def is_store(path: Path) -> bool:
    """Tell whether a folder is a store, or a group in one."""
    return path.is_dir() and (
        path.suffix.lower() == ".zarr" or (path / "zarr.json").exists() or (path / ".zgroup").exists()
    )


def arrays(path: Path) -> Contents:
    """Describe the arrays of a group."""
    with reading(path):
        group = "obsm" if (path / "obsm").is_dir() else "."
        names = sorted(folder.name for folder in (path / group).iterdir() if folder.is_dir())
    return {name: partial(_describe, path, str(Path(group, name))) for name in names}


def blocks(array: StoredArray, stack: ExitStack) -> Iterator[NDArray[Any]]:
    """Read an array."""
    path, member = array.path, str(array.member)
    data = _open(path, member)
    for rows in row_ranges(f"{path}: {member!r}", data.shape, _chunks(data), data.dtype.itemsize):
        yield np.asarray(data[rows], data.dtype)


def _describe(path: Path, member: str) -> StoredArray:
    with reading(path):
        data = _open(path, member)
        return StoredArray(path, data.dtype, data.shape, member=member, reader="zarr")


def _open(path: Path, member: str) -> Any:
    """Open an array of numbers, after a look at what zarr would run."""
    zarr = require("zarr", "formats")
    where, folder = f"{path}: {member!r}", path / member
    files = [folder / name for name in ("zarr.json", ".zarray") if (folder / name).exists()]
    try:
        metadata = [read_json(file) for file in files]
    except ValueError as error:
        raise ArrayFileError(str(error)) from error
    if not files or any(found.get("node_type", "array") != "array" for found in metadata):
        raise ArrayFileError(
            f"{where} must be an array, got a group: replace it by .to_numpy() of a dataframe, or by "
            ".toarray() of a sparse matrix"
        )
    for name in _codecs(metadata):
        if name.removeprefix("numcodecs.") not in _CODECS:
            raise ArrayFileError(f"{where} is encoded by {name!r}, which is not read")
    data = zarr.open_array(str(folder), mode="r")
    _check_files(where, folder, data, metadata[0])
    return data


def _chunks(data: Any) -> tuple[int, ...]:
    """Give the shape of what is in a file, of several chunks where zarr calls it a shard."""
    shape: tuple[int, ...] = getattr(data, "shards", None) or data.chunks
    return shape


def _check_files(where: str, folder: Path, data: Any, metadata: Any) -> None:
    """Check what zarr does not: that every chunk is there, and as long as the header of blosc says.

    For a missing one zarr gives zeros, which look like a collapse. No header may say more than a chunk holds.
    """
    expected = num_chunks(data.shape, _chunks(data))
    names = (file for file in folder.rglob("*") if file.name[0] != "." and file.name != "zarr.json")
    files = [file for file in names if file.is_file()]
    if len(files) < expected:
        raise ArrayFileError(
            f"{where} is incomplete: {expected - len(files)} of {expected} chunks are missing (one that has "
            "the fill value alone is written with write_empty_chunks=True)"
        )
    last = metadata.get("compressor") or metadata.get("codecs", [{}])[-1]
    if str(last.get("id", last.get("name"))).removeprefix("numcodecs.") != "blosc":
        return
    for file in files:
        with file.open("rb") as stream:
            header = stream.read(16)
        plain, size = (int.from_bytes(header[i : i + 4], "little") for i in (4, 12))
        if file.stat().st_size < max(size, 16):
            raise ArrayFileError(f"{where} is damaged: {file.relative_to(folder)} is truncated")
        if plain > _LARGEST_NUMBER * math.prod(_chunks(data)):  # which blosc would allocate
            raise ArrayFileError(f"{where} is damaged: {file.relative_to(folder)} would hold {plain} bytes")


def _codecs(metadata: Any) -> Iterator[str]:
    """Name all codecs, and those that are settings of others."""
    if isinstance(metadata, list):
        for item in metadata:
            yield from _codecs(item)
    elif isinstance(metadata, dict):
        for key, value in metadata.items():
            if key in ("codecs", "index_codecs", "filters", "compressor", "storage_transformers"):
                for codec in value if isinstance(value, list) else [value]:
                    if codec is not None:
                        yield str(codec.get("id", codec.get("name")) if isinstance(codec, dict) else codec)
            if key != "attributes":  # are the writer's own
                yield from _codecs(value)
