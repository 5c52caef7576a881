from __future__ import annotations

from collections.abc import Callable

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


@pytest.mark.parametrize("shared_data", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_differentiate_as_those_of_each_model(shared_data: bool, bias: bool) -> None:
    """By data and parameters, once and twice, against the layers one by one."""
    models = [
        nn.Sequential(nn.Linear(4, 3, bias=bias), nn.Tanh(), nn.Linear(3, 2, bias=bias)).double()
        for _ in range(3)
    ]
    ensemble = Ensemble(models)
    x = torch.randn(5, 4, dtype=torch.float64) if shared_data else torch.randn(3, 5, 4, dtype=torch.float64)
    x.requires_grad_()
    value = ensemble(x, shared_data=shared_data)
    expected = torch.stack([model(data) for model, data in zip(models, x.expand(3, 5, 4), strict=True)])
    torch.testing.assert_close(value, expected)
    # all but the inputs' gradient are of the models' own parameters
    upstream = torch.randn_like(value)
    (by_x,) = torch.autograd.grad((value * upstream).sum(), x, create_graph=True)
    (expected_by_x,) = torch.autograd.grad((expected * upstream).sum(), x, create_graph=True)
    torch.testing.assert_close(by_x, expected_by_x)
    names = [name for name, _ in models[0].named_parameters()]
    for loss, expected_loss in (
        ((value * upstream).sum(), (expected * upstream).sum()),
        (by_x.square().sum(), expected_by_x.square().sum()),
    ):
        loss.backward(retain_graph=True), expected_loss.backward(retain_graph=True)
        for name, parameter in zip(names, ensemble.parameters(), strict=True):
            of_models = [model.get_parameter(name).grad for model in models]
            expected_grad = torch.stack(
                [torch.zeros_like(parameter[0]) if g is None else g for g in of_models]
            )
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(found, expected_grad, msg=name)
            assert found.is_contiguous()
        ensemble.zero_grad(), [model.zero_grad() for model in models]


@pytest.mark.parametrize("how", ["autocast", "forward mode", "compiled"])
def test_linear_layers_elsewhere(how: str) -> None:
    models = [nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)) for _ in range(2)]
    ensemble, x = Ensemble(models), torch.randn(5, 4)
    expected = torch.stack([model(x) for model in models])
    if how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            value = ensemble(x)
        value.sum().backward()
        assert not torch.equal(value, expected)  # the products are of bfloat16
        torch.testing.assert_close(value, expected, rtol=0.05, atol=0.05)
    elif how == "forward mode":
        value, tangent = torch.func.jvp(ensemble, (x,), (torch.ones_like(x),))
        torch.testing.assert_close(value, expected)
        step = torch.stack([model(x + 1e-3) - model(x - 1e-3) for model in models]) / 2e-3
        torch.testing.assert_close(tangent, step, rtol=1e-2, atol=1e-2)
    else:
        compiled = torch.compile(ensemble, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected)


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


@pytest.mark.parametrize(
    ("make", "odd"),
    [
        (lambda i: (nn.Sigmoid(), nn.Tanh())[i], "class"),
        (lambda i: nn.Linear(1, 1).train(i == 0), "training"),
        (lambda i: nn.Linear(1 + i, 1), "in_features, weight"),
        (lambda i: nn.Linear(1, 1, dtype=(torch.float32, torch.float64)[i]), "bias, weight"),
        (lambda i: nn.Linear(1, 1).requires_grad_(i == 0), "bias, weight"),
        (lambda i: nn.Sequential(nn.Flatten(), nn.Dropout(0.1 * i)), "1.p"),
        (lambda i: GaussianVAE(nn.Linear(4, 4), nn.Linear(2, 4), beta=1.0 + i), "beta"),
        (
            lambda i: GaussianVAE(
                nn.Linear(4, 4), nn.Linear(2, 4), ObservationNoise(kind=("learned", "fixed")[i])
            ),
            "noise.kind, noise.log_sigma2",
        ),
    ],
)
def test_models_that_differ_in_more_than_values(make: Callable[[int], nn.Module], odd: str) -> None:
    """The first model's would be those of all."""
    expected = f"alike but for the values of parameters and buffers, got others at index 1: {odd}$"
    with pytest.raises(ValueError, match=expected):
        Ensemble([make(0), make(1)])


def test_models_of_an_ensemble_that_was_converted() -> None:
    ensemble = Ensemble([make_vae(seed, linear=True, kind="closed_form") for seed in range(2)]).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    for model, expected in zip(ensemble.to_models(), ensemble(x).elbo, strict=True):
        torch.testing.assert_close(model(x).elbo, expected, rtol=1e-14, atol=0)
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_models_keep_their_frozen_parameters_and_buffers_that_are_not_saved() -> None:
    class Shift(nn.Linear):
        def __init__(self, seed: int) -> None:
            super().__init__(2, 2)
            self.weight.requires_grad_(False)
            self.register_buffer("shift", torch.full((2,), float(seed)), persistent=False)

    models = [Shift(0), Shift(1)]
    for model, expected in zip(Ensemble(models).to_models(), models, strict=True):
        assert torch.equal(model.shift, expected.shift)
        assert (model.weight.requires_grad, model.bias.requires_grad) == (False, True)


def test_begins_in_the_mode_of_its_models() -> None:
    frozen = [make_vae(0, linear=True, kind="closed_form").eval() for _ in range(2)]
    ensemble = Ensemble(frozen)
    assert not ensemble.training
    before = ensemble(torch.randn(5, 6)).log_sigma2
    torch.testing.assert_close(ensemble(torch.randn(5, 6)).log_sigma2, before)
