#!/bin/sh
# Pyro's importance-weighted bound of mini-batches, on a linear model whose likelihood is known exactly.
#
# pyro-ppl 1.9.2, torch 2.13.0; numpyro 0.22.0, JAX 0.10.2; CPU.
#
# RenyiELBO(alpha=0) is the bound of an IWAE, and a plate of N data with a subsample_size of B multiplies what is in it by
# N / B. In Pyro it does so before the logarithm of the mean weight is taken, of w to the power of N / B, so what comes out is no
# bound: the larger N / B, the nearer it is to the largest log w in place of the mean weight, and the gradient to that of the
# best sample alone. Of 100 data, each the same so that subsampling itself adds nothing, it goes from 2 nats below log p(x), all
# at once, to 157 above it in batches of 10. So two batch sizes do not compare, No
# warning. Trace_ELBO is the same for each B, and so is NumPyro's RenyiELBO, which puts the factor before the logarithm.
#
# Seen, log p(x) -945.6; S = 100, the prior as guide: -947, -816 and -788 for batches of 100, 20 and 10 in Pyro; -947 and -945
# for 100 and 10 in NumPyro.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet torch==2.13.0 numpy==2.4.0 pyro-ppl==1.9.2 numpyro==0.22.0 jax==0.10.2 jaxlib==0.10.2
OMP_NUM_THREADS=1 "$folder/v/bin/python" -W ignore - <<'PY'
import jax
import jax.numpy as jnp
import numpyro
import pyro
import pyro.distributions as dist
import torch

N, K, D, S = 100, 2, 6, 100
torch.manual_seed(0)
W = torch.randn(K, D)
x = (torch.randn(1, K) @ W + torch.randn(1, D)).expand(N, D)
exact = torch.distributions.MultivariateNormal(torch.zeros(D), W.T @ W + torch.eye(D)).log_prob(x).sum().item()
print(f"log p(x) {exact:.1f}")


def in_pyro(batch, bound):
    def model():
        with pyro.plate("data", N, subsample_size=batch) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ W, 1.0).to_event(1), obs=x[rows])

    def guide():
        with pyro.plate("data", N, subsample_size=batch):
            pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))

    return -sum(bound.loss(model, guide) for _ in range(40)) / 40


def in_numpyro(batch):
    W_, x_ = jnp.array(W.numpy()), jnp.array(x.numpy())
    normal = numpyro.distributions.Normal

    def model():
        with numpyro.plate("data", N, subsample_size=batch) as rows:
            z = numpyro.sample("z", normal(jnp.zeros(K), 1.0).to_event(1))
            numpyro.sample("x", normal(z @ W_, 1.0).to_event(1), obs=x_[rows])

    def guide():
        with numpyro.plate("data", N, subsample_size=batch):
            numpyro.sample("z", normal(jnp.zeros(K), 1.0).to_event(1))

    bound = numpyro.infer.RenyiELBO(alpha=0.0, num_particles=S)
    return -sum(bound.loss(jax.random.key(i), {}, model, guide).item() for i in range(40)) / 40


renyi = pyro.infer.RenyiELBO(alpha=0.0, num_particles=S, vectorize_particles=True, max_plate_nesting=1)
values = {batch: in_pyro(batch, renyi) for batch in (100, 20, 10)}
elbos = {batch: in_pyro(batch, pyro.infer.Trace_ELBO(num_particles=S)) for batch in (100, 10)}
other = {batch: in_numpyro(batch) for batch in (100, 10)}
for name, found in (("Pyro, RenyiELBO", values), ("Pyro, Trace_ELBO", elbos), ("NumPyro, RenyiELBO", other)):
    print(name, {batch: round(value, 1) for batch, value in found.items()})
assert exact - 5 < values[100] < exact + 1
assert values[20] > exact + 100 and values[10] > exact + 140
assert abs(elbos[100] - elbos[10]) < 30 and elbos[100] < exact - 400
assert all(exact - 6 < value < exact + 4 for value in other.values())
PY
