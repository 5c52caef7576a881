"""A step of training the paper's MLP VAE: its loss from our operators, as usually written, and compiled.

784-1024-512-200-512-1024-784, batches of 128, Adam, σ² learned. "networks alone" has next to nothing for a
loss: what a step takes beyond that is the share of the loss terms.
"""

import math

import torch

from harness.measure import Contender
from lineavae.nn import GaussianVAE, MLPDecoder, MLPEncoder, ObservationNoise

NUM_FEATURES, LATENT_DIM, BATCH = 784, 200, 128


def loss_as_written(encoder, decoder, log_sigma2, x):
    mean, logvar = encoder(x)
    z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
    square = ((x - decoder(z)).square() / log_sigma2.exp()).sum(1)
    log_likelihood = -0.5 * (square + NUM_FEATURES * (math.log(2 * math.pi) + log_sigma2))
    kl = 0.5 * (mean.square() + logvar.exp() - logvar - 1).sum(1)
    return (kl - log_likelihood).mean()


def step_of(device, loss):
    """Make a function of x that takes one step of training a model of its own by ``loss(model, x)``."""
    torch.manual_seed(0)
    encoder, decoder = MLPEncoder(NUM_FEATURES, LATENT_DIM), MLPDecoder(LATENT_DIM, NUM_FEATURES)
    vae = GaussianVAE(encoder, decoder, ObservationNoise(1.0)).to(device)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-4, fused=True, capturable=device == "cuda")

    def step(x):
        optimizer.zero_grad()
        loss_value = loss(vae, x)
        loss_value.backward()
        optimizer.step()
        return loss_value.detach()

    return step


def test_gaussian_vae_step(compare, setting):
    x = torch.rand(BATCH, NUM_FEATURES).to(setting.device)
    launches_once = {"triton.cudagraphs": True} if setting.device == "cuda" else {}  # reduce-overhead

    def as_written(vae, x, loss=loss_as_written):
        return loss(vae.encoder, vae.decoder, vae.noise.log_sigma2, x)

    compiled_loss = setting.compiled(loss_as_written, **launches_once)
    losses = {
        "ours": lambda vae, x: -vae(x).elbo.mean(),
        "eager": as_written,
        "compiled": lambda vae, x: as_written(vae, x, compiled_loss),
        "networks alone": lambda vae, x: vae.decoder(vae.encoder(x)[0]).sum(),
    }
    compare(
        {
            # compiled code makes its own CUDA graph
            name: Contender(step_of(setting.device, loss), [x], captures=name != "compiled")
            for name, loss in losses.items()
        }
    )
