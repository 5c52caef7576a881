"""Data sets: MNIST, CelebA, folders of images, arrays in files; pixels as real numbers."""

from lineavae.data.arrays import read_samples
from lineavae.data.digits import load_digits
from lineavae.data.images import DataError, Images, Samples
from lineavae.data.loading import load_celeba, load_data, load_images
from lineavae.data.mnist import load_mnist, load_mnist5k
from lineavae.data.pixels import RealPixels, bits_per_dimension, dequantize, logit_transform

__all__ = [
    "DataError",
    "Images",
    "RealPixels",
    "Samples",
    "bits_per_dimension",
    "dequantize",
    "load_celeba",
    "load_data",
    "load_digits",
    "load_images",
    "load_mnist",
    "load_mnist5k",
    "logit_transform",
    "read_samples",
]
