import copy
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from lineavae import _ascent as ascent
from lineavae.linear import PPCA, LinearVAE, Moments, decompose_gap
from lineavae.linear.gap import PARTS

NUM_SAMPLES, NUM_FEATURES, LATENT_DIM = 60, 7, 4


@pytest.fixture
def x(generator):
    scale = torch.logspace(0.7, -0.7, NUM_FEATURES, dtype=torch.float64)
    return 1 + scale * torch.randn(NUM_SAMPLES, NUM_FEATURES, dtype=torch.float64, generator=generator)


@pytest.fixture
def optimum(x):
    return LinearVAE.from_ppca(PPCA(n_components=LATENT_DIM).fit(x))


def draw(*shape, generator):
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def rotation(size, generator):
    return torch.linalg.qr(draw(size, size, generator=generator))[0]


def log_likelihood(x, mu, weight, sigma2):
    covariance = weight @ weight.T + sigma2 * torch.eye(len(mu), dtype=x.dtype)
    return torch.distributions.MultivariateNormal(mu, covariance).log_prob(x).mean().item()


def elbo(x, weight, encoder, mu, d, sigma2):
    """Mean ELBO from torch.distributions, with D x D matrices."""
    mean = (x - mu) @ encoder.T
    posterior = torch.distributions.Normal(mean, d.sqrt().expand_as(mean))
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    squared = (x - mu - mean @ weight.T).square().sum(1).mean() + (d * weight.square().sum(0)).sum()
    return (-squared / (2 * sigma2) - 0.5 * len(mu) * math.log(2 * math.pi * sigma2) - kl).item()


def largest(x, latents):
    """Largest log-likelihood with so many latents, from the eigenvalues (Tipping and Bishop 1999)."""
    eigenvalues = np.linalg.eigvalsh(np.cov(x.numpy(), rowvar=False, bias=True))[::-1]
    noise = eigenvalues[latents:].mean()
    log_det = np.log(eigenvalues[:latents]).sum() + (len(eigenvalues) - latents) * np.log(noise)
    return -0.5 * (len(eigenvalues) * (math.log(2 * math.pi) + 1) + log_det)


def steps(model, x, epsilon=0.01):
    """The parts from dense formulas: the ELBO after each of the six steps, one after the other."""
    weight, encoder, mu, log_d, log_sigma2 = (
        model.get_parameter(name).detach().double()
        for name in ("weight", "encoder", "mu", "log_d", "log_sigma2")
    )
    sigma2 = log_sigma2.exp().item()
    inner = weight.T @ weight + sigma2 * torch.eye(weight.shape[1], dtype=x.dtype)
    reached = [elbo(x, weight, encoder, mu, log_d.exp(), sigma2)]
    reached.append(elbo(x, weight, inner.inverse() @ weight.T, mu, sigma2 / inner.diagonal(), sigma2))
    reached.append(log_likelihood(x, mu, weight, sigma2))
    reached.append(log_likelihood(x, x.mean(0), weight, sigma2))
    by_noise = lambda log_noise: -log_likelihood(x, x.mean(0), weight, math.exp(log_noise))  # noqa: E731
    grid = min(np.linspace(-14, 14, 600), key=by_noise)
    found = minimize_scalar(
        by_noise, bounds=(grid - 0.1, grid + 0.1), method="bounded", options={"xatol": 1e-9}
    )
    reached.append(-found.fun)
    left, lengths, _ = torch.linalg.svd(weight, full_matrices=False)
    mean = (x - x.mean(0)) @ left * (lengths / (lengths.square() + sigma2))
    variance = sigma2 / (lengths.square() + sigma2)
    kl = 0.5 * (mean.square().mean(0) + variance - variance.log() - 1)
    num_live = int((kl >= epsilon).sum())
    reached.append(max(reached[-1], largest(x, num_live)))
    reached.append(largest(x, weight.shape[1]))
    return np.diff(reached), num_live


def random_model(generator, index):
    model = LinearVAE(NUM_FEATURES, LATENT_DIM, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        model.weight.mul_(10 ** draw(generator=generator))
        model.log_sigma2.copy_(2 * draw(generator=generator))
        if index % 2:
            model.weight[:, :2] = 0
        if index % 3 == 1:
            model.optimal_encoder_()
        if index % 4 == 2:
            model.canonicalize_()
    return model


def assert_adds_up(gap):
    assert sum(gap.parts.values()) == pytest.approx(gap.total, rel=0, abs=1e-10)
    assert gap.total == gap.maximum - gap.elbo
    assert tuple(gap.parts) == PARTS
    assert all(part >= 0 for part in gap.parts.values()), gap


@pytest.mark.parametrize("index", range(12))
def test_parts_are_the_gains_of_the_steps(index, x):
    generator = torch.Generator().manual_seed(index)
    model = random_model(generator, index)
    gap = decompose_gap(model, Moments.from_data(x))
    expected, num_live = steps(model, x)
    np.testing.assert_allclose(list(gap.parts.values()), expected, rtol=1e-9, atol=1e-9)
    assert (gap.num_live, gap.latent_dim) == (num_live, LATENT_DIM)
    assert gap.elbo == pytest.approx(model.elbo(x).mean().item(), rel=1e-12)
    assert_adds_up(gap)


@pytest.mark.parametrize("index", range(40))
@pytest.mark.parametrize("num_samples", [NUM_SAMPLES, 6])
def test_parts_add_up_for_random_models(index, num_samples, x):
    model = random_model(torch.Generator().manual_seed(100 + index), index)
    gap = decompose_gap(model, Moments.from_data(x[:num_samples]))
    scale = max(1.0, abs(gap.elbo))
    assert sum(gap.parts.values()) == pytest.approx(gap.total, rel=0, abs=1e-12 * scale)
    assert all(part >= 0 for part in gap.parts.values()), gap


def test_few_samples_go_through_their_factor(x, generator):
    moments, model = Moments.from_data(x[:6]), random_model(generator, 0)
    assert moments.factor is not None
    gap = decompose_gap(model, moments)
    sample = x[:6]
    weight, sigma2, mu = model.weight.detach(), model.log_sigma2.exp().item(), model.mu.detach()
    likelihood = log_likelihood(sample, mu, weight, sigma2)
    assert gap.encoder + gap.rotation == pytest.approx(
        likelihood - model.elbo(sample).mean().item(), rel=1e-10
    )
    centred = log_likelihood(sample, sample.mean(0), weight, sigma2)
    assert gap.mean == pytest.approx(centred - likelihood, rel=1e-9)
    assert gap.maximum == pytest.approx(PPCA(n_components=LATENT_DIM).fit(sample).score(sample), rel=1e-12)
    assert_adds_up(gap)


def test_the_optimum_has_no_gap(optimum, x):
    gap = decompose_gap(optimum, Moments.from_data(x))
    assert gap.total == pytest.approx(0, abs=1e-12)
    assert gap.maximum == pytest.approx(largest(x, LATENT_DIM), rel=1e-13)
    assert max(gap.parts.values()) < 1e-12
    assert gap.num_live == LATENT_DIM
    assert_adds_up(gap)


def spoil_encoder(model, generator):
    model.encoder.mul_(0.9)
    model.log_d.add_(0.1)


def spoil_rotation(model, generator):
    model.weight.copy_(model.weight @ rotation(LATENT_DIM, generator))
    model.optimal_encoder_()


def spoil_mean(model, generator):
    model.mu.add_(draw(NUM_FEATURES, generator=generator))


def spoil_noise(model, generator):
    model.log_sigma2.add_(1)
    model.optimal_encoder_()


@pytest.mark.parametrize("part", ["encoder", "rotation", "mean", "noise"])
def test_one_defect_is_one_part(part, optimum, x, generator):
    with torch.no_grad():
        globals()[f"spoil_{part}"](optimum, generator)
    gap = decompose_gap(optimum, Moments.from_data(x))
    assert getattr(gap, part) > 0.01
    assert gap.total == pytest.approx(getattr(gap, part), rel=1e-10)
    assert_adds_up(gap)


def embed(model, columns):
    """A model of K latents of which only the first few columns are not zero."""
    wide = LinearVAE(NUM_FEATURES, LATENT_DIM, dtype=torch.float64)
    with torch.no_grad():
        wide.weight.zero_()[:, :columns] = model.weight
        wide.mu.copy_(model.mu)
        wide.log_sigma2.copy_(model.log_sigma2)
    return wide.optimal_encoder_()


@pytest.mark.parametrize("live", [1, 2, 3])
def test_the_best_of_fewer_latents_lacks_the_collapsed_ones_alone(live, x):
    moments = Moments.from_data(x)
    model = embed(LinearVAE.from_ppca(PPCA(n_components=live).fit(x)), live)
    gap = decompose_gap(model, moments)
    assert gap.num_live == live
    assert gap.collapsed == pytest.approx(largest(x, LATENT_DIM) - largest(x, live), rel=1e-12)
    assert gap.total == pytest.approx(gap.collapsed, rel=1e-11)
    assert_adds_up(gap)


def test_other_directions_are_missing_components(x):
    moments = Moments.from_data(x)
    eigenvalues, directions = moments.eigh()
    kept = [0, 1, 2, 4]  # instead of 3
    model = LinearVAE(NUM_FEATURES, LATENT_DIM, dtype=torch.float64)
    noise = eigenvalues[[3, 5, 6]].mean()
    with torch.no_grad():
        model.weight.copy_(directions[:, kept] * (eigenvalues[kept] - noise).clamp_min(0.01).sqrt())
        model.mu.copy_(moments.sample_mean)
        model.log_sigma2.copy_(noise.log())
    gap = decompose_gap(model.optimal_encoder_(), moments, epsilon=0)
    assert gap.num_live == LATENT_DIM
    assert gap.components > 0.01
    assert gap.components + gap.noise == pytest.approx(gap.total, rel=1e-9)
    assert gap.noise < 0.2 * gap.components


def test_columns_of_zeros_are_collapsed_at_any_epsilon(x, optimum):
    with torch.no_grad():
        optimum.weight[:, 1:] = 0
    moments = Moments.from_data(x)
    optimum.optimal_encoder_()
    assert decompose_gap(optimum, moments, epsilon=0).num_live == 1
    assert decompose_gap(optimum, moments, epsilon=100).num_live == 0


def test_collapsed_columns_that_still_help_are_no_step_down(x):
    """No live latent by ε, and yet better than the best model without any."""
    moments = Moments.from_data(x)
    model = LinearVAE.from_ppca(PPCA(n_components=LATENT_DIM).fit(x))
    gap = decompose_gap(model, moments, epsilon=50)
    assert (gap.num_live, gap.components) == (0, 0)
    assert gap.total == pytest.approx(0, abs=1e-12)
    assert_adds_up(gap)


def test_the_best_noise_is_the_higher_of_two_maxima():
    """One feature far too wide for its column: one maximum explains it, the other one all else."""
    narrow = torch.diag(torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    for wide, lower in ((450.0, True), (6000.0, False)):
        corners = narrow + torch.diag(torch.tensor([wide, 0.0, 0.0, 0.0], dtype=torch.float64))
        moments = Moments.from_data(torch.cat([corners, -corners]))
        model = LinearVAE(4, 1, dtype=torch.float64)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[50.0], [0.0], [0.0], [0.0]]))
            model.mu.zero_()
            model.log_sigma2.fill_(-1.4)
        gap = decompose_gap(model.optimal_encoder_(), moments)
        x = torch.cat([corners, -corners])
        likelihoods = [
            log_likelihood(x, model.mu.detach(), model.weight.detach(), noise)
            for noise in np.exp(np.linspace(-4, 18, 4001))
        ]
        peaks = [
            b for a, b, c in zip(likelihoods, likelihoods[1:], likelihoods[2:], strict=False) if a < b > c
        ]
        assert len(peaks) == 2
        assert (peaks[0] > peaks[1]) == lower
        tuned = log_likelihood(x, model.mu.detach(), model.weight.detach(), math.exp(-1.4)) + gap.noise
        assert max(peaks) <= tuned < max(peaks) + 1e-4


def test_trained_models_add_up(x):
    moments = Moments.from_data(x)
    for steps_taken in (1, 30, 300, 2000):
        model = LinearVAE(
            NUM_FEATURES, LATENT_DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        model.fit(moments, steps=steps_taken, lr=0.01, progress=False)
        gap = decompose_gap(model, moments)
        np.testing.assert_allclose(list(gap.parts.values()), steps(model, x)[0], rtol=1e-8, atol=1e-9)
        assert_adds_up(gap)


def test_single_precision_is_decomposed_in_double(x, generator):
    model = random_model(generator, 0).float()
    before = copy.deepcopy(model.state_dict())
    gap = decompose_gap(model, Moments.from_data(x))
    assert gap == decompose_gap(copy.deepcopy(model).double(), Moments.from_data(x))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.weight.dtype == torch.float32
    assert_adds_up(gap)


def test_history_of_a_run(x):
    model = LinearVAE(
        NUM_FEATURES, LATENT_DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    start = copy.deepcopy(model)
    moments = Moments.from_data(x)
    history = model.fit(x, steps=200, lr=0.01, history_every=40, history_gap=True, progress=False)
    assert tuple(history.gap) == PARTS
    assert all(len(part) == len(history.steps) == 6 for part in history.gap.values())
    total = sum(history.gap.values())
    np.testing.assert_allclose(total + history.elbo, largest(x, LATENT_DIM), rtol=1e-12)
    for index, reference in ((0, start), (-1, model)):
        expected = decompose_gap(reference, moments).parts
        for name in PARTS:
            assert history.gap[name][index] == pytest.approx(expected[name], rel=1e-9, abs=1e-11), name
    assert start.fit(x, steps=1, progress=False).gap is None


def test_history_counts_dropped_features(x):
    wide = torch.cat([x, torch.full((NUM_SAMPLES, 2), 3.0, dtype=x.dtype)], 1)
    model = LinearVAE(
        NUM_FEATURES + 2, LATENT_DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    history = model.fit(
        wide, steps=100, lr=0.01, drop_constant_features=True, history_gap=True, progress=False
    )
    gap = decompose_gap(model, Moments.from_data(wide))
    for name, part in gap.parts.items():
        assert history.gap[name][-1] == pytest.approx(part, rel=1e-9, abs=1e-11), name
    assert history.elbo[-1] == pytest.approx(gap.elbo, rel=1e-12)


def test_history_is_resumed(x, tmp_path, monkeypatch):
    def train(**keywords):
        generator = torch.Generator().manual_seed(1)
        model = LinearVAE(NUM_FEATURES, LATENT_DIM, generator=generator, dtype=torch.float64)
        return model.fit(
            x, steps=100, lr=0.01, history_every=20, history_gap=True, progress=False, **keywords
        )

    def stop(run):
        if run.step == 60:
            raise KeyboardInterrupt
        advance(run)

    checkpoint = {"checkpoint": tmp_path / "run.safetensors", "checkpoint_every": 20, "resume": True}
    advance = ascent._Run.advance
    with monkeypatch.context() as patch:
        patch.setattr(ascent._Run, "advance", stop)
        with pytest.raises(KeyboardInterrupt):
            train(**checkpoint)
    resumed, whole = train(**checkpoint), train()
    assert np.array_equal(resumed.steps, whole.steps)
    for name in PARTS:
        assert np.array_equal(resumed.gap[name], whole.gap[name]), name


def test_printed(x, optimum):
    with torch.no_grad():
        optimum.weight[:, 2:] = 0
    gap = decompose_gap(optimum.optimal_encoder_(), Moments.from_data(x))
    lines = [line.split() for line in str(gap).splitlines()]
    assert lines[0][:2] == ["ELBO", f"{gap.elbo:.6f}"]
    assert lines[-1][:3] == ["largest", "ELBO", f"{gap.maximum:.6f}"]
    assert [line[1:3] for line in lines[1:-1]] == [[name, f"{gap.parts[name]:.6f}"] for name in PARTS]
    assert "2 of 4" in str(gap)


def test_wrong_arguments(x, optimum):
    moments = Moments.from_data(x)
    with pytest.raises(TypeError, match="decompose_gap: moments must be Moments, got Tensor"):
        decompose_gap(optimum, x)
    with pytest.raises(ValueError, match="moments must have the 7 features of the model, got 3"):
        decompose_gap(optimum, Moments.from_data(x[:, :3]))
    for epsilon in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="epsilon must be finite and >= 0"):
            decompose_gap(optimum, moments, epsilon)
    few = Moments.from_data(x[:5])
    with pytest.raises(ValueError, match=r"fewer latents than the rank of the covariance, 4, .* got 4"):
        decompose_gap(optimum, few)
    with torch.no_grad():
        optimum.log_d[0] = math.nan
    with pytest.raises(ValueError, match="log_d of the model must be finite"):
        decompose_gap(optimum, moments)


def test_wrong_arguments_of_fit(x):
    model = LinearVAE(NUM_FEATURES, LATENT_DIM)
    with pytest.raises(ValueError, match=r"beta must be 1 where history_gap is asked for, got 0\.5"):
        model.fit(x, beta=0.5, history_gap=True, progress=False)
    with pytest.raises(ValueError, match=r"LinearVAE.fit: the model must have fewer latents .* got 4"):
        model.fit(x[:5], history_gap=True, progress=False)


def test_on_every_device(device, x, generator):
    model = random_model(generator, 0)
    expected = decompose_gap(model, Moments.from_data(x))
    gap = decompose_gap(model.to(device), Moments.from_data(x))
    for name, part in expected.parts.items():
        assert getattr(gap, name) == pytest.approx(part, rel=1e-9, abs=1e-11), name
