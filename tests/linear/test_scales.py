"""Ranks and likelihoods where features depend on each other or differ in scale, by exact arithmetic."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch

from lineavae.linear import (
    PPCA,
    LinearVAE,
    Moments,
    StationaryPoint,
    decompose_gap,
    forecast_collapse,
    stability,
    stable_sigma2,
    stationarity,
    subspace_angles,
)


def exact_covariance(data):
    """Biased covariance in rational numbers, as an mpmath matrix of 80 digits."""
    columns = [[Fraction(value) for value in column] for column in data.T.tolist()]
    centred = [[value - sum(column) / len(column) for value in column] for column in columns]
    covariance = mpmath.matrix(len(columns))
    for i, first in enumerate(centred):
        for j, second in enumerate(centred[: i + 1]):
            entry = sum(a * b for a, b in zip(first, second, strict=True)) / len(first)
            covariance[i, j] = covariance[j, i] = mpmath.mpf(entry.numerator) / entry.denominator
    return covariance


def exact_spectrum(data):
    """Eigenvalues of the biased covariance, the largest first."""
    with mpmath.workdps(80):
        eigenvalues = mpmath.eigsy(exact_covariance(data), eigvals_only=True)
        return np.array(sorted(map(float, eigenvalues), reverse=True))


def one_hot(random):
    table = np.eye(3)[random.integers(0, 3, random.integers(20, 300))]
    return table, 2


def linear_relations(random):
    """Integers, of which the last eight columns are sums of multiples of the others."""
    free = random.integers(-1000, 1000, (random.integers(100, 300), 12)).astype(float)
    table = np.hstack([free, free @ random.integers(-9, 10, (12, 8))])
    return table[:, random.permutation(20)], 12


def scaled_relations(random):
    table, rank = linear_relations(random)
    return table * 2.0 ** random.integers(-27, 28, 20), rank


def outlier_first(random):
    free = random.integers(-9, 10, (100, 6)).astype(float)
    free[0] *= 2.0**20
    return np.hstack([free, free[:, ::-1], free[:, :3] + free[:, 3:]]), 6


def few_samples(random):
    """Eight rows, of which three are combinations of the others with weights that add up to one."""
    rows = random.integers(-1000, 1000, (5, 30)).astype(float)
    weights = np.array([[2, -1, 0, 0, 0], [1, 1, -1, 0, 0], [0, 0, 3, -1, -1]])
    return np.vstack([rows, weights @ rows]) * 2.0 ** random.integers(-27, 28, 30), 4


@pytest.mark.parametrize("table", [one_hot, linear_relations, scaled_relations, outlier_first, few_samples])
def test_rank_in_any_order_and_batching(table, tmp_path):
    random = np.random.default_rng(0)
    for _ in range(8):
        data, rank = table(random)
        half = len(data) // 2
        Moments.from_data(data[half:]).save(tmp_path / "half.safetensors")
        for moments in (
            Moments.from_data(data),
            Moments.from_data(data[random.permutation(len(data))]),
            Moments.from_data(data[::-1]),
            Moments.from_batches(data[:, None]),
            Moments.load(tmp_path / "half.safetensors").merge(Moments.from_data(data[:half])),
        ):
            eigenvalues, eigenvectors = moments.eigh()
            assert int((eigenvalues > 0).sum()) == rank
            assert len(eigenvalues) == min(len(data) - 1, data.shape[1])
            identity = torch.eye(len(eigenvalues), dtype=torch.float64)
            torch.testing.assert_close(eigenvectors.mT @ eigenvectors, identity, rtol=0, atol=1e-12)
        assert forecast_collapse(data, rank + 1, sigma2=1e-40).num_active == rank
        assert PPCA(rank - 1).fit(data).noise_variance_ > 0
        with pytest.raises(ValueError, match=f"at most {rank - 1} .the rank of the covariance less one"):
            PPCA(rank).fit(data)
        with pytest.raises(ValueError, match=f"than the rank of the covariance, {rank}"):
            decompose_gap(LinearVAE(data.shape[1], rank), Moments.from_data(data))


@pytest.mark.parametrize("num_samples", [6, 60])
@pytest.mark.parametrize("exponent", [3, 8])
def test_eigenvalues_of_graded_features(num_samples, exponent):
    random = np.random.default_rng(1)
    scales = random.permutation(10.0 ** np.linspace(-exponent, exponent, 8))
    data = random.standard_normal((num_samples, 8)) @ random.standard_normal((8, 8)) * scales
    eigenvalues, eigenvectors = Moments.from_data(data).eigh()
    expected = exact_spectrum(data)[: len(eigenvalues)]
    np.testing.assert_allclose(eigenvalues, expected, rtol=1e-9)
    with mpmath.workdps(80):  # S v = λ v beside the scales of the features
        vectors = mpmath.matrix(eigenvectors.tolist())
        product = exact_covariance(data) * vectors
        for j, value in enumerate(expected):
            for i, scale in enumerate(scales):
                error = abs(product[i, j] - value * vectors[i, j])
                assert error < 1e-9 * scale * math.sqrt(value)


@pytest.fixture(scope="module")
def uneven():
    """Ten features of unit variance but for one with a mean of 1.7e9 and deviations of 1e7."""
    data = np.random.default_rng(0).normal(size=(100, 10))
    data[:, 0] = 1.7e9 + np.random.default_rng(1).uniform(0, 3.2e7, 100)
    return data, exact_spectrum(data)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_likelihood_of_moments(uneven, dtype):
    data, eigenvalues = uneven
    moments, ppca = Moments.from_data(data), PPCA(1).fit(data)
    noise = eigenvalues[1:].mean()
    log_det = math.log(eigenvalues[0]) + 9 * math.log(noise)
    maximum = -0.5 * (10 * math.log(2 * math.pi) + log_det + 10)
    vae = LinearVAE.from_ppca(ppca, dtype=dtype)
    assert ppca.score(moments) == pytest.approx(maximum, abs=1e-8)
    assert ppca.noise_variance_ == pytest.approx(noise, rel=1e-10)
    if dtype == torch.float64:
        for value in (vae.elbo(moments), vae.log_marginal_likelihood(moments)):
            assert value.item() == pytest.approx(maximum, abs=1e-8)
        found = stationarity(vae, moments)
        assert max(found.likelihood_weight, found.weight, found.log_sigma2) < 1e-6
        gap = decompose_gap(vae, moments)
        assert abs(gap.total) < 1e-8
        assert max(gap.parts.values()) < 1e-8
        assert vae.optimal_noise_(moments).log_sigma2.exp().item() == pytest.approx(noise, rel=1e-10)
    else:  # whatever its parameters are rounded to, no ELBO is above the maximum
        assert vae.elbo(moments).dtype == torch.float64
        assert vae.elbo(moments).item() <= maximum + 1e-8
        rows = torch.from_numpy(data)
        expected = vae.double().elbo(rows).mean().item()
        assert vae.elbo(moments).item() == pytest.approx(expected, rel=1e-9)


def test_small_directions_count_beside_a_large_one(uneven):
    data, eigenvalues = uneven
    moments = Moments.from_data(data)
    forecast = forecast_collapse(data, 5, sigma2=0.5)
    assert forecast.num_active == 5
    np.testing.assert_allclose(forecast.eigenvalues, eigenvalues[:5], rtol=1e-10)
    assert PPCA(5).fit(data).n_components_ == 5
    skipped = StationaryPoint(moments, [0, 1, 3], sigma2=0.5)
    assert stability(skipped).kind == "saddle"
    assert stable_sigma2(skipped) is None
    assert stability(StationaryPoint(moments, [0, 1, 2], sigma2=0.5)).kind == "maximum"
    vae = LinearVAE.from_ppca(PPCA(3).fit(data), dtype=torch.float32)
    found, directions = vae.principal_components(moments)
    np.testing.assert_allclose(found, eigenvalues[:3], rtol=1e-4)
    assert subspace_angles(directions * torch.tensor([1e20, 1.0, 1e-20]), directions).shape == (3,)


def test_elbo_of_float32_moments_is_below_its_bound():
    random = np.random.default_rng(0)
    data = (random.standard_normal((1000, 100)) @ random.standard_normal((100, 300))).astype(np.float32)
    data += 0.01 * random.standard_normal(data.shape, dtype=np.float32)
    moments = Moments.from_data(data)
    ppca = PPCA(50).fit(moments)
    elbo = LinearVAE.from_ppca(ppca, dtype=torch.float32).canonicalize_().elbo(moments).item()
    assert ppca.score(moments) - 1e-2 < elbo <= ppca.score(moments) + 1e-9


def test_gradient_of_the_elbo_of_moments():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    model = LinearVAE(4, 2, generator=generator, dtype=torch.float64)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(model.elbo(Moments.from_data(x), 0.7), parameters)
    expected = torch.autograd.grad(model.elbo(x, 0.7).mean(), parameters)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_moments_that_inference_has_seen_serve_training():
    moments = Moments.from_data(np.random.default_rng(0).normal(size=(9, 3)))
    model = LinearVAE(3, 1)
    with torch.inference_mode():
        value = model.elbo(moments).item()
    model.elbo(moments).backward()
    assert model.elbo(moments).item() == value
    assert model.weight.grad is not None


@pytest.mark.parametrize("scale", [1e6, 1e7, 1e8])
def test_noise_beside_a_huge_eigenvalue(scale):
    """To some digits, or refused: where some of the small eigenvalues are lost, their mean is wrong."""
    random = np.random.default_rng(0)
    turn = np.linalg.qr(random.standard_normal((6, 6)))[0]
    latents = random.standard_normal((400, 6))
    latents -= latents.mean(0)
    latents = np.linalg.qr(latents)[0] * 20  # covariance I
    rows = (latents * np.r_[scale, np.ones(5)]) @ turn
    moments = Moments.from_data(rows)
    uses = {
        "PPCA": lambda: PPCA(1).fit(rows).noise_variance_,
        "StationaryPoint": lambda: StationaryPoint(moments, [0]).sigma2,
        "forecast_collapse": lambda: forecast_collapse(moments, 1).learned_sigma2,
    }
    for name, use in uses.items():
        if scale == 1e6:
            assert use() == pytest.approx(1, rel=1e-3)
        else:
            with pytest.raises(
                ValueError, match=rf"{name}: .*(lost in the rounding of the largest|rank|got 0.0$)"
            ):
                use()
