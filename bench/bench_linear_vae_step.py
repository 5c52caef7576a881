"""A step of training a small linear VAE from moments, D = 64 and K = 16, Adam included.

At this size a step is all host cost: "ours" is what `LinearVAE.fit` does, "operator" the same by autograd
through the public function, "Adam alone" what no loss can save.
"""

from inspect import unwrap

import torch

from harness.measure import Contender
from lineavae import reference
from lineavae.linear import LinearParameters, LinearVAE, Moments
from lineavae.linear.elbo import MeanELBO
from lineavae.ops import linear_vae_elbo_from_moments

NUM_FEATURES, LATENT_DIM = 64, 16
FROM_MOMENTS = unwrap(reference.linear_vae_elbo_from_moments)


def step_of(device, differentiate):
    """Make a function that takes one step by ``differentiate(parameters)``, which sets gradients."""
    generator = torch.Generator().manual_seed(0)
    parameters = LinearParameters.of(LinearVAE(NUM_FEATURES, LATENT_DIM, generator=generator).to(device))
    optimizer = torch.optim.Adam(list(parameters), lr=1e-3, fused=True, capturable=device == "cuda")

    def step(_):
        loss = differentiate(parameters)
        optimizer.step()
        return loss.detach()

    return step


def test_linear_vae_step(compare, setting):
    x = torch.randn(500, NUM_FEATURES, generator=torch.Generator().manual_seed(0))
    moments = Moments.from_data(x.to(setting.device, torch.float64))
    like = torch.zeros((), device=setting.device)
    statistics = moments.sample_mean.to(like), moments.covariance.to(like)
    mean_elbo = MeanELBO(moments, like)

    def ours(parameters):
        loss, gradients = mean_elbo.loss(parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return loss

    def by_autograd(elbo):
        def differentiate(parameters):
            for parameter in parameters:
                parameter.grad = None
            loss = -elbo(*statistics, *parameters)
            loss.backward()
            return loss

        return differentiate

    def nothing(parameters):
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return parameters.log_sigma2

    ways = {
        "ours": ours,
        "operator": by_autograd(linear_vae_elbo_from_moments),
        "eager": by_autograd(FROM_MOMENTS),
        "compiled": by_autograd(setting.compiled(FROM_MOMENTS)),
        "Adam alone": nothing,
    }
    compare({name: Contender(step_of(setting.device, way), [statistics[1]]) for name, way in ways.items()})
