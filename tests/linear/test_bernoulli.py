"""BernoulliLinearVAE against quadrature, dense integration over z, sampling, and closed forms where W = 0."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import simpson
from scipy.special import expit, roots_hermitenorm
from torch.distributions import Bernoulli, Normal, kl_divergence

from lineavae import _ascent as ascent
from lineavae import reference
from lineavae.collapse import CollapseStatistics
from lineavae.linear import BernoulliLinearVAE, LinearVAE, bernoulli

NUM_SAMPLES, NUM_FEATURES, LATENT_DIM = 40, 6, 2
PARAMETERS = ("weight", "encoder", "encoder_bias", "mu", "log_d")
MIXTURE_ERROR = 5.2e-8  # of each integral


@pytest.fixture
def x(generator):
    """Binary data of which the first three features, and the last three, depend on a common factor."""
    factors = 3 * torch.randn(NUM_SAMPLES, 2, dtype=torch.float64, generator=generator)
    return torch.bernoulli(factors.repeat_interleave(3, 1).sigmoid(), generator=generator)


def make(num_features=NUM_FEATURES, latent_dim=LATENT_DIM, dtype=torch.float64, spread=0.7):
    """A model with no parameter at a special value."""
    generator = torch.Generator().manual_seed(1)
    center = torch.linspace(0.1, 0.8, num_features)
    model = BernoulliLinearVAE(num_features, latent_dim, center=center, dtype=dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=spread, generator=generator)
    return model


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def lbfgs(parameters):
    return torch.optim.LBFGS(
        parameters, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-15
    )


def posterior(model, x):
    mean = (x - model.center) @ model.encoder.T + model.encoder_bias
    return Normal(mean, (0.5 * model.log_d).exp().expand_as(mean))


def kl(model, x):
    q = posterior(model, x)
    return kl_divergence(q, Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean))).sum(1)


def log_joint(model, x, z):
    """log p(x|z) p(z), with z of any leading dimensions before (K,) or (N, K)."""
    observed = Bernoulli(logits=z @ model.weight.T + model.mu, validate_args=False)
    return observed.log_prob(x).sum(-1) + Normal(0.0, 1.0).log_prob(z).sum(-1)


def log_evidence(model, x):
    """log p(x) of one latent, by Simpson's rule."""
    z = torch.linspace(-15, 15, 6001, dtype=torch.float64)
    joint = log_joint(model, x[:, None], z[:, None]).exp().detach().numpy()
    return torch.tensor(simpson(joint, x=z.numpy(), axis=-1)).log()


def test_initialisation():
    model = BernoulliLinearVAE(400, 100, generator=torch.Generator().manual_seed(0))
    for name in ("weight", "encoder"):
        largest = model.get_parameter(name).abs().max().item()
        assert 0.9 * (6 / 500) ** 0.5 < largest <= (6 / 500) ** 0.5
    assert not any(model.get_parameter(name).any() for name in ("encoder_bias", "mu", "log_d"))
    assert (model.num_features, model.latent_dim) == (400, 100)
    assert [name for name, _ in model.named_parameters()] == list(PARAMETERS)
    assert torch.equal(model.center, torch.full((400,), 0.5))
    again = BernoulliLinearVAE(400, 100, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


def test_mu_begins_at_the_logit_of_the_center():
    center = torch.tensor([0.0, 0.2, 0.5, 0.9999], dtype=torch.float64)
    model = BernoulliLinearVAE(4, 1, center=center)
    expected = torch.tensor([0.001, 0.2, 0.5, 0.999]).logit()
    torch.testing.assert_close(model.mu.detach(), expected, rtol=1e-5, atol=1e-6)
    center.zero_()
    assert model.center.tolist() == pytest.approx([0, 0.2, 0.5, 0.9999])
    assert "center" in model.state_dict()


@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize("soft", [False, True])
def test_elbo_against_quadrature(x, beta, soft, generator):
    model = make()
    if soft:
        x = torch.rand(x.shape, dtype=x.dtype, generator=generator)
    weight, mu = model.weight.detach().numpy(), model.mu.detach().numpy()
    mean, variance = (t.detach().numpy() for t in (posterior(model, x).mean, model.log_d.exp()))
    logits, std = mean @ weight.T + mu, np.sqrt(weight**2 @ variance)
    nodes, weights = roots_hermitenorm(150)
    expected_softplus = np.logaddexp(0, logits[..., None] + std[:, None] * nodes) @ weights
    expected_softplus /= math.sqrt(2 * math.pi)
    expected = torch.tensor((x.numpy() * logits - expected_softplus).sum(1)) - beta * kl(model, x)
    for value in (model.elbo(x, beta), model(x, beta)):
        torch.testing.assert_close(value, expected, rtol=0, atol=NUM_FEATURES * MIXTURE_ERROR)


def test_elbo_in_float32(x):
    exact = make(dtype=torch.float32).double().elbo(x)
    value = make(dtype=torch.float32).elbo(x.float())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact.float(), rtol=1e-5, atol=1e-5)


def test_gradients_of_the_elbo(x):
    model = make()

    def elbo(*parameters):
        named = dict(zip(PARAMETERS, parameters, strict=True))
        return torch.func.functional_call(model, named, (x[:5], 0.7))

    assert torch.autograd.gradcheck(elbo, tuple(model.parameters()))


def test_save_and_load(tmp_path, x):
    model = BernoulliLinearVAE(NUM_FEATURES, LATENT_DIM, center=x.mean(0).float())
    model.save(tmp_path / "model")
    state = torch.random.get_rng_state()
    loaded = BernoulliLinearVAE.load(tmp_path / "model")
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(loaded.elbo(x.float()), model.elbo(x.float()))
    with pytest.raises(ValueError, match=r"must be a file of lineavae\.LinearVAE"):
        LinearVAE.load(tmp_path / "model")


def test_encode_decode_and_sample(x):
    model = make()
    mean, logvar = model.encode(x)
    torch.testing.assert_close(
        mean[5], model.encoder @ (x[5] - model.center) + model.encoder_bias, rtol=1e-12, atol=1e-12
    )
    assert torch.equal(logvar, model.log_d.expand(NUM_SAMPLES, -1))
    logits = model.weight @ mean[5] + model.mu
    expected = torch.tensor(expit(logits.detach().numpy()))
    torch.testing.assert_close(model.decode(mean)[5], expected, rtol=1e-12, atol=1e-12)
    probabilities = model.sample(3, generator=torch.Generator().manual_seed(4))
    z = torch.randn(3, LATENT_DIM, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert torch.equal(probabilities, model.decode(z))
    assert not probabilities.requires_grad
    assert model.sample(0).shape == (0, NUM_FEATURES)


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_stochastic_elbo_is_unbiased(x, generator, beta):
    model = make()
    torch.nn.init.constant_(model.log_d, -1.5)  # an estimator that takes d for √d is far off
    draws = torch.stack([model.stochastic_elbo(x[:8], 50, generator, beta).detach() for _ in range(400)])
    error = draws.std(0) / len(draws) ** 0.5
    assert error.max() < 0.05
    assert ((draws.mean(0) - model.elbo(x[:8], beta).detach()).abs() < 4 * error).all()


def test_stochastic_elbo_of_one_draw_by_hand(x):
    model = make()
    estimate = model.stochastic_elbo(x, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(1, NUM_SAMPLES, LATENT_DIM, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    q = posterior(model, x)
    z = q.mean + noise[0] * q.stddev
    expected = Bernoulli(logits=z @ model.weight.T + model.mu).log_prob(x).sum(1) - kl(model, x)
    torch.testing.assert_close(estimate, expected, rtol=1e-12, atol=0)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(estimate.mean(), parameters)
    for gradient, truth in zip(gradients, torch.autograd.grad(expected.mean(), parameters), strict=True):
        torch.testing.assert_close(gradient, truth, rtol=1e-10, atol=1e-12)


def test_without_a_decoder_features_are_independent(x):
    # the likelihood of independent features at their frequencies: minus their entropies
    frequency = x.mean(0)
    entropy = -(frequency * frequency.log() + (1 - frequency) * (1 - frequency).log()).sum()
    model = BernoulliLinearVAE(NUM_FEATURES, LATENT_DIM, dtype=torch.float64)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        model.mu.copy_(frequency.logit())
    tolerance = NUM_FEATURES * MIXTURE_ERROR
    assert model.elbo(x).mean().item() == pytest.approx(-entropy.item(), abs=tolerance)
    each = (x * frequency.log() + (1 - x) * (1 - frequency).log()).sum(1)
    torch.testing.assert_close(model.elbo(x), each, rtol=0, atol=tolerance)
    # the likelihood exactly, whatever the samples, as p(z) = q(z|x)
    torch.testing.assert_close(model.importance_weighted_bound(x, 3), each, rtol=1e-12, atol=0)


def test_bounds_of_one_latent_against_integration_over_z(x, generator):
    x = x[:6]
    model = make(latent_dim=1)
    evidence, elbo = log_evidence(model, x), model.elbo(x).detach()
    # all data there are have probability one
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * NUM_FEATURES)
    assert log_evidence(model, every).exp().sum().item() == pytest.approx(1, abs=1e-10)
    assert (elbo < evidence).all()
    copies = x.repeat(500, 1)
    bounds = {
        size: model.importance_weighted_bound(copies, size, generator=generator).reshape(500, len(x))
        for size in (1, 10, 100)
    }
    mean = {size: bound.mean(0) for size, bound in bounds.items()}
    error = {size: bound.std(0) / 500**0.5 for size, bound in bounds.items()}
    assert ((mean[1] - elbo).abs() < 4 * error[1]).all()
    for size in (10, 100):
        assert (mean[size] > elbo - 4 * error[size]).all()
        assert (mean[size] < evidence + 4 * error[size]).all()
    assert elbo.mean() < mean[10].mean() < mean[100].mean() < evidence.mean() + 4 * error[100].mean()


def test_bound_of_many_samples_is_the_likelihood(generator):
    model = make(num_features=3, latent_dim=1)
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
    model.weight.requires_grad_(False)
    model.mu.requires_grad_(False)
    before = (log_evidence(model, x) - model.elbo(x)).mean().item()
    model.fit(x, optimizer=lbfgs, steps=20, progress=False)
    gap = log_evidence(model, x) - model.elbo(x).detach()
    assert (gap > 0).all()
    assert gap.mean() < before
    torch.testing.assert_close(
        model.importance_weighted_bound(x, 2000, generator=generator),
        log_evidence(model, x),
        rtol=0,
        atol=0.02,
    )


def test_a_zero_column_is_a_collapsed_latent_at_the_best_encoder(x):
    model = make(latent_dim=3)
    with torch.no_grad():
        model.weight[:, 1] = 0
    model.weight.requires_grad_(False)
    model.mu.requires_grad_(False)
    model.fit(x, optimizer=lbfgs, steps=50, progress=False)
    assert model.encoder[1].abs().max() < 1e-6
    assert model.encoder_bias[1].abs() < 1e-6
    assert model.log_d[1].abs() < 1e-6
    statistics = CollapseStatistics(3)
    with torch.no_grad():
        statistics.update(*model.encode(x))
    report = statistics.compute()
    assert report.at(epsilon=0.01, delta=0.01).collapsed.tolist() == [False, True, False]


def test_posterior_means_average_to_zero_at_the_optimum(x):
    model = make()
    model.fit(x, optimizer=lbfgs, steps=100, progress=False)
    assert model.encoder.abs().max() > 0.1
    means, _ = model.encode(x)
    assert means.std() > 0.1
    assert means.mean(0).abs().max() < 1e-4


def test_shift_of_intercept_and_mu_leaves_the_reconstruction(x):
    model, shifted = make(), make()
    shift = torch.tensor([0.3, -1.2], dtype=torch.float64)
    with torch.no_grad():
        shifted.encoder_bias += shift
        shifted.mu -= shifted.weight @ shift
    torch.testing.assert_close(model.elbo(x, 0.0), shifted.elbo(x, 0.0), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(model.elbo(x), shifted.elbo(x))


def curvatures_where_all_is_collapsed(x):
    """Eigenvalues of the Hessian of the ELBO, one latent, at W = 0, V = 0, c = 0, d = 1, sigmoid(μ) = x̄."""
    num_features = x.shape[1]
    sizes = (num_features, num_features, 1, num_features, 1)

    def elbo(flat):
        weight, encoder, bias, mu, log_d = flat.split(sizes)
        mean = (x @ encoder + bias)[:, None]
        logvar = log_d.expand_as(mean)
        reconstruction = reference.expected_bernoulli_log_likelihood(x, mean, logvar, weight[:, None], mu)
        return (reconstruction - reference.gaussian_kl(mean, logvar)).mean()

    point = torch.zeros(sum(sizes), dtype=torch.float64)
    point[2 * num_features + 1 : -1] = x.mean(0).logit()
    gradient = torch.func.grad(elbo)(point)
    assert gradient.abs().max() < 1e-6  # that of the mixture is not exact
    return torch.linalg.eigvalsh(torch.func.hessian(elbo)(point))


def test_directions_of_ascent_where_all_is_collapsed(x):
    above_one = (torch.linalg.eigvalsh(torch.corrcoef(x.T)) > 1).sum()
    assert above_one == 2
    assert (curvatures_where_all_is_collapsed(x) > 1e-6).sum() == above_one
    # every combination once: no two features are correlated
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
    assert curvatures_where_all_is_collapsed(every).max() < 1e-6
    # labels of less variance than ones and zeros: correlated, and a maximum nevertheless
    assert curvatures_where_all_is_collapsed(0.45 + 0.1 * x).max() < 0


@pytest.mark.parametrize(("batch_size", "beta"), [(None, 1.0), (15, 0.5)])
def test_analytic_fit_is_adam_on_the_formula(x, batch_size, beta):
    model, twin = make(), make()
    settings = bernoulli._Settings(
        objective="analytic", steps=20, batch_size=batch_size, beta=beta, seed=3, history_every=8
    )
    batch = ascent.batches(settings, x)
    optimizer = torch.optim.Adam(twin.parameters(), lr=0.01)

    def elbo(x):
        q = posterior(twin, x)
        reconstruction = reference.expected_bernoulli_log_likelihood(
            x, q.mean, q.variance.log(), twin.weight, twin.mu
        )
        return (reconstruction - beta * kl(twin, x)).mean()

    elbos = [elbo(x).item()]
    for step in range(20):
        optimizer.zero_grad()
        (-elbo(batch(step))).backward()
        optimizer.step()
        elbos.append(elbo(x).item())
    history = model.fit(
        x, lr=0.01, steps=20, batch_size=batch_size, beta=beta, seed=3, history_every=8, progress=False
    )
    for name in PARAMETERS:
        torch.testing.assert_close(model.get_parameter(name), twin.get_parameter(name), rtol=1e-8, atol=1e-10)
    assert history.steps.tolist() == [0, 8, 16, 20]
    np.testing.assert_allclose(history.elbo, np.array(elbos)[history.steps], rtol=1e-10)


def test_stochastic_fit_takes_the_noise_of_its_step(x):
    model, twin = make(), make()
    model.fit(x, objective="stochastic", optimizer="sgd", lr=0.1, steps=2, seed=5, progress=False)
    settings = bernoulli._Settings(
        objective="stochastic", steps=2, batch_size=None, beta=1.0, seed=5, history_every=100
    )
    for step in range(2):
        noise = ascent.noise(settings, step, x.device)
        gradients = torch.autograd.grad(twin.stochastic_elbo(x, generator=noise).mean(), twin.parameters())
        with torch.no_grad():
            for parameter, gradient in zip(twin.parameters(), gradients, strict=True):
                parameter += 0.1 * gradient
    for name in PARAMETERS:
        torch.testing.assert_close(model.get_parameter(name), twin.get_parameter(name), rtol=1e-9, atol=1e-12)


def test_history_is_without_sampling_in_float64_and_in_blocks(x, monkeypatch):
    monkeypatch.setattr(bernoulli, "_EXACT_ROWS", 7)
    model = make(dtype=torch.float32)
    start = make(dtype=torch.float32).double().elbo(x).mean().item()
    history = model.fit(x, objective="stochastic", steps=30, beta=1.0, progress=False)
    assert history.elbo.dtype == np.float64
    assert history.elbo[0] == pytest.approx(start, rel=1e-13)
    assert history.elbo[-1] == pytest.approx(model.double().elbo(x).mean().item(), rel=1e-13)


@pytest.mark.parametrize("options", [{"batch_size": 15}, {"objective": "stochastic"}])
@pytest.mark.parametrize("at_step", [13, 20])
def test_interrupted_and_resumed_ends_at_the_same_bits(x, tmp_path, monkeypatch, options, at_step):
    options = {**options, "steps": 30, "history_every": 7, "checkpoint_every": 10, "progress": False}
    whole = make()
    expected = whole.fit(x, **options)
    path = tmp_path / "checkpoint.safetensors"
    advance = ascent._Run.advance

    def advance_or_fail(run):
        if run.step == at_step:
            raise RuntimeError("power cut")
        advance(run)

    interrupted = make()
    before = snapshot(interrupted)
    with monkeypatch.context() as patch:
        patch.setattr(ascent._Run, "advance", advance_or_fail)
        with pytest.raises(RuntimeError, match="power cut"):
            interrupted.fit(x, checkpoint=path, **options)
    assert all(torch.equal(interrupted.get_parameter(name), before[name]) for name in PARAMETERS)
    resumed = make()
    resumed.reset_parameters()
    history = resumed.fit(x, checkpoint=path, resume=True, **options)
    assert all(torch.equal(resumed.get_parameter(name), whole.get_parameter(name)) for name in PARAMETERS)
    assert np.array_equal(history.steps, expected.steps)
    assert np.array_equal(history.elbo, expected.elbo)


def test_a_checkpoint_of_another_run_is_refused(x, tmp_path):
    options = {"steps": 3, "checkpoint": tmp_path / "c", "progress": False}
    make().fit(x, **options)
    with pytest.raises(
        ValueError, match=r"BernoulliLinearVAE\.fit: .*c is of another run, with seed 0 instead of 1"
    ):
        make().fit(x, seed=1, resume=True, **options)
    with pytest.raises(ValueError, match=r"with data '[0-9a-f]{32}' instead of"):
        make().fit(1 - x, resume=True, **options)
    with pytest.raises(ValueError, match=r"with data '[0-9a-f]{32}' instead of"):
        BernoulliLinearVAE(NUM_FEATURES, LATENT_DIM, dtype=torch.float64).fit(x, resume=True, **options)
    LinearVAE(NUM_FEATURES, LATENT_DIM, dtype=torch.float64).fit(x, **options)
    with pytest.raises(ValueError, match=r"c must be a file of lineavae\.BernoulliLinearVAE\.fit"):
        make().fit(x, resume=True, **options)


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.float32, ">f8"])
def test_arrays_of_any_real_dtype(x, dtype):
    model, twin = make(), make()
    twin.fit(x, steps=3, progress=False)
    model.fit(x.numpy().astype(dtype), steps=3, progress=False)
    assert all(torch.equal(model.get_parameter(name), twin.get_parameter(name)) for name in PARAMETERS)


def test_frozen_parameters_stay(x):
    model = make()
    model.mu.requires_grad_(False)
    before = snapshot(model)
    model.fit(x, steps=3, progress=False)
    assert torch.equal(model.mu, before["mu"])
    assert not torch.equal(model.weight, before["weight"])
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match=r"BernoulliLinearVAE\.fit: some parameter must require grad"):
        model.fit(x, steps=3, progress=False)


def test_divergence_is_named(x):
    model = make()
    before = snapshot(model)
    with pytest.raises(FloatingPointError, match=r"BernoulliLinearVAE\.fit: the ELBO is (nan|-inf) at step"):
        model.fit(x, optimizer="sgd", lr=1e9, steps=50, history_every=1, progress=False)
    assert all(torch.equal(model.get_parameter(name), before[name]) for name in PARAMETERS)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": [[0.0, 1.0]]}, TypeError, "data must be a torch.Tensor or an array, got list"),
        ({"data": torch.zeros(3, 6) + 0j}, TypeError, "data must be real, got torch.complex64"),
        ({"data": torch.zeros(3, 5)}, ValueError, r"\(N, D\) with N >= 1 and D=6, got \(3, 5\)"),
        ({"data": torch.zeros(6)}, ValueError, r"\(N, D\) with N >= 1 and D=6, got \(6,\)"),
        ({"data": torch.zeros(0, 6)}, ValueError, r"\(N, D\) with N >= 1 and D=6, got \(0, 6\)"),
        ({"data": np.full((3, 6), 255, np.uint8)}, ValueError, r"in \[0, 1\], got 255 at index \(0, 0\)"),
        ({"data": torch.eye(6).index_fill(0, torch.tensor(2), math.nan)}, ValueError, r"got nan .*\(2, 0\)"),
        ({"data": -torch.eye(6)}, ValueError, r"data must be in \[0, 1\], got -1.0 at index \(0, 0\)"),
        ({"objective": "exact"}, ValueError, "objective must be 'analytic' or 'stochastic', got 'exact'"),
        ({"optimizer": "rmsprop"}, ValueError, r"optimizer must be one of \['adam', 'sgd'\]"),
        ({"lr": 0.0}, ValueError, r"lr must be finite and > 0, got 0\.0"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"batch_size": 41}, ValueError, "batch_size must be at most the 40 samples, got 41"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"beta": -1.0}, ValueError, r"beta must be finite and >= 0, got -1\.0"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"history_every": 0}, ValueError, "history_every must be at least 1, got 0"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be at least 1, got 0"),
        ({"resume": True}, ValueError, "checkpoint must be given to resume from, got None"),
    ],
)  # fmt: skip
def test_errors_of_fit(x, change, error, message):
    model = make()
    before = snapshot(model)
    with pytest.raises(error, match=rf"BernoulliLinearVAE\.fit: .*{message}"):
        model.fit(**{"data": x, "steps": 2, "progress": False, **change})
    assert all(torch.equal(model.get_parameter(name), before[name]) for name in PARAMETERS)


def test_errors_of_the_module(x):
    model = make()
    for call, error, message in (
        (
            lambda: BernoulliLinearVAE(0, 1),
            ValueError,
            r"BernoulliLinearVAE: num_features must be at least 1",
        ),
        (lambda: BernoulliLinearVAE(3, 1.0), TypeError, r"BernoulliLinearVAE: latent_dim must be an int"),
        (lambda: BernoulliLinearVAE(3, 1, center=[0.5] * 3), TypeError, r"center must be a torch\.Tensor"),
        (lambda: BernoulliLinearVAE(3, 1, center=torch.ones(4)), ValueError, r"center .* D=3, got \(4,\)"),
        (lambda: BernoulliLinearVAE(1, 1, center=torch.ones(1) * 2), ValueError, r"\[0, 1\], got \[2\.0\]"),
        (lambda: model.elbo(x.numpy()), TypeError, r"encode: x must be a torch\.Tensor, got ndarray"),
        (lambda: model.elbo(x[:, :4]), ValueError, r"encode: x must have shape \(N, D\) with D=6, got"),
        (lambda: model.stochastic_elbo(x, 0), ValueError, r"stochastic_elbo: num_draws must be at least 1"),
        (lambda: model.importance_weighted_bound(x, 0), ValueError, r"bound: num_draws must be at least 1"),
        (lambda: model.sample(-1), ValueError, r"sample: num_draws must be at least 0"),
        (lambda: model.bfloat16().fit(x), TypeError, r"fit: the module must be float32 or float64"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_inference_mode_is_named(x):
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"gradients must be enabled"):
        make().fit(x, progress=False)
