#!/bin/sh
# The noise that scikit-learn's IncrementalPCA finds.
#
# scikit-learn 1.9.1, NumPy 2.4.0; Python 3.11.
#
# noise_variance_ is the mean of the squares of the singular values that the last batch left out, over the number of all
# samples: what earlier batches left out is forgotten. So it is about σ² divided by the number of batches, and goes to
# zero as data come in, while components_ and explained_variance_ stay right to five digits. get_covariance() and
# get_precision() take it, and there is no warning. 20 000 rows with 3 components and σ² = 1 in 20 dimensions: with 10
# batches it is 0.10, with 200 it is 0.0049, and the log-likelihood by that precision is -1708 nats a row where PCA's is
# -32.8.
#
# Seen: 1.003 with one batch, 0.1009, 0.00984 and 0.00493 with 10, 100 and 200; explained variances within 1e-4.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet numpy==2.4.0 scikit-learn==1.9.1
"$folder/v/bin/python" - <<'PY'
import numpy as np
from sklearn.decomposition import PCA, IncrementalPCA

N, D, K = 20_000, 20, 3
rng = np.random.default_rng(0)
X = rng.normal(size=(N, K)) @ rng.normal(size=(K, D)) + rng.normal(size=(N, D))
pca = PCA(K, svd_solver="full").fit(X)


def log_likelihood(model):
    rows, precision = X - model.mean_, model.get_precision()
    squares = ((rows @ precision) * rows).sum(1).mean()
    return -0.5 * (D * np.log(2 * np.pi) + np.linalg.slogdet(model.get_covariance())[1] + squares)


print(f"PCA: noise {pca.noise_variance_:.4f}, log-likelihood {log_likelihood(pca):.2f}")
for batches in (1, 10, 100, 200):
    model = IncrementalPCA(K, batch_size=N // batches).fit(X)
    share = model.noise_variance_ / pca.noise_variance_
    print(f"{batches} batches: noise {model.noise_variance_:.5f}, log-likelihood {log_likelihood(model):.2f}")
    assert np.allclose(model.explained_variance_, pca.explained_variance_, rtol=1e-4)
    assert abs(share * batches - 1) < 0.05
assert log_likelihood(model) < log_likelihood(pca) - 1000
PY
