import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.exceptions import NotFittedError

from lineavae.linear import PPCA, LinearVAE, Moments

NUM_SAMPLES, NUM_FEATURES, LATENT_DIM = 40, 7, 3
PARAMETERS = ("weight", "encoder", "mu", "log_d", "log_sigma2")


@pytest.fixture
def x(generator):
    scale = torch.linspace(3, 0.5, NUM_FEATURES, dtype=torch.float64)
    return 1 + scale * torch.randn(NUM_SAMPLES, NUM_FEATURES, dtype=torch.float64, generator=generator)


@pytest.fixture
def vae(generator):
    model = LinearVAE(NUM_FEATURES, LATENT_DIM, generator=generator, dtype=torch.float64)
    torch.nn.init.constant_(model.log_sigma2, -0.7)
    return model


def dense(model, x):
    """Every quantity of the model from D x D matrices and torch.distributions, in float64."""
    weight, encoder, mu, log_d, log_sigma2 = (getattr(model, name).detach().double() for name in PARAMETERS)
    sigma2, identity = log_sigma2.exp(), torch.eye(len(mu), dtype=torch.float64)
    posterior = torch.distributions.Normal((x - mu) @ encoder.T, log_d.exp().sqrt().expand(len(x), -1))
    prior = torch.distributions.Normal(torch.zeros_like(log_d), torch.ones_like(log_d))
    residual = (x - mu) @ (identity - weight @ encoder).T
    distortion = residual.square().sum(1) + torch.trace(weight @ torch.diag(log_d.exp()) @ weight.T)
    reconstruction = -distortion / (2 * sigma2) - 0.5 * len(mu) * math.log(2 * math.pi * sigma2)
    marginal = torch.distributions.MultivariateNormal(mu, weight @ weight.T + sigma2 * identity)
    return {
        "kl": torch.distributions.kl_divergence(posterior, prior).sum(1),
        "distortion": distortion,
        "reconstruction": reconstruction,
        "log_likelihood": marginal.log_prob(x),
    }


def largest_eigenpairs(x, count):
    values, vectors = np.linalg.eigh(np.cov(x.numpy(), rowvar=False, bias=True))
    return torch.tensor(values[::-1][:count].copy()), torch.tensor(vectors[:, ::-1][:, :count].copy())


def test_initialisation_is_that_of_the_released_code():
    model = LinearVAE(400, 100, generator=torch.Generator().manual_seed(0))
    limits = {
        "weight": (6 / 500) ** 0.5,
        "encoder": (6 / 500) ** 0.5,
        "mu": (3 / 400) ** 0.5,
        "log_d": 0.03**0.5,
    }
    for name, limit in limits.items():
        largest = model.get_parameter(name).abs().max().item()
        assert 0.9 * limit < largest <= limit, name
    assert model.log_sigma2.item() == 0
    assert (model.num_features, model.latent_dim) == (400, 100)
    again = LinearVAE(400, 100, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_elbo_against_dense_formulas(vae, x, beta):
    expected = dense(vae, x)
    expected = expected["reconstruction"] - beta * expected["kl"]
    torch.testing.assert_close(vae.elbo(x, beta), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(vae(x, beta), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(vae.elbo(Moments.from_data(x), beta), expected.mean(), rtol=1e-12, atol=0)


def test_elbo_of_few_samples_goes_through_their_factor(vae, x):
    moments = Moments.from_data(x[:3])
    assert moments.factor is not None
    expected = dense(vae, x[:3])
    expected = (expected["reconstruction"] - expected["kl"]).mean()
    torch.testing.assert_close(vae.elbo(moments), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(vae.float().elbo(moments), expected, rtol=1e-5, atol=0)


def test_an_elbo_of_moments_that_does_not_fit_is_minus_infinity(vae, x):
    with torch.no_grad():
        vae.log_d.fill_(720)  # exp(710) does not fit float64
    assert vae.elbo(Moments.from_data(x)).item() == vae.elbo(x.double()).mean().item() == -math.inf


def test_elbo_of_moments_follows_the_module_and_the_data(vae, x):
    moments = Moments.from_data(x)
    before = vae.elbo(moments)
    assert vae.float().elbo(moments).dtype == torch.float64
    moments.update(x + 1)
    both = dense(vae, torch.cat([x, x + 1]))
    expected = (both["reconstruction"] - both["kl"]).mean()
    torch.testing.assert_close(vae.double().elbo(moments), expected, rtol=1e-6, atol=0)
    assert abs(expected - before) > 0.1


def test_encode_and_decode(vae, x):
    mean, logvar = vae.encode(x)
    torch.testing.assert_close(mean[5], vae.encoder @ (x[5] - vae.mu), rtol=1e-12, atol=1e-12)
    assert torch.equal(logvar, vae.log_d.expand(NUM_SAMPLES, -1))
    torch.testing.assert_close(vae.decode(mean)[5], vae.weight @ mean[5] + vae.mu, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_stochastic_elbo_is_unbiased(vae, x, generator, beta):
    torch.nn.init.constant_(vae.mu, 2.0)  # an estimator that forgets μ is far off
    draws = torch.cat([vae.stochastic_elbo(x[:5], 500, generator, beta).detach()[None] for _ in range(200)])
    error = draws.std(0) / len(draws) ** 0.5
    deviation = (draws.mean(0) - vae.elbo(x[:5], beta).detach()).abs()
    assert error.max() < 0.2
    assert (deviation < 5 * error).all()


def test_sizes_may_be_numbers_of_numpy(vae, x):
    draws = [vae.stochastic_elbo(x, number, torch.Generator().manual_seed(3)) for number in (2, np.int64(2))]
    assert torch.equal(*draws)
    assert LinearVAE(np.int64(7), np.int32(3)).weight.shape == vae.weight.shape


def test_stochastic_elbo_of_one_draw_by_hand(vae, x):
    estimate = vae.stochastic_elbo(x, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(1, NUM_SAMPLES, LATENT_DIM, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    mean = (x - vae.mu) @ vae.encoder.T
    z = mean + noise[0] * vae.log_d.exp().sqrt()
    observed = torch.distributions.Normal(z @ vae.weight.T + vae.mu, vae.log_sigma2.exp().sqrt())
    kl = 0.5 * (mean.square() + vae.log_d.exp() - vae.log_d - 1).sum(1)
    expected = observed.log_prob(x).sum(1) - kl
    torch.testing.assert_close(estimate, expected, rtol=1e-12, atol=0)
    parameters = list(vae.parameters())
    gradients = torch.autograd.grad(estimate.mean(), parameters)
    for gradient, truth in zip(gradients, torch.autograd.grad(expected.mean(), parameters), strict=True):
        torch.testing.assert_close(gradient, truth, rtol=1e-10, atol=1e-12)


def test_log_marginal_likelihood_against_the_dense_gaussian(vae, x):
    expected = dense(vae, x)["log_likelihood"]
    torch.testing.assert_close(vae.log_marginal_likelihood(x), expected, rtol=1e-12, atol=0)
    average = vae.log_marginal_likelihood(Moments.from_data(x))
    torch.testing.assert_close(average, expected.mean(), rtol=1e-12, atol=0)


def test_log_marginal_likelihood_of_float32_is_float64(vae, x):
    vae.float()
    exact = vae.log_marginal_likelihood(x.float())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact, dense(vae, x.float().double())["log_likelihood"], rtol=1e-12, atol=0)


def test_log_marginal_likelihood_of_more_latents_than_features(x, generator):
    wide = LinearVAE(NUM_FEATURES, 12, generator=generator, dtype=torch.float64)
    expected = dense(wide, x)["log_likelihood"]
    torch.testing.assert_close(wide.log_marginal_likelihood(x), expected, rtol=1e-11, atol=0)


def test_log_marginal_likelihood_at_small_noise(vae, x):
    # in the range of the decoder log p tends to that of z, shrunk by the volume that W spans
    torch.nn.init.constant_(vae.log_sigma2, -30.0)
    z = torch.tensor([[0.3, -1.0, 0.5]], dtype=torch.float64)
    with torch.no_grad():
        point = vae.decode(z)
        gram = (vae.weight.T @ vae.weight).double()
        log_det = torch.logdet(gram) - 30.0 * (NUM_FEATURES - LATENT_DIM)
        expected = -0.5 * (NUM_FEATURES * math.log(2 * math.pi) + log_det + z.square().sum())
        torch.testing.assert_close(vae.log_marginal_likelihood(point)[0], expected, rtol=1e-9, atol=0)


def test_gradient_of_log_marginal_likelihood(vae, x):
    parameters = [vae.weight, vae.mu, vae.log_sigma2]
    covariance = vae.weight @ vae.weight.T + vae.log_sigma2.exp() * torch.eye(
        NUM_FEATURES, dtype=torch.float64
    )
    truth = torch.distributions.MultivariateNormal(vae.mu, covariance).log_prob(x).mean()
    expected = torch.autograd.grad(truth, parameters)
    for gradient, value in zip(
        torch.autograd.grad(vae.log_marginal_likelihood(x).mean(), parameters), expected, strict=True
    ):
        torch.testing.assert_close(gradient, value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_optimal_encoder_is_stationary_whatever_the_data(vae, x, beta):
    assert vae.optimal_encoder_(beta) is vae
    for data in (x, 5 * x.flip(1)):
        gradients = torch.autograd.grad(vae.elbo(data, beta).mean(), [vae.encoder, vae.log_d])
        assert all(gradient.abs().max() < 1e-12 * data.square().sum() for gradient in gradients)


def test_gap_at_the_optimal_encoder(vae, x):
    vae.optimal_encoder_()
    with torch.no_grad():
        matrix = vae.weight.T @ vae.weight + vae.log_sigma2.exp() * torch.eye(LATENT_DIM, dtype=torch.float64)
        gap = 0.5 * (matrix.diagonal().log().sum() - torch.logdet(matrix))
        assert gap > 1e-3
        difference = dense(vae, x)["log_likelihood"] - vae.elbo(x)
    torch.testing.assert_close(difference, gap.expand(NUM_SAMPLES), rtol=1e-10, atol=0)


def test_optimal_noise_is_the_mean_squared_error(vae, x):
    expected = dense(vae, x)["distortion"].mean() / NUM_FEATURES
    assert vae.optimal_noise_(x) is vae
    torch.testing.assert_close(vae.log_sigma2.exp().detach(), expected, rtol=1e-12, atol=0)
    torch.nn.init.zeros_(vae.log_sigma2)
    vae.optimal_noise_(Moments.from_data(x))
    torch.testing.assert_close(vae.log_sigma2.exp().detach(), expected, rtol=1e-12, atol=0)
    gradient = torch.autograd.grad(vae.elbo(x, 0.3).mean(), vae.log_sigma2)[0]
    assert abs(gradient) < 1e-12


def test_optimal_noise_needs_an_error(x):
    model = LinearVAE(NUM_FEATURES, 1, dtype=torch.float64)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.ones_(model.mu)
    with pytest.raises(ValueError, match=r"optimal_noise_: .* squared error.* got 0\.0"):
        model.optimal_noise_(torch.ones(4, NUM_FEATURES))


@pytest.mark.parametrize("latent_dim", [LATENT_DIM, NUM_FEATURES + 2])
def test_canonicalize_closes_the_gap_and_keeps_the_likelihood(x, generator, latent_dim):
    model = LinearVAE(NUM_FEATURES, latent_dim, generator=generator, dtype=torch.float64)
    expected = dense(model, x)["log_likelihood"]
    assert (model.elbo(x).mean() < expected.mean() - 0.1).item()
    assert model.canonicalize_() is model
    torch.testing.assert_close(model.log_marginal_likelihood(x), expected, rtol=1e-11, atol=0)
    torch.testing.assert_close(model.elbo(x), expected, rtol=1e-11, atol=0)
    norms = model.weight.norm(dim=0)
    assert (norms[:-1] >= norms[1:] - 1e-12).all()
    assert (model.weight.gather(0, model.weight.abs().argmax(0, keepdim=True)) >= 0).all()


def test_canonicalize_of_float32_rounds_once(vae, x):
    expected = dense(vae.float(), x)["log_likelihood"]
    vae.canonicalize_()
    assert vae.weight.dtype == torch.float32
    torch.testing.assert_close(vae.elbo(x.float()).double(), expected, rtol=1e-5, atol=0)


def test_principal_components_of_a_rotated_optimum(x, generator):
    eigenvalues, eigenvectors = largest_eigenpairs(x, LATENT_DIM)
    model = LinearVAE(NUM_FEATURES, LATENT_DIM, dtype=torch.float64)
    mixing = torch.randn(LATENT_DIM, LATENT_DIM, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        model.weight.copy_(eigenvectors @ mixing)
    found, directions = model.principal_components(Moments.from_data(x))
    torch.testing.assert_close(found, eigenvalues, rtol=1e-10, atol=0)
    torch.testing.assert_close((directions * eigenvectors).sum(0).abs(), torch.ones(3).double())
    assert (directions.gather(0, directions.abs().argmax(0, keepdim=True)) > 0).all()


def test_principal_components_are_those_of_the_data_projected_on_the_span(vae, x):
    basis, _ = torch.linalg.qr(vae.weight.detach())
    projected = np.cov((x @ basis @ basis.T).numpy(), rowvar=False, bias=True)
    expected = torch.tensor(np.linalg.eigvalsh(projected)[::-1][:LATENT_DIM].copy())
    found, directions = vae.principal_components(Moments.from_data(x))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    identity = torch.eye(LATENT_DIM, dtype=torch.float64)
    torch.testing.assert_close(directions.T @ directions, identity, rtol=0, atol=1e-12)
    torch.testing.assert_close(basis @ basis.T @ directions, directions, rtol=0, atol=1e-12)


def test_principal_components_leave_out_collapsed_columns(vae, x):
    with torch.no_grad():
        vae.weight[:, 1] = 0
    found, directions = vae.principal_components(Moments.from_data(x))
    assert found.shape == (2,)
    assert directions.shape == (NUM_FEATURES, 2)
    span = torch.linalg.matrix_rank(torch.cat([vae.weight.detach(), directions], dim=1))
    assert span == 2


def test_from_ppca_is_the_global_optimum(x):
    ppca = PPCA(n_components=LATENT_DIM).fit(x.numpy())
    model = LinearVAE.from_ppca(ppca)
    optimum = float(np.mean(ppca.score_samples(x.numpy())))
    assert model.weight.dtype == torch.float64
    assert model.elbo(x).mean().item() == pytest.approx(optimum, abs=1e-12)
    gradients = torch.autograd.grad(model.elbo(x).mean(), list(model.parameters()))
    assert all(gradient.abs().max() < 1e-11 for gradient in gradients)
    torch.testing.assert_close(dense(model, x)["log_likelihood"].mean().item(), optimum, rtol=1e-12, atol=0)


def test_from_ppca_draws_no_random_numbers(x):
    ppca = PPCA(n_components=LATENT_DIM).fit(x)
    state = torch.get_rng_state()
    assert LinearVAE.from_ppca(ppca, dtype=torch.float32).weight.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), state)


def test_from_ppca_needs_a_fitted_one_with_noise(x):
    with pytest.raises(NotFittedError):
        LinearVAE.from_ppca(PPCA())
    ppca = PPCA(n_components=2).fit(x)
    ppca.noise_variance_ = 0.0
    with pytest.raises(ValueError, match="noise_variance_ must be positive, got 0"):
        LinearVAE.from_ppca(ppca)


@pytest.mark.parametrize("latent_dim", [LATENT_DIM, NUM_FEATURES + 2])
def test_to_ppca_has_the_same_density(x, generator, latent_dim):
    model = LinearVAE(NUM_FEATURES, latent_dim, generator=generator, dtype=torch.float64)
    ppca = model.to_ppca()
    expected = dense(model, x)["log_likelihood"].numpy()
    np.testing.assert_allclose(ppca.score_samples(x.numpy()), expected, rtol=1e-11)
    directions = ppca.components_
    np.testing.assert_allclose(directions @ directions.T, np.eye(len(directions)), atol=1e-12)
    along = np.diag(directions @ ppca.get_covariance() @ directions.T)
    np.testing.assert_allclose(ppca.explained_variance_, along, rtol=1e-12)
    torch.nn.init.zeros_(model.mu)
    assert ppca.mean_.any()  # a copy


def test_ppca_round_trip(x):
    ppca = PPCA(n_components=LATENT_DIM).fit(x.numpy())
    again = LinearVAE.from_ppca(ppca).to_ppca()
    for name in (
        "mean_",
        "weight_",
        "components_",
        "explained_variance_",
        "noise_variance_",
        "n_components_",
    ):
        np.testing.assert_allclose(getattr(again, name), getattr(ppca, name), rtol=1e-10, atol=1e-12)


def test_samples_are_the_decoder_of_draws_of_the_prior(vae):
    means = vae.sample(20_000, generator=torch.Generator().manual_seed(0))
    z = torch.randn(20_000, LATENT_DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(means, z @ vae.weight.detach().mT + vae.mu.detach())
    assert vae.sample(0).shape == (0, NUM_FEATURES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_save_and_load(tmp_path, generator, dtype):
    model = LinearVAE(NUM_FEATURES, LATENT_DIM, generator=generator, dtype=dtype)
    model.save(tmp_path / "model.safetensors")
    loaded = LinearVAE.load(tmp_path / "model.safetensors")
    for name in PARAMETERS:
        assert loaded.get_parameter(name).dtype == dtype
        assert torch.equal(loaded.get_parameter(name), model.get_parameter(name))
        assert loaded.get_parameter(name).requires_grad


def test_a_subclass_reads_and_writes_the_same_files(tmp_path, vae):
    class Renamed(LinearVAE):
        pass

    vae.save(tmp_path / "model")
    Renamed.load(tmp_path / "model").save(tmp_path / "again")
    loaded = LinearVAE.load(tmp_path / "again")
    assert torch.equal(loaded.weight, vae.weight)


def spoil(name, tensor):
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("mu"), "must hold the tensors of a LinearVAE"),
        (spoil("weight", torch.zeros(())), "must hold the tensors of a LinearVAE"),
        (spoil("encoder", torch.zeros(NUM_FEATURES, LATENT_DIM)), "must hold the tensors of a LinearVAE"),
        (
            spoil("mu", torch.zeros(NUM_FEATURES, dtype=torch.float64)),
            "one floating dtype, got torch.float64 for mu",
        ),
        (spoil("log_d", torch.full((LATENT_DIM,), math.nan)), "log_d must be finite"),
    ],
)
def test_load_refuses_what_is_no_linear_vae(tmp_path, change, message):
    tensors = dict(LinearVAE(NUM_FEATURES, LATENT_DIM).state_dict())
    change(tensors)
    save_file(tensors, tmp_path / "model", {"format": "lineavae.LinearVAE", "schema": "1"})
    with pytest.raises(ValueError, match=message):
        LinearVAE.load(tmp_path / "model")


def test_load_refuses_other_files(tmp_path, x):
    with pytest.raises(FileNotFoundError):
        LinearVAE.load(tmp_path / "none")
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        LinearVAE.load(tmp_path)
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(ValueError, match="not a safetensors file"):
        LinearVAE.load(tmp_path / "text")
    Moments.from_data(x).save(tmp_path / "moments")
    with pytest.raises(ValueError, match=r"must be a file of lineavae\.LinearVAE, schema 1"):
        LinearVAE.load(tmp_path / "moments")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda vae: LinearVAE(0, 1), ValueError, "num_features must be at least 1, got 0"),
        (lambda vae: LinearVAE(True, 1), TypeError, "num_features must be an int, got bool"),
        (lambda vae: LinearVAE(2, 1.0), TypeError, "latent_dim must be an int, got float"),
        (
            lambda vae: vae.encode(torch.zeros(3, 6)),
            ValueError,
            r"encode: x must have shape \(N, D\) with D=7",
        ),
        (lambda vae: vae.encode(np.zeros((3, 7))), TypeError, "encode: x must be a torch.Tensor"),
        (
            lambda vae: vae.stochastic_elbo(torch.zeros(7)),
            ValueError,
            r"stochastic_elbo: x must .* got \(7,\)",
        ),
        (lambda vae: vae.stochastic_elbo(torch.zeros(1, 7), 0), ValueError, "num_draws must be .* got 0"),
        (lambda vae: vae.stochastic_elbo(torch.zeros(1, 7), 1.5), TypeError, "num_draws must be an int"),
        *(
            (call, TypeError, rf"LinearVAE\.{name}: data must be a torch\.Tensor or Moments, got ndarray")
            for name, call in {
                "elbo": lambda vae: vae.elbo(np.zeros((3, 7))),
                "log_marginal_likelihood": lambda vae: vae.log_marginal_likelihood(np.zeros((3, 7))),
            }.items()
        ),
        (lambda vae: vae.optimal_encoder_(0.0), ValueError, "beta must be finite and > 0, got 0.0"),
        (
            lambda vae: vae.optimal_noise_(torch.randn(4, 6)),
            ValueError,
            "must have the 7 features of the model, got 6",
        ),
        (
            lambda vae: vae.principal_components(Moments.from_data(torch.randn(4, 6))),
            ValueError,
            "must have the 7 features of the model, got 6",
        ),
    ],
)
def test_bad_arguments(vae, call, error, message):
    with pytest.raises(error, match=message):
        call(vae)
