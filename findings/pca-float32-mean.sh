#!/bin/sh
# PCA of float32 data whose mean is large beside their spread.
#
# scikit-learn 1.9.1 and torch-pca 1.1.0, NumPy 2.4.0, torch 2.13.0; x86-64, Python 3.11.
#
# With at least ten rows per feature (and at most 1000 features) both choose the solver "covariance_eigh" by default. It
# forms XᵀX and takes N m mᵀ away afterwards, in the dtype of the data. 5000 rows of 10 independent features with standard
# deviations 1 to 2 around a mean of 1000 have a largest variance of 4.10: scikit-learn's default says 20.2, around
# 10 000 it says 863; torch-pca says 4.16 and 73.8. No warning. svd_solver="full" says 4.10. So float32 time stamps,
# readings of sensors and coordinates want their mean subtracted first, or float64.
#
# Seen: the default is wrong by a factor of 4.9 at mean 1000 and of 210 at mean 10 000; full is right to four digits.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet numpy==2.4.0 scikit-learn==1.9.1 torch==2.13.0 torch_pca==1.1.0
"$folder/v/bin/python" - <<'PY'
import numpy as np
import torch
import torch_pca
from sklearn.decomposition import PCA

for mean, wrong_sklearn, wrong_torch_pca in ((1e3, 2.0, 1.005), (1e4, 50.0, 3.0)):
    noise = np.random.default_rng(0).normal(size=(5000, 10)) * np.linspace(1, 2, 10)
    x = (noise + mean).astype(np.float32)
    right = np.linalg.eigvalsh(np.cov(x.astype(np.float64).T))[-1]
    default = PCA(3).fit(x)
    full = PCA(3, svd_solver="full").fit(x)
    peer = torch_pca.PCA(n_components=3).fit(torch.tensor(x))
    print(f"mean {mean:g}: right {right:.4f}, scikit-learn {default.explained_variance_[0]:.4f}, "
          f"full {full.explained_variance_[0]:.4f}, torch-pca {float(peer.explained_variance_[0]):.4f}")
    assert default._fit_svd_solver == "covariance_eigh" and peer.svd_solver_ == "covariance_eigh"
    assert default.explained_variance_[0] > wrong_sklearn * right
    assert float(peer.explained_variance_[0]) > wrong_torch_pca * right
    assert abs(full.explained_variance_[0] / right - 1) < 1e-3
PY
