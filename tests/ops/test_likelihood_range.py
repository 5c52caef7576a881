"""The range of the likelihoods, against mpmath: the promise of docs/numerics.md."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from ranges import EXP, LOG_2_PI, Wild, assert_right, exact, sum_to

from lineavae import reference
from lineavae.ops import (
    expected_bernoulli_log_likelihood,
    expected_gaussian_log_likelihood,
    gaussian_log_likelihood,
    gaussian_log_likelihood_mean,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ROUNDING = {torch.float64: 4e-13, torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6}
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_noise = pytest.mark.parametrize("noise", [(), ("D",), ("N", 1), ("N", "D"), ("M", 1, 1)], ids=str)
each_seed = pytest.mark.parametrize("seed", range(8))


def wide(function):
    """The reference as an operator calls it, with half types as float32."""
    return lambda *tensors: function(
        *(tensor if tensor.dtype == torch.float64 else tensor.float() for tensor in tensors)
    )


@each_seed
@each_dtype
@each_noise
@pytest.mark.parametrize("native", [True, False], ids=["native", "reference"])
def test_gaussian(native, noise, dtype, seed):
    if not native and dtype == torch.float64 and seed not in (1, 3):
        pytest.skip("sums that leave the range of float64, for which the reference has no wider type")
    M, N, D = (2, 3, 5) if "M" in noise else (1, 5, 6)  # noqa: N806
    wild = Wild(seed, dtype)
    log_sigma2 = wild.logs(*({"M": M, "N": N, "D": D}.get(size, size) for size in noise))
    # from residuals of any size at all to those of a few standard deviations
    spread = wild.uniform(0.1, 100, M, N, 1) * wild.uniform(-1, 1, M, N, D)
    residual = wild.signed(0.5 * log_sigma2.double() + spread) if seed % 2 else wild.numbers(M, N, D)
    base = torch.where(wild.uniform(0, 1, M, N, D) < 0.5, 0, wild.numbers(M, N, D).double()).to(dtype)
    x, x_hat = (base, residual) if seed % 4 < 2 else (residual, base)
    upstream = wild.signed(wild.uniform(-15, 15, M, N)).double()
    upstream = (1 + 0 * upstream if seed < 4 else upstream).to(torch.promote_types(dtype, torch.float32))
    if "M" not in noise:
        x, x_hat, upstream = x[0], x_hat[0], upstream[0]

    tensors = [tensor.requires_grad_() for tensor in (x, x_hat, log_sigma2)]
    r, s, g = exact(x) - exact(x_hat), np.broadcast_to(exact(log_sigma2), x.shape), exact(upstream)[..., None]
    q, slope = r * r * EXP(-s), r * EXP(-s)
    rounding = ROUNDING[dtype]
    namespace = [partial(op, event_dim=1) for op in (gaussian_log_likelihood, gaussian_log_likelihood_mean)]
    if not native:
        namespace = tuple(wide(getattr(reference, op.func.__name__)) for op in namespace)
    for op, weight in zip(namespace, (g, None), strict=True):
        value = op(*tensors)
        terms, sizes = -(q + s + LOG_2_PI) / 2, (q + abs(s) + LOG_2_PI) / 2
        if weight is None:
            assert_right(value, terms.sum(-1).sum(-1) / N, sizes.sum(-1).sum(-1) / N, rounding)
            weight = np.full_like(g, 1) / N
            gradients = torch.autograd.grad(value.sum(), tensors)
        else:
            assert_right(value, terms.sum(-1), sizes.sum(-1), rounding)
            gradients = torch.autograd.grad(value, tensors, upstream)
        assert_right(gradients[0], -weight * slope, abs(weight * slope), rounding)
        assert_right(gradients[1], weight * slope, abs(weight * slope), rounding)
        of_noise, size = weight * (q - 1) / 2, abs(weight) * (q + 1) / 2
        shape = log_sigma2.shape
        assert_right(gradients[2], sum_to(of_noise, shape), sum_to(size, shape), rounding)


def by_expectation(function):
    """An expected likelihood as a likelihood: x̂ is the decoder's bias, and nothing depends on z."""

    def of_reconstruction(x, x_hat, log_sigma2):
        nothing = x.new_zeros(1, 1)
        return function(x, nothing, nothing, x.new_zeros(x.shape[1], 1), x_hat[0], log_sigma2)

    return of_reconstruction


@pytest.mark.parametrize("noise", [(), ("D",), (1, 1), (1, "D")], ids=str)
@pytest.mark.parametrize(
    ("num_features", "residual", "log_sigma2", "value", "of_x_hat", "of_log_sigma2"),
    [
        (8, 0.0, -90.0, 352.6484917, 0.0, -4.0),
        (8, 1e-3, -100.0, -1.075246959e38, -math.inf, 1.075246959e38),
        (1, 1e15, -20.0, -2.425825914e38, -4.851651891e23, 2.425825914e38),
        (1, 300.0, 88.0, -44.91893853, -1.816380569e-36, -0.5),
        (1, 1e19, 88.0, -45.22166863, -6.054601884e-20, -0.1972699064),
        (1, 3e19, 88.0, -47.64350958, -1.816380632e-19, 2.224571042),
        (1, 1e30, -80.0, -math.inf, -math.inf, math.inf),
    ],
)
@pytest.mark.parametrize(
    "op",
    [
        gaussian_log_likelihood,
        gaussian_log_likelihood_mean,
        by_expectation(expected_gaussian_log_likelihood),
        reference.gaussian_log_likelihood,
        reference.gaussian_log_likelihood_mean,
        by_expectation(reference.expected_gaussian_log_likelihood),
    ],
    ids=["sum", "mean", "expected", "reference", "reference of mean", "reference of expected"],
)
def test_edges(op, num_features, residual, log_sigma2, value, of_x_hat, of_log_sigma2, noise):
    """Numbers that a formula with 1 / σ² gets wrong; they are mpmath's, for residuals in float32."""
    x_hat = torch.full((1, num_features), residual, requires_grad=True)
    shape = [num_features if size == "D" else size for size in noise]
    log_sigma2 = torch.full(shape, log_sigma2, requires_grad=True)
    result = op(torch.zeros(1, num_features), x_hat, log_sigma2).sum()
    gradients = torch.autograd.grad(result, (x_hat, log_sigma2))
    assert result.item() == pytest.approx(value, rel=1e-6)
    assert gradients[0][0].tolist() == pytest.approx([of_x_hat] * num_features, rel=1e-6)
    assert gradients[1].sum().item() == pytest.approx(of_log_sigma2, rel=2e-6)


@pytest.mark.parametrize("noise", [(), (3,), (0, 1), (0, 3)], ids=str)
@pytest.mark.parametrize(
    "op", [gaussian_log_likelihood_mean, reference.gaussian_log_likelihood_mean], ids=["native", "reference"]
)
def test_mean_of_no_samples_is_nan_and_feels_nothing(op, noise):
    nothing, log_sigma2 = torch.zeros(0, 3), torch.zeros(noise, requires_grad=True)
    value = op(nothing, nothing, log_sigma2)
    value.backward()
    assert value.isnan()
    assert not log_sigma2.grad.any()


@pytest.mark.parametrize("native", [True, False], ids=["native", "reference"])
def test_expected_bernoulli_of_a_large_variance(native):
    """Of a dead column of the decoder nothing is felt; of a live one E softplus(a) = s / √2π."""
    op = expected_bernoulli_log_likelihood if native else reference.expected_bernoulli_log_likelihood
    x, bias, mean = torch.tensor([[0.2, 0.4, 0.6, 0.8]]), torch.zeros(4), torch.zeros(1, 2)
    for log_variance in (90.0, 150.0):
        logvar = torch.tensor([[log_variance, 0.0]], requires_grad=True)
        weight = torch.tensor([[0.0, 1.0]]).expand(4, 2).clone().requires_grad_()
        one = op(x, mean[:, :1], logvar[:, :1], weight[:, :1], bias)
        torch.testing.assert_close(one, torch.tensor([-4 * math.log(2)]))
        alone = op(x, mean[:, 1:], logvar[:, 1:], weight[:, 1:], bias)
        both = op(x, mean, logvar, weight, bias)
        torch.testing.assert_close(both, alone)
        of_logvar, of_weight = torch.autograd.grad(both.sum(), (logvar, weight))
        assert of_logvar[0, 0] == 0
        assert (of_weight[:, 0] == 0).all()
        weight = torch.full((4, 2), 0.5, requires_grad=True)
        value = op(x, mean, logvar, weight, bias)
        deviation = 0.5 * math.exp(log_variance / 2)
        torch.testing.assert_close(value.item(), -4 * deviation / math.sqrt(2 * math.pi), rtol=1e-5, atol=0)
        of_logvar, of_weight = torch.autograd.grad(value.sum(), (logvar, weight))
        torch.testing.assert_close(of_logvar[0, 0].item(), value.item() / 2, rtol=1e-5, atol=0)
        torch.testing.assert_close(of_weight[:, 0], (value / 2).expand(4), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("logvar", "weight"), [(68.9, 1e3), (69.2, 1e3), (150.0, 1e3), (0.0, 1e18)])
def test_expected_bernoulli_of_large_variances_and_weights(logvar, weight):
    """As in float64, which has room for both."""
    random = torch.Generator().manual_seed(0)
    shapes, sizes = ((2, 3), (2, 4), (2, 4), (3, 4), (3,)), (1, 1, 1, weight, 1)
    exact = [size * torch.randn(*shape, generator=random) for shape, size in zip(shapes, sizes, strict=True)]
    exact[0], exact[2] = exact[0].sigmoid(), logvar - exact[2].abs()
    results = []
    for dtype in (torch.float32, torch.float64):
        arguments = [tensor.to(dtype).requires_grad_() for tensor in exact]
        value = expected_bernoulli_log_likelihood(*arguments)
        results.append([tensor.double() for tensor in (value, *torch.autograd.grad(value.sum(), arguments))])
    for single, double in zip(*results, strict=True):
        torch.testing.assert_close(single, double, rtol=2e-5, atol=1e-5 * double.abs().max().item())


@each_dtype
@each_noise
@pytest.mark.parametrize("seed", range(4))
def test_expected_gaussian(noise, dtype, seed):
    M, N, D, K = (2, 3, 4, 2) if "M" in noise else (1, 4, 5, 2)  # noqa: N806
    wild = Wild(seed, dtype)
    half = 0.5 if dtype == torch.float64 else 1  # of the range, for the product of two variances
    log_sigma2 = (half * wild.logs(*({"M": M, "N": N, "D": D}.get(size, size) for size in noise))).to(dtype)
    logvar = (half * wild.logs(M, N, K)).to(dtype)
    # residuals without rounding: a decoder whose means vanish
    size = wild.uniform(-3, 3, M, N, D) + 0.5 * log_sigma2.double()
    x = wild.signed(size.clamp(max=80))
    weight, bias, mean = (
        (0.1 + wild.uniform(0, 1, D, K)).to(dtype),
        torch.zeros(D).to(dtype),
        x.new_zeros(M, N, K),
    )
    if "M" not in noise:
        x, logvar, mean = x[0], logvar[0], mean[0]
    tensors = [tensor.requires_grad_() for tensor in (x, logvar, log_sigma2)]
    value = expected_gaussian_log_likelihood(x, mean, logvar, weight, bias, log_sigma2)
    r, s, w = exact(x), np.broadcast_to(exact(log_sigma2), x.shape), exact(weight)
    v = EXP(exact(logvar))[..., None, :] * (w * w)  # (..., N, D, K)
    precision = EXP(-s)
    q, spread = r * r * precision, v * precision[..., None]
    rounding = ROUNDING[dtype]
    total = q + spread.sum(-1)
    assert_right(
        value, -(total + s + LOG_2_PI).sum(-1) / 2, (total + abs(s) + LOG_2_PI).sum(-1) / 2, rounding
    )
    of_x, of_logvar, of_noise = torch.autograd.grad(value.sum(), tensors)
    assert_right(of_x, -r * precision, abs(r * precision), rounding)
    assert_right(of_logvar, -spread.sum(-2) / 2, spread.sum(-2) / 2, rounding)
    shape = log_sigma2.shape
    assert_right(of_noise, sum_to((total - 1) / 2, shape), sum_to((total + 1) / 2, shape), rounding)
