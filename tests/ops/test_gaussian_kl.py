"""Accuracy of gaussian_kl and gaussian_kl_per_dimension, against mpmath and torch.distributions."""

import math

import mpmath
import pytest
import torch

from lineavae import reference
from lineavae.ops import gaussian_kl, gaussian_kl_per_dimension, reparameterized_kl

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
IMPLEMENTATIONS = [gaussian_kl_per_dimension, reference.gaussian_kl_per_dimension]

RANGES = [(1e-12, 1e-6), (1e-6, 20.0), (0.3, 0.7), (20.0, 80.0)]

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_implementation = pytest.mark.parametrize(
    "kl_per_dimension", IMPLEMENTATIONS, ids=lambda function: function.__module__
)
each_tolerance = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)]
)
# one long row runs the vectorised loop, rows of one latent the loop over what is left
each_shape = pytest.mark.parametrize("shape", [(1, -1), (-1, 1)])


def exact_kl(mean: float, logvar: float) -> mpmath.mpf:
    m, t = mpmath.mpf(mean), mpmath.mpf(logvar)
    return (m * m + mpmath.exp(t) - 1 - t) / 2


def exact_grad_logvar(mean: float, logvar: float) -> mpmath.mpf:
    return (mpmath.exp(mpmath.mpf(logvar)) - 1) / 2


def largest_relative_error(actual: torch.Tensor, exact, mean: torch.Tensor, logvar: torch.Tensor) -> float:
    """Compare with ``exact``, evaluated in 60 digits at the very numbers that the op was given."""
    with mpmath.workdps(60):
        errors = []
        for value, m, t in zip(actual.tolist(), mean.tolist(), logvar.tolist(), strict=True):
            truth = exact(m, t)
            errors.append(float(abs(mpmath.mpf(value) / truth - 1)))
    return max(errors)


def grid(low: float, high: float, count: int, dtype: torch.dtype) -> torch.Tensor:
    """Log-variances of both signs, their magnitudes evenly spaced on a log scale."""
    magnitudes = torch.logspace(math.log10(low), math.log10(high), count, dtype=torch.float64)
    return torch.cat([magnitudes, -magnitudes]).to(dtype)


@each_implementation
@pytest.mark.parametrize("mean", [0.0, 1e-6, 0.3, -4.0])
@each_tolerance
@each_shape
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_value_against_mpmath(kl_per_dimension, mean, low, high, shape, dtype, tolerance):
    logvar = grid(low, high, 200, dtype)
    means = torch.full_like(logvar, mean)
    value = kl_per_dimension(means.reshape(shape), logvar.reshape(shape)).flatten()
    assert largest_relative_error(value, exact_kl, means, logvar) < tolerance


def test_sum_against_mpmath():
    logvar = grid(1e-6, 20.0, 100, torch.float32).reshape(8, -1)
    mean = torch.linspace(-3, 3, logvar.numel()).reshape(logvar.shape)
    with mpmath.workdps(60):
        exact = [
            float(sum(exact_kl(m, t) for m, t in zip(*row, strict=True)))
            for row in zip(mean.tolist(), logvar.tolist(), strict=True)
        ]
    torch.testing.assert_close(
        gaussian_kl(mean, logvar).double(), torch.tensor(exact).double(), rtol=1e-6, atol=0
    )


@each_tolerance
@each_shape
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_gradient_of_logvar_against_mpmath(low, high, shape, dtype, tolerance):
    logvar = grid(low, high, 200, dtype).requires_grad_()
    mean = torch.full_like(logvar, 0.3).detach().requires_grad_()
    gaussian_kl_per_dimension(mean.reshape(shape), logvar.reshape(shape)).sum().backward()
    assert largest_relative_error(logvar.grad, exact_grad_logvar, mean, logvar) < tolerance
    assert torch.equal(mean.grad, mean.detach())
    grad_per_dimension, logvar.grad = logvar.grad, None
    gaussian_kl(mean.reshape(shape), logvar.reshape(shape)).sum().backward()
    assert torch.equal(logvar.grad, grad_per_dimension)


@each_dtype
@pytest.mark.parametrize("op", [gaussian_kl, gaussian_kl_per_dimension])
def test_exactly_zero_at_the_prior(op, dtype):
    mean, logvar = (torch.zeros(3, 37, dtype=dtype, requires_grad=True) for _ in range(2))
    value = op(mean, logvar)
    value.sum().backward()
    assert not value.any()
    assert not mean.grad.any()
    assert not logvar.grad.any()


@each_dtype
def test_never_negative(dtype):
    logvar = grid(1e-8, 10.0, 500, dtype)
    assert (gaussian_kl_per_dimension(torch.zeros_like(logvar), logvar) >= 0).all()


def test_equals_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)
    posterior = torch.distributions.Normal(mean, (logvar / 2).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = torch.distributions.kl_divergence(posterior, prior)
    torch.testing.assert_close(gaussian_kl_per_dimension(mean, logvar), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gaussian_kl(mean, logvar), expected.sum(-1), rtol=1e-12, atol=0)


@each_dtype
@pytest.mark.parametrize("op", [gaussian_kl, gaussian_kl_per_dimension])
def test_not_a_number_stays_one(op, dtype):
    for broken in range(2):
        arguments = [torch.zeros(4, 37, dtype=dtype) for _ in range(2)]
        arguments[broken][1, 5] = math.nan
        mean, logvar = (argument.requires_grad_() for argument in arguments)
        value = op(mean, logvar)
        value.sum().backward()
        expected = arguments[broken].detach().isnan()
        assert torch.equal(value.isnan(), expected.any(-1) if op is gaussian_kl else expected)
        assert torch.equal(arguments[broken].grad.isnan(), expected)


@each_dtype
@pytest.mark.parametrize("op", [gaussian_kl, gaussian_kl_per_dimension])
def test_infinite_where_the_divergence_is(op, dtype):
    infinities = torch.tensor([math.inf, -math.inf], dtype=dtype)[:, None]
    zeros = torch.zeros_like(infinities)
    assert (op(zeros, infinities) == math.inf).all()
    assert (op(infinities, zeros) == math.inf).all()


@each_dtype
def test_gradients_at_the_infinities(dtype):
    logvar = torch.tensor([math.inf, -math.inf], dtype=dtype, requires_grad=True)
    gaussian_kl(torch.zeros_like(logvar)[:, None], logvar[:, None]).sum().backward()
    assert logvar.grad.tolist() == [math.inf, -0.5]


@each_dtype
def test_finite_wherever_float32_is(dtype):
    logvar = torch.linspace(-80, 80, 3201, dtype=torch.float64).to(dtype)[:, None]
    for mean in (-1e4, 0.0, 1e4):
        means = torch.full_like(logvar, mean)
        value = gaussian_kl(means, logvar)
        assert value.isfinite().all()
        expected = reference.gaussian_kl(means.double(), logvar.double())
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)


# --- weights, of gaussian_kl and of reparameterized_kl ---


def kl_of_samples(mean, logvar, **options):
    return reparameterized_kl(mean, logvar, seed=0, **options)[1]


each_weighted = pytest.mark.parametrize(
    "op", [gaussian_kl, kl_of_samples], ids=["gaussian_kl", "reparameterized_kl"]
)


@each_dtype
@each_weighted
def test_weights_multiply_the_kl_of_each_latent(op, dtype, device):
    mean, logvar = torch.randn(2, 5, 37, dtype=torch.float64).to(dtype).to(device)
    per_dimension = gaussian_kl_per_dimension(mean.double(), logvar.double())
    weight = torch.rand(37, dtype=torch.float64, device=device)
    for given in (0.0, 0.3, 1, weight[0], weight, weight.float()):
        expected = (torch.as_tensor(given).to(per_dimension) * per_dimension).sum(-1)
        torch.testing.assert_close(
            op(mean, logvar, kl_weight=given).double(), expected, rtol=1e-6, atol=1e-12
        )


@each_weighted
def test_a_weight_of_one_changes_no_bit(op, device):
    mean, logvar = torch.randn(2, 5, 37, device=device)
    for one in (1, 1.0, torch.ones(()), torch.ones(37, device=device)):
        assert torch.equal(op(mean, logvar, kl_weight=one), op(mean, logvar))


@each_weighted
@pytest.mark.parametrize("shape", [(3,), (3, 7)])
def test_models_with_weights_of_their_own(op, shape, device):
    mean, logvar = torch.randn(2, 3, 5, 7, device=device)
    weights = torch.rand(shape, device=device)

    def loss(mean, logvar, weight):
        kl = op(mean, logvar, kl_weight=weight)
        return kl.square().sum(), kl

    gradient = torch.func.grad(loss, (0, 1), has_aux=True)
    for in_dims in ((0, 0, 0), (None, 0, 0), (None, None, 0), (0, 0, None)):
        arguments = [a if dim == 0 else a[1] for a, dim in zip((mean, logvar, weights), in_dims, strict=True)]
        gradients, kl = torch.func.vmap(gradient, in_dims)(*arguments)
        for i in range(3):
            chosen = (a[i] if dim == 0 else a for a, dim in zip(arguments, in_dims, strict=True))
            expected_gradients, expected = gradient(*chosen)
            torch.testing.assert_close(kl[i], expected)
            for actual, alone in zip(gradients, expected_gradients, strict=True):
                torch.testing.assert_close(actual[i], alone)


@each_weighted
def test_says_what_is_wrong_with_a_weight(op):
    mean = torch.zeros(4, 3)
    for weight, error, message in (
        (-0.5, ValueError, "kl_weight must be finite and >= 0, got -0.5"),
        (math.nan, ValueError, "kl_weight must be finite and >= 0, got nan"),
        ("1", TypeError, "kl_weight must be a number, got str"),
        (True, TypeError, "kl_weight must be a number, got bool"),
        (torch.ones(2), ValueError, "kl_weight must be a number or have shape () or (K,) with K=3, got (2,)"),
        (torch.ones(4, 3), ValueError, "kl_weight must be a number or have shape () or (K,) with K=3"),
        (torch.ones(3, requires_grad=True), ValueError, "kl_weight must not require grad"),
        (torch.ones(3, device="meta"), ValueError, "kl_weight must be on device cpu, got meta"),
    ):
        with pytest.raises(error) as caught:
            op(mean, mean, kl_weight=weight)
        assert f"_kl: {message}" in str(caught.value)
