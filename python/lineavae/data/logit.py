"""Pixels as real numbers: uniform dequantisation and the logit transform (Papamakarios et al. 2017)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lineavae._arguments import check_integer, check_number, check_whole


class LogitPixels(NamedTuple):
    """Pixels on the whole real line, and what a density of them has to be corrected by.

    Examples
    --------
    >>> import numpy as np
    >>> from lineavae.data import logit_transform
    >>> pixels = logit_transform(np.full((2, 3), 255, dtype=np.uint8), seed=0)
    >>> bool((pixels.x > 0).all()), pixels.log_det.shape
    (True, torch.Size([2]))
    """

    x: Tensor
    """Transformed pixels, (N, D), float64."""
    log_det: Tensor
    """log |det| of the transform's Jacobian, (N,), float64, with respect to grey levels: log p(x) + this is
    the log-density of the dequantised image on the scale from 0 to 256, on which results are published."""


def logit_transform(images: NDArray[np.uint8], seed: int, *, alpha: float = 1e-6) -> LogitPixels:
    """Give x = logit(α + (1 - 2α)(pixel + u)/256) with u uniform in [0, 1).

    Parameters
    ----------
    images
        Pixels, uint8, (N, ...).
    seed
        Fixes the noise u, >= 0.
    alpha
        Keeps x finite, > 0 and < 1/2: 1e-6 is used for MNIST, where |x| is 14 at most, 0.05 for colours.

    Returns
    -------
    LogitPixels
        x and the logarithms of the Jacobian's determinant.

    Raises
    ------
    TypeError
        The images are not uint8.
    ValueError
        alpha is out of range.

    Examples
    --------
    >>> from lineavae.data import load_mnist5k, logit_transform
    >>> logit_transform(load_mnist5k().images, seed=0).x.shape
    torch.Size([5000, 784])
    """
    check_whole("logit_transform", "images", images)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        found = getattr(images, "dtype", type(images).__name__)
        raise TypeError(f"logit_transform: images must be a uint8 array, got {found}")
    alpha = check_number("logit_transform", "alpha", alpha, above=0, below=0.5)
    random = np.random.default_rng(check_integer("logit_transform", "seed", seed, 0))
    pixels = images.reshape(len(images), -1)
    y = torch.from_numpy(alpha + (1 - 2 * alpha) * (pixels + random.random(pixels.shape)) / 256)
    # dx/dy = 1/y(1 - y), dy/dpixel = (1 - 2α)/256
    log_det = pixels.shape[1] * math.log((1 - 2 * alpha) / 256) - (y.log() + (-y).log1p()).sum(1)
    return LogitPixels(y.logit(), log_det)
