from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lineavae.nn import Ensemble, GaussianVAE, ObservationNoise, beta_of_sigma2, sigma2_of_beta


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 3.0, 0.2])[:, None, None]
    x = torch.randn(7, 3, 4, 5, generator=generator)
    return x, x + scale * torch.randn(x.shape, generator=generator)


@pytest.mark.parametrize("kind", ["learned", "fixed", "closed_form"])
def test_begins_with_sigma2(kind: str) -> None:
    noise = ObservationNoise(0.3, kind=kind, shape=(2, 1)).eval()
    x = torch.zeros(5, 2, 3)
    assert noise(x, x).exp().tolist() == [[pytest.approx(0.3)]] * 2
    assert len(list(noise.parameters())) == (kind == "learned")
    assert noise.state_dict()["log_sigma2"].shape == (2, 1)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((), (0, 1, 2, 3)),
        ((3, 1, 1), (0, 2, 3)),
        ((3, 4, 5), (0,)),
        ((5,), (0, 1, 2)),
        ((1, 1, 1), (0, 1, 2, 3)),
    ],
    ids=str,
)
def test_tuned_is_the_mean_squared_error(images: tuple[Tensor, Tensor], shape: tuple, axes: tuple) -> None:
    noise = ObservationNoise(shape=shape)
    x, x_hat = (tensor.double().numpy() for tensor in images)
    variance = torch.rand(7, 3, 4, 5)
    expected = ((x - x_hat) ** 2).mean(axes, keepdims=True).reshape(shape)
    np.testing.assert_allclose(noise.tuned(*images), expected, rtol=1e-6)
    expected += variance.double().numpy().mean(axes, keepdims=True).reshape(shape)
    np.testing.assert_allclose(noise.tuned(*images, variance), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (3, 1, 1)], ids=str)
def test_tuned_maximises_the_likelihood(images: tuple[Tensor, Tensor], shape: tuple) -> None:
    x, x_hat = (tensor.double() for tensor in images)
    log_sigma2 = ObservationNoise(shape=shape).double().tuned(x, x_hat).log().requires_grad_()
    likelihood = torch.distributions.Normal(x_hat, (0.5 * log_sigma2).exp()).log_prob(x).sum()
    (slope,) = torch.autograd.grad(likelihood, log_sigma2)
    np.testing.assert_allclose(slope, np.zeros(shape), atol=1e-10 * x.numel())


def test_closed_form_takes_each_batch_and_keeps_the_last(images: tuple[Tensor, Tensor]) -> None:
    noise = ObservationNoise(5.0, kind="closed_form")
    x, x_hat = images
    for scale in (1.0, 2.0):
        x_hat = x + scale * (images[1] - x)
        expected = noise.tuned(x, x_hat)
        torch.testing.assert_close(noise(x, x_hat).exp(), expected)
    assert not noise(x, x_hat.requires_grad_()).requires_grad
    noise.eval()
    torch.testing.assert_close(noise(x, x).exp(), expected)


def test_running_mean_begins_with_the_first_batch(images: tuple[Tensor, Tensor]) -> None:
    noise = ObservationNoise(100.0, kind="closed_form", momentum=0.25)
    x, x_hat = images
    first, second = noise.tuned(x, x_hat), noise.tuned(x, 2 * x_hat)
    torch.testing.assert_close(noise(x, x_hat).exp(), first)
    torch.testing.assert_close(noise(x, 2 * x_hat).exp(), 0.75 * first + 0.25 * second)
    again = ObservationNoise(kind="closed_form", momentum=0.25)
    again.load_state_dict(noise.state_dict())
    torch.testing.assert_close(again(x, x_hat), noise(x, x_hat))


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e20])
@pytest.mark.parametrize("momentum", [1.0, 0.25])
def test_a_batch_that_is_not_finite_sees_it_and_leaves_no_trace(bad: float, momentum: float) -> None:
    """1e20 is finite, but not its square in float32."""
    noise = ObservationNoise(5.0, kind="closed_form", momentum=momentum)
    ones = torch.ones(4, 2)
    expected = 1.0
    assert not noise(bad * ones, 0 * ones).isfinite()
    assert noise.eval()(ones, 0 * ones).exp().item() == pytest.approx(5.0)  # and is not the first of a mean
    noise.train()
    for scale in (1.0, bad, 3.0):
        log_sigma2 = noise(scale * ones, 0 * ones)
        if scale is bad:
            assert not log_sigma2.isfinite()
        else:
            expected += momentum * (scale**2 - expected)
            assert log_sigma2.exp().item() == pytest.approx(expected)
        assert noise.log_sigma2.exp().item() == pytest.approx(expected)
    poisoned = {"log_sigma2": (bad * ones[0, 0]).square().log(), "has_seen_data": torch.tensor(True)}
    noise.load_state_dict(poisoned)  # as a mean without that guard was saved
    assert noise(ones, 0 * ones).item() == noise.log_sigma2.item() == 0


@pytest.mark.parametrize("momentum", [1.0, 0.25])
def test_closed_form_waits_for_no_device(momentum: float) -> None:
    class NoWaiting(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert function not in (
                torch.ops.aten._local_scalar_dense.default,
                torch.ops.aten.is_nonzero.default,
                torch.ops.aten.nonzero.default,
            )
            return function(*args, **(kwargs or {}))

    noise = ObservationNoise(kind="closed_form", momentum=momentum, shape=(3, 1, 1))
    with NoWaiting():
        noise(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize("kind", ["learned", "fixed", "closed_form"])
@pytest.mark.parametrize("ensemble", [False, True], ids=["alone", "ensemble"])
def test_stays_float32_in_a_model_of_half_precision(kind: str, ensemble: bool) -> None:
    """In bfloat16 a log σ² of -0.5 has no room for a step of Adam of 1e-3."""
    noise = ObservationNoise(math.exp(-6.913), kind=kind, momentum=0.5)
    model: nn.Module = nn.Sequential(nn.Linear(1, 1), noise)
    if ensemble:
        model = Ensemble([model, model])
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for cast in (nn.Module.half, nn.Module.bfloat16, lambda model: model.to("cpu", torch.half)):
        for name, tensor in (*cast(model).named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point():
                of_noise = "log_sigma2" in name or "pending" in name
                assert (tensor.dtype == torch.float32) == of_noise, name
            if "log_sigma2" in name:
                torch.testing.assert_close(tensor, torch.full_like(tensor, -6.913))  # not rounded either
            assert tensor.grad is None or tensor.grad.dtype == tensor.dtype
    assert all(
        t.dtype == torch.float64 for t in model.double().state_dict().values() if t.is_floating_point()
    )


@pytest.mark.parametrize("kind", ["learned", "closed_form"])
def test_a_state_of_half_precision_is_widened(kind: str) -> None:
    """Also where the state is not copied but assigned, and what no state has is no batch to come."""
    with torch.device("meta"):
        noise = ObservationNoise(kind=kind, momentum=0.5)
    state = ObservationNoise(0.3, kind=kind).bfloat16().state_dict()
    state["log_sigma2"] = state["log_sigma2"].bfloat16()
    noise.to_empty(device="cpu").load_state_dict(state, assign=True)
    assert noise.log_sigma2.dtype == torch.float32
    assert isinstance(noise.log_sigma2, nn.Parameter) == (kind == "learned")
    assert kind == "learned" or noise.pending_batches.isinf().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_begins_no_narrower_than_float32_whatever_the_default(dtype: torch.dtype) -> None:
    try:
        torch.set_default_dtype(dtype)
        noise = ObservationNoise(math.exp(-6.913), kind="closed_form", momentum=0.5)
        vae = GaussianVAE(nn.Linear(6, 4), nn.Sequential(nn.Linear(2, 6)))
        x = torch.rand(5, 6)
    finally:
        torch.set_default_dtype(torch.float32)
    wide = torch.promote_types(dtype, torch.float32)
    floating = [tensor for tensor in noise.state_dict().values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in (*floating, noise.pending_batches, vae(x).elbo)} == {wide}
    torch.testing.assert_close(noise.log_sigma2.item(), -6.913)


def test_state_of_one_sigma2_loads_whatever_its_shape() -> None:
    for saved, into in (((), (1,)), ((1,), ()), ((1, 1, 1), (1,))):
        noise = ObservationNoise(0.3, kind="closed_form", shape=saved)
        noise(torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2))
        state = {f"noise.{name}": tensor for name, tensor in noise.state_dict().items()}
        assert set(state) == {"noise.log_sigma2", "noise.has_seen_data"}
        again = nn.ModuleDict({"noise": ObservationNoise(5.0, kind="closed_form", momentum=0.5, shape=into)})
        again.load_state_dict(state)
        assert again["noise"].log_sigma2.shape == into
        assert again["noise"].log_sigma2.item() == noise.log_sigma2.item()


def test_floor(images: tuple[Tensor, Tensor]) -> None:
    noise = ObservationNoise(kind="closed_form", floor=1e-3)
    assert noise(images[0], images[0]).exp().item() == pytest.approx(1e-3)


def test_a_returned_value_outlives_the_next_batch(images: tuple[Tensor, Tensor]) -> None:
    noise = ObservationNoise(kind="closed_form")
    x, x_hat = images
    first = noise(x, x_hat)
    before = first.clone()
    noise(x, 3 * x_hat)
    assert torch.equal(first, before)


def test_a_beta_vae_is_a_vae_with_another_sigma2() -> None:
    beta, sigma2 = 4.0, 0.5
    equal = sigma2_of_beta(beta, sigma2)
    squares, kl = 3.7, 2.9
    loss_of_beta_vae = squares / (2 * sigma2) + beta * kl
    assert loss_of_beta_vae == equal.learning_rate_factor * (squares / (2 * equal.sigma2) + kl)
    back = beta_of_sigma2(equal.sigma2, of_beta_vae=sigma2)
    assert back.beta == beta
    assert back.learning_rate_factor * equal.learning_rate_factor == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sigma2": 0.0}, ValueError, "ObservationNoise: sigma2 must be finite and > 0, got 0.0"),
        ({"sigma2": math.inf}, ValueError, "ObservationNoise: sigma2 must be finite and > 0, got inf"),
        ({"sigma2": "1"}, TypeError, "ObservationNoise: sigma2 must be a number, got str"),
        ({"floor": -1.0}, ValueError, "ObservationNoise: floor must be finite and > 0, got -1.0"),
        ({"momentum": 0.0}, ValueError, "ObservationNoise: momentum must be > 0 and <= 1, got 0.0"),
        ({"momentum": 1.5}, ValueError, "ObservationNoise: momentum must be > 0 and <= 1, got 1.5"),
        ({"shape": 3}, TypeError, "ObservationNoise: shape must be a tuple, got int"),
        ({"shape": (2.5,)}, TypeError, "ObservationNoise: every size of shape must be an int, got float"),
        ({"shape": (3, 0)}, ValueError, "ObservationNoise: every size of shape must be at least 1, got 0"),
        (
            {"kind": "batch"},
            ValueError,
            "ObservationNoise: kind must be 'learned', 'fixed' or 'closed_form', got 'batch'",
        ),
    ],
    ids=str,
)
def test_errors(arguments: dict, error: type, message: str) -> None:
    with pytest.raises(error) as caught:
        ObservationNoise(**arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, 1.0), (torch.float16, 300.0)], ids=str)
def test_errors_of_half_precision_are_squared_in_float32(dtype: torch.dtype, scale: float) -> None:
    """Squares above 65504 do not fit float16, and a sum in bfloat16 has three digits."""
    x = scale * torch.randn(128, 784, generator=torch.Generator().manual_seed(0))
    x = x.to(dtype)
    expected = x.double().square().mean().item()
    sigma2 = ObservationNoise(kind="closed_form")(x, torch.zeros_like(x)).exp().item()
    assert sigma2 == pytest.approx(expected, rel=1e-5)


def test_errors_of_shapes_and_conversions() -> None:
    with pytest.raises(ValueError, match=r"x_hat must have the shape of x, \(5, 5\), got \(5,\)"):
        ObservationNoise().tuned(torch.zeros(5, 5), torch.zeros(5))
    with pytest.raises(ValueError, match=r"variance must have the shape of x, \(5, 5\), got \(5, 1\)"):
        ObservationNoise().tuned(torch.zeros(5, 5), torch.zeros(5, 5), torch.zeros(5, 1))
    with pytest.raises(ValueError, match=r"x must have at least one sample, got shape \(0, 3\)"):
        ObservationNoise(kind="closed_form")(torch.zeros(0, 3), torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"with an event that \(4,\) broadcasts to, got \(2, 3\)"):
        ObservationNoise(shape=(4,)).tuned(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="sigma2_of_beta: beta must be finite and > 0, got 0"):
        sigma2_of_beta(0)
    with pytest.raises(ValueError, match="beta_of_sigma2: sigma2 must be finite and > 0, got -1"):
        beta_of_sigma2(-1)
