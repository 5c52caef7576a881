import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from lineavae.data import logit_transform
from lineavae.experiments import EXPERIMENTS, execute, nonlinear_encoders
from lineavae.experiments.nonlinear_encoders import ENCODERS, LinearDecoderVAE, standardised_logits
from lineavae.experiments.seeds import combine
from lineavae.linear import Moments

EXPERIMENT = EXPERIMENTS["nonlinear-encoders"]
LATENT_DIM = 3
TINY = replace(
    EXPERIMENT.presets["quick"],
    num_images=60,
    latent_dim=LATENT_DIM,
    hidden=(8, 6),
    epochs=60,
    batch_size=60,
    learning_rates=(0.02,),
)
GRID = replace(TINY, epochs=4, batch_size=20, learning_rates=(1e-4, 0.02))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return execute(EXPERIMENT, TINY, tmp_path_factory.mktemp("nonlinear-encoders"))


@pytest.fixture(scope="module")
def grid_run(tmp_path_factory):
    return execute(EXPERIMENT, GRID, tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="module")
def measured(run):
    return {name: value["measured"] for name, value in run.results["quantities"].items()}


@pytest.fixture(scope="module")
def pixels():
    return logit_transform(TINY.images.images, TINY.seed)


@pytest.fixture(scope="module")
def standardised():
    return standardised_logits(TINY.images, TINY.seed)


def make_vae(encoder):
    return LinearDecoderVAE(encoder, 784, LATENT_DIM, TINY.hidden, seed=0)


def test_maximum_is_that_of_ppca(measured, pixels):
    # Tipping and Bishop (1999), equation 8 at the maximum, from the eigenvalues alone
    eigenvalues = np.linalg.eigvalsh(np.cov(pixels.x.numpy(), rowvar=False, bias=True))[::-1]
    noise = eigenvalues[LATENT_DIM:].mean()
    log_det = np.log(eigenvalues[:LATENT_DIM]).sum() + (784 - LATENT_DIM) * np.log(noise)
    expected = -0.5 * (784 * (np.log(2 * np.pi) + 1) + log_det) + pixels.log_det.mean().item()
    assert measured["pPCA maximum likelihood"] == pytest.approx(expected, rel=1e-12)


def test_no_encoder_exceeds_the_maximum_at_any_time(run, measured):
    elbos = np.stack([run.results["curves"][name] for name in ENCODERS])
    highest = measured["highest ELBO of all runs: above the maximum"]
    assert highest == elbos.max() - measured["pPCA maximum likelihood"]
    assert highest < 0


@pytest.mark.parametrize("name", ENCODERS)
def test_gap_is_the_decoders_and_the_encoders(measured, name):
    gap, decoders, encoders = (
        measured[f"{name}: {part}"]
        for part in ("gap to the maximum", "of the gap, the decoder's", "of the gap, the encoder's")
    )
    assert gap == pytest.approx(measured["pPCA maximum likelihood"] - measured[f"{name}: ELBO"], abs=1e-9)
    assert gap == pytest.approx(decoders + encoders, abs=1e-9)
    assert min(decoders, encoders) > 0


def test_training_approaches_the_maximum(run, measured):
    start = measured["pPCA maximum likelihood"] - run.results["curves"]["linear"][0, 0]
    assert measured["linear: gap to the maximum"] < 0.25 * start


def test_encoders_are_compared_with_the_linear_one(measured):
    above = [measured[f"{name}: above the linear encoder"] for name in ENCODERS if name != "linear"]
    assert above == [measured[f"{name}: ELBO"] - measured["linear: ELBO"] for name in list(ENCODERS)[1:]]
    assert measured["best deeper encoder: above the linear"] == max(above)
    assert measured["worst deeper encoder: above the linear"] == min(above)


@pytest.mark.parametrize("name", ENCODERS)
def test_curves_begin_with_the_untrained_model(run, standardised, name):
    # the ELBO term by term, from the densities of torch.distributions
    x, vae = standardised.x, make_vae(name).double()
    mean, logvar = vae.encode(x)
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(1)
    likelihood = torch.distributions.Normal(vae.decoder(mean), 1.0).log_prob(x).sum(1)
    likelihood -= 0.5 * (logvar.exp() @ vae.weight.square().T).sum(1)
    expected = (likelihood - kl + standardised.log_det).mean().item()
    assert run.results["curves"][name][0, 0] == pytest.approx(expected, rel=1e-9)


def test_standardised_logits_have_the_density_of_the_logits(pixels, standardised):
    assert standardised.x.mean(0).abs().max() < 1e-12
    assert standardised.x.square().mean().item() == pytest.approx(1)
    # distances between images shrink by one factor, densities grow by its 784th power
    factors = torch.pdist(standardised.x) / torch.pdist(pixels.x)
    assert torch.allclose(factors, factors[0].expand_as(factors))
    grown = standardised.log_det - pixels.log_det
    assert torch.allclose(grown, 784 * factors[0].log().expand_as(grown))


def test_likelihood_of_a_decoder(standardised):
    vae = make_vae("linear")
    vae.noise.log_sigma2.data.fill_(0.7)
    weight, bias = vae.weight.detach().double().numpy(), vae.decoder.bias.detach().double().numpy()
    covariance = weight @ weight.T + vae.noise.log_sigma2.double().exp().item() * np.eye(784)
    expected = multivariate_normal(bias, covariance).logpdf(standardised.x.numpy()).mean()
    found = vae.log_marginal_likelihood(Moments.from_data(standardised.x))
    assert found.item() == pytest.approx(expected, rel=1e-10)


def test_encoders_are_what_their_names_say():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 5, 784, generator=generator, dtype=torch.float64)
    for name in ENCODERS:
        vae = make_vae(name).double()
        (left, logvar), (right, _), (middle, _) = map(vae.encode, (first, second, (first + second) / 2))
        is_linear = torch.allclose((left + right) / 2, middle, atol=1e-12)
        assert is_linear == (name in ("linear", "deep linear"))
        assert is_linear == bool((logvar == logvar[0]).all())
        widths = [
            module.out_features for module in vae.encoder.modules() if isinstance(module, torch.nn.Linear)
        ]
        assert len(widths) == {"linear": 1, "one ReLU layer": 2}.get(name, 3)
        assert widths[:-1] == list(TINY.hidden[: len(widths) - 1])


def test_all_begin_with_the_same_decoder_and_leave_the_random_numbers_alone():
    state = torch.get_rng_state()
    vaes = [make_vae(name) for name in ENCODERS]
    assert torch.equal(torch.get_rng_state(), state)
    for vae in vaes:
        assert torch.equal(vae.weight, vaes[0].weight)
        assert torch.equal(vae.decoder.bias, vaes[0].decoder.bias)


def test_the_better_learning_rate_is_chosen(grid_run):
    quantities = grid_run.results["quantities"]
    for name in ENCODERS:
        final = grid_run.results["curves"][name][:, -1]
        assert final[1] > final[0]
        assert quantities[f"{name}: learning rate"]["measured"] == 0.02
        assert quantities[f"{name}: ELBO"]["measured"] == final[1]


def test_a_run_interrupted_amid_a_training_ends_as_if_it_was_not(grid_run, tmp_path, monkeypatch):
    elbo, calls = LinearDecoderVAE.elbo, []

    def interrupted(vae, x, **options):
        calls.append(None)
        if len(calls) == 42:
            raise KeyboardInterrupt
        return elbo(vae, x, **options)

    with monkeypatch.context() as patch:
        patch.setattr(LinearDecoderVAE, "elbo", interrupted)
        with pytest.raises(KeyboardInterrupt):
            execute(EXPERIMENT, GRID, tmp_path)
    written = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert written == [
        "deep-linear-0.0001.safetensors",
        "linear-0.0001.safetensors",
        "linear-0.02.safetensors",
    ]
    finished = [tmp_path / name for name in written[1:]]
    times = [path.stat().st_mtime_ns for path in finished]
    execute(EXPERIMENT, GRID, tmp_path, resume=True)
    assert [path.stat().st_mtime_ns for path in finished] == times
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(
        (grid_run.directory / "results.json").read_text()
    )
    with np.load(tmp_path / "curves.npz") as curves:
        for name in curves.files:
            assert np.array_equal(curves[name], grid_run.results["curves"][name])


def test_figure_shows_the_better_curves(grid_run):
    figure = EXPERIMENT.figures["figure-4"](grid_run.results)
    curves, quantities = grid_run.results["curves"], grid_run.results["quantities"]
    maximum = quantities["pPCA maximum likelihood"]["measured"]
    (axes,) = figure.axes
    for name, line in zip(ENCODERS, axes.get_lines(), strict=True):
        assert np.array_equal(line.get_ydata(), maximum - curves[name][1])
    assert axes.get_lines()[0].get_xdata()[-1] == GRID.epochs
    assert "nats" in axes.get_ylabel()
    best = max(ENCODERS, key=lambda name: quantities[f"{name}: ELBO"]["measured"])
    assert f"({best}) to" in " ".join(figure.get_suptitle().split())
    assert "MNIST-5k, N=60" in figure.get_supxlabel()


def test_claims_are_of_the_numbers(run):
    better, bounded = run.results["claims"]
    rise = run.results["quantities"]["best deeper encoder: above the linear"]["measured"]
    assert better["verdict"] == ("does not hold" if rise > 1 else "holds")
    assert bounded["verdict"] == "holds"


def test_published_values_stand_beside_the_papers_model_only(run, tmp_path, monkeypatch):
    assert all(value["published"] is None for value in run.results["quantities"].values())
    monkeypatch.setattr(nonlinear_encoders, "_PUBLISHED_FOR", (LATENT_DIM, 60))
    quantities = execute(EXPERIMENT, replace(TINY, epochs=1), tmp_path).results["quantities"]
    published = {name: value["published"] for name, value in quantities.items() if value["published"]}
    assert published == {
        "linear: ELBO": -1098.2,
        "best deeper encoder: above the linear": pytest.approx(-1108.7 + 1098.2),
        "worst deeper encoder: above the linear": pytest.approx(-1119.6 + 1098.2),
    }


def test_presets():
    full = EXPERIMENT.presets["full"]
    assert (full.num_images, full.latent_dim, full.hidden, full.epochs) == (60_000, 200, (1024, 512), 1000)
    assert full.learning_rates == (1e-4, 3e-4, 1e-3, 3e-3)


def test_headline_names_quantities(run):
    assert set(EXPERIMENT.headline) <= set(run.results["quantities"])


def test_figure_of_several_seeds(grid_run):
    results = combine([grid_run.results] * 2, (0, 1))
    figure = EXPERIMENT.figures["figure-4"](results)
    assert "means of 2 seeds" in figure.get_supxlabel()
