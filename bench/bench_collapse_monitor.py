"""What watching for collapse costs: 32 steps of training a VAE on images of 784 pixels, with and without it.

The VAE is that of Lucas et al. (2019), 784-1024-512-200-512-1024-784, with batches of 128 and Adam. The
monitor counts its pending rows once in 32 steps.
"""

from itertools import pairwise

import pytest
import torch
from torch import nn

from harness.measure import Contender
from lineavae.collapse import CollapseMonitor, CollapseStatistics
from lineavae.ops import gaussian_kl

NUM_FEATURES, LATENT_DIM, BATCH, STEPS = 784, 200, 128, 32


def perceptron(*widths, device):
    layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).to(device)


def mean_and_logvar(output):
    return output.chunk(2, dim=-1)


def training(device):
    """Make an encoder, and a function of data that trains it, batch by batch, and returns the last loss."""
    torch.manual_seed(0)
    encoder = perceptron(NUM_FEATURES, 1024, 512, 2 * LATENT_DIM, device=device)
    decoder = perceptron(LATENT_DIM, 512, 1024, NUM_FEATURES, device=device)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-4)

    def train(x):
        for batch in x.split(BATCH):
            mean, logvar = mean_and_logvar(encoder(batch))
            z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
            distortion = (batch - decoder(z)).square().sum(-1)
            loss = (0.5 * distortion + gaussian_kl(mean, logvar)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.detach()

    return encoder, train


@pytest.mark.only_cpu
def test_collapse_monitor(compare, setting):
    x = torch.rand(setting.size(BATCH * STEPS), NUM_FEATURES).to(setting.device)
    encoder, monitored = training(setting.device)
    _, plain = training(setting.device)
    counted_encoder, counted = training(setting.device)
    statistics = CollapseStatistics(LATENT_DIM, [0.01]).to(setting.device)
    counted_encoder.register_forward_hook(lambda _, args, output: statistics.update(*mean_and_logvar(output)))
    with CollapseMonitor().watch(encoder, extract=mean_and_logvar):
        compare(
            {
                "ours": Contender(monitored, [x]),
                "no monitor": Contender(plain, [x]),
                "CollapseStatistics in each step": Contender(counted, [x]),
            }
        )
