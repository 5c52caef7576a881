"""The mean ELBO of a training loop against the reference in float64, and what a step of it runs."""

import sys

import pytest
import torch

from lineavae import reference
from lineavae.linear import (
    LinearParameters,
    LinearVAE,
    Moments,
    decompose_gap,
    hessian_eigenpairs,
    stationarity,
)
from lineavae.linear.elbo import MeanELBO

NUM_FEATURES, LATENT_DIM = 12, 3


def make(dtype=torch.float64):
    return LinearVAE(NUM_FEATURES, LATENT_DIM, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=[100, 5], ids=["moments", "factor"])
def moments(request, generator):
    return Moments.from_data(
        torch.randn(request.param, NUM_FEATURES, dtype=torch.float64, generator=generator)
    )


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_loss_and_gradients_are_those_of_the_reference(moments, dtype, rtol):
    parameters = LinearParameters.of(make(dtype))
    exact = LinearParameters(*(p.detach().double().requires_grad_() for p in parameters))
    statistics = moments.sample_mean, moments.covariance
    expected = -reference.linear_vae_elbo_from_moments(*statistics, *exact, 0.7, num_features=15)
    by_autograd = torch.autograd.grad(expected, exact)

    mean_elbo = MeanELBO(moments, parameters.weight, beta=0.7, num_features=15)
    loss, gradients = mean_elbo.loss(parameters)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=rtol, atol=0)
    for name, gradient, other in zip(parameters._fields, gradients, by_autograd, strict=True):
        assert gradient.dtype == dtype
        assert not gradient.requires_grad
        torch.testing.assert_close(gradient.double(), other, rtol=rtol, atol=rtol, msg=name)
    torch.testing.assert_close(-mean_elbo(parameters).double(), expected, rtol=rtol, atol=0)


def test_a_step_from_moments_runs_few_functions(moments):
    model, frames = make(torch.float32), []

    def count(frame, event, _):
        if event == "call" and frame.f_globals["__name__"].startswith("lineavae"):
            frames[-1].append(frame.f_code.co_name)

    class Counting(torch.optim.SGD):
        def step(self, closure):
            frames.append([])
            sys.setprofile(count)
            try:
                return closure()
            finally:
                sys.setprofile(None)

    model.fit(moments, optimizer=lambda parameters: Counting(parameters, lr=1e-3), steps=3, progress=False)
    assert len(frames) == 3
    assert all(0 < len(step) <= 15 for step in frames), frames


@pytest.mark.parametrize("judge", [decompose_gap, stationarity, hessian_eigenpairs])
def test_parameters_are_judged_as_their_module_is(judge, generator):
    moments = Moments.from_data(torch.randn(50, NUM_FEATURES, dtype=torch.float64, generator=generator))
    of_module, of_parameters = judge(make(), moments), judge(LinearParameters.of(make()), moments)
    if isinstance(of_module, tuple):
        torch.testing.assert_close(of_parameters, of_module, rtol=0, atol=0)
    else:
        assert of_parameters == of_module


@pytest.mark.parametrize("judge", [decompose_gap, stationarity, hessian_eigenpairs])
def test_what_is_no_linear_vae_is_refused(judge, moments):
    with pytest.raises(TypeError, match="model must have weight, encoder, mu, log_d, log_sigma2, got Linear"):
        judge(torch.nn.Linear(2, 3), moments)
