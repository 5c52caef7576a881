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


# --- other priors ---

PRIORS = {"learned": (3,), "conditional": (5, 3), "one number": (), "of each sample": (5, 1)}


def other_prior(shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    sizes = ((5, 3), (5, 3), shape, shape)
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]


@pytest.mark.parametrize(
    "given", [("prior_mean",), ("prior_logvar",), ("prior_mean", "prior_logvar")], ids=str
)
@pytest.mark.parametrize("shape", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_another_prior_against_torch(given, shape, dtype, device):
    mean, logvar, *prior = (tensor.to(device) for tensor in other_prior(shape, dtype))
    prior = {name: prior[name == "prior_logvar"] for name in given}
    scale = (0.5 * prior.get("prior_logvar", mean.new_zeros(())).double()).exp()
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean.double(), (0.5 * logvar.double()).exp()),
        torch.distributions.Normal(prior.get("prior_mean", mean.new_zeros(())).double(), scale),
    )
    rtol = 1e-12 if dtype == torch.float64 else 3e-6
    found = gaussian_kl_per_dimension(mean, logvar, **prior)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=1e-7 if rtol > 1e-9 else 0)
    weight = torch.tensor([0.5, 0.0, 2.0], dtype=found.dtype, device=device)
    torch.testing.assert_close(
        gaussian_kl(mean, logvar, **prior, kl_weight=weight).double(),
        expected @ weight.double(),
        rtol=rtol,
        atol=1e-6,
    )


@each_tolerance
def test_next_to_another_prior_against_mpmath(dtype, tolerance):
    """Where the textbook's formula cancels to nothing."""
    prior_mean, prior_logvar = torch.tensor(3.7, dtype=dtype), torch.tensor(-2.1, dtype=dtype)
    step = torch.finfo(dtype).eps * torch.tensor([4, 64, 1024, 2**15], dtype=dtype)
    mean, logvar = prior_mean * (1 + step), prior_logvar * (1 - step)
    found = gaussian_kl_per_dimension(mean, logvar, prior_mean=prior_mean, prior_logvar=prior_logvar)
    with mpmath.workdps(60):
        m0, t0 = mpmath.mpf(prior_mean.item()), mpmath.mpf(prior_logvar.item())
        for value, m, t in zip(found.tolist(), mean.tolist(), logvar.tolist(), strict=True):
            scaled = (mpmath.mpf(m) - m0) / mpmath.exp(t0 / 2)
            truth = (scaled**2 + mpmath.expm1(mpmath.mpf(t) - t0) - (mpmath.mpf(t) - t0)) / 2
            assert abs(value / truth - 1) < tolerance
    assert (
        gaussian_kl(
            prior_mean.view(1, 1), prior_logvar.view(1, 1), prior_mean=prior_mean, prior_logvar=prior_logvar
        )
        == 0
    )


@pytest.mark.parametrize("shape", PRIORS.values(), ids=PRIORS)
def test_gradients_of_another_prior(shape):
    tensors = [tensor.requires_grad_() for tensor in other_prior(shape)]

    def kl(mean, logvar, prior_mean, prior_logvar):
        return gaussian_kl(mean, logvar, prior_mean=prior_mean, prior_logvar=prior_logvar)

    assert torch.autograd.gradcheck(kl, tensors)
    assert torch.autograd.gradgradcheck(kl, tensors)
    compiled = torch.compile(kl, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), kl(*tensors))


def test_prior_of_an_image():
    mean, logvar = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    prior = torch.randn(3, 1, 1)
    found = gaussian_kl(mean, logvar, prior_mean=prior, event_dim=3)
    torch.testing.assert_close(found, gaussian_kl(mean - prior, logvar, event_dim=3))


def test_priors_that_cannot_be():
    mean = torch.zeros(5, 3)
    with pytest.raises(ValueError, match=r"prior_mean must have the shape of mean, \(5, 3\), or broadcast"):
        gaussian_kl(mean, mean, prior_mean=torch.zeros(5))
    with pytest.raises(ValueError, match=r"prior_logvar must have the shape of mean"):
        gaussian_kl_per_dimension(mean, mean, prior_logvar=torch.zeros(2, 5, 3))
    with pytest.raises(TypeError, match="prior_logvar must have the dtype of mean"):
        gaussian_kl(mean, mean, prior_logvar=torch.zeros(3, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"prior_mean must be a torch\.Tensor, got float"):
        gaussian_kl(mean, mean, prior_mean=1.0)
    with pytest.raises(FloatingPointError, match=r"prior_mean must be finite, got nan at index \(1,\)"):
        gaussian_kl(mean, mean, prior_mean=torch.tensor([0.0, math.nan, 0.0]), check_finite=True)
