import math
import sys
from functools import partial

import numpy as np
import pytest
import torch

from lineavae.data import load_digits
from lineavae.linear import (
    LinearVAE,
    Moments,
    StationaryPoint,
    hessian_eigenpairs,
    landscape,
    stability,
    stable_sigma2,
)

# Eigenvalues with ties, and what is done with them.
SPECTRA = {
    "distinct": [9.0, 5.0, 3.0, 2.0, 0.7, 0.2],
    "a kept one tied with an unused one": [9.0, 5.0, 5.0, 2.0, 0.7, 0.2],
    "two kept ones tied": [9.0, 9.0, 3.0, 2.0, 0.7, 0.2],
    "some zero": [9.0, 5.0, 3.0, 2.0, 0.0, 0.0],
}
CASES = [
    # kept, latent_dim, sigma2
    ([0, 1], 2, 1.0),
    ([0, 1], 2, 3.5),
    ([0, 1], 4, 1.0),
    ([1, 3], 3, 0.4),
    ([3, 0], 2, 1.3),
    ([], 2, 0.1),
    ([0], 1, None),
    ([0, 1], 3, None),
    ([2, 0, 1], 3, None),
]


def moments_with(eigenvalues, seed=0):
    """Moments of data with these eigenvalues, in a random basis."""
    generator = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    basis, _ = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))
    columns = basis * torch.tensor(eigenvalues, dtype=torch.float64).mul(size).sqrt()
    return Moments.from_data(1 + torch.cat([columns.mT, -columns.mT]))


def random_rotation(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))[0]


def dense_log_likelihood(moments, weight, log_sigma2):
    """Average log-likelihood through D x D matrices."""
    covariance = weight @ weight.mT + log_sigma2.exp() * torch.eye(len(weight), dtype=torch.float64)
    return -0.5 * (
        len(weight) * math.log(2 * math.pi)
        + torch.linalg.slogdet(covariance)[1]
        + torch.linalg.solve(covariance, moments.covariance).trace()
    )


def dense_elbo(moments, weight, encoder, log_d, log_sigma2):
    """Average ELBO through D x D matrices: equations 16-20."""
    residual = torch.eye(len(weight), dtype=torch.float64) - weight @ encoder
    distortion = (residual @ moments.covariance @ residual.mT).trace()
    distortion = distortion + (weight @ torch.diag(log_d.exp()) @ weight.mT).trace()
    second_moments = (encoder @ moments.covariance @ encoder.mT).trace()
    kl = 0.5 * (log_d.exp().sum() - log_d.sum() + second_moments - len(log_d))
    return (
        -distortion / (2 * log_sigma2.exp()) - 0.5 * len(weight) * (math.log(2 * math.pi) + log_sigma2) - kl
    )


def dense_hessian(moments, model, objective, noise):
    """Autograd's Hessian of the dense objective."""
    names = ["weight", "encoder", "log_d"] if objective == "elbo" else ["weight"]
    held = {name: parameter.detach() for name, parameter in model.named_parameters()}
    names += ["log_sigma2"] if noise == "learned" else []
    shapes = [held[name].shape for name in names]
    arguments = (
        ["weight", "encoder", "log_d", "log_sigma2"]
        if objective == "elbo"
        else [
            "weight",
            "log_sigma2",
        ]
    )

    def function(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        values = dict(held)
        values.update(
            {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        )
        dense = dense_elbo if objective == "elbo" else dense_log_likelihood
        return dense(moments, *(values[name] for name in arguments))

    flat = torch.cat([held[name].flatten() for name in names])
    return torch.autograd.functional.hessian(function, flat)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize(("kept", "latent_dim", "sigma2"), CASES)
@pytest.mark.parametrize("objective", ["likelihood", "elbo"])
def test_spectrum_is_that_of_the_dense_hessian(spectrum, kept, latent_dim, sigma2, objective):
    moments = moments_with(SPECTRA[spectrum])
    point = StationaryPoint(moments, kept, latent_dim=latent_dim, sigma2=sigma2)
    for noise in ["fixed", "learned"] if sigma2 is None else ["fixed"]:
        verdict = stability(point, noise)
        eigenvalues = verdict.hessian_eigenvalues(objective)
        expected = torch.linalg.eigvalsh(dense_hessian(moments, point.to_vae(), objective, noise)).flip(0)
        largest = expected.abs().max()
        assert eigenvalues.shape == expected.shape
        assert (eigenvalues - expected).abs().max() < 1e-8 * largest
        assert verdict.index == (expected > 1e-9 * largest).sum()


def test_random_spectra_are_those_of_the_dense_hessian():
    random = np.random.default_rng(1)
    for seed in range(20):
        num_features = int(random.integers(2, 7))
        latent_dim = int(random.integers(1, num_features + 2))
        spectrum = np.sort(random.gamma(1.0, 2.0, num_features))[::-1]
        sigma2 = random.uniform(0.05, 0.9) * spectrum[1]
        eligible = np.flatnonzero(spectrum > 1.01 * sigma2)
        count = random.integers(0, min(len(eligible), latent_dim) + 1)
        kept = random.permutation(eligible)[:count].tolist()
        moments = moments_with(spectrum.tolist(), seed)
        point = StationaryPoint(moments, kept, latent_dim=latent_dim, sigma2=sigma2)
        for objective in ("likelihood", "elbo"):
            eigenvalues = stability(point).hessian_eigenvalues(objective)
            expected = torch.linalg.eigvalsh(dense_hessian(moments, point.to_vae(), objective, "fixed"))
            assert (eigenvalues - expected.flip(0)).abs().max() < 1e-8 * expected.abs().max()


def test_curvature_is_the_second_difference():
    moments = moments_with(SPECTRA["distinct"])
    rotation = random_rotation(4)
    point = StationaryPoint(moments, [2, 0], latent_dim=4, sigma2=1.0, rotation=rotation)
    curvature = stability(point).curvature
    log_sigma2, size = torch.zeros((), dtype=torch.float64), 1e-3
    for column in range(4):
        for direction in range(6):
            step = size * point.perturbation(column, direction)
            centre, *ends = (
                dense_log_likelihood(moments, point.weight + sign * step, log_sigma2) for sign in (0, 1, -1)
            )
            assert curvature[column, direction].item() == pytest.approx(
                ((ends[0] + ends[1] - 2 * centre) / size**2).item(), abs=1e-4
            )


def test_a_rotation_leaves_the_spectrum_of_the_likelihood():
    moments = moments_with(SPECTRA["distinct"])
    point = StationaryPoint(moments, [1, 2], latent_dim=3, rotation=random_rotation(3))
    expected = torch.linalg.eigvalsh(dense_hessian(moments, point.to_vae(), "likelihood", "learned")).flip(0)
    verdict = stability(point, "learned")
    torch.testing.assert_close(verdict.hessian_eigenvalues(), expected, rtol=1e-9, atol=1e-10)
    with pytest.raises(ValueError, match="must have no rotation for objective 'elbo'"):
        verdict.hessian_eigenvalues("elbo")


class TestVerdict:
    @pytest.mark.parametrize(
        ("kept", "latent_dim", "sigma2", "kind", "index"),
        [
            ([0, 1], 2, 0.1, "maximum", 0),  # leading, and no empty column
            ([0, 2], 2, 0.1, "saddle", 1),  # 5 instead of 3
            ([0, 1], 3, 4.0, "maximum", 0),  # collapsed: 3 is below the noise
            ([0, 1], 3, 2.5, "saddle", 1),  # 3 into the empty column
            ([0, 1], 4, 1.0, "saddle", 4),  # 3 and 2 into two empty columns
            ([], 2, 10.0, "maximum", 0),
            ([], 2, 0.1, "minimum", 12),
            ([], 2, 1.0, "saddle", 8),
        ],
    )
    def test_known_cases(self, kept, latent_dim, sigma2, kind, index):
        point = StationaryPoint(moments_with(SPECTRA["distinct"]), kept, latent_dim=latent_dim, sigma2=sigma2)
        verdict = stability(point)
        assert (verdict.kind, verdict.index) == (kind, index)
        assert verdict.escape.shape == (index, 2)

    @pytest.mark.parametrize("rotated", [False, True])
    def test_escape_directions_are_ways_up_the_steepest_first(self, rotated):
        moments = moments_with(SPECTRA["distinct"])
        rotation = random_rotation(3) if rotated else None
        point = StationaryPoint(moments, [0, 2], latent_dim=3, sigma2=1.0, rotation=rotation)
        verdict = stability(point)
        assert verdict.escape.tolist() == [[2, 1], [2, 3], [1, 1]]
        gains = []
        for column, direction in verdict.escape.tolist():
            model = point.to_vae()
            model.weight.data += 1e-2 * point.perturbation(column, direction)
            model.optimal_encoder_()
            gains.append(model.log_marginal_likelihood(moments).item() - point.log_likelihood)
            if not rotated:
                assert model.elbo(moments).item() > point.elbo + 0.9 * gains[-1]
        assert gains == sorted(gains, reverse=True)
        assert gains[-1] > 1e-6

    def test_noise_at_an_eigenvalue_is_a_maximum(self):
        # along an empty column the likelihood then falls with the fourth power only
        moments = moments_with(SPECTRA["distinct"])
        point = StationaryPoint(moments, [0, 1], latent_dim=3, sigma2=moments.eigh()[0][2].item())
        verdict = stability(point)
        assert verdict.kind == "maximum"
        assert abs(verdict.curvature[2, 2]) < 1e-14
        log_sigma2 = torch.tensor(math.log(point.sigma2), dtype=torch.float64)
        for size in (0.1, 0.3):
            moved = point.weight + size * point.perturbation(2, 2)
            drop = point.log_likelihood - dense_log_likelihood(moments, moved, log_sigma2).item()
            assert drop == pytest.approx(size**4 / (4 * point.sigma2**2), rel=0.1)

    def test_tied_eigenvalues_are_equal_whatever_their_rounding(self):
        for seed in range(20):
            moments = moments_with([9.0, 5.0, 5.0, 5.0, 0.7], seed)
            for kept in ([0, 1], [0, 2], [0, 3]):
                point = StationaryPoint(moments, kept, sigma2=0.5)
                assert stability(point).kind == "maximum"
                assert stable_sigma2(point) == pytest.approx((0.0, 5.0))

    def test_every_maximum_is_global(self):
        # of all points with the same K and σ², by the likelihood itself
        moments = moments_with(SPECTRA["distinct"])
        for sigma2 in (0.1, 0.5, 1.0, 2.5, 4.0, 7.0, 10.0):
            eligible = [j for j in range(6) if SPECTRA["distinct"][j] > sigma2]
            points = [
                StationaryPoint(moments, [j for j in eligible if code >> j & 1], latent_dim=3, sigma2=sigma2)
                for code in range(64)
                if code < 1 << len(eligible) and code.bit_count() <= 3
            ]
            best = max(point.log_likelihood for point in points)
            for point in points:
                assert (stability(point).kind == "maximum") == (point.log_likelihood > best - 1e-12)

    def test_learned_noise(self):
        moments = moments_with(SPECTRA["distinct"])
        assert stability(StationaryPoint(moments, [0, 1], latent_dim=2), "learned").kind == "maximum"
        # an empty column, or a component skipped, is a saddle: the noise is the mean of what is left
        assert stability(StationaryPoint(moments, [0, 1], latent_dim=3), "learned").kind == "saddle"
        assert stability(StationaryPoint(moments, [0, 2], latent_dim=2), "learned").kind == "saddle"
        # unless all that is left is equal
        tied = moments_with([9.0, 5.0, 2.0, 2.0, 2.0])
        assert stability(StationaryPoint(tied, [0, 1], latent_dim=3), "learned").kind == "maximum"

    def test_learned_noise_asks_for_the_stationary_noise(self):
        moments = moments_with(SPECTRA["distinct"])
        point = StationaryPoint(moments, [0, 1], latent_dim=3, sigma2=4.0)
        with pytest.raises(ValueError, match=r"sigma2 of the point must be the mean .*, 1.475, .* got 4"):
            stability(point, "learned")
        assert point.log_sigma2_gradient < 0
        assert stability(point.with_sigma2(None), "learned").index == 2
        with pytest.raises(ValueError, match="no σ² is stationary"):
            stability(StationaryPoint(moments, range(6), sigma2=0.1), "learned")

    def test_names_of_choices(self):
        point = StationaryPoint(moments_with(SPECTRA["distinct"]), [0], sigma2=1.0)
        with pytest.raises(ValueError, match="noise must be 'fixed' or 'learned', got 'free'"):
            stability(point, "free")
        with pytest.raises(ValueError, match="objective must be 'likelihood' or 'elbo', got 'loss'"):
            stability(point).hessian_eigenvalues("loss")


@pytest.mark.parametrize(
    ("kept", "latent_dim", "interval"),
    [
        ([0, 1], 3, (3.0, 5.0)),
        ([0, 1], 2, (0.0, 5.0)),
        ([], 1, (9.0, math.inf)),
        ([0, 2], 3, None),
        (range(6), 6, (0.0, 0.2)),
        (range(6), 7, (0.0, 0.2)),
    ],
)
def test_interval_of_stability(kept, latent_dim, interval):
    moments = moments_with(SPECTRA["distinct"])
    point = StationaryPoint(moments, kept, latent_dim=latent_dim, sigma2=0.1)
    found = stable_sigma2(point)
    assert found == (interval and pytest.approx(interval))
    # the verdict just inside and just outside
    if interval is None:
        return
    for sigma2, kind in ((0.99 * found[0], "saddle"), (1.01 * found[0] or 1e-3, "maximum")):
        if sigma2:
            assert stability(point.with_sigma2(sigma2)).kind == kind
    if math.isfinite(found[1]):
        assert stability(point.with_sigma2(0.99 * found[1])).kind == "maximum"
        with pytest.raises(ValueError, match="must be above the noise"):
            point.with_sigma2(1.01 * found[1])


def random_cases(count):
    """Stationary points at which no unused λ_j is within 5 % of any k_i."""
    random = np.random.default_rng(2)
    cases = []
    while len(cases) < count:
        eigenvalues = np.sort(random.gamma(1.5, 2.0, 5))[::-1]
        sigma2 = random.uniform(0.3, 1.2) * eigenvalues[random.integers(1, 4)]
        eligible = np.flatnonzero(eigenvalues > 1.05 * sigma2)
        # mostly the leading ones, or there would be few maxima
        chosen = eligible if random.random() < 0.7 else random.permutation(eligible)
        kept = chosen[: random.integers(0, min(3, len(eligible)) + 1)].tolist()
        variances = np.full(3, sigma2)
        variances[: len(kept)] = eigenvalues[kept]
        unused = np.delete(eigenvalues, kept)
        if (abs(unused / variances[:, None] - 1) > 0.05).all():
            cases.append((eigenvalues.tolist(), kept, sigma2))
    return cases


def ascend(weight, covariance, sigma2, with_gap):
    """Gradient ascent of the likelihoods, or of the ELBOs under the best encoders, of a batch of models."""
    weight = weight.clone()
    identity = torch.eye(weight.shape[-1], dtype=torch.float64)
    noise = sigma2[:, None, None]
    # the largest curvature of either objective is below 2/σ² at the stationary points of these cases
    rate = 0.3 * noise / (covariance.diagonal(dim1=1, dim2=2).amax(1)[:, None, None] / noise).clamp_min(1)
    for _ in range(6000):
        gram = weight.mT @ weight + noise * identity
        inverse = torch.linalg.inv(gram)
        half = weight @ inverse
        step = covariance @ half - weight
        gradient = (step - half @ (weight.mT @ step)) / noise
        if with_gap:
            gradient = gradient - (weight / gram.diagonal(dim1=1, dim2=2).unsqueeze(1) - half)
        weight += rate * gradient
    return weight


@pytest.mark.slow
@pytest.mark.parametrize("with_gap", [False, True], ids=["likelihood", "elbo"])
def test_verdicts_agree_with_gradient_ascent(with_gap):
    cases = random_cases(200)
    generator = torch.Generator().manual_seed(3)
    points = [
        StationaryPoint(moments_with(eigenvalues, seed), kept, latent_dim=3, sigma2=sigma2)
        for seed, (eigenvalues, kept, sigma2) in enumerate(cases)
    ]
    covariance = torch.stack([moments_with(case[0], seed).covariance for seed, case in enumerate(cases)])
    sigma2 = torch.tensor([point.sigma2 for point in points], dtype=torch.float64)
    weight = torch.stack([point.weight for point in points])
    change = torch.randn(weight.shape, dtype=torch.float64, generator=generator)
    for index, point in enumerate(points):
        # orthogonal to the orbit of rotations, W times the antisymmetric matrices
        flat = torch.stack(
            [
                (
                    torch.outer(point.weight[:, i], unit[j]) - torch.outer(point.weight[:, j], unit[i])
                ).flatten()
                for unit in [torch.eye(3, dtype=torch.float64)]
                for i in range(3)
                for j in range(i)
            ]
        )
        basis, lengths, _ = torch.linalg.svd(flat.mT, full_matrices=False)
        basis = basis[:, lengths > 1e-12]
        change[index] -= (basis @ (basis.mT @ change[index].flatten())).view(5, 3)
    change *= 1e-3 / change.flatten(1).norm(dim=1)[:, None, None]
    end = ascend(weight + change, covariance, sigma2, with_gap)
    # a rotation leaves W Wᵀ
    moved = (end @ end.mT - weight @ weight.mT).flatten(1).norm(dim=1) / sigma2
    kinds = [stability(point).kind for point in points]
    assert 50 < kinds.count("maximum") < 150
    for kind, distance in zip(kinds, moved.tolist(), strict=True):
        assert distance < 1e-3 if kind == "maximum" else distance > 1e-2


def test_zeros_at_the_end_of_the_spectrum():
    """At the maximum of data with constant features, where Lanczos's method does not converge."""
    moments = Moments.from_data(load_digits().to_tensor(torch.float64))
    point = StationaryPoint(moments, [0, 1])
    for noise in ("fixed", "learned"):
        eigenvalues, _ = hessian_eigenpairs(point.to_vae(), moments, 6, noise=noise)
        closed = stability(point, noise).hessian_eigenvalues("elbo")
        torch.testing.assert_close(eigenvalues, closed[:6], rtol=0, atol=1e-8)


def test_what_is_no_stationary_point():
    model = LinearVAE(6, 2)
    directions = model.weight, model.weight
    for judge in (stability, stable_sigma2, partial(landscape, directions=directions, radius=1.0)):
        with pytest.raises(TypeError, match=r"point must be a StationaryPoint, got LinearVAE; .* trained"):
            judge(model)


class TestLanczos:
    @pytest.fixture(autouse=True)
    def not_dense(self, monkeypatch):
        monkeypatch.setattr(sys.modules["lineavae.linear.stability"], "_DENSE", 0)

    @pytest.fixture
    def moments(self):
        generator = torch.Generator().manual_seed(0)
        scale = torch.linspace(3, 0.2, 30, dtype=torch.float64)
        return Moments.from_data(scale * torch.randn(200, 30, dtype=torch.float64, generator=generator))

    @pytest.mark.parametrize("objective", ["likelihood", "elbo"])
    @pytest.mark.parametrize("noise", ["fixed", "learned"])
    @pytest.mark.parametrize("largest", [True, False])
    def test_agrees_with_the_closed_form(self, moments, objective, noise, largest):
        point = StationaryPoint(moments, [0, 1, 4, 7], latent_dim=5)
        closed = stability(point, noise).hessian_eigenvalues(objective)
        eigenvalues, eigenvectors = hessian_eigenpairs(
            point.to_vae(), moments, 8, objective=objective, noise=noise, largest=largest
        )
        expected = closed[:8] if largest else closed.flip(0)[:8]
        torch.testing.assert_close(eigenvalues, expected, rtol=1e-9, atol=1e-8)
        identity = torch.eye(8, dtype=torch.float64)
        torch.testing.assert_close(eigenvectors.mT @ eigenvectors, identity, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("objective", ["likelihood", "elbo"])
    @pytest.mark.parametrize("noise", ["fixed", "learned"])
    def test_away_from_stationary_points(self, objective, noise):
        moments = moments_with(SPECTRA["distinct"])
        generator = torch.Generator().manual_seed(0)
        model = LinearVAE(6, 2, generator=generator, dtype=torch.float64)
        model.mu.data.copy_(moments.sample_mean)
        hessian = dense_hessian(moments, model, objective, noise)
        for count in (3, len(hessian)):  # by Lanczos, and all of them
            eigenvalues, eigenvectors = hessian_eigenpairs(
                model, moments, count, objective=objective, noise=noise
            )
            expected = torch.linalg.eigvalsh(hessian).flip(0)[:count]
            torch.testing.assert_close(eigenvalues, expected, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(
                hessian @ eigenvectors, eigenvectors * eigenvalues, rtol=1e-7, atol=1e-7
            )

    def test_float32_models_are_judged_in_float64(self, moments):
        model = StationaryPoint(moments, [0, 1], latent_dim=3).to_vae()
        exact, _ = hessian_eigenpairs(model, moments, 2)
        rounded, _ = hessian_eigenpairs(model.float(), moments, 2)
        assert rounded.dtype == torch.float64
        torch.testing.assert_close(rounded, exact, rtol=1e-4, atol=0)

    def test_bad_arguments(self, moments):
        model = StationaryPoint(moments, [0], latent_dim=1).to_vae()
        with pytest.raises(ValueError, match="count must be at most the 30 parameters, got 31"):
            hessian_eigenpairs(model, moments, 31, objective="likelihood")
        with pytest.raises(ValueError, match="count must be at least 1, got 0"):
            hessian_eigenpairs(model, moments, 0)
        with pytest.raises(ValueError, match="moments must have the 30 features of the model, got 6"):
            hessian_eigenpairs(model, moments_with(SPECTRA["distinct"]))
