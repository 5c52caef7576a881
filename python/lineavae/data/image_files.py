"""Image files: which a folder holds, and their pixels, decoded by Pillow."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lineavae._optional import require
from lineavae.data.images import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png")

_FORMATS = ("JPEG", "PNG")

# What Pillow calls pixels without colours, and those of more than 8 bits, of which it would cut off what is
# above 255.
_GREY_MODES = ("1", "L", "LA")
_DEEP_MODES = ("I", "F", "I;16", "I;16B")


def list_images(folder: Path) -> dict[str, tuple[int, int]]:
    """Give size in bytes and time of the last change in ns of every image file, by its path in the folder.

    They come in the order of their paths, those of the folders below included; hidden ones do not.
    """

    def walk(place: str) -> Iterator[tuple[str, tuple[int, int]]]:
        with os.scandir(folder / place) as entries:
            found = sorted((entry.name, entry) for entry in entries if entry.name[0] != ".")
        for name, entry in found:
            if entry.is_dir(follow_symlinks=False):
                yield from walk(f"{place}{name}/")
            elif name.lower().endswith(SUFFIXES):
                yield f"{place}{name}", _stamp(entry)

    try:
        return dict(walk(""))
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _stamp(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        status = entry.stat()
    except FileNotFoundError:  # a link that leads nowhere: that it cannot be read is said in its turn
        status = entry.stat(follow_symlinks=False)
    return status.st_size, status.st_mtime_ns


def is_coloured(path: Path) -> bool:
    """Whether an image has colours, by its header alone."""
    with require("PIL.Image", "experiments").open(path, formats=_FORMATS) as image:
        return image.mode not in _GREY_MODES


@dataclass(frozen=True)
class Preparation:
    """What becomes of an image.

    Attributes
    ----------
    original
        Width and height that every image must have; None for any.
    crop
        Side of the square that is cut out of the middle; None for the largest, and for none where ``size`` is
        None.
    size
        Side to which it is resized; None for its own.
    """

    original: tuple[int, int] | None = None
    crop: int | None = None
    size: int | None = None

    def decode(self, path: Path) -> NDArray[np.uint8]:
        """Decode a file: upright, (H, W) if it is grey, else (H, W, 3).

        Colour profiles are not applied, and transparency is dropped. Resizing is bilinear, over as many
        pixels as a new one stands for: that of torchvision's ``Resize`` of such files, to the bit.

        Raises
        ------
        DataError
            The image has another size than it must have.
        Exception
            The file cannot be decoded: whatever Pillow raises.
        """
        pillow = require("PIL.Image", "experiments")
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise ValueError("not a regular file")
        with path.open("rb") as file:
            try:
                image: Image = pillow.open(file, formats=_FORMATS)
            except pillow.UnidentifiedImageError as error:
                raise ValueError("neither JPEG nor PNG") from error
            if pillow.MAX_IMAGE_PIXELS is not None and image.width * image.height > pillow.MAX_IMAGE_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, more than Pillow's limit")
            if image.mode in _DEEP_MODES:
                raise ValueError("more than 8 bits per pixel")
            if image.format == "PNG":  # decoding does not look at the checksums
                image.verify()
                image = pillow.open(file, formats=_FORMATS)
            require("PIL.ImageOps", "experiments").exif_transpose(image, in_place=True)
            image = image.convert("L" if image.mode in _GREY_MODES else "RGB")
        if self.original not in (None, image.size):
            raise DataError(f"{path} must have {_by(self.original)} pixels, got {_by(image.size)}")
        if self.crop is not None or self.size is not None:
            side = min(image.size) if self.crop is None else self.crop
            if side > min(image.size):
                raise DataError(f"{path} must have {side} x {side} pixels at least, got {_by(image.size)}")
            left, top = round((image.width - side) / 2), round((image.height - side) / 2)
            image = image.crop((left, top, left + side, top + side))
        if self.size is not None:
            image = image.resize((self.size, self.size), pillow.Resampling.BILINEAR)
        return np.asarray(image)


def _by(size: tuple[int, int] | None) -> str:
    return " x ".join(map(str, size or ()))
