"""Samples in the files that other programs write: NumPy's and safetensors, one array of each."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lineavae.data.mnist import DataError


def read_samples(path: str | Path, key: str | None = None) -> Iterator[tuple[Path, NDArray[Any] | Tensor]]:
    """Read samples from a file, or from all files of a folder, one file at a time.

    Parameters
    ----------
    path
        A ``.npy``, ``.npz`` or ``.safetensors`` file, or a folder of them.
    key
        Name of the array in ``.npz`` and ``.safetensors`` files; not needed where they hold but one.

    Yields
    ------
    Path, ndarray or Tensor
        A file, the files of a folder in the order of their names, and its samples, (N, D): of arrays with
        more dimensions, the first counts the samples and the others are flattened.

    Raises
    ------
    DataError
        There is no such file, or none in the folder; it is damaged or of another kind; it holds no such
        array, or several and none is named; the array is pickled or has fewer than two dimensions.

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
    for file in _files(path) if path.is_dir() else [path]:
        if file.suffix not in _READERS:
            raise DataError(f"{file}: the name must end with one of {', '.join(_READERS)}")
        try:
            samples = _READERS[file.suffix](file, key)
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
        except (SafetensorError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise DataError(f"{file}: cannot be read: {error}") from error
        if samples.ndim < 2 or not samples.shape[0]:
            raise DataError(f"{file}: the array must have shape (N, D), got {tuple(samples.shape)}")
        yield file, samples.reshape(len(samples), -1)


def _files(folder: Path) -> list[Path]:
    # one that begins with a dot is a file that is being written
    found = sorted(file for file in folder.iterdir() if file.suffix in _READERS and file.name[0] != ".")
    if not found:
        raise DataError(f"{folder}: the folder holds no {', '.join(_READERS)} file")
    return found


def _read_npy(file: Path, key: str | None) -> NDArray[Any]:
    with file.open("rb") as stream:
        return _parse_npy(file, stream)


def _read_npz(file: Path, key: str | None) -> NDArray[Any]:
    with zipfile.ZipFile(file) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        with archive.open(f"{_choose(file, names, key)}.npy") as stream:
            return _parse_npy(file, stream)


def _read_safetensors(file: Path, key: str | None) -> Tensor:
    file.open("rb").close()  # of what cannot be read, Python's error says why
    with safe_open(file, framework="pt") as tensors:
        samples: Tensor = tensors.get_tensor(_choose(file, list(tensors.keys()), key)).clone()
        return samples


_READERS: dict[str, Callable[[Path, str | None], NDArray[Any] | Tensor]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
}


def _parse_npy(file: Path, stream: Any) -> NDArray[Any]:
    try:
        return np.lib.format.read_array(stream, allow_pickle=False)
    except ValueError as error:
        raise DataError(f"{file}: an array cannot be read: {error}") from error


def _choose(file: Path, names: list[str], key: str | None) -> str:
    if key is None and len(names) == 1:
        return names[0]
    if key is None or key not in names:
        wanted = "one array, or the one to take named" if key is None else f"an array {key!r}"
        raise DataError(f"{file} must hold {wanted}, got {', '.join(map(repr, names)) or 'none'}")
    return key
