"""Data sets: MNIST, and the 5000 of its images that need no download; arrays in files of other programs."""

from lineavae.data.arrays import read_samples
from lineavae.data.mnist import DataError, Images, load_mnist, load_mnist5k

__all__ = ["DataError", "Images", "load_mnist", "load_mnist5k", "read_samples"]
