#!/bin/sh
# The density of a probabilistic PCA in float32, by the class that is made for it.
#
# torch 2.13.0, NumPy 2.4.0; CPU.
#
# LowRankMultivariateNormal(mean, W, σ²) takes the difference of two squares, ‖x‖²/σ² and what W explains of it, and
# where W explains most of x it is lost in float32. 100 features, 10 latents, entries of W about 3, data drawn from the
# model: at σ² = 0.01 log_prob is off by half a nat, at 1e-4 by 43, and at 1e-6 43% of the rows have a density above that
# at the mode, the largest there is. kl_divergence of such a distribution from itself is -0.09 at 0.01 and -562 at 1e-6. No
# warning: where float32 does not do, MultivariateNormal of the same covariance raises instead. In float64 all of it is
# right.
#
# Seen: largest error 0.52, 43 and 5577 nats at σ² = 1e-2, 1e-4 and 1e-6; above the mode 0, 0 and 43% of the rows;
# KL from itself -0.094, 2.0 and -562; MultivariateNormal: ValueError at 1e-6.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet torch==2.13.0 numpy==2.4.0
"$folder/v/bin/python" -W ignore - <<'PY'
import torch
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal, kl_divergence

torch.set_num_threads(1)
D, K = 100, 10


def model(W, sigma2):
    return LowRankMultivariateNormal(torch.zeros(D, dtype=W.dtype), W, torch.full((D,), sigma2, dtype=W.dtype))


for sigma2, error_nats, above_mode, self_kl in ((1e-2, 0.1, 0, 0.01), (1e-4, 10, 0, 0.5), (1e-6, 1000, 0.1, 100)):
    torch.manual_seed(0)
    W = 3 * torch.randn(D, K)
    x = torch.randn(1000, K) @ W.T + sigma2**0.5 * torch.randn(1000, D)
    single, double = model(W, sigma2), model(W.double(), sigma2)
    log_prob = single.log_prob(x)
    error = (log_prob - double.log_prob(x.double())).abs().max().item()
    above = (log_prob > single.log_prob(torch.zeros(D))).double().mean().item()
    kl, kl_double = kl_divergence(single, single).item(), kl_divergence(double, double).item()
    try:
        MultivariateNormal(torch.zeros(D), W @ W.T + sigma2 * torch.eye(D))
        full = "accepted"
    except ValueError:
        full = "ValueError"
    print(f"σ² {sigma2:g}: off by {error:.3g} nats, above the mode {above:.1%}, KL from itself {kl:.3g} "
          f"({kl_double:.0e} in float64), MultivariateNormal: {full}")
    assert error > error_nats and above >= above_mode and abs(kl) > self_kl and abs(kl_double) < 1e-4
    assert full == ("ValueError" if sigma2 == 1e-6 else "accepted")
PY
