"""Pictures as part of a page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from lineavae._optional import require

# Bytes of a file at the most: some hundred times as many as a figure has.
_MOST_BYTES = 1 << 25


# CSS pixels of an inch of a figure: 9 points, its usual text, are then 15 pixels.
_PIXELS = 120


class PictureError(ValueError):
    """A file is no whole picture; the message names it."""


class Picture(NamedTuple):
    """A picture as a URI that holds all of it, and its size in CSS pixels."""

    uri: str
    width: int
    height: int


def read_picture(path: Path) -> Picture:
    """Read a PNG or an SVG file.

    Raises
    ------
    PictureError
        The file cannot be read, or is damaged.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("it is too large")
        content = path.read_bytes()
        return _svg(content) if path.suffix == ".svg" else png(content)
    except OSError as error:
        raise PictureError(f"{path} cannot be read: {error.strerror or 'it is no PNG'}") from error
    except Exception as error:  # Pillow and expat raise a dozen kinds
        raise PictureError(f"{path} is damaged ({error})") from error


def png(content: bytes) -> Picture:
    """Give the bytes of a PNG file as a picture; raises what Pillow raises."""
    image = require("PIL.Image", "experiments").open(io.BytesIO(content), formats=["PNG"])
    image.verify()
    dots_per_inch = image.info.get("dpi", (_PIXELS, _PIXELS))
    return _picture(
        content, "image/png", *(size / dots for size, dots in zip(image.size, dots_per_inch, strict=True))
    )


def _svg(content: bytes) -> Picture:
    sizes = [ElementTree.fromstring(content).get(name, "") for name in ("width", "height")]
    return _picture(content, "image/svg+xml", *(float(size.removesuffix("pt")) / 72 for size in sizes))


def _picture(content: bytes, media_type: str, width: float, height: float) -> Picture:
    """Give a picture of a size in inches, on which text is as large as on the page."""
    uri = f"data:{media_type};base64,{base64.b64encode(content).decode()}"
    return Picture(uri, round(width * _PIXELS), round(height * _PIXELS))
