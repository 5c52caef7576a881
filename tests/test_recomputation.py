"""Gradient checkpointing runs a forward again in the backward: nothing counts twice, no value changes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lineavae.collapse import CollapseMonitor, CollapseStatistics
from lineavae.nn import Ensemble, GaussianVAE, MLPDecoder, MLPEncoder, ObservationNoise

Forward = Callable[..., Tensor]


def without_reentrance(forward: Forward) -> Forward:
    return lambda *args: checkpoint(forward, *args, use_reentrant=False)


def with_reentrance(forward: Forward) -> Forward:
    return lambda *args: checkpoint(forward, *args, use_reentrant=True)


def nested(forward: Forward) -> Forward:
    return without_reentrance(without_reentrance(forward))


def of_compiled(forward: Forward) -> Forward:
    torch._dynamo.reset()
    return without_reentrance(torch.compile(forward, backend="aot_eager", fullgraph=True))


def compiled(forward: Forward) -> Forward:
    torch._dynamo.reset()
    return torch.compile(without_reentrance(forward), backend="aot_eager", fullgraph=True)


def make_vae(momentum: float) -> GaussianVAE:
    torch.manual_seed(0)
    noise = ObservationNoise(kind="closed_form", momentum=momentum)
    return GaussianVAE(MLPEncoder(6, 2, (8,)), MLPDecoder(2, 6, (8,)), noise)


def train(model: nn.Module, wrap: Callable[[Forward], Forward], num_batches: int) -> list[Tensor]:
    """Losses, σ² and gradients of three steps, each of several batches whose backward comes at the end."""
    forward = wrap(lambda x, seed: model(x, seed=seed).elbo.mean())
    generator = torch.Generator().manual_seed(1)
    results = []
    for step in range(3):
        batches = [
            (step + 2 * index + 1) * torch.randn(5, 6, generator=generator) for index in range(num_batches)
        ]
        losses = [-forward(x.requires_grad_(), torch.tensor(step)) for x in batches]
        for loss in losses:
            loss.backward(retain_graph=wrap is not with_reentrance)
            if wrap is without_reentrance:
                torch.autograd.grad(loss, list(model.parameters()), create_graph=True)  # recomputed once more
        results += [loss.detach() for loss in losses] + [buffer.clone() for buffer in model.buffers()]
    return results + [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("wrap", "momentum", "num_batches"),
    [
        *itertools.product((without_reentrance, with_reentrance), (1.0, 0.25), (1, 3)),
        *itertools.product((nested, of_compiled), (0.25,), (3,)),
        (compiled, 0.25, 1),  # of several torch refuses: one graph keeps a buffer that the next changes
        (compiled, 1.0, 3),
    ],
)
def test_closed_form_noise(wrap: Callable[[Forward], Forward], momentum: float, num_batches: int) -> None:
    expected = train(make_vae(momentum), lambda forward: forward, num_batches)
    actual = train(make_vae(momentum), wrap, num_batches)
    for value, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, wanted)


def test_closed_form_noise_of_an_ensemble() -> None:
    expected = train(Ensemble([make_vae(0.25)] * 2), lambda forward: lambda *args: forward(*args).sum(), 2)
    actual = train(
        Ensemble([make_vae(0.25)] * 2),
        lambda forward: lambda *args: without_reentrance(forward)(*args).sum(),
        2,
    )
    for value, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize("wrap", [without_reentrance, with_reentrance, nested])
def test_posteriors_are_counted_once(wrap: Callable[[Forward], Forward]) -> None:
    """200 samples at the prior prove no collapse, 368 would: those of a batch twice are 200."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)
            nn.init.zeros_(self.layer.weight)
            nn.init.zeros_(self.layer.bias)
            self.statistics = CollapseStatistics(1)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            mean, logvar = self.layer(x).chunk(2, dim=-1)
            self.statistics.update(mean, logvar)
            return mean, logvar

    encoder, monitor = Encoder(), CollapseMonitor()
    with monitor.watch(encoder):
        # a recomputation ends with the last tensor that the backward needs: here it is beyond the encoder
        wrap(lambda x: sum(encoder(x)).exp().sum())(torch.randn(200, 3).requires_grad_()).backward()
    assert monitor.step == 1
    for report in (monitor.last.report, encoder.statistics.compute()):
        assert report.num_samples == 200
        assert report.at(epsilon=0.01, delta=0.01).collapse_test().tolist() == ["undetermined"]
    assert encoder.layer.weight.grad is not None
