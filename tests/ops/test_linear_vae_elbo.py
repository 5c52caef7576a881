"""The linear VAE's ELBO in its four forms, against dense formulas, printed gradients and Monte Carlo."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal

from lineavae import ops, reference
from lineavae.ops import linear_vae_elbo, linear_vae_elbo_from_factor, linear_vae_elbo_from_moments

PARAMETERS = ("weight", "encoder", "mu", "log_d", "log_sigma2")
BETAS = [0.0, 0.4, 1.0, 2.5]


def make_problem(num_samples=11, num_features=5, latent_dim=3, dtype=torch.float64, seed=0):
    """Data, their statistics in three forms, and the parameters of a model far from its optimum."""
    N, D, K = num_samples, num_features, latent_dim  # noqa: N806
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = random(N, D) @ random(D, D) + random(D)
    sample_mean = x.mean(0)
    centred = x - sample_mean
    problem = SimpleNamespace(
        x=x.to(dtype),
        sample_mean=sample_mean.to(dtype),
        covariance=(centred.mT @ centred / N).to(dtype),
        factor=(centred.mT / math.sqrt(N)).to(dtype),
    )
    problem.parameters = {
        "weight": random(D, K).to(dtype),
        "encoder": (0.5 * random(K, D)).to(dtype),
        "mu": (sample_mean + 3 + random(D)).to(dtype),
        "log_d": random(K).to(dtype),
        "log_sigma2": (0.3 * random()).to(dtype),
    }
    return problem


def with_gradients(elbo, parameters):
    """``elbo(**parameters)`` and its gradients with respect to them."""
    parameters = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
    value = elbo(**parameters)
    gradients = torch.autograd.grad(value, list(parameters.values()))
    return value.detach(), dict(zip(parameters, gradients, strict=True))


def dense_elbo(second_moment, weight, encoder, log_d, log_sigma2, beta):
    """Equations 15-20 with D x D matrices, A = I - W V and S the second moment about μ."""
    num_features, latent_dim = weight.shape
    d, sigma2 = log_d.exp(), log_sigma2.exp()
    identity = torch.eye(num_features, dtype=weight.dtype)
    A = identity - weight @ encoder  # noqa: N806
    distortion = torch.trace(A @ second_moment @ A.T) + torch.trace(weight @ torch.diag(d) @ weight.T)
    kl = 0.5 * (d.sum() - log_d.sum() + torch.trace(encoder @ second_moment @ encoder.T) - latent_dim)
    return -distortion / (2 * sigma2) - num_features / 2 * torch.log(2 * math.pi * sigma2) - beta * kl


def printed_gradients(second_moment, offset, weight, encoder, log_d, log_sigma2, beta):
    """The gradients of the mean ELBO in closed form, for a sample mean at μ + offset."""
    S, W, V = second_moment, weight, encoder  # noqa: N806
    num_features, latent_dim = W.shape
    d, sigma2 = log_d.exp(), log_sigma2.exp()
    gram = W.T @ W
    A = torch.eye(num_features, dtype=W.dtype) - W @ V  # noqa: N806
    distortion = torch.trace(A @ S @ A.T) + (d * gram.diagonal()).sum()
    ridge = beta * sigma2 * torch.eye(latent_dim, dtype=W.dtype)
    return {
        "weight": (S @ V.T - W @ torch.diag(d) - W @ V @ S @ V.T) / sigma2,
        "encoder": (W.T - (gram + ridge) @ V) @ S / sigma2,
        "mu": (beta * V.T @ V + A.T @ A / sigma2) @ offset,
        "log_d": 0.5 * (beta - beta * d - d * gram.diagonal() / sigma2),
        "log_sigma2": distortion / (2 * sigma2) - num_features / 2,
    }


def batch_form(problem, beta):
    return with_gradients(
        lambda **parameters: linear_vae_elbo(problem.x, **parameters, beta=beta).mean(), problem.parameters
    )


def moments_form(problem, beta):
    return with_gradients(
        lambda **parameters: linear_vae_elbo_from_moments(
            problem.sample_mean, problem.covariance, **parameters, beta=beta
        ),
        problem.parameters,
    )


def factor_form(problem, beta):
    return with_gradients(
        lambda **parameters: linear_vae_elbo_from_factor(
            problem.sample_mean, problem.factor, **parameters, beta=beta
        ),
        problem.parameters,
    )


def diagonal_form(problem, beta):
    """In the eigenbasis of the covariance, where its factor is diagonal, and back."""
    eigenvalues, basis = torch.linalg.eigh(problem.covariance)

    def elbo(weight, encoder, mu, log_d, log_sigma2):
        return linear_vae_elbo_from_factor(
            basis.T @ problem.sample_mean,
            eigenvalues.clamp_min(0).sqrt(),
            basis.T @ weight,
            encoder @ basis,
            basis.T @ mu,
            log_d,
            log_sigma2,
            beta,
        )

    return with_gradients(elbo, problem.parameters)


def statistics_form(problem, form):
    """The name of an op and the statistics it takes; the diagonal form drops all correlations."""
    if form == "moments":
        return "linear_vae_elbo_from_moments", (problem.sample_mean, problem.covariance)
    factor = problem.factor if form == "factor" else problem.covariance.diagonal().sqrt()
    return "linear_vae_elbo_from_factor", (problem.sample_mean, factor)


each_statistics_form = pytest.mark.parametrize("form", ["moments", "factor", "diagonal"])
each_form = pytest.mark.parametrize("form", [batch_form, moments_form, factor_form, diagonal_form])
each_beta = pytest.mark.parametrize("beta", BETAS)


# --- values ---


@each_beta
def test_each_sample_against_the_dense_formula(beta):
    problem = make_problem()
    actual = linear_vae_elbo(problem.x, **problem.parameters, beta=beta)
    mu = problem.parameters.pop("mu")
    expected = [dense_elbo(torch.outer(r, r), **problem.parameters, beta=beta) for r in problem.x - mu]
    torch.testing.assert_close(actual, torch.stack(expected), rtol=1e-12, atol=0)


@each_form
@each_beta
@pytest.mark.parametrize("num_samples", [1, 3, 11])
def test_mean_against_the_dense_formula(form, beta, num_samples):
    problem = make_problem(num_samples)
    actual, _ = form(problem, beta)
    centred = problem.x - problem.parameters.pop("mu")
    expected = dense_elbo(centred.T @ centred / num_samples, **problem.parameters, beta=beta)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_against_monte_carlo(beta):
    problem = make_problem(num_samples=4)
    # a decoder so small, and so much noise, that the draws would show a missing constant
    problem.parameters["weight"] *= 0.2
    problem.parameters["log_sigma2"].fill_(1.0)
    weight, encoder, mu, log_d, log_sigma2 = problem.parameters.values()
    num_draws = 20_000
    posterior = Independent(Normal((problem.x - mu) @ encoder.T, (log_d / 2).exp()), 1)
    prior = Independent(Normal(torch.zeros_like(log_d), torch.ones_like(log_d)), 1)
    noise = torch.randn(num_draws, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = posterior.mean + noise * posterior.stddev
    likelihood = MultivariateNormal(z @ weight.T + mu, log_sigma2.exp() * torch.eye(5, dtype=torch.float64))
    draws = likelihood.log_prob(problem.x) + beta * (prior.log_prob(z) - posterior.log_prob(z))
    standard_error = draws.std(0) / math.sqrt(num_draws)
    actual = linear_vae_elbo(problem.x, **problem.parameters, beta=beta)
    assert ((actual - draws.mean(0)).abs() < 5 * standard_error).all()
    assert (5 * standard_error < 0.5 * math.log(2 * math.pi)).all()


def test_equals_the_log_marginal_likelihood_at_the_exact_posterior():
    # with orthogonal columns the posterior is diagonal, so that the bound is tight
    problem = make_problem()
    orthogonal, _ = torch.linalg.qr(problem.parameters["weight"])
    weight = orthogonal * torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    mu, log_sigma2 = problem.parameters["mu"], problem.parameters["log_sigma2"]
    sigma2 = log_sigma2.exp()
    posterior_precision = weight.square().sum(0) + sigma2
    actual = linear_vae_elbo(
        problem.x,
        weight,
        weight.T / posterior_precision[:, None],
        mu,
        (sigma2 / posterior_precision).log(),
        log_sigma2,
    )
    covariance = weight @ weight.T + sigma2 * torch.eye(5, dtype=torch.float64)
    expected = MultivariateNormal(mu, covariance).log_prob(problem.x)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


def test_vmap_over_beta():
    problem = make_problem()
    betas = torch.tensor(BETAS, dtype=torch.float64)
    actual = torch.func.vmap(lambda beta: linear_vae_elbo(problem.x, **problem.parameters, beta=beta))(betas)
    expected = [linear_vae_elbo(problem.x, **problem.parameters, beta=beta) for beta in BETAS]
    torch.testing.assert_close(actual, torch.stack(expected), rtol=1e-13, atol=0)


# --- gradients ---


@each_form
@each_beta
@pytest.mark.parametrize(
    ("num_samples", "num_features", "latent_dim"), [(11, 5, 3), (3, 7, 2), (6, 1, 1), (9, 3, 5)]
)
def test_gradients_against_the_printed_ones(form, beta, num_samples, num_features, latent_dim):
    problem = make_problem(num_samples, num_features, latent_dim)
    _, gradients = form(problem, beta)
    offset = problem.sample_mean - problem.parameters.pop("mu")
    second_moment = problem.covariance + torch.outer(offset, offset)
    expected = printed_gradients(second_moment, offset, **problem.parameters, beta=beta)
    for name in PARAMETERS:
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(gradients[name], expected[name], rtol=0, atol=1e-12 * scale)


def test_gradient_of_x():
    # -∂/∂x is ∂/∂μ of the same sample
    problem = make_problem()
    x = problem.x.clone().requires_grad_()
    linear_vae_elbo(x, **problem.parameters, beta=0.4).sum().backward()
    weight, encoder, mu, log_d, log_sigma2 = problem.parameters.values()
    for sample, gradient in zip(problem.x, x.grad, strict=True):
        r = sample - mu
        expected = printed_gradients(torch.outer(r, r), r, weight, encoder, log_d, log_sigma2, 0.4)["mu"]
        torch.testing.assert_close(gradient, -expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("form", [moments_form, factor_form, diagonal_form])
def test_vanish_at_the_stationary_encoder(form):
    problem = make_problem()
    weight, log_sigma2, beta = problem.parameters["weight"], problem.parameters["log_sigma2"], 0.4
    sigma2 = log_sigma2.exp()
    gram = weight.T @ weight
    ridge = gram + beta * sigma2 * torch.eye(3, dtype=torch.float64)
    problem.parameters["encoder"] = torch.linalg.solve(ridge, weight.T)
    problem.parameters["log_d"] = (beta * sigma2 / ridge.diagonal()).log()
    _, gradients = form(problem, beta)
    assert gradients["encoder"].abs().max() < 1e-12 * gradients["weight"].abs().max()
    assert gradients["log_d"].abs().max() < 1e-14


# --- num_features ---


@each_statistics_form
def test_num_features_restores_dropped_constant_features(form):
    kept, dropped = 4, 3
    problem = make_problem(num_features=kept)
    name, statistics = statistics_form(problem, form)
    elbo = getattr(ops, name)

    def with_zeros(tensor, *dims):
        """Append ``dropped`` zeros along each of ``dims``."""
        for dim in dims:
            shape = list(tensor.shape)
            shape[dim] = dropped
            tensor = torch.cat([tensor, torch.zeros(shape, dtype=tensor.dtype)], dim)
        return tensor

    full_statistics = (
        with_zeros(statistics[0], 0),
        with_zeros(statistics[1], *((0, 1) if form == "moments" else (0,))),
    )
    full_parameters = problem.parameters | {
        "weight": with_zeros(problem.parameters["weight"], 0),
        "encoder": with_zeros(problem.parameters["encoder"], 1),
        "mu": with_zeros(problem.parameters["mu"], 0),
    }
    value, gradients = with_gradients(
        lambda **parameters: elbo(*statistics, **parameters, num_features=kept + dropped), problem.parameters
    )
    expected, full_gradients = with_gradients(
        lambda **parameters: elbo(*full_statistics, **parameters), full_parameters
    )
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=0)
    kept_gradients = full_gradients | {
        "weight": full_gradients["weight"][:kept],
        "encoder": full_gradients["encoder"][:, :kept],
        "mu": full_gradients["mu"][:kept],
    }
    torch.testing.assert_close(gradients, kept_gradients, rtol=1e-12, atol=1e-12)
    assert not full_gradients["weight"][kept:].any()


# --- range ---

LOG_SIGMA2 = [-80.0, -20.0, 0.0, 20.0, 89.0, 200.0]
LOG_D = [-200.0, -89.0, -1.0, 89.0, 200.0]


def extreme_problem(log_sigma2, log_d):
    problem = make_problem(num_features=6, dtype=torch.float32)
    problem.parameters["log_sigma2"].fill_(log_sigma2)
    problem.parameters["log_d"].fill_(log_d)
    # a collapsed latent, so that what multiplies its zeros must not be infinite
    problem.parameters["weight"][:, 1] = 0
    return problem


def assert_infinite_where(actual, expected):
    assert not actual.isnan().any()
    assert torch.equal(actual.isinf(), expected.isinf())


def reference_in_float64(problem, elbo, *statistics):
    """Value and gradients of the float64 reference, in float32: infinite where out of its range."""
    value, gradients = with_gradients(
        lambda **parameters: elbo(*(tensor.double() for tensor in statistics), **parameters).mean(),
        {name: tensor.double() for name, tensor in problem.parameters.items()},
    )
    return value.float(), {name: gradient.float() for name, gradient in gradients.items()}


@pytest.mark.parametrize("log_d", LOG_D)
@pytest.mark.parametrize("log_sigma2", LOG_SIGMA2)
def test_batch_form_is_accurate_in_float32_at_extremes(log_sigma2, log_d):
    problem = extreme_problem(log_sigma2, log_d)
    value, gradients = batch_form(problem, 1.0)
    expected, expected_gradients = reference_in_float64(problem, reference.linear_vae_elbo, problem.x)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
    for name in PARAMETERS:
        finite = expected_gradients[name][expected_gradients[name].isfinite()]
        scale = finite.abs().max().item() if finite.numel() else 0.0
        torch.testing.assert_close(gradients[name], expected_gradients[name], rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("log_d", LOG_D)
@pytest.mark.parametrize("log_sigma2", LOG_SIGMA2)
@each_statistics_form
def test_statistics_forms_are_finite_in_float32_at_extremes(form, log_sigma2, log_d):
    problem = extreme_problem(log_sigma2, log_d)
    name, statistics = statistics_form(problem, form)
    value, gradients = with_gradients(
        lambda **parameters: getattr(ops, name)(*statistics, **parameters), problem.parameters
    )
    expected, expected_gradients = reference_in_float64(problem, getattr(reference, name), *statistics)
    assert_infinite_where(value, expected)
    for name in PARAMETERS:
        assert_infinite_where(gradients[name], expected_gradients[name])


@pytest.mark.parametrize("elbo", [linear_vae_elbo, reference.linear_vae_elbo])
def test_a_beta_of_zero_switches_off_an_infinite_kl(elbo):
    problem = make_problem()
    problem.parameters["encoder"].fill_(1e200)
    problem.parameters["weight"].zero_()
    parameters = {name: tensor.expand(2, *tensor.shape) for name, tensor in problem.parameters.items()}
    value = elbo(problem.x, **parameters, beta=torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert value[0].isfinite().all()
    assert (value[1] == -math.inf).all()


def test_not_a_number_stays_in_its_sample():
    problem = make_problem()
    problem.x[4, 2] = math.nan
    value = linear_vae_elbo(problem.x, **problem.parameters)
    assert value.isnan().nonzero().flatten().tolist() == [4]


@each_form
@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_that_is_not_a_number_shows(form, name):
    problem = make_problem()
    broken = problem.parameters[name]
    broken[(0,) * broken.ndim] = math.nan
    value, _ = form(problem, 1.0)
    assert value.isnan()


@pytest.mark.parametrize(("form", "name"), [(moments_form, "covariance"), (factor_form, "factor")])
def test_a_statistic_that_is_not_a_number_shows(form, name):
    for broken in (name, "sample_mean"):
        problem = make_problem()
        getattr(problem, broken)[0] = math.nan
        value, _ = form(problem, 1.0)
        assert value.isnan()


# --- memory ---


def largest_allocation(function):
    """Bytes of the largest tensor that torch allocates in ``function()``, from C++ included."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU],
        profile_memory=True,
        acc_events=True,  # without which torch 2.10 warns
    ) as profile:
        function()
    return max(event.self_cpu_memory_usage for event in profile.events())


def test_has_no_intermediate_of_features_by_features():
    problem = make_problem(num_samples=8, num_features=64, latent_dim=3)
    inputs = {"x": problem.x, **problem.parameters}
    square = 64 * 64 * problem.x.itemsize
    assert largest_allocation(lambda: with_gradients(lambda **i: linear_vae_elbo(**i).sum(), inputs)) < square
    # the measurement sees one where there is one
    assert (
        largest_allocation(
            lambda: linear_vae_elbo_from_moments(problem.x[0], problem.x.T @ problem.x, **problem.parameters)
        )
        >= square
    )
