"""Pixels as real numbers: uniform dequantisation and the logit transform (Papamakarios et al. 2017).

The scale of the paper's tables is that of grey levels, from 0 to 256: the log-density that a model gives to
x, plus ``log_det`` of the same image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lineavae._arguments import check_integer, check_number, check_whole

# Pixels of which float64 copies are held at once.
_BLOCK_ELEMENTS = 1 << 20

_Nats = TypeVar("_Nats", float, Tensor, NDArray[np.float64])


class RealPixels(NamedTuple):
    """Pixels as real numbers, and what a density of them has to be corrected by.

    Examples
    --------
    >>> import numpy as np
    >>> from lineavae.data import logit_transform
    >>> pixels = logit_transform(np.full((2, 3), 255, dtype=np.uint8), seed=0)
    >>> bool((pixels.x > 0).all()), pixels.log_det.shape
    (True, torch.Size([2]))
    """

    x: Tensor
    """Transformed pixels, (N, D)."""
    log_det: Tensor
    """log |det| of the transform's Jacobian, (N,), float64, with respect to grey levels: log p(x) + this is
    the log-density of the dequantised image on the scale from 0 to 256, on which results are published."""


def dequantize(images: NDArray[np.uint8], seed: int, *, dtype: torch.dtype = torch.float64) -> RealPixels:
    """Give x = (pixel + u)/256 with u uniform in [0, 1), for models in pixel space.

    Parameters
    ----------
    images
        Pixels, uint8, (N, ...).
    seed
        Fixes the noise u, >= 0; it is that of `logit_transform`.
    dtype
        Floating dtype of x. Only a part of the images is ever held in float64 beside it.

    Returns
    -------
    RealPixels
        x in [0, 1] and the logarithms of the Jacobian's determinant, - D log 256 for every image.

    Raises
    ------
    TypeError
        The images are not uint8.

    Examples
    --------
    >>> from lineavae.data import dequantize, load_mnist5k
    >>> pixels = dequantize(load_mnist5k().images, seed=0, dtype=torch.float32)
    >>> pixels.x.shape, pixels.x.dtype, round(pixels.log_det[0].item(), 1)
    (torch.Size([5000, 784]), torch.float32, -4347.4)
    """
    x, log_det, blocks = _noisy("dequantize", images, seed, 0.0, dtype)
    for rows, y in blocks:
        x[rows] = y
    return RealPixels(x, log_det)


def logit_transform(
    images: NDArray[np.uint8], seed: int, *, alpha: float = 1e-6, dtype: torch.dtype = torch.float64
) -> RealPixels:
    """Give x = logit(α + (1 - 2α)(pixel + u)/256) with u uniform in [0, 1).

    Parameters
    ----------
    images
        Pixels, uint8, (N, ...).
    seed
        Fixes the noise u, >= 0.
    alpha
        Keeps x finite, > 0 and < 1/2: 1e-6 is used for MNIST, where |x| is 14 at most, 0.05 for colours.
    dtype
        Floating dtype of x, which is calculated in float64. Only a part of the images is ever held in float64
        beside it.

    Returns
    -------
    RealPixels
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
    alpha = check_number("logit_transform", "alpha", alpha, above=0, below=0.5)
    x, log_det, blocks = _noisy("logit_transform", images, seed, alpha, dtype)
    for rows, y in blocks:
        x[rows] = y.logit()
        log_det[rows] -= (y.log() + (-y).log1p()).sum(1)  # dx/dy = 1/y(1 - y)
    return RealPixels(x, log_det)


def bits_per_dimension(nats: _Nats, num_features: int) -> _Nats:
    """Give log-densities of images in bits per dimension, - nats / (D log 2), of which fewer are better.

    Parameters
    ----------
    nats
        Log-densities or ELBOs on the scale of grey levels, `RealPixels.log_det` included: a number, or an
        array of any shape.
    num_features
        Dimensions D of an image: pixels times channels.

    Returns
    -------
    float, Tensor or ndarray
        Of the kind and shape of ``nats``. All grey levels equally probable are 8 bits.

    Examples
    --------
    >>> from lineavae.data import bits_per_dimension
    >>> round(bits_per_dimension(-73328.4, 64 * 64 * 3), 3)  # Table 1, CelebA at σ² = 10
    8.609
    """
    num_features = check_integer("bits_per_dimension", "num_features", num_features, 1)
    return nats / (-num_features * math.log(2))


def _noisy(
    caller: str, images: NDArray[np.uint8], seed: int, alpha: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Iterator[tuple[slice, Tensor]]]:
    """Give room for x, and y = α + (1 - 2α)(pixel + u)/256 in parts, with its log-determinant."""
    check_whole(caller, "images", images)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        found = getattr(images, "dtype", type(images).__name__)
        raise TypeError(f"{caller}: images must be a uint8 array, got {found}")
    if images.ndim == 0:
        raise ValueError(f"{caller}: images must have shape (N, ...), got ()")
    if not dtype.is_floating_point:
        raise TypeError(f"{caller}: dtype must be a floating one, got {dtype}")
    random = np.random.default_rng(check_integer(caller, "seed", seed, 0))
    num_samples, num_features = len(images), math.prod(images.shape[1:])
    step = max(1, _BLOCK_ELEMENTS // max(1, num_features))

    def blocks() -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, num_samples, step):
            rows = slice(start, start + step)
            pixels = images[rows].reshape(len(images[rows]), num_features)
            yield (
                rows,
                torch.from_numpy(alpha + (1 - 2 * alpha) * (pixels + random.random(pixels.shape)) / 256),
            )

    x = torch.empty(num_samples, num_features, dtype=dtype)
    log_det = torch.full((num_samples,), num_features * math.log((1 - 2 * alpha) / 256), dtype=torch.float64)
    return x, log_det, blocks()
