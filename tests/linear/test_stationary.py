import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from lineavae.linear import (
    PPCA,
    LinearVAE,
    Moments,
    StationaryPoint,
    hessian_eigenpairs,
    stationarity,
    symmetric_saddle,
)

NUM_SAMPLES, NUM_FEATURES = 60, 6


@pytest.fixture
def x(generator):
    scale = torch.linspace(3, 0.5, NUM_FEATURES, dtype=torch.float64)
    return 1 + scale * torch.randn(NUM_SAMPLES, NUM_FEATURES, dtype=torch.float64, generator=generator)


@pytest.fixture
def moments(x):
    return Moments.from_data(x)


def random_rotation(size, generator):
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))[0]


def elbo_of_parameters(x, weight, encoder, mu, log_d, log_sigma2):
    """Average ELBO by torch.distributions and the moments of Gaussians, differentiable."""
    mean = (x - mu) @ encoder.mT
    posterior = torch.distributions.Normal(mean, log_d.exp().sqrt().expand_as(mean))
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    distortion = (x - mean @ weight.mT - mu).square().sum(1) + (log_d.exp() * weight.square().sum(0)).sum()
    reconstruction = -distortion / (2 * log_sigma2.exp()) - 0.5 * x.shape[1] * (
        math.log(2 * math.pi) + log_sigma2
    )
    return (reconstruction - torch.distributions.kl_divergence(posterior, prior).sum(1)).mean()


def log_likelihood_of_parameters(x, weight, mu, log_sigma2):
    covariance = weight @ weight.mT + log_sigma2.exp() * torch.eye(len(mu), dtype=torch.float64)
    return torch.distributions.MultivariateNormal(mu, covariance).log_prob(x).mean()


@pytest.mark.parametrize(
    ("kept", "latent_dim", "sigma2"),
    [([0, 1], 2, 0.3), ([2, 0], 4, 0.5), ([], 2, 1.7), ([1], 1, None), ([0, 1, 2], 5, None), ([], 3, None)],
)
@pytest.mark.parametrize("rotated", [False, True])
class TestPoint:
    @pytest.fixture
    def point(self, moments, kept, latent_dim, sigma2, rotated, generator):
        rotation = random_rotation(latent_dim, generator) if rotated else None
        return StationaryPoint(moments, kept, latent_dim=latent_dim, sigma2=sigma2, rotation=rotation)

    def test_likelihood_is_stationary(self, point, x, sigma2):
        weight, log_sigma2 = (
            point.weight.requires_grad_(),
            torch.tensor(point.sigma2, dtype=torch.float64).log(),
        )
        likelihood = log_likelihood_of_parameters(x, weight, x.mean(0), log_sigma2.requires_grad_())
        by_weight, by_noise = torch.autograd.grad(likelihood, [weight, log_sigma2])
        assert by_weight.abs().max() < 1e-13
        assert by_noise.item() == pytest.approx(point.log_sigma2_gradient, abs=1e-12)
        if sigma2 is None:
            assert abs(point.log_sigma2_gradient) < 1e-13

    def test_values(self, point, x, moments):
        covariance = point.weight @ point.weight.mT + point.sigma2 * torch.eye(NUM_FEATURES).double()
        expected = multivariate_normal(x.mean(0).numpy(), covariance.numpy()).logpdf(x.numpy()).mean()
        assert point.log_likelihood == pytest.approx(expected, abs=1e-11)
        model = point.to_vae()
        parameters = [model.weight, model.encoder, model.mu, model.log_d, model.log_sigma2]
        assert point.elbo == pytest.approx(elbo_of_parameters(x, *parameters).item(), abs=1e-11)
        assert model.log_marginal_likelihood(moments).item() == pytest.approx(expected, abs=1e-11)

    def test_is_stationary(self, point, moments, rotated, kept, sigma2):
        found = stationarity(point.to_vae(), moments)
        assert found.is_stationary("likelihood", "fixed", tolerance=1e-12)
        assert found.is_stationary("likelihood", "learned", tolerance=1e-12) == (sigma2 is None)
        # the ELBO is stationary where a rotation does not mix columns
        mixed = rotated and bool(kept) and point.latent_dim > 1
        assert found.is_stationary("elbo", "fixed", tolerance=1e-12) != mixed


def test_the_leading_components_are_the_ppca_maximum(x, moments):
    point, ppca = StationaryPoint(moments, [0, 1, 2]), PPCA(3).fit(x)
    torch.testing.assert_close(point.weight, ppca.weight_, rtol=1e-12, atol=1e-12)
    assert point.sigma2 == pytest.approx(ppca.noise_variance_, rel=1e-12)
    assert point.log_likelihood == pytest.approx(ppca.score(x), abs=1e-12)
    assert point.elbo == point.log_likelihood


def test_with_sigma2(moments):
    point = StationaryPoint(moments, [1, 0], latent_dim=3, sigma2=0.2)
    other = point.with_sigma2(0.7)
    fresh = StationaryPoint(moments, [1, 0], latent_dim=3, sigma2=0.7)
    assert torch.equal(other.weight, fresh.weight)
    assert point.sigma2 == 0.2
    assert other.with_sigma2(None).sigma2 == StationaryPoint(moments, [1, 0], latent_dim=3).sigma2


def test_fewer_samples_than_features(generator):
    x = torch.randn(5, 9, dtype=torch.float64, generator=generator)
    moments = Moments.from_data(x)
    point = StationaryPoint(moments, [0, 2], latent_dim=3)
    assert point.eigenvalues.shape == (9,)
    assert (point.eigenvalues[4:] == 0).all()
    assert stationarity(point.to_vae(), moments).is_stationary(tolerance=1e-12)
    assert point.log_likelihood == pytest.approx(
        log_likelihood_of_parameters(
            x, point.weight, x.mean(0), torch.tensor(math.log(point.sigma2), dtype=torch.float64)
        ).item(),
        abs=1e-11,
    )


def test_perturbation(moments, generator):
    rotation = random_rotation(3, generator)
    point = StationaryPoint(moments, [1], latent_dim=3, sigma2=0.2, rotation=rotation)
    change = point.perturbation(2, 4)
    assert change.norm().item() == pytest.approx(1)
    torch.testing.assert_close(change @ rotation.mT @ torch.eye(3).double()[2], moments.eigh()[1][:, 4])
    for arguments, message in (
        ((3, 0), "column must be below 3, got 3"),
        ((0, 6), "direction must be below"),
    ):
        with pytest.raises(ValueError, match=message):
            point.perturbation(*arguments)


def test_devices(x, device):
    moments = Moments.from_data(x.to(device))
    point = StationaryPoint(moments, [1, 0], latent_dim=3, rotation=torch.eye(3))
    expected = StationaryPoint(Moments.from_data(x), [1, 0], latent_dim=3)
    assert point.weight.device.type == device
    torch.testing.assert_close(point.weight.cpu(), expected.weight)
    assert point.elbo == pytest.approx(expected.elbo, abs=1e-12)
    assert stationarity(point.to_vae(), moments).is_stationary(tolerance=1e-10)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kept": [0, 0]}, ValueError, r"kept must be distinct, got \[0, 0\]"),
        ({"kept": [6]}, ValueError, r"indices of the 6 eigenvectors, got \[6\]"),
        ({"kept": [-1]}, ValueError, "kept must be at least 0, got -1"),
        ({"kept": [0.5]}, TypeError, "kept must be an int"),
        ({"kept": [0, 1], "latent_dim": 1}, ValueError, "latent_dim must be at least 2, got 1"),
        ({"kept": [], "latent_dim": 0}, ValueError, "latent_dim must be at least 1, got 0"),
        ({"kept": [5], "sigma2": 3.0}, ValueError, "must be above the noise, sigma2 = 3, got 0.2"),
        ({"kept": [5]}, ValueError, "above the noise, the mean of the eigenvalues left = 4"),
        ({"kept": [0], "sigma2": 0.0}, ValueError, "sigma2 must be finite and > 0, got 0"),
        ({"kept": [0], "sigma2": math.nan}, ValueError, "sigma2 must be finite and > 0, got nan"),
        ({"kept": [0], "sigma2": "1"}, TypeError, "sigma2 must be a number"),
        ({"kept": range(6)}, ValueError, "sigma2 must be given where all components are kept"),
        ({"kept": [0], "rotation": torch.eye(2)}, ValueError, r"shape \(K, K\) with K=1, got \(2, 2\)"),
        (
            {"kept": [0], "rotation": 2 * torch.eye(1)},
            ValueError,
            "must be orthogonal, got RᵀR - I of up to 3",
        ),
        ({"kept": [0], "rotation": [[1.0]]}, TypeError, r"rotation must be a torch.Tensor, got list"),
    ],
)
def test_bad_points(moments, arguments, error, message):
    with pytest.raises(error, match=message):
        StationaryPoint(moments, **arguments)


class TestStationarity:
    def test_norms_are_those_of_the_gradients(self, x, moments, generator):
        model = LinearVAE(NUM_FEATURES, 3, generator=generator, dtype=torch.float64)
        model.log_sigma2.data.fill_(0.8)
        parameters = [model.weight, model.encoder, model.mu, model.log_d, model.log_sigma2]
        weight, encoder, mu, log_d, log_sigma2 = torch.autograd.grad(
            elbo_of_parameters(x, *parameters), parameters
        )
        of_likelihood = [model.weight, model.log_sigma2]
        likelihood = torch.autograd.grad(
            log_likelihood_of_parameters(x, model.weight, model.mu, model.log_sigma2), of_likelihood
        )
        sigma = math.exp(0.4)
        found = stationarity(model, moments)
        for norm, gradient in (
            (found.weight, sigma * weight),
            (found.encoder, encoder / sigma),
            (found.log_d, log_d),
            (found.mu, sigma * mu),
            (found.log_sigma2, log_sigma2),
            (found.likelihood_weight, sigma * likelihood[0]),
            (found.likelihood_log_sigma2, likelihood[1]),
        ):
            assert norm == pytest.approx(gradient.norm().item(), rel=1e-10)

    def test_units_of_the_data_do_not_matter(self, x, moments, generator):
        model = LinearVAE(NUM_FEATURES, 2, generator=generator, dtype=torch.float64)
        scaled = LinearVAE(NUM_FEATURES, 2, dtype=torch.float64)
        scaled.load_state_dict(model.state_dict())
        scaled.weight.data *= 255
        scaled.mu.data *= 255
        scaled.encoder.data /= 255
        scaled.log_sigma2.data += 2 * math.log(255)
        expected, found = stationarity(model, moments), stationarity(scaled, Moments.from_data(255 * x))
        for name in vars(expected):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-9)

    def test_each_norm_counts(self, moments):
        model = StationaryPoint(moments, [0, 1], latent_dim=2).to_vae()
        for name in ("weight", "encoder", "mu", "log_d", "log_sigma2"):
            other = LinearVAE(NUM_FEATURES, 2, dtype=torch.float64)
            other.load_state_dict(model.state_dict())
            getattr(other, name).data += 1e-3
            found = stationarity(other, moments)
            assert not found.is_stationary()
            assert found.is_stationary(tolerance=1.0)
            # away from the best noise, the encoder is no longer the best either
            assert not found.is_stationary("elbo", "fixed")

    def test_a_model_of_float32(self, moments):
        model = StationaryPoint(moments, [0, 1]).to_vae().float()
        assert 0 < stationarity(model, moments).weight < 1e-5

    def test_bad_arguments(self, moments):
        with pytest.raises(ValueError, match="moments must have the 3 features of the model, got 6"):
            stationarity(LinearVAE(3, 1), moments)
        found = stationarity(StationaryPoint(moments, [0]).to_vae(), moments)
        with pytest.raises(ValueError, match="objective must be 'likelihood' or 'elbo'"):
            found.is_stationary("loss")


class TestSymmetricSaddle:
    @pytest.mark.parametrize(
        ("kept", "latent_dim", "sigma2"),
        [([0, 1], 2, 0.3), ([0, 1, 2], 3, 0.5), ([3, 0, 2, 1], 4, 0.1), ([0, 1], 5, 0.4), ([1], 3, 0.2)],
    )
    def test_is_a_saddle_of_the_elbo_alone(self, x, moments, kept, latent_dim, sigma2):
        model = symmetric_saddle(moments, kept, latent_dim=latent_dim, sigma2=sigma2)
        parameters = [model.weight, model.encoder, model.mu, model.log_d]
        elbo = elbo_of_parameters(x, *parameters, model.log_sigma2)
        for gradient in torch.autograd.grad(elbo, parameters):
            assert gradient.abs().max() < 1e-12
        likelihood = log_likelihood_of_parameters(x, model.weight, model.mu, model.log_sigma2)
        assert torch.autograd.grad(likelihood, model.weight)[0].abs().max() > 1e-2
        gram = (model.weight.mT @ model.weight).detach()
        assert np.ptp(gram.diagonal().numpy()) < 1e-12
        assert (gram - gram.diagonal().diag()).abs().max() > 1e-1
        assert hessian_eigenpairs(model, moments, 1)[0].item() > 1e-4

    def test_bad_arguments(self, moments):
        with pytest.raises(ValueError, match="kept must hold unequal eigenvalues"):
            symmetric_saddle(moments, [0], sigma2=0.1)
        with pytest.raises(ValueError, match=r"got \[\] with latent_dim = 3"):
            symmetric_saddle(moments, [], latent_dim=3, sigma2=0.1)
        with pytest.raises(ValueError, match="must be above the noise"):
            symmetric_saddle(moments, [0, 5], sigma2=3.0)

    def test_equal_eigenvalues_leave_orthogonal_columns(self):
        square = torch.cat([torch.eye(2), -torch.eye(2)]).double()
        with pytest.raises(ValueError, match="kept must hold unequal eigenvalues"):
            symmetric_saddle(Moments.from_data(square), [0, 1], sigma2=0.1)
