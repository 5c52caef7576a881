"""Data sets: MNIST, and the 5000 of its images that need no download; logits of pixels; arrays in files."""

from lineavae.data.arrays import read_samples
from lineavae.data.logit import LogitPixels, logit_transform
from lineavae.data.mnist import DataError, Images, load_mnist, load_mnist5k

__all__ = [
    "DataError",
    "Images",
    "LogitPixels",
    "load_mnist",
    "load_mnist5k",
    "logit_transform",
    "read_samples",
]
