"""The range of the KL and of the samples beside it, against mpmath: the promise of docs/numerics.md."""

import math

import mpmath
import numpy as np
import pytest
import torch
from ranges import EXP, LOGS, Wild, assert_right, exact

from lineavae import reference
from lineavae.linear import BernoulliLinearVAE, LinearVAE
from lineavae.nn import GaussianVAE
from lineavae.ops import (
    free_bits_kl,
    gaussian_kl,
    gaussian_kl_per_dimension,
    reparameterized_kl,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
EXPM1 = np.frompyfunc(mpmath.expm1, 1, 1)
# of a sum of eight terms, and of the exponential of a number in the hundreds
ROUNDING = {torch.float64: 1e-14, torch.float32: 3e-6, torch.bfloat16: 3e-6, torch.float16: 3e-6}
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_implementation = pytest.mark.parametrize("native", [True, False], ids=["native", "reference"])


class Posterior:
    """Means and log-variances of every size, half of the latter where eᵗ and e^(t/2) leave the range."""

    def __init__(self, seed: int, dtype: torch.dtype, native: bool, *shape: int) -> None:
        wild = Wild(seed, dtype)
        value = torch.promote_types(dtype, torch.float32)
        edges = math.log(torch.finfo(value).max) * wild.uniform(-2, 2.99, *shape).trunc()
        edges = (edges + wild.uniform(-1.5, 1.5, *shape)).clamp(-LOGS[dtype], LOGS[dtype])
        at_edge = wild.uniform(0, 1, *shape) < 0.5
        self.logvar = torch.where(at_edge, edges, wild.logs(*shape).double()).to(dtype).requires_grad_()
        # a few are the largest whose square is
        mean = wild.signed(0.5 * math.log(torch.finfo(value).max) + wild.uniform(-1, 1, *shape)).double()
        mean = torch.where(wild.uniform(0, 1, *shape) < 0.1, mean, wild.numbers(*shape).double())
        self.mean = torch.where(wild.uniform(0, 1, *shape) < 0.4, 0, mean).to(dtype).requires_grad_()
        self.weight = wild.signed(wild.uniform(-15, 15, shape[-1])).abs().to(value)  # some are 0
        if (
            dtype == torch.float64 and not native
        ):  # no wider type, in which a KL fits that a weight brings back
            self.weight = self.weight.sign()
        self.upstream = wild.signed(wild.uniform(-15, 15, *shape)).to(value)  # some are 0

    @property
    def tensors(self):
        return self.mean, self.logvar


def widened(function):
    """The reference as an operator calls it, with half types as float32."""
    return lambda *tensors: function(
        *(tensor if tensor.dtype in (torch.float64, torch.int64) else tensor.float() for tensor in tensors)
    )


@each_implementation
@each_dtype
@pytest.mark.parametrize("weighted", [False, True])
def test_gaussian_kl(weighted, dtype, native):
    posterior = Posterior(0, dtype, native, 60, 4)
    m, t, g = exact(posterior.mean), exact(posterior.logvar), exact(posterior.upstream)
    kl = (m * m + EXPM1(t) - t) / 2
    if weighted:
        w = exact(posterior.weight)
        op = gaussian_kl if native else widened(reference.gaussian_kl)
        options = {"kl_weight": posterior.weight} if native else {}
        value = op(*posterior.tensors, *(() if native else (posterior.weight,)), **options)
        upstream, kl, g = posterior.upstream[:, 0], (w * kl).sum(-1), g[:, :1] * w
    else:
        op = gaussian_kl_per_dimension if native else widened(reference.gaussian_kl_per_dimension)
        value, upstream = op(*posterior.tensors), posterior.upstream
    assert_right(value, kl, kl, ROUNDING[dtype])
    by_mean, by_logvar = torch.autograd.grad(value, posterior.tensors, upstream)
    assert_right(by_mean, g * m, abs(g * m), ROUNDING[dtype])
    assert_right(by_logvar, g * EXPM1(t) / 2, abs(g * EXPM1(t) / 2), ROUNDING[dtype])


@each_implementation
@each_dtype
@pytest.mark.parametrize("output", ["z", "kl", "both"])
def test_reparameterized_kl(output, dtype, native):
    posterior = Posterior(2, dtype, native, 60, 4)
    seed = torch.tensor(3)
    zeros = torch.zeros(60, 4, dtype=torch.float64)
    noise = exact(reparameterized_kl(zeros, zeros, seed=seed)[0][0])
    if native:
        z, kl = reparameterized_kl(*posterior.tensors, seed=seed, kl_weight=posterior.weight)
    else:
        z, kl = reference.reparameterized_kl(
            *(tensor if dtype == torch.float64 else tensor.float() for tensor in posterior.tensors),
            seed,
            1,
            posterior.weight,
        )
    m, t, w = exact(posterior.mean), exact(posterior.logvar), exact(posterior.weight)
    spread = EXP(t / 2) * noise
    size = abs(spread) if native else EXP(t / 2)  # the reference rounds the noise, not each number of it
    exact_kl = (w * (m * m + EXPM1(t) - t) / 2).sum(-1)
    assert_right(z, m + spread, abs(m) + size, ROUNDING[dtype])
    assert_right(kl, exact_kl, exact_kl, ROUNDING[dtype])
    of_z = posterior.upstream * (output != "kl")
    of_kl = posterior.upstream[:, 0].flip(0) * (output != "z")
    outputs = [
        pair for name, pair in (("z", (z, of_z[None])), ("kl", (kl, of_kl))) if output in (name, "both")
    ]
    results, upstream = zip(*outputs, strict=True)
    by_mean, by_logvar = torch.autograd.grad(results, posterior.tensors, upstream)
    g, h = exact(of_z), exact(of_kl)[:, None] * w
    assert_right(by_mean, g + h * m, abs(g) + abs(h * m), ROUNDING[dtype])
    terms = g * spread / 2, h * EXPM1(t) / 2
    assert_right(by_logvar, sum(terms), abs(g) * size / 2 + abs(terms[1]), ROUNDING[dtype])


@pytest.mark.parametrize(
    ("mean", "logvar", "value", "of_mean", "of_logvar"),
    [
        (2.6e19, 0.0, 3.37999993e38, 2.6e19, 0.0),
        (0.0, 88.02, 8.424979321e37, 0.0, 8.424979321e37),
        (0.0, 88.3, 1.114741275e38, 0.0, 1.114741275e38),
        (0.0, 89.0, 2.24480641e38, 0.0, 2.24480641e38),
        (0.0, 177.0, math.inf, 0.0, math.inf),
        (1e-3, 0.0, 5.000000475e-7, 1e-3, 0.0),
    ],
)
@pytest.mark.parametrize(
    "op",
    [
        gaussian_kl,
        gaussian_kl_per_dimension,
        lambda *posterior: free_bits_kl(*posterior, 0.0)[0],
        lambda *posterior: reparameterized_kl(*posterior)[1],
        reference.gaussian_kl,
        reference.gaussian_kl_per_dimension,
    ],
    ids=["sum", "per dimension", "free bits", "reparameterized", "reference", "reference per dimension"],
)
def test_edges(op, mean, logvar, value, of_mean, of_logvar):
    """Results that fit float32 where eᵗ or the square does not; they are mpmath's, for float32 numbers."""
    posterior = torch.tensor([[mean]], requires_grad=True), torch.tensor([[logvar]], requires_grad=True)
    kl = op(*posterior).sum()
    numbers = [kl.item(), *(gradient.item() for gradient in torch.autograd.grad(kl, posterior))]
    assert numbers == pytest.approx([value, of_mean, of_logvar], rel=1e-6, abs=0)


BEYOND = [
    (0.0, 90.0),
    (0.0, math.inf),
    (0.0, -math.inf),
    (math.inf, 0.0),
    (3e19, 0.0),
    (math.nan, 0.0),
]


@pytest.mark.parametrize(("mean", "logvar"), BEYOND)
@pytest.mark.parametrize(
    "weight", [0.0, torch.tensor(0.0), torch.tensor([0.0, 1.0])], ids=["number", "()", "(K,)"]
)
@pytest.mark.parametrize(
    "op",
    [
        gaussian_kl,
        reference.gaussian_kl,
        lambda m, t, kl_weight: reparameterized_kl(m, t, kl_weight=kl_weight)[1],
        lambda m, t, kl_weight: reference.reparameterized_kl(m, t, torch.tensor(0), 1, kl_weight)[1],
    ],
    ids=["gaussian_kl", "reference", "reparameterized_kl", "its reference"],
)
def test_a_weight_of_zero_is_zero_whatever_the_kl_is(op, weight, mean, logvar):
    mean = torch.tensor([[mean, 1.0]], requires_grad=True)
    logvar = torch.tensor([[logvar, 0.0]], requires_grad=True)
    kl = op(mean, logvar, kl_weight=weight)
    kl.sum().backward()
    counts = float(torch.as_tensor(weight).ndim)  # the second latent
    assert kl.tolist() == [0.5 * counts]
    assert mean.grad.tolist() == [[0.0, counts]]
    assert logvar.grad.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("logvar", [89.0, 90.0, 150.0, 177.0])
def test_samples_alone_do_not_feel_an_infinite_kl(logvar):
    logvar = torch.full((1, 8), logvar, requires_grad=True)
    z, _ = reparameterized_kl(torch.zeros(1, 8), logvar, seed=0)
    z.sum().backward()
    torch.testing.assert_close(logvar.grad, z[0].detach() / 2, rtol=1e-6, atol=0)


def test_a_mean_over_the_batch_fits_where_the_sum_does_not():
    logvar = torch.full((4, 1), 89.0)
    for result in free_bits_kl(torch.zeros(4, 1), logvar, 0.5):
        torch.testing.assert_close(
            result.double(), 0.5 * torch.tensor(89.0).double().exp(), rtol=1e-6, atol=0
        )


@pytest.mark.parametrize("beta", [0.0, torch.tensor(0.0)], ids=["number", "tensor"])
def test_beta_zero_switches_an_infinite_kl_off(beta):
    def at_zero(linear, bias):
        torch.nn.init.zeros_(linear.weight)
        linear.bias.data = torch.tensor(bias)
        return linear

    vae = GaussianVAE(
        at_zero(torch.nn.Linear(3, 2), [0.0, 95.0]),
        at_zero(torch.nn.Linear(1, 3), [0.0] * 3),
        closed_form=False,
    )
    x = torch.ones(4, 3)
    linear, bernoulli = LinearVAE(3, 1), BernoulliLinearVAE(3, 1)
    for model in (linear, bernoulli):
        torch.nn.init.zeros_(model.weight)
        torch.nn.init.constant_(model.log_d, 95.0)
    for model, elbo in (
        (vae, vae(x, beta=beta).elbo),
        (vae, vae(x, beta=beta, capacity=1.0).elbo),
        (linear, linear.stochastic_elbo(x, beta=beta)),
        (bernoulli, bernoulli.stochastic_elbo(x, beta=beta)),
    ):
        assert elbo.isfinite().all()
        gradients = torch.autograd.grad(elbo.mean(), list(model.parameters()), allow_unused=True)
        assert all(g.isfinite().all() for g in gradients if g is not None)
