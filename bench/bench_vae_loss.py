"""The loss of a VAE with all its gradients: ours, Pyro, pythae, and as usually written.

The networks are 784-400-20-400-784 or small, the batch has 128 rows, σ² = 1. Pyro and pythae have the same
modules and draw one sample, as ours; pythae leaves out the constant of the Gaussian. "networks alone" has
next to nothing for a loss.
"""

import math

import pytest
import torch
from torch import nn

from harness import peers
from harness.measure import Contender
from lineavae.nn import GaussianVAE, ObservationNoise

SHAPES = [(784, 400, 20, 128), (64, 64, 10, 128)]


def networks(num_features, width, latent_dim, device):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(num_features, width), nn.ReLU(), nn.Linear(width, 2 * latent_dim))
    decoder = nn.Sequential(nn.Linear(latent_dim, width), nn.ReLU(), nn.Linear(width, num_features))
    return encoder.to(device), decoder.to(device)


def ours(encoder, decoder):
    vae = GaussianVAE(encoder, decoder, ObservationNoise(1.0, kind="fixed"))
    return lambda x: -vae(x).elbo.mean()


def as_written(encoder, decoder):
    def loss(x):
        mean, logvar = encoder(x).chunk(2, -1)
        x_hat = decoder(mean + (0.5 * logvar).exp() * torch.randn_like(mean))
        log_likelihood = -0.5 * ((x - x_hat).square() + math.log(2 * math.pi)).sum(-1)
        kl = 0.5 * (mean.square() + logvar.exp() - logvar - 1).sum(-1)
        return (kl - log_likelihood).mean()

    return loss


def networks_alone(encoder, decoder):
    return lambda x: decoder(encoder(x).chunk(2, -1)[0]).sum()


def of_pyro(encoder, decoder, *, checked):
    import pyro
    from pyro.distributions import Normal

    # encoder and decoder are registered in the guide and in the model, as Pyro's own example of a VAE does
    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            prior = x.new_zeros(len(x), decoder[0].in_features)
            z = pyro.sample("z", Normal(prior, torch.ones_like(prior)).to_event(1))
            pyro.sample("x", Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            mean, logvar = encoder(x).chunk(2, -1)
            pyro.sample("z", Normal(mean, (0.5 * logvar).exp()).to_event(1))

    elbo = pyro.infer.TraceMeanField_ELBO()

    def loss(x):
        with pyro.validation_enabled(checked):
            return elbo.differentiable_loss(model, guide, x) / len(x)

    return loss


def of_pythae(encoder, decoder):
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def forward(self, x):
            mean, logvar = encoder(x).chunk(2, -1)
            return ModelOutput(embedding=mean, log_covariance=logvar)

    class Decoder(BaseDecoder):
        def forward(self, z):
            return ModelOutput(reconstruction=decoder(z))

    num_features, latent_dim = decoder[-1].out_features, decoder[0].in_features
    vae = VAE(VAEConfig(input_dim=(num_features,), latent_dim=latent_dim), Encoder(), Decoder())
    return lambda x: vae({"data": x}).loss


@pytest.mark.parametrize(("num_features", "width", "latent_dim", "batch"), SHAPES)
def test_vae_loss(compare, setting, num_features, width, latent_dim, batch):
    makers = {"ours": ours, "eager as written": as_written, "networks alone": networks_alone}
    if peers.has("pyro"):
        makers["Pyro"] = lambda *both: of_pyro(*both, checked=True)
        makers["Pyro, without its checks"] = lambda *both: of_pyro(*both, checked=False)
    if peers.has("pythae"):
        makers["pythae"] = of_pythae
    x = torch.rand(batch, num_features).to(setting.device)

    def step_of(make):
        encoder, decoder = networks(num_features, width, latent_dim, setting.device)
        loss = make(encoder, decoder)
        parameters = [*encoder.parameters(), *decoder.parameters()]

        def step(x):
            value = loss(x)
            value.backward()
            for parameter in parameters:
                parameter.grad = None
            return value.detach()

        return step

    compare({name: Contender(step_of(make), [x], captures=False) for name, make in makers.items()})
