"""Moments of the data that a command is given."""

from __future__ import annotations

from pathlib import Path

import torch

from lineavae._array_files import ArrayFileError, safetensors_arrays
from lineavae.data import read_samples
from lineavae.data.mnist import find_images, read_images
from lineavae.linear import Moments

# Images of which the pixels are divided at once.
_ROWS = 4096


def read_moments(path: Path, key: str | None) -> Moments:
    """Give the moments of the samples at ``path``; a ValueError says why there are none."""
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
