from __future__ import annotations

import pytest
import torch
from torch import nn

from lineavae.nn import Ensemble, GaussianVAE, MLPDecoder, MLPEncoder, ObservationNoise

KINDS = ["learned", "fixed", "closed_form"]


def make_vae(seed: int, *, linear: bool, kind: str) -> GaussianVAE:
    torch.manual_seed(seed)
    decoder = nn.Linear(2, 6) if linear else MLPDecoder(2, 6, (8,))
    return GaussianVAE(MLPEncoder(6, 2, (8,)), decoder, ObservationNoise(0.1 * 3**seed, kind=kind))


@pytest.mark.parametrize("kind", KINDS)
def test_trains_each_model_as_if_alone(kind: str) -> None:
    """With a linear decoder nothing is random, so that models alone and together see the same."""
    alone = [make_vae(seed, linear=True, kind=kind).double() for seed in range(3)]
    ensemble = Ensemble([make_vae(seed, linear=True, kind=kind).double() for seed in range(3)])
    together = torch.optim.Adam(ensemble.parameters(), lr=1e-2)
    optimizers = [torch.optim.Adam(vae.parameters(), lr=1e-2) for vae in alone]
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        x = torch.randn(5, 6, generator=generator, dtype=torch.float64)
        elbo = ensemble(x).elbo
        assert elbo.shape == (3, 5)
        together.zero_grad()
        (-elbo.mean(-1)).sum().backward()
        together.step()
        for vae, optimizer, of_model in zip(alone, optimizers, elbo, strict=True):
            expected = vae(x).elbo
            torch.testing.assert_close(of_model, expected)
            optimizer.zero_grad()
            (-expected.mean()).backward()
            optimizer.step()
    for vae, of_ensemble in zip(alone, ensemble.to_models(), strict=True):
        for name, tensor in vae.state_dict().items():
            torch.testing.assert_close(of_ensemble.state_dict()[name], tensor, msg=name)


def test_noise_of_the_models_differs_and_repeats() -> None:
    models = [make_vae(0, linear=False, kind="learned") for _ in range(3)]
    ensemble = Ensemble(models)
    x = torch.randn(5, 6)
    torch.manual_seed(1)
    first = ensemble(x).reconstruction
    torch.manual_seed(1)
    assert torch.equal(ensemble(x).reconstruction, first)
    assert not torch.equal(first[0], first[1])
    gradients = torch.autograd.grad(first.sum(), list(ensemble.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_data_of_each_model() -> None:
    vaes = [make_vae(seed, linear=True, kind="learned") for seed in range(2)]
    x = torch.randn(2, 5, 6)
    elbo = Ensemble(vaes)(x, shared_data=False, beta=0.5).elbo
    for vae, data, of_model in zip(vaes, x, elbo, strict=True):
        torch.testing.assert_close(of_model, vae(data, beta=0.5).elbo)


def test_state_and_modes() -> None:
    vaes = [make_vae(seed, linear=True, kind="closed_form") for seed in range(2)]
    ensemble, other = Ensemble(vaes), Ensemble(vaes[::-1])
    x = torch.randn(5, 6)
    expected = ensemble(x).elbo
    other.load_state_dict(ensemble.state_dict())
    ensemble.eval(), other.eval()
    torch.testing.assert_close(other(x).elbo, expected)
    torch.testing.assert_close(other(2 * x).log_sigma2, ensemble(x).log_sigma2)
    assert not ensemble.to_models()[0].training


def test_is_a_copy() -> None:
    vaes = [make_vae(seed, linear=True, kind="learned") for seed in range(2)]
    ensemble = Ensemble(vaes)
    with torch.no_grad():
        for parameter in ensemble.parameters():
            parameter.zero_()
    assert vaes[0].decoder.weight.abs().sum() > 0
    assert ensemble.to_models()[1].decoder.weight.abs().sum() == 0


def test_errors() -> None:
    with pytest.raises(ValueError, match="models must have at least one model, got none"):
        Ensemble([])
    with pytest.raises(
        ValueError, match="must be of one class and in one mode, got Linear in training mode at index 1"
    ):
        Ensemble([nn.Flatten(), nn.Linear(1, 1)])
    with pytest.raises(ValueError, match="got Linear in evaluation mode at index 1"):
        Ensemble([nn.Linear(1, 1), nn.Linear(1, 1).eval()])
    with pytest.raises(ValueError, match="names and shapes, got others at index 1: weight"):
        Ensemble([nn.Linear(1, 1), nn.Linear(2, 1)])
