"""Formats of files that have a library of their own, one module each; an optional extra brings the libraries.

A module has two functions: ``arrays(path)`` describes what there is by name, and ``blocks(array, stack)``
reads one of them in arrays of some rows each, in order, keeping files open until the stack is closed. What a
file says is left to its library, but for what would lead out of the file or run code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from lineavae._array_files import ArrayFileError

# Bytes of rows that are read at once, where the chunks of a file allow it: caches hold them.
READ_BYTES = 1 << 21

# Bytes of a row of chunks at the most: they are decompressed together.
_CHUNK_BYTES = 1 << 29


def num_chunks(shape: Sequence[int], chunks: Sequence[int]) -> int:
    """Give the number of chunks of an array."""
    return math.prod(-(-length // chunk) for length, chunk in zip(shape, chunks, strict=True))


def row_ranges(
    where: str, shape: Sequence[int], chunks: Sequence[int] | None, itemsize: int
) -> Iterator[slice]:
    """Split rows such that no chunk is read twice; ``where`` names the array in errors."""
    row_bytes = itemsize * math.prod(shape[1:])
    rows = 1 if chunks is None else min(chunks[0], shape[0]) or 1
    if rows * row_bytes > _CHUNK_BYTES:
        raise ArrayFileError(
            f"{where} has chunks of {rows} rows, which take {rows * row_bytes} bytes, and must be written "
            "with smaller ones"
        )
    rows *= max(1, READ_BYTES // max(1, rows * row_bytes))
    return (slice(start, start + rows) for start in range(0, shape[0], rows))
