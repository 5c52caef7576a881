#!/bin/sh
# How many eigenpairs scipy.linalg.eigh gives of those that are asked for.
#
# SciPy 1.17.1 and NumPy 2.4.0, from PyPI; x86-64, Python 3.11.
#
# eigh(matrix, subset_by_index=(first, last)) is for a few eigenpairs of many. Where eigenvalues are equal, as those of
# balanced one-hot columns or of a design along the axes are, LAPACK's solver of a subset may find fewer than last - first + 1,
# or none, and reports success: the arrays are shorter, without a warning. With eigvals_only=True some of the same calls raise
# LinAlgError, "Internal Error". A call without a subset gives all. It depends on the size of the matrix and of the subset.
#
# Seen, for 1 to 12 of the largest eigenpairs of the covariance of 128 balanced one-hot columns, all but one of them 1/128: 0 2 3 4 5
# 2 3 4 5 10 11 12 are given; of the identity of size 100 with 1e-35 beside the diagonal 0 0 0 1 2 3 4 0 1 2 11 12. With
# driver="evx", too, some are missing.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet numpy==2.4.0 scipy==1.17.1
"$folder/v/bin/python" - <<'PY'
import warnings

import numpy as np
import scipy
from scipy.linalg import eigh

warnings.simplefilter("error")
one_hot = np.cov(np.tile(np.eye(128), (4, 1)).T, bias=True)
nearly = np.eye(100) + 1e-35 * (1 - np.eye(100))
asked = range(1, 13)
for what, matrix in (("one-hot", one_hot), ("identity", nearly)):
    size = len(matrix)
    for driver in ("evr", "evx"):
        got = [len(eigh(matrix, subset_by_index=(size - k, size - 1), driver=driver)[0]) for k in asked]
        print(f"SciPy {scipy.__version__}, {what}, {driver}: asked for", *asked, "got", *got)
        assert any(g < k for g, k in zip(got, asked))
    assert len(eigh(matrix)[0]) == size
    errors = set()
    for k in asked:
        try:
            eigh(matrix, subset_by_index=(size - k, size - 1), eigvals_only=True)
        except np.linalg.LinAlgError as error:
            errors.add(str(error))
    print("eigenvalues alone:", *errors)
    assert errors == {"Internal Error."}
PY
