"""Pictures as part of a page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from xml.etree import ElementTree

from lineavae._optional import require

# Bytes of a file at the most: some hundred times as many as a figure has.
_MOST_BYTES = 1 << 25


class PictureError(ValueError):
    """A file is no whole picture; the message names it."""


def data_uri(path: Path) -> str:
    """Give a PNG or an SVG file as a URI that holds all of it.

    Raises
    ------
    PictureError
        The file cannot be read, or is damaged.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("it is too large")
        content = path.read_bytes()
        if path.suffix == ".svg":
            ElementTree.fromstring(content)
        else:
            require("PIL.Image", "experiments").open(io.BytesIO(content), formats=["PNG"]).verify()
    except OSError as error:
        raise PictureError(f"{path} cannot be read: {error.strerror or 'it is no PNG'}") from error
    except Exception as error:  # Pillow and expat raise a dozen kinds
        raise PictureError(f"{path} is damaged ({error})") from error
    return as_uri(content, "image/svg+xml" if path.suffix == ".svg" else "image/png")


def as_uri(content: bytes, media_type: str) -> str:
    """Give bytes as a URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
