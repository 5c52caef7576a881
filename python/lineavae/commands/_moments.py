"""Moments of the data that a command is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from lineavae._array_files import ArrayFileError, safetensors_arrays
from lineavae.data import Images, Samples, load_digits, load_mnist5k, read_samples
from lineavae.data.mnist import find_images, read_images
from lineavae.linear import Moments

# Images of which the pixels are divided at once.
_ROWS = 4096


def read_moments(data: str, key: str | None) -> Moments:
    """Give the moments of embedded data or of the samples at a path; a ValueError says why there are none."""
    embedded: dict[str, Callable[[], Images | Samples]] = {"digits": load_digits, "mnist5k": load_mnist5k}
    if data in embedded:
        return Moments.from_data(embedded[data]().to_tensor(torch.float64))
    path = Path(data)
    if not path.exists() and not path.suffix:
        raise ValueError(
            f"{data} is no file or folder, and none of the embedded data, {' and '.join(embedded)}"
        )
    if _holds_moments(path):
        return Moments.load(path)
    images = find_images(path)
    if images is not None:
        pixels = torch.from_numpy(read_images(images)).flatten(1)
        return Moments.from_batches(part.float() / 255 for part in torch.split(pixels, _ROWS))
    moments = Moments()
    for file, samples in read_samples(path, key):
        try:
            moments.update(samples)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: {str(error).removeprefix('Moments: ')}") from error
    return moments


def _holds_moments(path: Path) -> bool:
    if path.suffix.lower() != ".safetensors":
        return False
    try:
        return safetensors_arrays(path)[1].get("format") == "lineavae.Moments"
    except ArrayFileError:
        return False  # the reader of samples says why
