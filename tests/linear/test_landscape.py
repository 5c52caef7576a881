import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from lineavae.linear import Moments, StationaryPoint, landscape
from lineavae.linear import landscape as function


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(3, 0.5, 6, dtype=torch.float64)
    return 1 + scale * torch.randn(60, 6, dtype=torch.float64, generator=generator)


@pytest.fixture
def moments(x):
    return Moments.from_data(x)


def random_directions(latent_dim, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, 6, latent_dim, dtype=torch.float64, generator=generator))


def test_values_are_those_of_the_models(x, moments):
    rotation = torch.linalg.qr(random_directions(6)[0])[0][:3, :3]
    rotation = torch.linalg.qr(rotation)[0]
    point = StationaryPoint(moments, [2, 0], latent_dim=3, sigma2=0.4, rotation=rotation)
    directions = random_directions(3)
    plane = landscape(point, directions, radius=0.7, num=3)
    assert plane.coordinates.tolist() == pytest.approx([-0.7, 0.0, 0.7])
    for i, a in enumerate(plane.coordinates):
        for j, b in enumerate(plane.coordinates):
            model = point.to_vae()
            model.weight.data += a * directions[0] + b * directions[1]
            model.optimal_encoder_()
            covariance = model.weight @ model.weight.mT + 0.4 * torch.eye(6, dtype=torch.float64)
            density = multivariate_normal(x.mean(0).numpy(), covariance.detach().numpy())
            assert plane.log_likelihood[i, j].item() == pytest.approx(
                density.logpdf(x.numpy()).mean(), abs=1e-11
            )
            assert plane.elbo[i, j].item() == pytest.approx(model.elbo(x).mean().item(), abs=1e-11)
            assert plane.elbo[i, j] < plane.log_likelihood[i, j]
    assert plane.log_likelihood[1, 1].item() == pytest.approx(point.log_likelihood, abs=1e-12)
    assert plane.elbo[1, 1].item() == pytest.approx(point.elbo, abs=1e-12)


def test_zero_columns_along_components(moments):
    # columns stay orthogonal, so the ELBO is the likelihood; along each, ½ (log(c/σ²) + λ/c - λ/σ²) is lost
    point = StationaryPoint(moments, [0], latent_dim=3, sigma2=1.5)
    plane = landscape(point, (point.perturbation(1, 1), point.perturbation(2, 4)), radius=2.0, num=21)
    torch.testing.assert_close(plane.elbo, plane.log_likelihood, rtol=0, atol=1e-13)
    lost = []
    for eigenvalue in point.eigenvalues[[1, 4]].tolist():
        variance = 1.5 + plane.coordinates.numpy() ** 2
        lost.append(0.5 * (np.log(variance / 1.5) + eigenvalue / variance - eigenvalue / 1.5))
    expected = point.log_likelihood - (lost[0][:, None] + lost[1])
    np.testing.assert_allclose(plane.log_likelihood.numpy(), expected, rtol=0, atol=1e-12)


def test_batches_do_not_matter(moments, monkeypatch):
    point = StationaryPoint(moments, [0, 1], latent_dim=3, sigma2=0.4)
    whole = landscape(point, random_directions(3), radius=1.0, num=7)
    monkeypatch.setitem(function.__globals__, "_BATCH_ELEMENTS", 50)
    parts = landscape(point, random_directions(3), radius=1.0, num=7)
    torch.testing.assert_close(parts.elbo, whole.elbo, rtol=1e-14, atol=0)


def test_fewer_samples_than_features(x):
    point = StationaryPoint(Moments.from_data(x[:4]), [0], latent_dim=2, sigma2=0.4)
    plane = landscape(point, random_directions(2), radius=0.5, num=2)
    model = point.to_vae()
    model.weight.data += -0.5 * (random_directions(2)[0] + random_directions(2)[1])
    expected = model.log_marginal_likelihood(x[:4]).mean().item()
    assert plane.log_likelihood[0, 0].item() == pytest.approx(expected, abs=1e-11)


def test_devices(x, device):
    point = StationaryPoint(Moments.from_data(x.to(device)), [0], latent_dim=2, sigma2=0.4)
    plane = landscape(point, random_directions(2), radius=0.5, num=3)
    expected = landscape(
        StationaryPoint(Moments.from_data(x), [0], latent_dim=2, sigma2=0.4), random_directions(2), 0.5, 3
    )
    assert plane.elbo.device.type == device
    torch.testing.assert_close(plane.elbo.cpu(), expected.elbo)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"directions": (torch.zeros(6, 2), torch.zeros(6, 3))}, r"two of shape \(D, K\) = \(6, 2\), got"),
        ({"directions": (torch.zeros(6, 2),)}, r"directions must be two"),
        ({"radius": 0.0}, "radius must be finite and > 0, got 0"),
        ({"radius": math.inf}, "radius must be finite and > 0, got inf"),
        ({"num": 1}, "num must be at least 2, got 1"),
    ],
)
def test_bad_arguments(moments, arguments, message):
    point = StationaryPoint(moments, [0], latent_dim=2, sigma2=0.4)
    with pytest.raises(ValueError, match=message):
        landscape(point, **{"directions": random_directions(2), "radius": 1.0, **arguments})
