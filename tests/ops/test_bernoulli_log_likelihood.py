"""Accuracy of bernoulli_log_likelihood, against mpmath and torch.distributions."""

import math

import mpmath
import pytest
import torch
from fit_softplus_mixture import interpolate, log1p_ratio
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli
from torch.nn.functional import binary_cross_entropy_with_logits

from lineavae import reference
from lineavae.ops import bernoulli_log_likelihood

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ROUNDING = {torch.float64: 1e-15, torch.float32: 3e-7}

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# one long row runs the vectorised loop, rows of one feature the loop over what is left
each_shape = pytest.mark.parametrize("shape", [(1, -1), (-1, 1)])


def exact(x: float, logit: float) -> float:
    """log p(x) in 60 digits, at the very numbers that the op was given."""
    with mpmath.workdps(60):
        x, a = mpmath.mpf(x), mpmath.mpf(logit)
        return float(-(x * mpmath.log1p(mpmath.exp(-a)) + (1 - x) * mpmath.log1p(mpmath.exp(a))))


def logits_of_all_sizes(dtype: torch.dtype) -> torch.Tensor:
    sizes = torch.logspace(-9, math.log10(80), 150, dtype=torch.float64)
    return torch.cat([sizes, -sizes, torch.zeros(1)]).to(dtype)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("x", [0.0, 1.0, 0.25])
def test_value_against_mpmath_relative_to_itself(x, dtype):
    logits = logits_of_all_sizes(dtype)
    expected = torch.tensor([exact(x, a) for a in logits.tolist()], dtype=torch.float64)
    for function in (bernoulli_log_likelihood, reference.bernoulli_log_likelihood):
        value = function(torch.full_like(logits, x)[:, None], logits[:, None])
        torch.testing.assert_close(value.double(), expected, rtol=ROUNDING[dtype], atol=0)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@each_shape
def test_gradient_against_mpmath(shape, dtype):
    logits = logits_of_all_sizes(dtype).requires_grad_()
    x = torch.linspace(0, 1, len(logits), dtype=torch.float64).to(dtype).requires_grad_()
    bernoulli_log_likelihood(x.reshape(shape), logits.reshape(shape)).sum().backward()
    with mpmath.workdps(60):
        slopes = [
            float(p - 1 / (1 + mpmath.exp(-mpmath.mpf(a))))
            for p, a in zip(x.tolist(), logits.tolist(), strict=True)
        ]
    expected = torch.tensor(slopes, dtype=torch.float64)
    torch.testing.assert_close(logits.grad.double(), expected, rtol=0, atol=ROUNDING[dtype])
    assert torch.equal(x.grad, logits.detach())


@pytest.mark.parametrize(("degree", "error"), [(9, 6e-9), (20, 2e-16)])
def test_the_fit_of_log1p_achieves_its_bound(degree, error):
    fit = interpolate(log1p_ratio, 0, 1, degree)
    with mpmath.workdps(60):
        for e in mpmath.linspace(1e-9, 1, 400):
            assert abs(mpmath.polyval(fit, e) / log1p_ratio(e) - 1) < error


@given(st.lists(st.integers(0, 9), min_size=2, max_size=4), st.integers(0, 2**32), st.booleans())
@settings(deadline=None, max_examples=60)
def test_equals_torch_distributions(shape, seed, binary):
    generator = torch.Generator().manual_seed(seed)
    x, logits = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    x, logits = x.sigmoid(), 5 * logits
    if binary:
        x = x.round()
        each = Bernoulli(logits=logits).log_prob(x)
    else:
        each = -binary_cross_entropy_with_logits(logits, x, reduction="none")
    value = bernoulli_log_likelihood(x, logits, event_dim=1)
    torch.testing.assert_close(value, each.sum(-1), rtol=1e-12, atol=1e-14)


def test_sum_of_a_long_row_in_float32():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 12_288, generator=generator)
    logits = 5 * torch.randn(4, 12_288, generator=generator)
    expected = reference.bernoulli_log_likelihood(x.double(), logits.double())
    torch.testing.assert_close(bernoulli_log_likelihood(x, logits).double(), expected, rtol=1e-6, atol=0)


@each_dtype
def test_never_positive(dtype):
    logits = logits_of_all_sizes(dtype)[:, None]
    for x in (0.0, 0.5, 1.0):
        assert (bernoulli_log_likelihood(torch.full_like(logits, x), logits) <= 0).all()


@each_dtype
@each_shape
def test_infinite_logits_are_right_or_wrong(shape, dtype):
    logits = torch.tensor([math.inf, -math.inf] * 20, dtype=dtype, requires_grad=True)
    right = (logits.detach() > 0).to(dtype)
    value = bernoulli_log_likelihood(right.reshape(shape), logits.reshape(shape))
    value.sum().backward()
    assert value.abs().max().item() < 1e-30
    assert logits.grad.abs().max().item() < 1e-30
    assert (bernoulli_log_likelihood((1 - right).reshape(shape), logits.reshape(shape)) == -math.inf).all()


@each_dtype
@pytest.mark.parametrize("other", [0.0, 1.0])
def test_not_a_number_stays_one(other, dtype):
    for broken in range(2):
        arguments = [torch.full((4, 37), other, dtype=dtype) for _ in range(2)]
        arguments[broken][1, 5] = math.nan
        x, logits = arguments
        logits.requires_grad_()
        value = bernoulli_log_likelihood(x, logits)
        value.sum().backward()
        expected = arguments[broken].detach().isnan()
        assert torch.equal(value.isnan(), expected.any(-1))
        assert torch.equal(logits.grad.isnan(), expected)


@each_dtype
def test_finite_wherever_the_logit_is(dtype):
    largest = torch.finfo(dtype).max
    logits = torch.tensor([[largest], [-largest], [1e4], [-1e4]], dtype=dtype, requires_grad=True)
    for x in (0.0, 0.5, 1.0):
        value = bernoulli_log_likelihood(torch.full_like(logits, x), logits)
        assert value.isfinite().all()
        assert torch.autograd.grad(value.sum(), logits)[0].isfinite().all()


def test_images_must_be_made_probabilities():
    images = torch.arange(2, 34, dtype=torch.uint8).reshape(2, 16)
    logits = torch.zeros(2, 16)
    with pytest.raises(TypeError, match=r"x must be float64, .*, got torch\.uint8"):
        bernoulli_log_likelihood(images, logits)
    expected = r"x must be in \[0, 1\], got 2.0 at index \(0, 0\)"
    with pytest.raises(ValueError, match=expected):
        bernoulli_log_likelihood(images.float(), logits, check_finite=True)
    value = bernoulli_log_likelihood(images / 255, logits, check_finite=True)
    torch.testing.assert_close(value, torch.full((2,), -16 * math.log(2)))


def test_one_x_serves_many_posterior_samples():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 37, generator=generator)
    logits = torch.randn(10, 4, 37, generator=generator)
    value = bernoulli_log_likelihood(x, logits)
    assert torch.equal(value, torch.stack([bernoulli_log_likelihood(x, sample) for sample in logits]))


def test_names_models_that_do_not_broadcast():
    with pytest.raises(ValueError, match=r"must broadcast, got x \(3,\), logits \(2,\)"):
        bernoulli_log_likelihood(torch.zeros(3, 5, 4), torch.zeros(2, 5, 4), event_dim=1)
