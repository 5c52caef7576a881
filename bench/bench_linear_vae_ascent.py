"""Steps of Adam on many linear VAEs of one size at once, with fixed σ²; μ is the sample mean.

GFLOP/s counts the products of a step, 4 D² K + 8 D K², so that those who train other numbers of models
compare: "LinearVAE.fit" trains one. "bmm" writes out gradients and Adam by hand, in place, and "compiled" is
the same as one function; "autograd" differentiates the ELBO from moments and has fused Adam.
"""

from inspect import unwrap

import pytest
import torch

from harness.measure import Contender
from lineavae import reference
from lineavae.linear import LinearVAE, Moments
from lineavae.ops import linear_vae_ascent

FROM_MOMENTS = unwrap(reference.linear_vae_elbo_from_moments)
LR, SIGMA2 = 1e-3, 0.5
# models, D, K and steps of a call
SHAPES = [(1, 64, 16, 1000), (64, 64, 16, 200), (256, 64, 16, 100), (1024, 64, 16, 50)]
SHAPES += [(8, 256, 50, 10), (1, 784, 200, 5)]


def gradients(covariance, weight, encoder_t, log_d):
    """Of the mean ELBO by W, Vᵀ and log d, by products over models."""
    d = log_d.exp()
    shared = covariance.expand(weight.shape[0], -1, -1)
    covariance_encoder = torch.bmm(shared, encoder_t)
    gram = torch.bmm(weight.mT, weight)
    aggregate = torch.bmm(encoder_t.mT, covariance_encoder)
    grad_log_d = 0.5 * (1 - d - d * gram.diagonal(dim1=1, dim2=2) / SIGMA2)
    aggregate.diagonal(dim1=1, dim2=2).add_(d)
    gram.diagonal(dim1=1, dim2=2).add_(SIGMA2)
    grad_weight = torch.baddbmm(covariance_encoder, weight, aggregate, beta=1 / SIGMA2, alpha=-1 / SIGMA2)
    shortfall = torch.baddbmm(weight, encoder_t, gram, beta=1 / SIGMA2, alpha=-1 / SIGMA2)
    return grad_weight, torch.bmm(shared, shortfall), grad_log_d


def corrections(step):
    return LR / (1 - 0.9**step), (1 - 0.999**step) ** -0.5


def start(models, num_features, latent_dim, device):
    generator = torch.Generator().manual_seed(0)
    shapes = (models, num_features, latent_dim), (models, num_features, latent_dim), (models, latent_dim)
    scales = (0.1, 0.1, 0.0)
    return [
        (scale * torch.randn(shape, generator=generator)).to(device)
        for scale, shape in zip(scales, shapes, strict=True)
    ]


def by_hand(steps):
    def train(covariance, *parameters):
        parameters = [parameter.clone() for parameter in parameters]
        moments = [(torch.zeros_like(parameter), torch.zeros_like(parameter)) for parameter in parameters]
        for step in range(1, steps + 1):
            step_size, inverse_root = corrections(step)
            for parameter, (mean, square), gradient in zip(
                parameters, moments, gradients(covariance, *parameters), strict=True
            ):
                mean.lerp_(gradient, 0.1)
                square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                parameter.addcdiv_(mean, square.sqrt().mul_(inverse_root).add_(1e-8), value=step_size)
        return parameters[0]

    return train


def compiled(setting, steps):
    @setting.compiled
    def step(covariance, step_size, inverse_root, *state):
        parameters, means, squares = state[:3], state[3:6], state[6:]
        new = []
        for parameter, mean, square, gradient in zip(
            parameters, means, squares, gradients(covariance, *parameters), strict=True
        ):
            mean = mean + 0.1 * (gradient - mean)
            square = 0.999 * square + 0.001 * gradient * gradient
            new.append((parameter + step_size * mean / (square.sqrt() * inverse_root + 1e-8), mean, square))
        return [part for parts in zip(*new, strict=True) for part in parts]

    def train(covariance, *parameters):
        state = [*parameters, *(torch.zeros_like(parameter) for parameter in 2 * parameters)]
        for i in range(1, steps + 1):
            state = step(covariance, *covariance.new_tensor(corrections(i)), *state)
        return state[0]

    return train


def by_autograd(steps):
    def train(covariance, *parameters):
        leaves = [parameter.clone().requires_grad_() for parameter in parameters]
        optimizer = torch.optim.Adam(leaves, lr=LR, fused=True, capturable=covariance.is_cuda)
        zeros = covariance.new_zeros(covariance.shape[0])
        log_sigma2 = covariance.new_full((parameters[0].shape[0],), SIGMA2).log()
        for _ in range(steps):
            optimizer.zero_grad()
            weight, encoder_t, log_d = leaves
            loss = -FROM_MOMENTS(zeros, covariance, weight, encoder_t.mT, zeros, log_d, log_sigma2).sum()
            loss.backward()
            optimizer.step()
        return leaves[0].detach()

    return train


def ours(steps):
    def train(covariance, *parameters):
        weight, encoder_t, log_d = parameters
        models = weight.shape[0]
        log_sigma2 = covariance.new_full((models, 1), SIGMA2).log()
        flat = torch.cat([weight.flatten(1), encoder_t.flatten(1), log_d, log_sigma2], 1)
        moments = torch.zeros_like(flat)
        lr, beta = covariance.new_full((models, steps), LR), covariance.new_ones(models, steps)
        active = torch.ones(models, dtype=torch.bool, device=flat.device)
        return linear_vae_ascent(
            covariance, flat, moments, moments, lr, beta, active, learn_sigma2=False
        ).parameters

    return train


def fit(moments, latent_dim, steps):
    def train(like):
        model = LinearVAE(moments.num_features, latent_dim).to(like)
        model.fit(moments, steps=steps, learn_sigma2=False, history_every=steps, progress=False)
        return model.weight.detach()

    return train


@pytest.mark.parametrize(("models", "num_features", "latent_dim", "steps"), SHAPES)
def test_linear_vae_ascent(compare, setting, models, num_features, latent_dim, steps):
    if setting.dry:
        models, num_features, latent_dim, steps = 2, 5, 2, 2
    flops = steps * (4 * num_features**2 * latent_dim + 8 * num_features * latent_dim**2)
    x = torch.randn(2000, num_features, generator=torch.Generator().manual_seed(0)).to(setting.device)
    moments = Moments.from_data(x.double())
    covariance = moments.covariance.float()
    inputs = [covariance, *start(models, num_features, latent_dim, setting.device)]
    ways = {
        "ours": ours(steps),
        "bmm": by_hand(steps),
        "compiled": compiled(setting, steps),
        "autograd": by_autograd(steps),
    }
    contenders = {name: Contender(way, inputs, flops=models * flops) for name, way in ways.items()}
    alone = fit(moments, latent_dim, steps)
    contenders["LinearVAE.fit"] = Contender(alone, [covariance], flops=flops, captures=False)
    compare(contenders, rounds=5)
