"""Accuracy of the Gaussian log-likelihoods, against torch.distributions, exact sums and sampling."""

import math
from fractions import Fraction

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Independent, Normal, kl_divergence

from lineavae import reference
from lineavae.ops import (
    expected_gaussian_log_likelihood,
    gaussian_kl,
    gaussian_log_likelihood,
    gaussian_log_likelihood_mean,
    linear_vae_elbo,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_noise = pytest.mark.parametrize("noise", [(), ("D",), ("N", 1), ("N", "D")], ids=str)
each_op = pytest.mark.parametrize("op", [gaussian_log_likelihood, gaussian_log_likelihood_mean])


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noise_shape(noise: tuple[str | int, ...], num_samples: int, num_features: int) -> tuple[int, ...]:
    return tuple({"N": num_samples, "D": num_features}.get(size, size) for size in noise)


def log_prob(x: torch.Tensor, x_hat: torch.Tensor, log_sigma2: torch.Tensor) -> torch.Tensor:
    scale = (0.5 * log_sigma2).exp().expand(x_hat.shape)
    return Independent(Normal(x_hat, scale), 1).log_prob(x)


@st.composite
def problems(draw):
    num_samples, num_features = draw(st.integers(1, 40)), draw(st.integers(1, 70))
    models = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    shared_x = draw(st.booleans())
    core = draw(st.sampled_from([(), ("D",), ("N", 1), ("N", "D"), (1, 1), (1, "D")]))
    noise = noise_shape(core, num_samples, num_features)
    if len(noise) == 2 and draw(st.booleans()):
        noise = (*models, *noise)
    scale = draw(st.sampled_from([1e-3, 1.0, 14.0]))
    seed = draw(st.integers(0, 1000))
    x = random(*(() if shared_x else models), num_samples, num_features, seed=seed, scale=scale)
    x_hat = random(*models, num_samples, num_features, seed=seed + 1, scale=scale)
    return x, x_hat, random(*noise, seed=seed + 2, scale=3.0)


@settings(max_examples=150, deadline=None)
@given(problems())
def test_equals_torch_distributions(problem):
    expected = log_prob(*(tensor.requires_grad_() for tensor in problem))
    value = gaussian_log_likelihood(*problem, event_dim=1)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-10)
    mean = gaussian_log_likelihood_mean(*problem, event_dim=1)
    torch.testing.assert_close(mean, expected.mean(-1), rtol=1e-12, atol=1e-10)
    upstream = 1 + torch.arange(value.numel(), dtype=value.dtype).sin().reshape(value.shape)
    for actual, loss in [
        (torch.autograd.grad(value, problem, upstream), expected * upstream),
        (torch.autograd.grad(mean.sum(), problem, retain_graph=True), expected.mean(-1)),
        (torch.autograd.grad(-mean.sum(), problem), -expected.mean(-1)),
    ]:
        gradients = torch.autograd.grad(loss.sum(), problem, retain_graph=True)
        for gradient, expected_gradient in zip(actual, gradients, strict=True):
            size = expected_gradient.abs().max().item()
            torch.testing.assert_close(gradient, expected_gradient, rtol=1e-11, atol=1e-13 + 1e-12 * size)


def exact(x: list[float], x_hat: list[float], log_sigma2: list[float]) -> float:
    """Sum the formula in 50 digits, at the very numbers that the op was given."""
    with mpmath.workdps(50):
        total = mpmath.mpf(0)
        for a, b, s in zip(x, x_hat, log_sigma2, strict=True):
            squared = (Fraction(a) - Fraction(b)) ** 2
            q = mpmath.mpf(squared.numerator) / squared.denominator * mpmath.exp(-mpmath.mpf(s))
            total += q + mpmath.mpf(s) + mpmath.log(2 * mpmath.pi)
        return float(-total / 2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("log_sigma2", [-20.0, -6.9, 0.0, 3.4, 20.0])
@each_noise
def test_logit_images_of_many_pixels(noise, log_sigma2, dtype, tolerance):
    N, D = 2, 12_288  # noqa: N806
    x = (28 * torch.rand(N, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 14).to(
        dtype
    )
    x_hat = random(N, D, seed=1, scale=5.0).clamp(-14, 14).to(dtype)
    logs = (log_sigma2 + 0.1 * random(*noise_shape(noise, N, D), seed=2)).clamp(-20, 20).to(dtype)
    value = gaussian_log_likelihood(x, x_hat, logs)
    for row, whole in enumerate(logs.expand(N, D)):
        expected = exact(x[row].tolist(), x_hat[row].tolist(), whole.tolist())
        assert abs(value[row].item() / expected - 1) < tolerance
    mean = gaussian_log_likelihood_mean(x, x_hat, logs)
    torch.testing.assert_close(mean.double(), value.double().mean(), rtol=tolerance, atol=0)


@pytest.mark.parametrize("log_sigma2", [-20.0, 20.0])
@each_dtype
@each_noise
@each_op
def test_gradients_are_finite_and_accurate_at_the_ends(op, noise, dtype, log_sigma2):
    N, D = 3, 2000  # noqa: N806
    scale = 1e-3 if dtype == torch.float16 and log_sigma2 < 0 else 5.0  # what float16 can represent
    x, x_hat = random(N, D, seed=1, scale=scale).to(dtype), random(N, D, seed=2, scale=scale).to(dtype)
    logs = torch.full(noise_shape(noise, N, D), log_sigma2, dtype=dtype)
    tensors = [tensor.requires_grad_() for tensor in (x, x_hat, logs)]
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    gradients = torch.autograd.grad(op(*tensors).sum(), tensors)
    expected = torch.autograd.grad(log_prob(*wide).sum() / (1 if op is gaussian_log_likelihood else N), wide)
    info = torch.finfo(dtype)
    for actual, truth in zip(gradients, expected, strict=True):
        fits = truth.abs() < info.max
        rounding = max(info.eps, 1e-6)
        torch.testing.assert_close(
            actual[fits].double(), truth[fits], rtol=rounding, atol=info.smallest_normal * info.eps
        )
        assert not actual.isnan().any()


@each_dtype
@each_noise
@each_op
def test_not_a_number_stays_one(op, noise, dtype):
    N, D = 5, 37  # noqa: N806
    for broken in range(3):
        tensors = [torch.zeros(N, D, dtype=dtype) for _ in range(2)]
        tensors.append(torch.zeros(noise_shape(noise, N, D), dtype=dtype))
        tensors[broken].flatten()[-1] = math.nan
        tensors = [tensor.requires_grad_() for tensor in tensors]
        value = op(*tensors)
        value.sum().backward()
        rows = sum(tensor.detach().expand(N, D) for tensor in tensors).isnan()
        assert torch.equal(value.isnan(), rows.any(-1) if op is gaussian_log_likelihood else rows.any())
        for tensor in tensors:
            assert torch.equal(tensor.grad.isnan(), rows if tensor.shape == (N, D) else _any(rows, tensor))


def _any(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return rows.double().sum_to_size(like.shape).bool()


@each_op
def test_infinite_where_the_data_are(op):
    x = torch.zeros(2, 3)
    x[1, 1] = math.inf
    value = op(x, torch.zeros(2, 3), torch.tensor(0.0))
    assert value.min() == -math.inf
    assert not value.isnan().any()


def test_the_optimum_of_log_sigma2_is_the_mean_squared_residual():
    x, x_hat = random(30, 20, seed=1), random(30, 20, seed=2)
    optimum = (x - x_hat).square().mean().log().requires_grad_()
    gradient = torch.autograd.grad(gaussian_log_likelihood_mean(x, x_hat, optimum), optimum)[0]
    assert abs(gradient.item()) < 1e-13


def test_a_model_among_others_equals_the_model_alone():
    x, x_hat, log_sigma2 = random(40, 50).float(), random(3, 40, 50, seed=1).float(), random(3, 1, 50).float()
    for op in (gaussian_log_likelihood, gaussian_log_likelihood_mean):
        together = op(x, x_hat, log_sigma2)
        for model in range(3):
            assert torch.equal(together[model], op(x, x_hat[model], log_sigma2[model]))


def test_the_mean_of_no_samples_is_not_a_number():
    value = gaussian_log_likelihood_mean(torch.zeros(0, 3), torch.zeros(0, 3), torch.tensor(0.0))
    assert value.isnan()


@pytest.mark.parametrize("upstream", [-1.0, 1.0, -0.5, 0.0])
def test_gradients_of_the_mean_accumulate(upstream):
    x, x_hat, log_sigma2 = random(7, 5), random(7, 5, seed=1), random(5, seed=2)
    wide = [x_hat.clone().requires_grad_(), log_sigma2.clone().requires_grad_()]
    expected = torch.autograd.grad(upstream * log_prob(x, *wide).mean(), wide)
    x_hat.requires_grad_()
    log_sigma2.requires_grad_()
    value = upstream * gaussian_log_likelihood_mean(x, x_hat, log_sigma2)
    for count in (1, 2):
        value.backward(retain_graph=True)
        for tensor, gradient in zip((x_hat, log_sigma2), expected, strict=True):
            torch.testing.assert_close(tensor.grad, count * gradient, rtol=1e-12, atol=1e-14)


def test_gradients_of_the_mean_add_to_others():
    x, x_hat, log_sigma2 = random(7, 5), random(7, 5, seed=1).requires_grad_(), torch.tensor(0.3).double()
    for _ in range(2):
        hidden = 1.0 * x_hat
        loss = hidden.square().sum() - gaussian_log_likelihood_mean(x, hidden, log_sigma2) + hidden.sum()
        expected = x_hat.square().sum() - log_prob(x, x_hat, log_sigma2).mean() + x_hat.sum()
        torch.testing.assert_close(
            *(torch.autograd.grad(value, x_hat, retain_graph=True)[0] for value in (loss, expected)),
            rtol=1e-12,
            atol=1e-14,
        )


def test_a_gradient_of_the_mean_that_was_overwritten_is_not_used_again():
    x_hat = random(7, 5, seed=1).requires_grad_()
    loss = -gaussian_log_likelihood_mean(random(7, 5), x_hat, torch.tensor(0.3).double())
    torch.autograd.grad(loss, x_hat, retain_graph=True)[0].fill_(math.nan)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, x_hat)


@each_op
def test_names_models_that_do_not_broadcast(op):
    x, x_hat = torch.zeros(2, 4, 3), torch.zeros(3, 4, 3)
    with pytest.raises(ValueError, match=r"must broadcast, got x \(2,\), x_hat \(3,\), log_sigma2 \(\)"):
        op(x, x_hat, torch.tensor(0.0), event_dim=1)


@pytest.mark.parametrize("shape", [(4,), (4, 3, 1), (2, 1), (3, 4), (1, 2)])
@each_op
def test_names_the_shape_of_a_noise_that_does_not_fit(op, shape):
    with pytest.raises(ValueError, match=r"log_sigma2 must have shape .* with N=4, D=3"):
        op(torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(shape))


# --- the expectation under a linear decoder ---


def decoder_problem(noise: tuple[str | int, ...] = (), seed: int = 0) -> dict[str, torch.Tensor]:
    N, D, K = 6, 9, 4  # noqa: N806
    return {
        "x": random(N, D, seed=seed),
        "mean": random(N, K, seed=seed + 1),
        "logvar": random(N, K, seed=seed + 2) - 0.5,
        "weight": random(D, K, seed=seed + 3),
        "bias": random(D, seed=seed + 4),
        "log_sigma2": 0.5 * random(*noise_shape(noise, N, D), seed=seed + 5),
    }


@st.composite
def decoder_problems(draw):
    num_samples, num_features, latent_dim = (draw(st.integers(1, size)) for size in (12, 30, 8))
    models = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    core = draw(st.sampled_from([(), ("D",), ("N", 1), ("N", "D"), (1, 1), (1, "D")]))
    noise = noise_shape(core, num_samples, num_features)
    if len(noise) == 2 and draw(st.booleans()):
        noise = (*models, *noise)
    own = [models if draw(st.booleans()) else () for _ in range(5)]
    seed = draw(st.integers(0, 1000))
    shapes = [
        (num_samples, num_features),
        (num_samples, latent_dim),
        (num_samples, latent_dim),
        (num_features, latent_dim),
        (num_features,),
    ]
    tensors = [
        random(*m, *shape, seed=seed + i) for i, (m, shape) in enumerate(zip(own, shapes, strict=True))
    ]
    return [*tensors, random(*noise, seed=seed + 5, scale=3.0)]


@settings(max_examples=100, deadline=None)
@given(decoder_problems())
def test_expectation_equals_torch_distributions(problem):
    """The cross-entropy to N(x, σ²) of the reconstruction, which is normal too."""
    x, mean, logvar, weight, bias, log_sigma2 = (tensor.requires_grad_() for tensor in problem)
    x_hat = mean @ weight.mT + bias.unsqueeze(-2)
    variance = logvar.exp() @ weight.square().mT
    shape = torch.broadcast_shapes(x.shape, x_hat.shape, variance.shape, log_sigma2.shape)
    reconstruction = Normal(x_hat.expand(shape), variance.sqrt().expand(shape))
    data = Normal(x.expand(shape), (0.5 * log_sigma2).exp().expand(shape))
    expected = -(kl_divergence(reconstruction, data) + reconstruction.entropy()).sum(-1)
    value = expected_gaussian_log_likelihood(*problem)
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-9)
    upstream = 1 + torch.arange(value.numel(), dtype=value.dtype).sin().reshape(value.shape)
    gradients = torch.autograd.grad(value, problem, upstream)
    for gradient, truth in zip(gradients, torch.autograd.grad(expected, problem, upstream), strict=True):
        size = truth.abs().max().item()
        torch.testing.assert_close(gradient, truth, rtol=1e-10, atol=1e-12 + 1e-11 * size)


@pytest.mark.slow
@each_noise
def test_is_the_mean_of_a_million_samples(noise):
    problem = decoder_problem(noise)
    value = expected_gaussian_log_likelihood(**problem)
    generator = torch.Generator().manual_seed(1)
    scale = (0.5 * problem["logvar"]).exp()
    total = torch.zeros_like(value)
    squares = torch.zeros_like(value)
    num_chunks, chunk = 20, 50_000
    for _ in range(num_chunks):
        eps = torch.randn(chunk, *scale.shape, generator=generator, dtype=torch.float64)
        z = problem["mean"] + scale * eps
        x_hat = z @ problem["weight"].mT + problem["bias"]
        difference = log_prob(problem["x"], x_hat, problem["log_sigma2"]) - value
        total += difference.sum(0)
        squares += difference.square().sum(0)
    count = num_chunks * chunk
    standard_error = (squares / count).sqrt() / math.sqrt(count)
    assert (total / count).abs().div(standard_error).max() < 4


@each_noise
def test_value_and_gradient_have_no_variance(noise):
    problem = {name: tensor.requires_grad_() for name, tensor in decoder_problem(noise).items()}
    runs = []
    for _ in range(2):
        value = expected_gaussian_log_likelihood(**problem)
        runs.append((value, *torch.autograd.grad(value.sum(), list(problem.values()))))
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


@each_noise
def test_of_a_certain_posterior_is_the_log_likelihood(noise):
    problem = decoder_problem(noise)
    problem["logvar"].fill_(-80.0)
    x_hat = problem["mean"] @ problem["weight"].mT + problem["bias"]
    expected = log_prob(problem["x"], x_hat, problem["log_sigma2"])
    torch.testing.assert_close(expected_gaussian_log_likelihood(**problem), expected, rtol=1e-12, atol=0)


def test_is_the_reconstruction_term_of_the_linear_vae():
    problem = decoder_problem()
    encoder, log_d = random(4, 9, seed=7), random(4, seed=8)
    problem["mean"] = (problem["x"] - problem["bias"]) @ encoder.mT
    problem["logvar"] = log_d.expand(6, 4)
    elbo = expected_gaussian_log_likelihood(**problem) - gaussian_kl(problem["mean"], problem["logvar"])
    expected = linear_vae_elbo(
        problem["x"], problem["weight"], encoder, problem["bias"], log_d, problem["log_sigma2"]
    )
    torch.testing.assert_close(elbo, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("logvar", [-80.0, 0.0, 80.0])
@pytest.mark.parametrize("log_sigma2", [-20.0, 20.0])
@each_noise
def test_expectation_is_finite_wherever_float32_is(noise, log_sigma2, logvar):
    problem = decoder_problem(noise)
    problem["logvar"].fill_(logvar)
    problem["log_sigma2"].fill_(log_sigma2)
    problem["weight"] *= 1e-7  # the variance of x_hat fits float32, its factors over σ² do not
    single = {name: tensor.float().requires_grad_() for name, tensor in problem.items()}
    double = {name: tensor.detach().double().requires_grad_() for name, tensor in single.items()}
    value = expected_gaussian_log_likelihood(**single)
    expected = reference.expected_gaussian_log_likelihood(**double)
    torch.testing.assert_close(value.double(), expected, rtol=2e-6, atol=0)
    gradients = torch.autograd.grad(value.sum(), list(single.values()))
    for actual, truth in zip(
        gradients, torch.autograd.grad(expected.sum(), list(double.values())), strict=True
    ):
        assert truth.abs().max() < torch.finfo(torch.float32).max
        size = truth.abs().max().item()
        torch.testing.assert_close(actual.double(), truth, rtol=2e-5, atol=1e-6 * size + 2e-45)


def test_names_decoders_that_do_not_fit():
    problem = decoder_problem()
    for name, words in [
        ("weight", r"weight must have shape \(\*models, D, K\) with D=9"),
        ("mean", r"mean must have shape \(\*models, N, K\) with N=6, K=4"),
        ("bias", r"bias must have shape \(\*models, D\) with D=9"),
    ]:
        tensor = problem[name].mT if name == "weight" else problem[name][..., :-1]
        with pytest.raises(ValueError, match=words):
            expected_gaussian_log_likelihood(**(problem | {name: tensor}))
