"""The handwritten digits of 8 x 8 pixels that scikit-learn carries."""

from __future__ import annotations

from sklearn.datasets import load_digits as _load

from lineavae.data.images import Samples


def load_digits() -> Samples:
    """Load the 1797 handwritten digits of 8 x 8 pixels that come with scikit-learn, without a download.

    Returns
    -------
    Samples
        (1797, 64), float64: the pixels, 0 to 16, divided by 16. Three of them are always 0.

    Notes
    -----
    Alpaydin and Kaynak (1998). Optical recognition of handwritten digits. UCI Machine Learning Repository.

    Examples
    --------
    >>> from lineavae.data import load_digits
    >>> load_digits().samples.shape
    (1797, 64)
    """
    return Samples(_load().data / 16, "digits")
