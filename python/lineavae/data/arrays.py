"""Samples in the files that other programs write: NumPy's and safetensors, one array of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lineavae._array_files import (
    ArrayFileError,
    Contents,
    StoredArray,
    npy_array,
    npz_arrays,
    safetensors_arrays,
)
from lineavae.data.images import DataError

# Elements of a block of samples, which is all that is held of a file.
_BLOCK_ELEMENTS = 1 << 22


def read_samples(path: str | Path, key: str | None = None) -> Iterator[tuple[Path, NDArray[Any] | Tensor]]:
    """Read samples from a file, or from all files of a folder, in blocks: they may be larger than memory.

    Parameters
    ----------
    path
        A ``.npy``, ``.npz`` or ``.safetensors`` file, or a folder of them.
    key
        Name of the array in ``.npz`` and ``.safetensors`` files; not needed where they hold but one.

    Yields
    ------
    Path, ndarray or Tensor
        A file, and its next samples, (n, D); the files of a folder come in the order of their names. The
        first dimension of an array counts the samples, all others are flattened. A member of an ``.npz`` file
        in Fortran order comes as one block.

    Raises
    ------
    DataError
        There is no such file, or none in the folder; it is damaged or of another kind; it holds no such
        array, or several and none is named; the array is pickled, not real, or has fewer than two dimensions.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lineavae.data import read_samples
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/images.npy", np.zeros((3, 28, 28), np.uint8))
    ...     [(file, samples)] = read_samples(folder)
    >>> file.name, samples.shape
    ('images.npy', (3, 784))
    """
    path = Path(path)
    try:
        for file in _files(path) if path.is_dir() else [path]:
            if file.suffix.lower() not in _ARRAYS:
                raise DataError(f"{file}: the name must end with one of {', '.join(_ARRAYS)}")
            array = _ARRAYS[file.suffix.lower()](file, key)
            if len(array.shape) < 2 or 0 in array.shape:
                raise DataError(f"{file}: the array must have shape (N, D), got {array.shape}")
            is_real = array.dtype.kind in "biuf" if isinstance(array.dtype, np.dtype) else True
            if not is_real or array.dtype == torch.complex64:
                raise DataError(f"{file}: the array must be real, got {array.dtype}")
            for block in _blocks(array):
                yield file, block
    except ArrayFileError as error:
        raise DataError(str(error)) from error


def _files(folder: Path) -> list[Path]:
    # one that begins with a dot is a file that is being written
    files = (file for file in folder.iterdir() if file.suffix.lower() in _ARRAYS)
    found = sorted(file for file in files if file.name[0] != ".")
    if not found:
        raise DataError(f"{folder}: the folder holds no {', '.join(_ARRAYS)} file")
    return found


_ARRAYS: dict[str, Callable[[Path, str | None], StoredArray]] = {
    ".npy": lambda file, key: npy_array(file),
    ".npz": lambda file, key: _choose(file, npz_arrays(file), key),
    ".safetensors": lambda file, key: _choose(file, safetensors_arrays(file)[0], key),
}


def _choose(file: Path, arrays: Contents, key: str | None) -> StoredArray:
    if key is None and len(arrays) == 1:
        (key,) = arrays
    if key is None or key not in arrays:
        wanted = "one array, or the one to take named" if key is None else f"an array {key!r}"
        raise DataError(f"{file} must hold {wanted}, got {', '.join(map(repr, sorted(arrays))) or 'none'}")
    return arrays[key]()


def _blocks(array: StoredArray) -> Iterator[NDArray[Any] | Tensor]:
    num_samples, num_features = array.shape[0], math.prod(array.shape[1:])
    rows = max(1, _BLOCK_ELEMENTS // num_features)
    if array.is_fortran and array.member is not None:
        rows = num_samples  # a member can only be read in one go
    with ExitStack() as stack:
        stream = array.open(stack)
        for start in range(0, num_samples, rows):
            count = min(rows, num_samples - start)
            if isinstance(array.dtype, torch.dtype):
                yield array.read(stream, torch.empty(count, num_features, dtype=array.dtype, device="cpu"))
            elif array.is_fortran:
                columns = np.empty((num_features, count), array.dtype)
                for index, column in enumerate(columns):
                    if array.member is None:
                        stream.seek(array.offset + (index * num_samples + start) * array.dtype.itemsize)
                    array.read(stream, column)
                # features are in Fortran order as well
                yield columns.reshape(*reversed(array.shape[1:]), count).T.reshape(count, num_features)
            else:
                yield array.read(stream, np.empty((count, num_features), array.dtype))
