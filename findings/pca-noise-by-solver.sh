#!/bin/sh
# The likelihood that scikit-learn's PCA gives with fewer samples than features.
#
# scikit-learn 1.9.1, NumPy 2.4.0; x86-64, Python 3.11.
#
# PCA is the maximum-likelihood probabilistic PCA, its σ² the mean of the d - k eigenvalues left out. With n < d three of
# the four solvers divide by n - k in their place, as if the eigenvalues that are zero were not there: "full", which is the
# default here, "arpack" and "randomized". "covariance_eigh" divides by d - k. The components and their variances agree, but
# noise_variance_, score(), score_samples(), get_covariance() and get_precision() do not: on 40 rows of 200 features with 3
# latents σ² is 4.90 or 0.92, by the solver alone, and the mean log-likelihood of the very data it was fitted to -369.7 or
# -283.0 nats, 87 below the maximum. So a cross-validation of k, or a comparison with another model, depends on a setting
# of speed.
#
# Seen: σ² 4.896 (full, arpack, randomized) and 0.920 (covariance_eigh), the maximum-likelihood one 0.920; score -369.70
# and -282.98.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet numpy==2.4.0 scikit-learn==1.9.1
"$folder/v/bin/python" -W error - <<'PY'
import numpy as np
from sklearn.decomposition import PCA

n, d, k = 40, 200, 3
random = np.random.default_rng(0)
W = 2 * random.normal(size=(d, k))
x = random.normal(size=(n, k)) @ W.T + random.normal(size=(n, d))
eigenvalues = np.linalg.eigvalsh(np.cov(x.T))
right = eigenvalues[:-k].mean()
assert PCA(k).fit(x)._fit_svd_solver == "full"
for solver in ("full", "arpack", "randomized", "covariance_eigh"):
    pca = PCA(k, svd_solver=solver, random_state=0).fit(x)
    print(f"{solver}: σ² {pca.noise_variance_:.3f} (right {right:.3f}), log-likelihood {pca.score(x):.2f}")
    np.testing.assert_allclose(pca.explained_variance_, eigenvalues[:-k - 1:-1])
    if solver == "covariance_eigh":
        np.testing.assert_allclose(pca.noise_variance_, right)
        assert abs(pca.score(x) + 282.98) < 0.1
    else:
        np.testing.assert_allclose(pca.noise_variance_, right * (d - k) / (n - k))
        assert abs(pca.score(x) + 369.70) < 0.1
PY
