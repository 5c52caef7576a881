import json
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar

from lineavae.data import load_mnist5k
from lineavae.linear import PPCA, LinearVAE, Moments, forecast_collapse
from lineavae.ops import gaussian_kl_per_dimension

NUM_SAMPLES, NUM_FEATURES = 80, 8


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0.7, -0.7, NUM_FEATURES, dtype=torch.float64)
    return 1 + scale * torch.randn(NUM_SAMPLES, NUM_FEATURES, dtype=torch.float64, generator=generator)


def spectrum(x):
    """Eigenvalues of the biased covariance, the largest first, by NumPy."""
    return np.linalg.eigvalsh(np.cov(np.asarray(x), rowvar=False, bias=True))[::-1]


def best_model(x, latent_dim, sigma2, beta=1.0):
    """The linear VAE at the maximum of its β-ELBO: PCA of the covariance, shrunk by βσ²."""
    ppca = PPCA(n_components=latent_dim, noise_variance=beta * sigma2).fit(x)
    model = LinearVAE(x.shape[1], latent_dim, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(ppca.weight_)
        model.mu.copy_(ppca.mean_)
        model.log_sigma2.fill_(math.log(sigma2))
    return model.optimal_encoder_(beta)


def gradient_norm(model, data, beta=1.0, names=("weight", "encoder", "mu", "log_d")):
    model.zero_grad()
    model.elbo(data, beta).mean().backward()
    return math.sqrt(sum(model.get_parameter(name).grad.square().sum().item() for name in names))


def lbfgs(parameters):
    return torch.optim.LBFGS(
        parameters, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-15
    )


@pytest.mark.parametrize("beta", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("sigma2", [0.01, 0.3, 3.0, 100.0])
def test_forecast_is_the_best_model(x, sigma2, beta):
    model = best_model(x, 5, sigma2, beta)
    assert gradient_norm(model, x, beta) < 1e-10
    forecast = forecast_collapse(x, 5, sigma2=sigma2, beta=beta)
    kl = gaussian_kl_per_dimension(*model.encode(x)).mean(0)
    np.testing.assert_allclose(forecast.kl, kl.detach(), rtol=1e-10, atol=1e-13)
    assert forecast.num_active == int((model.weight.square().sum(0) > 0).sum())
    assert forecast.num_active + forecast.num_collapsed == forecast.latent_dim == 5
    assert forecast.elbo == pytest.approx(model.elbo(x).mean().item(), rel=1e-12)
    best = PPCA(n_components=5).fit(x)
    assert forecast.elbo_cost == pytest.approx(best.score(x) - forecast.elbo, rel=1e-10)
    assert (forecast.num_samples, forecast.num_features) == (NUM_SAMPLES, NUM_FEATURES)
    np.testing.assert_allclose(forecast.eigenvalues, spectrum(x)[:5], rtol=1e-12)


@pytest.mark.parametrize(("sigma2", "beta"), [(1.0, 1.0), (4.0, 1.0), (0.5, 8.0)])
def test_forecast_is_what_training_finds(x, sigma2, beta):
    model = LinearVAE(NUM_FEATURES, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.nn.init.constant_(model.log_sigma2, math.log(sigma2))
    model.fit(x, optimizer=lbfgs, steps=60, beta=beta, learn_sigma2=False, progress=False)
    assert gradient_norm(model, x, beta) < 1e-5
    forecast = forecast_collapse(x, 5, sigma2=sigma2, beta=beta)
    assert 0 < forecast.num_active < 5
    kl = gaussian_kl_per_dimension(*model.encode(x)).mean(0).detach().sort(descending=True).values
    np.testing.assert_allclose(kl, forecast.kl, rtol=0, atol=1e-6)
    assert model.elbo(x).mean().item() == pytest.approx(forecast.elbo, abs=1e-6)


@pytest.mark.parametrize(("latent_dim", "beta"), [(5, 1.0), (5, 3.0), (4, 0.5), (8, 2.0), (12, 3.0)])
def test_learned_noise_is_what_training_finds(x, latent_dim, beta):
    model = LinearVAE(
        NUM_FEATURES, latent_dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    model.fit(x, optimizer=lbfgs, steps=150, beta=beta, progress=False)
    forecast = forecast_collapse(x, latent_dim, beta=beta)
    assert forecast.is_learned
    assert forecast.sigma2 == forecast.learned_sigma2
    assert forecast.sigma2 == pytest.approx(model.log_sigma2.exp().item(), rel=1e-3)
    assert forecast.elbo == pytest.approx(model.elbo(x).mean().item(), abs=1e-5)


@pytest.mark.parametrize("beta", [0.3, 1.0, 1.7, 6.0, 50.0])
@pytest.mark.parametrize("latent_dim", [1, 4, 7])
def test_learned_noise_is_the_best_noise(x, latent_dim, beta):
    def loss(log_sigma2):
        sigma2 = math.exp(log_sigma2)
        return -best_model(x, latent_dim, sigma2, beta).elbo(x, beta).mean().item()

    grid = min(np.linspace(-8, 4, 100), key=loss)
    found = minimize_scalar(loss, bounds=(grid - 0.2, grid + 0.2), method="bounded", options={"xatol": 1e-8})
    forecast = forecast_collapse(x, latent_dim, beta=beta)
    assert math.log(forecast.sigma2) == pytest.approx(found.x, abs=1e-6)
    assert forecast_collapse(x, latent_dim, sigma2=1.0, beta=beta).learned_sigma2 == forecast.sigma2
    if beta == 1:
        assert forecast.sigma2 == pytest.approx(
            PPCA(n_components=latent_dim).fit(x).noise_variance_, rel=1e-12
        )
        assert forecast.elbo_cost == pytest.approx(0, abs=1e-12)
        assert forecast.num_collapsed == 0


def test_noise_to_keep_latents(x):
    forecast = forecast_collapse(x, 5, sigma2=1.0, beta=2.0)
    for kept in range(1, 6):
        edge = forecast.sigma2_to_keep(kept)
        assert forecast_collapse(x, 5, sigma2=edge * (1 - 1e-9), beta=2.0).num_active == kept
        assert forecast_collapse(x, 5, sigma2=edge * (1 + 1e-9), beta=2.0).num_active == kept - 1


def test_data_may_be_moments_or_arrays(x):
    expected = forecast_collapse(x, 3, sigma2=0.5).to_dict()
    assert forecast_collapse(Moments.from_data(x), 3, sigma2=0.5).to_dict() == expected
    assert forecast_collapse(x.numpy(), 3, sigma2=0.5).to_dict() == expected


def test_more_latents_than_directions(x):
    few = x[:4]  # of rank 3
    forecast = forecast_collapse(few, 6, sigma2=1e-6)
    assert (forecast.num_active, forecast.num_collapsed) == (3, 3)
    assert forecast.learned_sigma2 == 0
    assert forecast.elbo_cost == math.inf
    assert forecast.elbo == pytest.approx(best_model(few, 3, 1e-6).elbo(few).mean().item(), rel=1e-9)
    assert forecast.warnings == [
        "the data vary along 3 directions only: 3 of 6 latents collapse whatever σ² is",
        "a learned σ² falls to 0, and the likelihood has no bound: use fewer latents",
    ]
    assert json.loads(json.dumps(forecast.to_dict(), allow_nan=False))["elbo_cost"] is None
    assert "below the largest" not in str(forecast)
    with pytest.raises(ValueError, match=r"sigma2 must be given where .* rank of the covariance, 3: .* 6"):
        forecast_collapse(few, 6)


def test_dependent_features(x):
    """Of which a covariance has eigenvalues at the level of rounding."""
    dependent = torch.cat([x, x @ torch.ones(NUM_FEATURES, 2, dtype=x.dtype)], 1)
    forecast = forecast_collapse(dependent, 10, sigma2=1e-30)
    assert forecast.num_active == NUM_FEATURES
    assert forecast.learned_sigma2 == 0
    assert forecast.eigenvalues[NUM_FEATURES:].tolist() == [0, 0]


def test_constant_data():
    constant = np.full((5, 3), 7.0)
    forecast = forecast_collapse(constant, 2, sigma2=2.0)
    assert forecast.num_active == 0
    assert forecast.elbo == pytest.approx(-1.5 * math.log(4 * math.pi), rel=1e-14)
    assert forecast_collapse(constant[:1], 2, sigma2=2.0).elbo == forecast.elbo
    assert "converges to 0" in str(forecast)


def test_warnings(x):
    assert forecast_collapse(x, 5).warnings == []
    edge = spectrum(x)[4]
    assert forecast_collapse(x, 5, sigma2=1.1 * edge).warnings == [
        f"σ² = {1.1 * edge:.4g} will collapse 1 of 5 latents; 5 live below σ² = {edge:.4g}"
    ]
    assert forecast_collapse(x, 5, sigma2=0.99 * edge, beta=1.0).warnings == [
        "1 live latents have a mean KL below 0.01 nats: slow to train, and collapsed by most measures"
    ]
    (warning,) = forecast_collapse(x, 5, sigma2=0.55 * edge, beta=2.0).warnings
    assert warning.startswith(f"σ² = {0.55 * edge:.4g} with β = 2 will collapse 1 of 5 latents")


def test_mnist_at_unit_noise():
    """The mistake of many implementations: σ² = 1 on pixels between 0 and 1."""
    forecast = forecast_collapse(load_mnist5k().to_tensor(torch.float64), 200, sigma2=1.0)
    expected = int((spectrum(load_mnist5k().to_tensor(torch.float64)) > 1).sum())
    assert forecast.num_active == expected
    lines = str(forecast).splitlines()
    assert lines[-1].startswith(f"warning: σ² = 1 will collapse {200 - expected} of 200 latents")
    rows = [line.split() for line in lines]
    assert rows[0] == ["data", "5000", "samples,", "784", "features"]
    assert rows[3] == ["live", str(expected), "of", "200", "latents,", str(200 - expected), "collapse"]
    assert rows[6][:4] == ["learned", "σ²", "converges", "to"]
    assert rows[-2] == ["200:", "σ²", "<", f"{forecast.sigma2_to_keep(200):.4g}"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"latent_dim": 0}, ValueError, "latent_dim must be at least 1, got 0"),
        ({"latent_dim": 2.0}, TypeError, "latent_dim must be an int, got float"),
        ({"sigma2": 0.0}, ValueError, "sigma2 must be finite and > 0, got 0.0"),
        ({"sigma2": math.nan}, ValueError, "sigma2 must be finite and > 0, got nan"),
        ({"sigma2": "1"}, TypeError, "sigma2 must be a number, got str"),
        ({"beta": 0}, ValueError, "beta must be finite and > 0, got 0"),
        ({"beta": math.inf}, ValueError, "beta must be finite and > 0, got inf"),
        ({"data": [[1.0]]}, TypeError, "data must be a NumPy array or a torch.Tensor, got list"),
        ({"data": np.full((2, 2), np.nan)}, ValueError, "data must be finite"),
    ],
)
def test_wrong_arguments(x, arguments, error, message):
    arguments = {"data": x, "latent_dim": 2, "sigma2": 1.0, **arguments}
    with pytest.raises(error, match=message):
        forecast_collapse(arguments.pop("data"), arguments.pop("latent_dim"), **arguments)


@pytest.mark.parametrize("number", [0, 4])
def test_wrong_number_to_keep(x, number):
    with pytest.raises(ValueError, match="num_latents must be at"):
        forecast_collapse(x, 3).sigma2_to_keep(number)


def train(moments, latent_dim, sigma2, tolerance):
    """A linear VAE trained at a fixed σ² from random parameters until the norm of its gradient is small.

    L-BFGS on W, then, where the rounding of the loss ends its line searches, expectation maximisation. Each
    evaluation is of the model after `canonicalize_`, whose ELBO is the likelihood: along rotations the ELBO
    is too flat for any optimizer. The coordinates are the principal ones, in which the data are a diagonal
    factor, scaled to unit variance, which only speeds it up.
    """
    eigenvalues, directions = moments.eigh()
    varying = eigenvalues > 1e-12 * eigenvalues[0]
    variances, directions = eigenvalues[varying].numpy(), directions[:, varying]
    factor, scale = np.diag(np.sqrt(variances)), np.sqrt(np.maximum(variances, sigma2))[:, None]
    shape = (len(variances), latent_dim)

    def evaluate(weight):
        inner = weight.T @ weight + sigma2 * np.eye(latent_dim)
        encoder = np.linalg.solve(inner, weight.T)
        mean = encoder @ factor
        distance = np.square(factor - weight @ mean).sum() / sigma2 + np.square(mean).sum()
        loss = 0.5 * (distance + np.linalg.slogdet(inner)[1])
        cross, second_moment = factor @ mean.T, sigma2 * np.linalg.inv(inner) + mean @ mean.T
        gradient = (weight @ second_moment - cross) / sigma2
        return loss, gradient, np.linalg.solve(second_moment, cross.T).T

    def scaled_loss(scaled):
        loss, gradient, _ = evaluate(scaled.reshape(shape) * scale)
        return loss, (gradient * scale).ravel()

    limit = math.sqrt(6 / sum(shape))
    start = np.random.default_rng(0).uniform(-limit, limit, shape) / scale
    steps = 500 if latent_dim > 50 else 20_000  # what is left is for the steps of EM below
    options = {"maxcor": 50, "ftol": 0, "gtol": 1e-7, "maxiter": steps, "maxfun": steps}
    result = minimize(scaled_loss, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    weight = result.x.reshape(shape) * scale
    for _ in range(5000):
        _, gradient, updated = evaluate(weight)
        if np.linalg.norm(gradient) < tolerance:
            break
        weight = updated
    model = LinearVAE(moments.num_features, latent_dim, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(directions @ torch.from_numpy(weight))
        model.mu.copy_(moments.sample_mean)
        model.log_sigma2.fill_(math.log(sigma2))
    return model.canonicalize_()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sigma2", "latent_dim"),
    [(1e-3, 50), (1e-2, 50), (0.1, 50), (1.0, 50), (10.0, 50), (0.1, 500), (1.0, 500), (10.0, 500)],
)
def test_forecast_on_mnist_against_trained_models(latent_dim, sigma2):
    x = load_mnist5k().to_tensor(torch.float64)
    moments = Moments.from_data(x)
    model = train(moments, latent_dim, sigma2, tolerance=9e-7)
    assert gradient_norm(model, moments) < 1e-6
    forecast = forecast_collapse(moments, latent_dim, sigma2=sigma2)
    eigenvalues = spectrum(x)
    assert forecast.num_active == min(latent_dim, int((eigenvalues > sigma2).sum()))
    kl = gaussian_kl_per_dimension(*model.encode(x)).mean(0).detach().numpy()
    at_the_edge = int((abs(eigenvalues / sigma2 - 1) < 0.02).sum())
    assert abs(int((kl > 0.01).sum()) - forecast.num_active) <= at_the_edge
    ritz = model.principal_components(moments)[0].numpy()
    assert abs(int((0.5 * np.log(ritz / sigma2) > 0.01).sum()) - forecast.num_active) <= at_the_edge
    assert model.elbo(moments).item() == pytest.approx(forecast.elbo, rel=1e-8)
    assert kl.sum() == pytest.approx(forecast.kl.sum(), rel=1e-3, abs=1e-3)
