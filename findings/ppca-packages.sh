#!/bin/sh
# What the two packages called PPCA on PyPI give back.
#
# ppca 0.0.4 and pyppca 0.0.4, NumPy 1.26.4, SciPy 1.11.4.
#
# pyppca.ppca(Y, d, dia) says that C Cᵀ + ss I is the covariance of the model. The C that it returns is orthonormal: the
# lengths of the columns are gone. On 2000 rows of 10 features with 3 latents the covariance so made has a log-likelihood
# of -18.5 nats per row where the maximum is -12.2; ss itself is right to 1e-3. The lengths come back as
# sqrt(λ_j - ss), with λ_j the variances of the columns of X that it returns.
#
# ppca.PPCA().fit(data) standardises each feature, so ss and variances are those of the correlation matrix.
# transform() gives the latents of the fitted rows, and transform(data), of the very same rows, others: it neither
# subtracts the mean nor divides by the standard deviation. An infinity in the data is overwritten by the largest finite
# value, in the caller's own array.
#
# Seen: CᵀC = I, 6.30 nats below the maximum, 1e-4 below it with the lengths put back; transform() and transform(data)
# differ by up to 5.2; inf becomes 11.87.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet numpy==1.26.4 scipy==1.11.4
"$folder/v/bin/pip" install --quiet --no-deps ppca==0.0.4 pyppca==0.0.4
"$folder/v/bin/python" -W ignore - <<'PY'
import numpy as np
import ppca
import pyppca

N, D, K = 2000, 10, 3
rng = np.random.default_rng(0)
X = rng.normal(size=(N, K)) @ rng.normal(size=(D, K)).T + 0.5 * rng.normal(size=(N, D)) + 3
values, vectors = np.linalg.eigh(np.cov(X.T, bias=True))


def log_likelihood(C, mean):
    _, log_det = np.linalg.slogdet(C)
    squares = ((X - mean) @ np.linalg.inv(C) * (X - mean)).sum(1).mean()
    return -0.5 * (D * np.log(2 * np.pi) + log_det + squares)


sigma2 = values[:-K].mean()
W = vectors[:, -K:] * np.sqrt(values[-K:] - sigma2)
best = log_likelihood(W @ W.T + sigma2 * np.eye(D), X.mean(0))

np.random.seed(0)
C, ss, mean, latents, _ = pyppca.ppca(X, K, False)
as_documented = log_likelihood(C @ C.T + ss * np.eye(D), mean)
lengths = np.sqrt(latents.var(0) - ss)
mended = log_likelihood((C * lengths) @ (C * lengths).T + ss * np.eye(D), mean)
print(f"maximum {best:.4f}, pyppca's C C' + ss I {as_documented:.4f}, with the lengths put back {mended:.4f}")
assert np.allclose(C.T @ C, np.eye(K), atol=1e-12)
assert best - as_documented > 4 and abs(best - mended) < 0.01 and abs(ss / sigma2 - 1) < 0.01

np.random.seed(0)
model = ppca.PPCA()
model.fit(X.copy(), d=K)
difference = np.abs(model.transform() - model.transform(X)).max()
broken = X.copy()
broken[0, 0] = np.inf
ppca.PPCA().fit(broken, d=K)
print(f"ppca: transform() and transform(data) differ by {difference:.2f}; the caller's inf is now {broken[0, 0]:.2f}")
assert difference > 1 and np.isfinite(broken[0, 0])
PY
