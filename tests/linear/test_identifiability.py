import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from lineavae.linear import (
    PPCA,
    LinearVAE,
    Moments,
    align,
    rescale_latents,
    rotation_gap,
    subspace_angles,
)

NUM_FEATURES, LATENT_DIM = 7, 4


@pytest.fixture
def x(generator):
    scale = torch.linspace(3, 0.5, NUM_FEATURES, dtype=torch.float64)
    return 1 + scale * torch.randn(60, NUM_FEATURES, dtype=torch.float64, generator=generator)


@pytest.fixture
def vae(generator):
    return LinearVAE(NUM_FEATURES, LATENT_DIM, generator=generator, dtype=torch.float64)


def draw(*shape, generator):
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def rotation(size, generator):
    return torch.linalg.qr(draw(size, size, generator=generator))[0]


@pytest.mark.parametrize(("latents", "directions"), [(4, 4), (6, 3), (3, 6)])
def test_align_is_the_best_of_all_assignments(latents, directions, generator):
    weight = draw(NUM_FEATURES, latents, generator=generator) * torch.logspace(-3, 3, latents)
    targets = draw(NUM_FEATURES, directions, generator=generator)
    cosine = np.array(
        [[w @ u / np.linalg.norm(w) / np.linalg.norm(u) for u in targets.T.numpy()] for w in weight.T.numpy()]
    )
    pairs = min(latents, directions)
    best = max(
        sum(abs(cosine[column, direction]) for column, direction in zip(columns, chosen, strict=True))
        for columns in itertools.permutations(range(latents), pairs)
        for chosen in itertools.combinations(range(directions), pairs)
    )
    alignment = align(weight, targets)
    assert alignment.cosines.sum().item() == pytest.approx(best, rel=1e-12)
    assert alignment.matched.tolist() == sorted(set(alignment.matched.tolist()))
    assert len(set(alignment.columns.tolist())) == pairs
    for column, direction, sign, value in zip(*(part.tolist() for part in alignment), strict=True):
        assert sign * cosine[column, direction] == pytest.approx(value, rel=1e-12)
        assert value >= 0


def test_align_undoes_signs_and_order(generator):
    directions = rotation(NUM_FEATURES, generator)[:, :LATENT_DIM]
    order, signs = torch.tensor([2, 0, 3, 1]), torch.tensor([1.0, -1.0, -1.0, 1.0])
    lengths = torch.tensor([1e-200, 1.0, 1e200, 3.0], dtype=torch.float64)
    alignment = align(directions[:, order] * signs * lengths, directions)
    assert order[alignment.columns].tolist() == [0, 1, 2, 3]
    assert torch.equal(alignment.signs, signs[alignment.columns].double())
    torch.testing.assert_close(alignment.cosines, torch.ones_like(alignment.cosines), rtol=0, atol=1e-12)


def test_align_has_one_column_for_one_direction():
    assert align(torch.eye(2)[:, [0, 0]], torch.eye(2)).cosines.tolist() == [1, 0]
    assert align(torch.eye(3)[:, :2], torch.eye(3)).cosines.tolist() == [1, 1]


def test_align_leaves_dead_columns_last():
    weight = torch.tensor([[0.0, 0.1], [0.0, 0.1]])
    alignment = align(weight, torch.eye(2))
    assert sorted(alignment.cosines.tolist()) == pytest.approx([0, math.sqrt(0.5)])
    assert alignment.cosines[alignment.columns == 0].item() == 0
    one = align(weight, torch.eye(2)[:, :1])
    assert (one.columns.item(), one.matched.item()) == (1, 0)


@pytest.mark.parametrize(("first", "second"), [(1, 1), (2, 4), (5, 3), (6, 6)])
def test_subspace_angles_against_scipy(first, second, generator):
    a, b = draw(NUM_FEATURES, first, generator=generator), draw(NUM_FEATURES, second, generator=generator)
    expected = scipy.linalg.subspace_angles(a.numpy(), b.numpy())
    np.testing.assert_allclose(subspace_angles(a, b), expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(subspace_angles(b, a), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("angle", [0.0, 1e-10, 1e-3, math.pi / 4, 1.0, math.pi / 2 - 1e-10, math.pi / 2])
def test_subspace_angles_keep_their_digits(angle, generator):
    frame = rotation(NUM_FEATURES, generator)
    tilted = frame[:, :1] * math.cos(angle) + frame[:, 2:3] * math.sin(angle)
    found = subspace_angles(frame[:, :2] @ rotation(2, generator), torch.cat([tilted, frame[:, 1:2]], 1))
    assert found.tolist() == pytest.approx([angle, 0], abs=2e-15 * NUM_FEATURES)


def test_subspace_angles_of_dependent_columns(generator):
    a, b = draw(NUM_FEATURES, 2, generator=generator), draw(NUM_FEATURES, 3, generator=generator)
    redundant = torch.cat([a, a @ draw(2, 2, generator=generator), torch.zeros(NUM_FEATURES, 1)], 1)
    torch.testing.assert_close(subspace_angles(redundant, b), subspace_angles(a, b), rtol=0, atol=1e-12)
    assert subspace_angles(torch.zeros(NUM_FEATURES, 2), b).shape == (0,)


def posterior_divergence(weight, sigma2):
    """KL(q(z|x) ‖ p(z|x)) with q's best mean and diagonal covariance, from torch.distributions."""
    precision = (weight.T @ weight + sigma2 * torch.eye(weight.shape[1], dtype=weight.dtype)) / sigma2
    mean = torch.zeros(weight.shape[1], dtype=weight.dtype)
    truth = torch.distributions.MultivariateNormal(mean, precision_matrix=precision)
    best = torch.distributions.MultivariateNormal(mean, torch.diag(1 / precision.diagonal()))
    return torch.distributions.kl_divergence(best, truth)


@pytest.mark.parametrize("latents", [1, 3, 9])
@pytest.mark.parametrize("sigma2", [1e-3, 1.0, 50.0])
def test_rotation_gap_is_the_divergence_from_the_posterior(latents, sigma2, generator):
    weight = draw(NUM_FEATURES, latents, generator=generator)
    gap, expected = rotation_gap(weight, sigma2), posterior_divergence(weight, sigma2)
    torch.testing.assert_close(gap, expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(rotation_gap(weight, torch.tensor(sigma2, dtype=torch.float64)), gap)
    signed = -weight[:, torch.randperm(latents, generator=generator)]
    torch.testing.assert_close(rotation_gap(signed, sigma2), gap, rtol=1e-12, atol=1e-14)


def test_rotation_gap_is_zero_for_orthogonal_columns_alone(generator):
    weight = rotation(NUM_FEATURES, generator)[:, :3] * torch.tensor([3.0, 1.0, 0.0])
    assert 0 <= rotation_gap(weight, 0.5) < 1e-14
    assert rotation_gap(weight @ rotation(3, generator), 0.5) > 0.01


def test_rotation_gap_is_what_canonicalize_gains(vae, x):
    vae.optimal_encoder_()
    moments, gap = Moments.from_data(x), rotation_gap(vae.weight, vae.log_sigma2.exp()).item()
    before, likelihood = vae.elbo(moments).item(), vae.log_marginal_likelihood(moments).item()
    after = vae.canonicalize_().elbo(moments).item()
    assert gap > 0.01
    assert after - before == pytest.approx(gap, rel=1e-10)
    assert after == pytest.approx(likelihood, rel=1e-12)


def test_rotation_gap_gradient(generator):
    weight = draw(NUM_FEATURES, 3, generator=generator).requires_grad_()
    sigma2 = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rotation_gap, (weight, sigma2))


def reconstruction(model, x):
    """Mean and covariance of W z + μ under q(z|x)."""
    mean = model.weight @ model.encoder @ (x - model.mu).T + model.mu[:, None]
    return mean, model.weight @ torch.diag(model.log_d.exp()) @ model.weight.T


def terms(model, x):
    """Reconstruction and KL term of the mean ELBO, each by itself."""
    moments = Moments.from_data(x)
    without_kl = model.elbo(moments, 0.0)
    return without_kl.item(), (without_kl - model.elbo(moments)).item()


def test_rescaling_leaves_the_reconstruction(vae, x):
    scale = torch.tensor([2.0, -0.5, 1.0, -30.0])
    before = {name: value.clone() for name, value in vae.named_parameters()}
    rescaled = rescale_latents(vae, scale)
    for found, expected in zip(reconstruction(rescaled, x), reconstruction(vae, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    likelihood, kl = terms(vae, x)
    rescaled_likelihood, rescaled_kl = terms(rescaled, x)
    assert rescaled_likelihood == pytest.approx(likelihood, rel=1e-12)
    assert abs(rescaled_kl - kl) > 1
    assert all(torch.equal(value, before[name]) for name, value in vae.named_parameters())
    assert torch.equal(rescaled.weight[:, 1], vae.weight[:, 1] * -0.5)


def test_the_kl_identifies_the_scale(vae, x):
    moments = Moments.from_data(x)
    offset = moments.sample_mean - vae.mu
    second_moment = moments.covariance + offset.outer(offset)
    aggregate = ((vae.encoder @ second_moment) * vae.encoder).sum(1) + vae.log_d.exp()
    best = rescale_latents(vae, aggregate.sqrt())
    largest = best.elbo(moments)
    for latent, factor in itertools.product(range(LATENT_DIM), (0.99, 1.01)):
        scale = torch.ones(LATENT_DIM)
        scale[latent] = factor
        assert rescale_latents(best, scale).elbo(moments) < largest - 1e-5
    optimum = LinearVAE.from_ppca(PPCA(n_components=LATENT_DIM).fit(moments))
    aggregate = (optimum.encoder @ moments.covariance @ optimum.encoder.T).diagonal() + optimum.log_d.exp()
    torch.testing.assert_close(aggregate, torch.ones_like(aggregate), rtol=1e-12, atol=0)


def test_the_elbo_leaves_signs_and_order(vae, x):
    flipped = rescale_latents(vae, torch.tensor([1.0, -1.0, -1.0, 1.0]))
    order = torch.tensor([3, 1, 0, 2])
    with torch.no_grad():
        flipped.weight.copy_(flipped.weight[:, order])
        flipped.encoder.copy_(flipped.encoder[order])
        flipped.log_d.copy_(flipped.log_d[order])
    torch.testing.assert_close(flipped.elbo(x), vae.elbo(x), rtol=1e-12, atol=0)


def test_lengths_order_the_columns_at_the_maximum(x, generator):
    eigenvalues, directions = np.linalg.eigh(np.cov(x.numpy(), rowvar=False, bias=True))
    directions = torch.tensor(directions[:, ::-1].copy())
    ppca = PPCA(n_components=LATENT_DIM).fit(x)
    shuffled = ppca.weight_[:, torch.randperm(LATENT_DIM, generator=generator)]
    squared_lengths, order = shuffled.square().sum(0).sort(descending=True)
    variances = squared_lengths + ppca.noise_variance_
    np.testing.assert_allclose(variances, eigenvalues[::-1][:LATENT_DIM], rtol=1e-12)
    alignment = align(shuffled, directions[:, :LATENT_DIM])
    assert torch.equal(alignment.columns, order)
    assert alignment.cosines.min() > 1 - 1e-12


def test_rotated_columns_are_found_by_principal_components(x, generator):
    moments = Moments.from_data(x)
    vae = LinearVAE.from_ppca(PPCA(n_components=LATENT_DIM).fit(moments))
    with torch.no_grad():
        vae.weight.copy_(vae.weight @ rotation(LATENT_DIM, generator))
    directions = moments.eigh()[1][:, :LATENT_DIM]
    assert align(vae.weight, directions).cosines.min() < 0.9
    assert subspace_angles(vae.weight, directions).max() < 1e-12
    alignment = align(vae.principal_components(moments)[1], directions)
    assert alignment.columns.tolist() == list(range(LATENT_DIM))
    assert alignment.cosines.min() > 1 - 1e-12


def test_half_precision_is_computed_in_double(generator):
    weight = draw(NUM_FEATURES, 3, generator=generator)
    half = weight.bfloat16()
    assert torch.equal(rotation_gap(half, 1.0), rotation_gap(half.double(), 1.0))
    assert align(half, weight.float()).cosines.dtype == torch.float64


NAN = torch.full((3, 2), math.nan)
EYE = torch.eye(3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: align([[1.0]], EYE), TypeError, "align: weight must be a floating tensor, got list"),
        (lambda: align(EYE, EYE.int()), TypeError, "align: directions must be .*, got torch.int32"),
        (lambda: align(EYE[0], EYE), ValueError, r"align: weight must have shape \(D, K\), got \(3,\)"),
        (lambda: align(EYE, EYE[:2]), ValueError, r"directions must have the D=3 rows .*, got \(2, 3\)"),
        (lambda: align(EYE, EYE[:, :0]), ValueError, r"align: directions must .*, got \(3, 0\)"),
        (lambda: align(NAN, EYE), ValueError, "align: weight must be finite"),
        (lambda: subspace_angles(EYE, NAN), ValueError, "subspace_angles: directions must be finite"),
        (lambda: rotation_gap(EYE, 0.0), ValueError, "sigma2 must be finite and > 0, got 0.0"),
        (lambda: rotation_gap(EYE, math.inf), ValueError, "sigma2 must be finite and > 0, got inf"),
        (lambda: rotation_gap(EYE, torch.ones(2)), TypeError, "sigma2 must be a number, got Tensor"),
        (lambda: rotation_gap(EYE, "1"), TypeError, "rotation_gap: sigma2 must be a number, got str"),
        (lambda: rescale_latents(LinearVAE(3, 2), [1, 2]), TypeError, "must be a floating tensor, got list"),
        (lambda: rescale_latents(LinearVAE(3, 2), torch.ones(3)), ValueError, r"with K=2, got \(3,\)"),
        (lambda: rescale_latents(LinearVAE(3, 2), torch.zeros(2)), ValueError, "nowhere zero, got"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_on_every_device(device, generator):
    weight = draw(NUM_FEATURES, 3, generator=generator)
    there, directions = weight.to(device), torch.eye(NUM_FEATURES, device=device)
    alignment = align(there, directions)
    assert all(part.device.type == device for part in alignment)
    assert torch.equal(alignment.columns.cpu(), align(weight, torch.eye(NUM_FEATURES)).columns)
    gap = rotation_gap(there, 1.0)
    assert gap.device.type == device
    torch.testing.assert_close(gap.cpu(), rotation_gap(weight, 1.0), rtol=1e-12, atol=0)
    assert subspace_angles(there, directions[:, :2]).device.type == device
