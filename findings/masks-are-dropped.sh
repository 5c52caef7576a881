#!/bin/sh
# NumPy's masked arrays in scikit-learn and in torch.
#
# scikit-learn 1.8.0, torch 2.13.0 (CPU), NumPy 2.4.0.
#
# scikit-learn refuses NaN, and names the estimators that take it. A masked array, which astronomers and climate
# scientists have for missing values, it takes, and drops the mask: what lies under it, a fill value such as 1e20, counts as
# a measurement in PCA, FactorAnalysis and StandardScaler. torch.as_tensor, torch.from_numpy and torch.tensor do
# the same. None of them warns.
#
# Seen: of one masked 1e6 among 200 standard normals: mean of the unmasked -0.06, mean_ of PCA, FactorAnalysis and
# StandardScaler 5000, largest value of the tensor 1e6; the same value as NaN raises.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet torch==2.13.0 numpy==2.4.0 scikit-learn==1.8.0
"$folder/v/bin/python" -W error - <<'PY'
import numpy as np
import sklearn
import torch
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.preprocessing import StandardScaler

x = np.random.default_rng(0).normal(size=(200, 3))
x[0, 0] = 1e6
masked = np.ma.masked_greater(x, 1e5)
print("scikit-learn", sklearn.__version__, "torch", torch.__version__, "NumPy", np.__version__)
print("mean of the unmasked", masked.mean(0)[0])
means = {kind.__name__: kind().fit(masked).mean_[0] for kind in (PCA, FactorAnalysis, StandardScaler)}
tensors = {make.__name__: make(masked).max().item() for make in (torch.as_tensor, torch.from_numpy, torch.tensor)}
print("means", means, "largest values", tensors)
assert abs(masked.mean(0)[0]) < 0.1
assert all(abs(mean - 5000) < 1 for mean in means.values())
assert all(value == 1e6 for value in tensors.values())
x[0, 0] = np.nan
try:
    PCA().fit(x)
except ValueError as error:
    print("NaN:", str(error).splitlines()[0])
else:
    raise AssertionError("NaN was taken")
PY
