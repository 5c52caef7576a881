"""expected_bernoulli_log_likelihood against quadrature, sampling and its own formula with zero variances."""

import math

import mpmath
import numpy as np
import pytest
import torch
from fit_softplus_mixture import fit_mixture, fit_normal_tail, interpolate
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_ndtr, ndtr, roots_hermitenorm, roots_legendre
from scipy.stats import norm

from lineavae import reference
from lineavae.ops import bernoulli_log_likelihood, expected_bernoulli_log_likelihood
from lineavae.reference.expected_bernoulli_log_likelihood import MIXTURE_SCALES, MIXTURE_WEIGHTS

ERROR = 5.2e-8  # of the mixture
NUM_POINTS = 10_000


def quadrature(function, kink, mean, std):
    """E f(y) for y ~ N(mean, std²), where ``function`` is f and f - ``kink`` is negligible for |y| > 40.

    ``kink`` is not smooth at 0 and comes as two functions: itself, and its expectation in closed form.
    """
    kink_itself, expected_kink = kink
    narrow, wide = np.minimum(std, 1), np.maximum(std, 1)
    nodes, weights = roots_hermitenorm(120)
    of_narrow = function(mean[:, None] + narrow[:, None] * nodes) @ weights / math.sqrt(2 * math.pi)
    # panels of width one, on either side of the kink
    nodes, weights = roots_legendre(16)
    y = (np.arange(-40, 40)[:, None] + 0.5 + 0.5 * nodes).ravel()
    rest = (function(y) - kink_itself(y)) * np.tile(0.5 * weights, 80)
    of_wide = expected_kink(mean, wide) + norm.pdf(y, mean[:, None], wide[:, None]) @ rest
    return np.where(std <= 1, of_narrow, of_wide)


RELU = (lambda y: np.maximum(y, 0), lambda m, s: m * ndtr(m / s) + s * norm.pdf(m / s))
STEP = (lambda y: y > 0, lambda m, s: ndtr(m / s))
NO_KINK = (lambda y: 0 * y, lambda m, s: 0 * m)


def exact_value(mean, std):
    """E softplus."""
    return quadrature(lambda y: np.logaddexp(0, y), RELU, mean, std)


def points(dtype):
    """Means and log-variances of one logit of every size and sign, and the largest that are promised."""
    generator = torch.Generator().manual_seed(0)

    def random(low, high):
        return low + (high - low) * torch.rand(NUM_POINTS, generator=generator, dtype=torch.float64)

    mean = 10 ** random(-6, 5) * random(-1, 1).sign()
    log_std = math.log(10) * random(-8, 6)
    near = torch.arange(NUM_POINTS) % 2 == 0
    mean = torch.where(near, random(-12, 12), mean)
    log_std = torch.where(torch.arange(NUM_POINTS) % 4 < 2, random(-2, 2), log_std)
    corners = torch.tensor(
        [(m, 0.5 * t) for m in (0, 1e-30, 1, 1e15, 1e36) for t in (-80, 0, 80)], dtype=torch.float64
    )
    mean, log_std = (
        torch.cat([mean, corners[:, 0], -corners[:, 0]]),
        torch.cat([log_std, *[corners[:, 1]] * 2]),
    )
    return mean.to(dtype), (2 * log_std).to(dtype)


def one_logit(x, mean, logvar):
    """The op for a decoder that hands its one latent on."""
    one = torch.ones(1, 1, dtype=mean.dtype)
    return expected_bernoulli_log_likelihood(x[:, None], mean[:, None], logvar[:, None], one, one[0] * 0)


def random_arguments(num_samples=6, num_features=5, latent_dim=3, seed=0, dtype=torch.float64):
    N, D, K = num_samples, num_features, latent_dim  # noqa: N806
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return random(N, D).sigmoid(), random(N, K), random(N, K), random(D, K), random(D)


@pytest.mark.parametrize(
    ("mean", "std"), [(0.3, 0.02), (-2.0, 0.99), (1.7, 1.01), (-5.0, 7.0), (30.0, 400.0)]
)
def test_the_quadrature_equals_mpmath(mean, std):
    with mpmath.workdps(30):
        m, s = mpmath.mpf(mean), mpmath.mpf(std)
        breaks = sorted(
            {mpmath.mpf(b) for b in (-12, -6, -2, 0, 2, 6, 12)} | {(b - m) / s for b in (-40, -4, 0, 4, 40)}
        )
        breaks = [b for b in breaks if abs(b) <= 12]
        exact = mpmath.quad(lambda t: mpmath.log1p(mpmath.exp(m + s * t)) * mpmath.npdf(t), breaks)
        assert abs(exact_value(np.array([mean]), np.array([std]))[0] / float(exact) - 1) < 1e-12


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str)
def test_value_against_quadrature(dtype, rounding):
    mean, logvar = points(dtype)
    m, s = mean.double().numpy(), (0.5 * logvar.double()).exp().numpy()
    exact = exact_value(m, s)
    bound = ERROR + rounding * np.maximum(np.maximum(1, abs(m)), s)
    x = (torch.arange(len(mean)) % 3 == 0).to(dtype)
    value = one_logit(x, mean, logvar).double().numpy()
    assert (abs(value - (x.double().numpy() * m - exact)) <= bound).all()


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 1e-12), (torch.float32, 3e-7)], ids=str)
def test_gradient_against_quadrature(dtype, rounding):
    mean, logvar = points(dtype)
    mean.requires_grad_()
    logvar.requires_grad_()
    one_logit(torch.zeros_like(mean), mean, logvar).sum().backward()
    m, t = mean.detach().double().numpy(), logvar.detach().double().numpy()
    s = np.exp(t / 2)
    sigmoid = quadrature(expit, STEP, m, s)
    assert (abs(-mean.grad.double().numpy() - sigmoid) <= 3e-7 + rounding).all()
    # ∂E/∂log v = ½ v E sigmoid', by Stein's identity
    slope = quadrature(lambda y: expit(y) * expit(-y), NO_KINK, m, s)
    by_std = -2 * logvar.grad.double().numpy() / s
    assert (abs(by_std - s * slope) <= 3e-7 + rounding).all()


def test_the_constants_are_the_fitted_ones():
    weights, scales = fit_mixture()
    np.testing.assert_allclose(MIXTURE_WEIGHTS, weights, rtol=1e-8)
    np.testing.assert_allclose(MIXTURE_SCALES, scales, rtol=1e-8)


def test_the_constants_achieve_the_bound():
    x = np.linspace(-60, 60, 100_001)
    weights, scales = np.array(MIXTURE_WEIGHTS), np.array(MIXTURE_SCALES)
    assert abs(weights.sum() - 1) < 1e-15
    u = x[:, None] / scales
    softplus = (x[:, None] * np.exp(log_ndtr(u)) + scales * norm.pdf(u)) @ weights
    assert abs(softplus - np.logaddexp(0, x)).max() < ERROR


@pytest.mark.parametrize(("limit", "degree", "error"), [(6.5, 5, 4e-8), (9.0, 14, 2e-15)])
def test_the_fit_of_the_normal_tail_achieves_its_bound(limit, degree, error):
    x = np.linspace(0, limit, 100_001)
    tail = np.exp(-(x**2) / 2) * np.polyval(fit_normal_tail(limit, degree), 1 / (1 + 0.32 * x))
    assert abs(tail - ndtr(-x)).max() < error


def test_the_fit_of_powers_of_two_achieves_its_bound():
    r = np.linspace(-0.5, 0.5, 100_001)
    fit = interpolate(lambda r: mpmath.mpf(2) ** r, -0.5, 0.5, 5)
    assert abs(np.polyval(fit, r) / 2**r - 1).max() < 1.1e-7


@given(st.integers(0, 6), st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**32))
@settings(deadline=None, max_examples=40)
def test_equals_quadrature_of_every_logit(num_samples, num_features, latent_dim, seed):
    x, mean, logvar, weight, bias = random_arguments(num_samples, num_features, latent_dim, seed)
    m = mean @ weight.T + bias
    s = (logvar.exp() @ weight.T.square()).sqrt()
    softplus = exact_value(m.numpy().ravel(), s.numpy().ravel()).reshape(m.shape)
    expected = (x * m - torch.from_numpy(softplus)).sum(-1)
    value = expected_bernoulli_log_likelihood(x, mean, logvar, weight, bias)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=num_features * ERROR)


@pytest.mark.slow
def test_equals_the_mean_of_a_million_samples():
    x, mean, logvar, weight, bias = random_arguments(num_samples=2, num_features=20, latent_dim=4)
    generator = torch.Generator().manual_seed(1)
    for row in range(2):
        noise = torch.randn(1_000_000, 4, generator=generator, dtype=torch.float64)
        logits = (mean[row] + (0.5 * logvar[row]).exp() * noise) @ weight.T + bias
        samples = reference.bernoulli_log_likelihood(x[row], logits)
        error = samples.std() / math.sqrt(len(samples))
        value = expected_bernoulli_log_likelihood(
            x[row : row + 1], mean[row : row + 1], logvar[row : row + 1], weight, bias
        )
        assert abs(value.item() - samples.mean().item()) < 4 * error


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_without_variance_it_is_the_plain_log_likelihood(dtype):
    x, mean, logvar, weight, bias = random_arguments(num_features=50, dtype=dtype)
    plain = bernoulli_log_likelihood(x, mean @ weight.T + bias)
    for log_variance in (-80.0, -1e4, -math.inf):
        value = expected_bernoulli_log_likelihood(
            x, mean, torch.full_like(logvar, log_variance), weight, bias
        )
        torch.testing.assert_close(value, plain, rtol=1e-6 if dtype == torch.float32 else 0, atol=50 * ERROR)


def test_gradients_repeat_bitwise():
    arguments = random_arguments(150, 133, 35, dtype=torch.float32)

    def gradients():
        leaves = [argument.clone().requires_grad_() for argument in arguments]
        return torch.autograd.grad(expected_bernoulli_log_likelihood(*leaves).sum(), leaves)

    for first, second in zip(gradients(), gradients(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_finite_over_the_promised_range(dtype):
    for log_variance in (-80.0, -20.0, 0.0, 20.0, 80.0):
        x, mean, logvar, weight, bias = random_arguments(7, 37, 3, dtype=dtype)
        leaves = [x, 30 * mean, torch.full_like(logvar, log_variance), weight, bias]
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        value = expected_bernoulli_log_likelihood(*leaves)
        gradients = torch.autograd.grad(value.sum(), leaves)
        expected_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
        expected = reference.expected_bernoulli_log_likelihood(*expected_leaves)
        expected_gradients = torch.autograd.grad(expected.sum(), expected_leaves)
        for actual, exact in zip((value, *gradients), (expected, *expected_gradients), strict=True):
            assert actual.isfinite().all()
            tolerance = 4e-6 * exact.abs().max().item() + 1e-37  # where float32 is subnormal
            torch.testing.assert_close(actual.double(), exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("log_variance", [-10.0, 0.0, 100.0])
def test_infinite_logits_are_right_or_wrong(log_variance, dtype):
    infinite = torch.tensor([math.inf, -math.inf] * 20, dtype=dtype)
    right = (infinite > 0).to(dtype)[None]
    nothing = torch.zeros(1, 1, dtype=dtype)
    weight = torch.ones(40, 1, dtype=dtype)
    logvar = torch.full_like(nothing, log_variance).requires_grad_()
    bias = infinite.clone().requires_grad_()
    value = expected_bernoulli_log_likelihood(right, nothing, logvar, weight, bias)
    gradients = torch.autograd.grad(value, (logvar, bias))
    assert abs(value.item()) < 1e-6 * math.exp(log_variance / 2)
    assert all(gradient.abs().max().item() < 1e-6 for gradient in gradients)
    wrong = expected_bernoulli_log_likelihood(1 - right, nothing, logvar, weight, bias)
    assert wrong.item() == -math.inf


@pytest.mark.parametrize(("dtype", "weight"), [(torch.float64, 1e200), (torch.float32, 1e25)], ids=str)
def test_a_variance_beyond_the_range_is_infinite(weight, dtype):
    one = torch.ones(1, 1, dtype=dtype)
    for mean in (0.0, 1e-5):
        value = expected_bernoulli_log_likelihood(one, mean * one, 0 * one, weight * one, 0 * one[0])
        assert value.item() == -math.inf


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_not_a_number_stays_one(dtype):
    for broken in range(3):
        arguments = [argument.to(dtype) for argument in random_arguments(7, 37, 3)]
        arguments[0] = torch.zeros_like(arguments[0])  # whose products with a NaN are not added
        arguments[broken][1, 2] = math.nan
        value = expected_bernoulli_log_likelihood(*arguments)
        assert value.isnan().nonzero().tolist() == [[1]]


def test_images_must_be_made_probabilities():
    _, mean, logvar, weight, bias = random_arguments(2, 16, 3, dtype=torch.float32)
    images = torch.arange(2, 34, dtype=torch.uint8).reshape(2, 16)
    with pytest.raises(TypeError, match=r"x must be float64, .*, got torch\.uint8"):
        expected_bernoulli_log_likelihood(images, mean, logvar, weight, bias)
    with pytest.raises(ValueError, match=r"x must be in \[0, 1\], got 2.0 at index \(0, 0\)"):
        expected_bernoulli_log_likelihood(images.float(), mean, logvar, weight, bias, check_finite=True)
    expected_bernoulli_log_likelihood(images / 255, mean, logvar, weight, bias, check_finite=True)


def test_names_models_that_do_not_broadcast():
    x, mean, logvar, weight, bias = (argument.expand(3, *argument.shape) for argument in random_arguments())
    with pytest.raises(ValueError, match=r"must broadcast, got x \(3,\), .*, bias \(2,\)"):
        expected_bernoulli_log_likelihood(x, mean, logvar, weight, bias[:2])
