"""Whatever holds images or samples, read by what it is: MNIST's files, an array, a folder of image files."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import numpy as np

from lineavae._arguments import check_integer, check_number
from lineavae._array_files import ArrayFileError, npy_array
from lineavae.data.image_cache import ImageCache, default_cache
from lineavae.data.image_files import Preparation
from lineavae.data.images import DataError, Images, Samples
from lineavae.data.mnist import find_images, load_mnist, load_mnist5k, name_images

# Of CelebA's aligned images: how many there are, their width and height, and the square that is cut out of
# them, as by Dinh et al. (2017), from whom likelihoods of this data set in 64 x 64 pixels are reported.
_CELEBA_IMAGES, _CELEBA_PIXELS, _CELEBA_CROP = 202_599, (178, 218), 148


def load_images(
    path: str | Path,
    *,
    crop: int | None = None,
    size: int | None = None,
    cache: str | Path | None = None,
    max_corrupt: float = 0.01,
) -> Images:
    """Load images from an ``.npy`` file, or from a folder of JPEG and PNG files.

    Of a folder, the files of all folders below are taken too, in the order of their paths. They are decoded
    once, into a file of the cache that is mapped into memory from then on; a process that is killed meanwhile
    continues where it was. If a file changes, is added or removed, all are decoded again.

    Files that cannot be decoded, or not to 8 bits, are left out, and named in ``remarks``: damaged ones,
    other files by these names, and images of more pixels than Pillow's limit. Damage to a JPEG that keeps its
    structure whole cannot be seen. If any image has colours, grey ones become colours as well. Images stand
    upright, as their EXIF orientation says; colour profiles are not applied, and transparency is dropped.

    Parameters
    ----------
    path
        A ``.npy`` file of uint8, (N, H, W), or (N, H, W, C) with C at most 4, which is mapped into memory; or
        a folder.
    crop
        Side of the square that is cut out of the middle of each image, for folders; by default the largest,
        or none where ``size`` is None.
    size
        Side to which each image is resized, for folders: bilinear, over as many pixels as a new one stands
        for. By default they keep their size, which must be the same for all.
    cache
        Folder that keeps decoded images; by default the one that the environment variable ``LINEAVAE_CACHE``
        names, or ``lineavae`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``. That of the images is not written.
    max_corrupt
        Part of a folder's images that may be left out, from 0 to 1.

    Returns
    -------
    Images
        The images, without labels. Their name is that of the file or folder, or "MNIST" if they are MNIST's,
        pixel by pixel.

    Raises
    ------
    DataError
        There is no such file or folder; it holds no images, or they have several sizes, or too many cannot be
        decoded; an array is damaged, pickled or of another kind; the cache cannot be written.
    ModuleNotFoundError
        Pillow, a part of the extra ``experiments``, is not installed.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from PIL import Image
    >>> from lineavae.data import load_images
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (178, 218)).save(f"{folder}/face.png")
    ...     images = load_images(folder, size=64, cache=f"{folder}/cache")
    ...     images.images.shape
    (1, 64, 64, 3)
    """
    path = Path(path)
    for name, value in (("crop", crop), ("size", size)):
        if value is not None:
            check_integer("load_images", name, value, 1)
    check_number("load_images", "max_corrupt", max_corrupt, at_least=0, at_most=1)
    if path.is_dir():
        return _load_folder(path, Preparation(crop=crop, size=size), cache, max_corrupt)
    if crop is not None or size is not None:
        raise DataError(f"{path} is not a folder: only the images of folders are cut out and resized")
    loaded = _load_npy(path)
    if not isinstance(loaded, Images):
        raise DataError(f"{path} must hold uint8 pixels, got {loaded.samples.dtype}")
    return loaded


def load_celeba(
    folder: str | Path, *, size: int = 64, cache: str | Path | None = None, max_corrupt: float = 0.01
) -> Images:
    """Load CelebA's aligned images, cut to the 148 x 148 pixels in their middle and resized to 64 x 64.

    The paper says that they are resized to 64 x 64, and not what becomes of their 178 x 218 pixels. 148 x 148
    are those of Dinh et al. (2017), "Density estimation using Real NVP", and of most code since.

    Parameters
    ----------
    folder
        ``img_align_celeba``, with the JPEG files 000001.jpg to 202599.jpg, or a folder above, as torchvision
        makes it (``celeba/img_align_celeba``).
    size
        Side to which they are resized.
    cache, max_corrupt
        As in `load_images`.

    Returns
    -------
    Images
        (202599, 64, 64, 3), of all three splits. Their name is "CelebA" if the folder holds as many files, by
        CelebA's names, each 178 x 218; no hash of these files has been published that would tell more. Else
        it is the folder's.

    Raises
    ------
    DataError
        As `load_images`; an image is not 178 x 218.

    Examples
    --------
    >>> from lineavae.data import load_celeba
    >>> faces = load_celeba("datasets/celeba/img_align_celeba")  # doctest: +SKIP
    """
    found = find_celeba(Path(folder)) or Path(folder)
    if not found.is_dir():
        raise DataError(f"{folder} is not a folder: name the one that holds CelebA's aligned images")
    check_integer("load_celeba", "size", size, 1)
    return _load_folder(found, Preparation(_CELEBA_PIXELS, _CELEBA_CROP, size), cache, max_corrupt)


def load_data(path: str | Path | None = None, *, image_size: int | None = None) -> Images | Samples:
    """Load what is there: MNIST's files, CelebA's, other image files, or an array of images or samples.

    Parameters
    ----------
    path
        A folder with MNIST's training images, with CelebA's ``img_align_celeba``, or with JPEG and PNG files;
        a ``.npy`` file of images, as in `load_images`, or of samples: floats, (N, D). By default MNIST-5k.
    image_size
        Side to which the image files of a folder are resized; by default 64 for CelebA, their own for others.

    Returns
    -------
    Images or Samples
        Samples for an array of floats.

    Raises
    ------
    DataError
        There is no such file or folder, or it holds nothing of that.

    Examples
    --------
    >>> from lineavae.data import load_data
    >>> load_data().name
    'MNIST-5k'
    """
    if path is None:
        return load_mnist5k()
    path = Path(path)
    if find_images(path) is not None:
        loaded: Images | Samples = load_mnist(path)
    elif find_celeba(path) is not None:
        return load_celeba(path, size=image_size or 64)
    elif path.is_dir():
        return load_images(path, size=image_size)
    else:
        loaded = _load_npy(path)
    if image_size is not None:
        raise DataError(f"{path}: image_size is for folders of image files, whose images can be resized")
    return loaded


def find_celeba(folder: Path) -> Path | None:
    """Give the folder of CelebA's aligned images, which is this one or one below."""
    places = (folder, folder / "img_align_celeba", folder / "celeba" / "img_align_celeba")
    return next((place for place in places if place.name == "img_align_celeba" and place.is_dir()), None)


def _load_folder(
    folder: Path, preparation: Preparation, cache: str | Path | None, max_corrupt: float
) -> Images:
    decoded = ImageCache(folder, preparation, default_cache() if cache is None else Path(cache), max_corrupt)
    images = decoded.load()
    remarks = []
    if decoded.left_out:
        remarks.append(f"left out: {decoded.describe(decoded.left_out)}")
    if decoded.num_grey:
        remarks.append(f"{decoded.num_grey} of {len(images)} images are grey, among others in colours")
    is_celeba = preparation.original == _CELEBA_PIXELS and _are_celebas(decoded.files)
    name = "CelebA" if is_celeba else name_images(images, folder.resolve().name)
    return Images(images, None, name, tuple(remarks))


def _are_celebas(files: Collection[str]) -> bool:
    return len(files) == _CELEBA_IMAGES and all(
        name == f"{number:06d}.jpg" for number, name in enumerate(files, start=1)
    )


def _load_npy(path: Path) -> Images | Samples:
    """Map an array into memory, of pixels or of samples."""
    if not path.exists():
        raise DataError(f"{path} does not exist")
    try:
        array = npy_array(path)
    except ArrayFileError as error:
        raise DataError(str(error)) from error
    dtype, shape = cast("np.dtype[Any]", array.dtype), array.shape
    is_image = dtype == np.uint8 and (len(shape) == 3 or (len(shape) == 4 and shape[3] <= 4))
    if 0 in shape or not (is_image or (dtype.kind == "f" and len(shape) == 2)):
        raise DataError(
            f"{path} must hold images, uint8 of shape (N, H, W) or (N, H, W, C) with C at most 4, or "
            f"samples, floats of shape (N, D); got {dtype} of {shape}"
        )
    values = array.map()
    name = name_images(values, path.stem)
    if is_image:
        return Images(values, None, name)
    if not np.isfinite(values).all():
        raise DataError(f"{path} must hold finite numbers")
    return Samples(values, name)
