#!/bin/sh
# Eigenvalues of a covariance whose features have very different scales, and the order of the features.
#
# NumPy 2.4.0, SciPy 1.17.0, torch 2.13.0; x86-64.
#
# Permuting the features permutes nothing in the spectrum, and one would expect the small eigenvalues of such a matrix to
# be lost either way. It is a matter of order: with the features by falling variance they come out right, by rising
# variance they are noise of the largest one. All drivers of SciPy agree, and torch.linalg.eigvalsh. A table of time stamps
# and probabilities has such a covariance, with its columns in the order of a file.
#
# Seen: with six features of variance 1e-16 before six of 1e16 the least eigenvalue is off by a factor of 4e16, the other
# way round by 2e-8 of itself.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet numpy==2.4.0 scipy==1.17.0 torch==2.13.0 mpmath==1.3.0
"$folder/v/bin/python" - <<'PY'
import mpmath
import numpy as np
import scipy.linalg
import torch

correlation = np.corrcoef(np.random.default_rng(0).normal(size=(12, 40)))
roots = np.repeat([1e-8, 1e8], 6)
covariance = correlation * roots * roots[:, None]
mpmath.mp.dps = 80
truth = float(min(mpmath.eigsy(mpmath.matrix(covariance.tolist()), eigvals_only=True)))
solvers = {"numpy": np.linalg.eigvalsh, "torch": lambda a: torch.linalg.eigvalsh(torch.tensor(a)).numpy()}
for driver in ("ev", "evd", "evr", "evx"):
    solvers[f"scipy {driver}"] = lambda a, driver=driver: scipy.linalg.eigh(a, eigvals_only=True, driver=driver)
for name, solve in solvers.items():
    errors = {}
    for order, matrix in (("rising", covariance), ("falling", covariance[::-1, ::-1].copy())):
        errors[order] = float(abs(solve(matrix)[0] / truth - 1))
    print(f"{name}: least eigenvalue off by {errors['rising']:.1e} rising, {errors['falling']:.1e} falling")
    assert errors["rising"] > 1e10 and errors["falling"] < 1e-6
PY
