"""Data sets in memory, or mapped from files: images of any size, and samples that are no images."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


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


def is_mnist(name: str) -> bool:
    """Whether a data set of this name is MNIST, or a part of it."""
    return name in ("MNIST", "MNIST-5k")


@dataclass(frozen=True)
class Images:
    """Images of one size, grey or in colour, with their labels where there are any.

    Attributes
    ----------
    images
        Pixels, uint8, (N, H, W), or (N, H, W, C) in colour. They may be mapped from a file, and are then not
        to be written to.
    labels
        Classes, uint8, (N,); None where they are not known.
    name
        The data set's name for titles and reports: "MNIST", "MNIST-5k", "CelebA", or that of the file or
        folder of other images.
    remarks
        What a report has to say of them: which files could not be read, for example.

    Raises
    ------
    TypeError
        The pixels are not uint8.
    ValueError
        Their shape is another one.

    Examples
    --------
    >>> import numpy as np
    >>> from lineavae.data import Images
    >>> black = Images(np.zeros((2, 32, 32, 3), dtype=np.uint8), None, "night")
    >>> black.to_tensor().shape
    torch.Size([2, 3072])
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8] | None
    name: str
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8:
            raise TypeError(f"Images: images must be uint8, got {self.images.dtype}")
        if self.images.ndim not in (3, 4):
            raise ValueError(
                f"Images: images must have shape (N, H, W) or (N, H, W, C), got {self.images.shape}"
            )

    @property
    def is_mnist(self) -> bool:
        """Whether these are MNIST's images, so that published results are about them."""
        return is_mnist(self.name)

    @property
    def num_features(self) -> int:
        """Dimensions D of an image: H · W, or H · W · C."""
        return math.prod(self.images.shape[1:])

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
            The subset, in memory and in random order, under the same name.

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
        chosen = _draw("Images.subset: num_samples", num_samples, len(self), seed)
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, images=self.images[chosen], labels=labels)

    def to_tensor(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the pixels divided by 255, one image per row.

        Parameters
        ----------
        dtype
            Floating dtype of the result.

        Returns
        -------
        Tensor
            (N, H · W), or (N, H · W · C) with the channels of a pixel side by side; values in [0, 1].

        Examples
        --------
        >>> from lineavae.data import load_mnist5k
        >>> load_mnist5k().to_tensor().shape
        torch.Size([5000, 784])
        """
        pixels = np.array(self.images, order="C")  # torch takes no array that cannot be written
        return torch.from_numpy(pixels).flatten(1).to(dtype).div_(255)


@dataclass(frozen=True)
class Samples:
    """Samples that are no images: rows of real numbers, in the units in which a model sees them.

    Attributes
    ----------
    samples
        Floating dtype, (N, D), all finite; they may be mapped from a file.
    name
        The name of that file.

    Examples
    --------
    >>> import numpy as np
    >>> from lineavae.data import Samples
    >>> Samples(np.eye(3), "corners").subset(2, seed=0).to_tensor().shape
    torch.Size([2, 3])
    """

    samples: NDArray[np.floating]
    name: str
    remarks: tuple[str, ...] = ()

    @property
    def num_features(self) -> int:
        """Dimensions D of a sample."""
        return math.prod(self.samples.shape[1:])

    def __len__(self) -> int:
        return len(self.samples)

    def subset(self, num_samples: int, seed: int) -> Samples:
        """Draw ``num_samples`` rows without replacement, as `Images.subset` does."""
        chosen = _draw("Samples.subset: num_samples", num_samples, len(self), seed)
        return replace(self, samples=self.samples[chosen])

    def to_tensor(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the samples, (N, D)."""
        return torch.from_numpy(np.array(self.samples, dtype=self.samples.dtype.newbyteorder("="))).to(dtype)


def _draw(what: str, num_samples: int, available: int, seed: int) -> NDArray[np.intp]:
    if not 1 <= num_samples <= available:
        unit = what.partition(".")[0].lower()
        raise ValueError(f"{what} must be between 1 and the number of {unit}, {available}, got {num_samples}")
    return np.random.default_rng(seed).permutation(available)[:num_samples]
