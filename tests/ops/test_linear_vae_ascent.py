"""Gradient ascent on many linear VAEs against each one alone with autograd and torch.optim."""

import math
import os
from functools import partial

import pytest
import torch

from lineavae.ops import linear_vae_ascent
from lineavae.reference.linear_vae_ascent import split_parameters

DTYPES = [torch.float64, torch.float32]
# D and K below, at and above what the kernels pad to, and more of either than a CUDA block has room for
SHAPES = [(1, 1), (3, 2), (9, 4), (64, 16), (40, 17), (65, 3)]
LR = {"adam": 0.01, "sgd": 0.002}


def make_sweep(num_models, num_features, latent_dim, num_steps, optimizer="adam", dtype=torch.float64):
    """Arguments of a call whose models differ in start, β (which changes) and step size."""
    M, D, K = num_models, num_features, latent_dim  # noqa: N806
    generator = torch.Generator().manual_seed(D + K)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    factor = random(D, D + 3) / math.sqrt(D + 3)
    start = torch.cat([0.3 * random(M, 2 * D * K), 0.1 * random(M, K), random(M, 1) - 1], 1)
    scale = torch.logspace(0, -1, M, dtype=torch.float64)[:, None]
    moments = torch.zeros_like(start) if optimizer == "adam" else start.new_empty(M, 0)
    beta = torch.linspace(0, 1.5, num_steps, dtype=torch.float64) * torch.linspace(1, 0.5, M)[:, None]
    tensors = (factor @ factor.T, start, moments, moments, LR[optimizer] * scale.expand(M, num_steps), beta)
    return [*(tensor.to(dtype) for tensor in tensors), torch.ones(M, dtype=torch.bool)]


def dense_elbo(covariance, weight, encoder_t, log_d, log_sigma2, beta):
    """Equations 15-20 with D x D matrices; μ is the sample mean."""
    num_features, latent_dim = weight.shape
    d, sigma2 = log_d.exp(), log_sigma2.exp()
    A = torch.eye(num_features, dtype=weight.dtype) - weight @ encoder_t.T  # noqa: N806
    distortion = torch.trace(A @ covariance @ A.T) + (d * weight.square().sum(0)).sum()
    kl = 0.5 * (d.sum() - log_d.sum() + torch.trace(encoder_t.T @ covariance @ encoder_t) - latent_dim)
    return -distortion / (2 * sigma2) - num_features / 2 * torch.log(2 * math.pi * sigma2) - beta * kl


def train_alone(covariance, start, lr, beta, optimizer, learn_sigma2=True, tolerance=0.0):
    """One model by autograd and torch.optim: its parameters, the norm of the last gradient, its steps."""
    parts = [part[0].clone().requires_grad_() for part in split_parameters(start[None], covariance.shape[0])]
    trained = parts if learn_sigma2 else parts[:-1]
    make = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer]
    ascent, taken = make(trained, lr=1.0, maximize=True), 0
    for step_size, weight in zip(lr.tolist(), beta.tolist(), strict=True):
        ascent.param_groups[0]["lr"] = step_size
        ascent.zero_grad()
        dense_elbo(covariance, *parts, weight).backward()
        ascent.step()
        taken += 1
        norm = torch.cat([part.grad.flatten() for part in trained]).norm().item()
        if norm < tolerance:
            break
    return torch.cat([part.detach().flatten() for part in parts]), norm, taken


@pytest.mark.parametrize("learn_sigma2", [True, False])
@pytest.mark.parametrize("optimizer", LR)
@pytest.mark.parametrize(("num_features", "latent_dim"), SHAPES)
def test_models_equal_those_trained_alone(device, num_features, latent_dim, optimizer, learn_sigma2):
    arguments = make_sweep(3, num_features, latent_dim, 100, optimizer)
    after = linear_vae_ascent(*(t.to(device) for t in arguments), learn_sigma2=learn_sigma2)
    covariance, start, _, _, lr, beta, _ = arguments
    for model in range(3):
        expected, norm, _ = train_alone(
            covariance, start[model], lr[model], beta[model], optimizer, learn_sigma2
        )
        torch.testing.assert_close(after.parameters[model].cpu(), expected, rtol=0, atol=1e-10)
        assert after.gradient_norm[model].item() == pytest.approx(norm, rel=1e-8)
    assert torch.equal(after.steps_taken.cpu(), torch.full((3,), 100))
    assert after.active.all()


def test_five_hundred_steps_of_adam(device):
    arguments = make_sweep(2, 12, 3, 500)
    after = linear_vae_ascent(*(t.to(device) for t in arguments))
    covariance, start, _, _, lr, beta, _ = arguments
    for model in range(2):
        expected, _, _ = train_alone(covariance, start[model], lr[model], beta[model], "adam")
        torch.testing.assert_close(after.parameters[model].cpu(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("num_features", "latent_dim"), SHAPES)
def test_float32_stays_near_float64(device, num_features, latent_dim):
    arguments = [t.to(device) for t in make_sweep(3, num_features, latent_dim, 100, dtype=torch.float32)]
    exact = linear_vae_ascent(*(t.double() if t.is_floating_point() else t for t in arguments))
    after = linear_vae_ascent(*arguments)
    torch.testing.assert_close(after.parameters.double(), exact.parameters, rtol=0, atol=2e-4)
    torch.testing.assert_close(after.gradient_norm.double(), exact.gradient_norm, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("optimizer", LR)
def test_a_model_stops_for_good_at_the_tolerance(device, optimizer):
    arguments = make_sweep(4, 3, 2, 350, optimizer)
    covariance, start, _, _, lr, beta, active = arguments
    lr.mul_(20)
    beta.copy_(beta[:, -1:])
    active[2] = False
    after = linear_vae_ascent(*(t.to(device) for t in arguments), tolerance=0.05)
    stopped = []
    for model in (0, 1, 3):
        expected, norm, taken = train_alone(
            covariance, start[model], lr[model], beta[model], optimizer, tolerance=0.05
        )
        torch.testing.assert_close(after.parameters[model].cpu(), expected, rtol=0, atol=1e-10)
        assert (after.steps_taken[model].item(), after.active[model].item()) == (taken, norm >= 0.05)
        stopped.append(taken < 350)
    assert any(stopped)
    assert not all(stopped)
    assert torch.equal(after.parameters[2].cpu(), start[2])
    assert after.steps_taken[2] == 0
    assert after.gradient_norm[2].isnan()


@pytest.mark.parametrize("optimizer", LR)
@pytest.mark.parametrize(("num_features", "latent_dim"), [(3, 2), (65, 3)])
def test_what_is_omitted_is_where_models_are_zero(device, num_features, latent_dim, optimizer):
    """Of data with more features, which are not correlated with the others, from W and V of zero there."""
    arguments = make_sweep(2, num_features, latent_dim, 100, optimizer)
    variances = torch.tensor([0.7, 0.0, 0.2], dtype=torch.float64)
    after = linear_vae_ascent(
        *(t.to(device) for t in arguments), omitted_features=3, omitted_variance=variances.sum().item()
    )
    covariance, start, _, _, lr, beta, _ = arguments
    wider = torch.block_diag(covariance, variances.diag())
    for model in range(2):
        *matrices, log_d, log_sigma2 = split_parameters(start[model : model + 1], num_features)
        padded = [torch.nn.functional.pad(matrix, (0, 0, 0, 3)).flatten() for matrix in matrices]
        alone = torch.cat([*padded, log_d[0], log_sigma2])
        trained, norm, _ = train_alone(wider, alone, lr[model], beta[model], optimizer)
        *expected, log_d, log_sigma2 = split_parameters(trained[None], num_features + 3)
        for matrix in expected:
            assert not matrix[:, num_features:].any()
        expected = torch.cat([*(m[:, :num_features].flatten() for m in expected), log_d[0], log_sigma2])
        torch.testing.assert_close(after.parameters[model].cpu(), expected, rtol=0, atol=1e-10)
        assert after.gradient_norm[model].item() == pytest.approx(norm, rel=1e-8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("optimizer", LR)
def test_calls_that_go_on_give_the_bits_of_one(device, dtype, optimizer):
    arguments = [t.to(device) for t in make_sweep(3, 9, 4, 30, optimizer, dtype)]
    covariance, *_, lr, beta, _ = arguments
    whole = linear_vae_ascent(*arguments)
    first = linear_vae_ascent(covariance, *arguments[1:4], lr[:, :11], beta[:, :11], arguments[-1])
    rest = linear_vae_ascent(covariance, *first[:3], lr[:, 11:], beta[:, 11:], first.active, step=11)
    for one, two in zip(whole[:3], rest[:3], strict=True):
        assert torch.equal(one, two)


def with_threads(call):
    """What a call gives with 1, 2 and 3 threads."""
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(call())
    finally:
        torch.set_num_threads(before)
    return results


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("optimizer", LR)
@pytest.mark.parametrize(("num_features", "latent_dim"), [(9, 4), (64, 16)])
def test_a_model_depends_neither_on_the_others_nor_on_threads(
    device, num_features, latent_dim, optimizer, dtype
):
    arguments = [t.to(device) for t in make_sweep(5, num_features, latent_dim, 20, optimizer, dtype)]
    together = linear_vae_ascent(*arguments)
    for again in with_threads(lambda: linear_vae_ascent(*arguments)):
        for one, two in zip(together, again, strict=True):
            assert torch.equal(one, two)
    for row in range(5):
        alone = linear_vae_ascent(arguments[0], *(t[row : row + 1] for t in arguments[1:]))
        for one, two in zip(together, alone, strict=True):
            assert torch.equal(one[row : row + 1], two)


@pytest.mark.skipif("LINEAVAE_NATIVE" in os.environ, reason="products by torch depend on threads")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("optimizer", LR)
def test_threads_that_share_a_model_give_the_bits_of_one(optimizer, dtype):
    covariance, *states = make_sweep(4, 300, 40, 2, optimizer, dtype)
    together = linear_vae_ascent(covariance, *states)
    for row in range(4):
        alone = [t[row : row + 1] for t in states]
        for after in with_threads(partial(linear_vae_ascent, covariance, *alone)):
            for one, two in zip(together, after, strict=True):
                assert torch.equal(one[row : row + 1], two)


@pytest.mark.parametrize("optimizer", LR)
@pytest.mark.parametrize(("num_features", "latent_dim"), [(3, 2), (40, 17)])
def test_the_raw_operator_keeps_torchs_contract(device, num_features, latent_dim, optimizer):
    arguments = [t.to(device) for t in make_sweep(2, num_features, latent_dim, 3, optimizer)]
    before = [t.clone() for t in arguments]
    torch.library.opcheck(torch.ops.lineavae.linear_vae_ascent, (*arguments, 0, 0.0, True, 1, 0.5))
    for argument, copy in zip(arguments, before, strict=True):
        assert torch.equal(argument, copy)


@pytest.mark.parametrize(("num_models", "num_steps"), [(0, 3), (2, 0)])
def test_no_models_and_no_steps(device, num_models, num_steps):
    arguments = [t.to(device) for t in make_sweep(num_models, 3, 2, num_steps)]
    after = linear_vae_ascent(*arguments)
    assert torch.equal(after.parameters, arguments[1])
    assert after.gradient_norm.isnan().all()
    assert after.steps_taken.tolist() == [0] * num_models


def replaced(**changes):
    names = ("covariance", "parameters", "first_moment", "second_moment", "lr", "beta", "active")
    arguments = dict(zip(names, make_sweep(2, 3, 2, 4), strict=True))
    return arguments | {name: change(arguments.get(name)) for name, change in changes.items()}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"covariance": lambda t: t[:2]}, ValueError, r"covariance must have shape \(D, D\)"),
        ({"parameters": lambda t: t[:, 1:]}, ValueError, r"2DK \+ K \+ 1\) with D=3"),
        ({"first_moment": lambda t: t[:1]}, ValueError, "first_moment must have the shape of parameters"),
        ({"second_moment": lambda t: t[:, :0]}, ValueError, "second_moment must have the shape of"),
        ({"lr": lambda t: t[:1]}, ValueError, "lr must have shape"),
        ({"beta": lambda t: t[:, :1]}, ValueError, "beta must have shape"),
        ({"lr": lambda t: t.float()}, TypeError, "lr must have the dtype"),
        ({"active": lambda t: t.long()}, TypeError, "active must be a bool tensor"),
        ({"active": lambda t: t[:1]}, ValueError, "active must have shape"),
        ({"parameters": lambda t: t.clone().requires_grad_()}, ValueError, "not differentiable"),
        ({"step": lambda _: -1}, ValueError, "step must be at least 0"),
        ({"omitted_features": lambda _: -1}, ValueError, "omitted_features must be at least 0"),
        ({"omitted_variance": lambda _: math.inf}, ValueError, "omitted_variance must be"),
        ({"tolerance": lambda _: math.nan}, ValueError, "tolerance must be"),
        ({"covariance": lambda t: t.tolist()}, TypeError, "covariance must be a torch.Tensor"),
    ],
)
def test_wrong_arguments(changes, error, message):
    with pytest.raises(error, match=f"linear_vae_ascent: .*{message}"):
        linear_vae_ascent(**replaced(**changes))


def test_half_precision_is_refused():
    arguments = [t.bfloat16() if t.is_floating_point() else t for t in make_sweep(2, 3, 2, 4)]
    with pytest.raises(TypeError, match="must be float32 or float64"):
        linear_vae_ascent(*arguments)


def test_whether_noise_is_learned_is_a_bool():
    with pytest.raises(TypeError, match="learn_sigma2 must be a bool, got str"):
        linear_vae_ascent(*make_sweep(2, 3, 2, 4), learn_sigma2="no")
