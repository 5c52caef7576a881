"""Training as users do it: compiled, in half precision, on several processes, from bad beginnings."""

from __future__ import annotations

import gc
import io
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lineavae import _ext
from lineavae.data import load_mnist5k
from lineavae.nn import GaussianVAE, MLPDecoder, MLPEncoder, ObservationNoise
from lineavae.ops import LatentStatistics, _dispatch, collapse_statistics


def logit_mnist(num_samples: int) -> Tensor:
    """Dequantised digits on the scale of section 5 of the paper: up to 14 in magnitude."""
    images = load_mnist5k().subset(num_samples, seed=0)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.from_numpy(images.images).flatten(1).double()
    uniform = (pixels + torch.rand(pixels.shape, generator=generator, dtype=torch.float64)) / 256
    return torch.logit(1e-6 + (1 - 2e-6) * uniform).float()


def make_vae(
    hidden: tuple[int, ...] = (32,),
    latent_dim: int = 10,
    sigma2: float = 1.0,
    kind: str = "learned",
    logvar_bound: float | None = None,
    linear: bool = False,
) -> GaussianVAE:
    torch.manual_seed(0)
    decoder = nn.Linear(latent_dim, 784) if linear else MLPDecoder(latent_dim, 784, hidden[::-1])
    encoder = MLPEncoder(784, latent_dim, hidden, logvar_bound=logvar_bound)
    return GaussianVAE(encoder, decoder, ObservationNoise(sigma2, kind=kind))


def train(vae: GaussianVAE, data: Tensor, num_steps: int, lr: float, batch_size: int = 100) -> list[float]:
    """Adam on batches in order; the noise of step t is a function of t."""
    optimizer = torch.optim.Adam(vae.parameters(), lr=lr, fused=True)
    losses = []
    for step in range(num_steps):
        start = step * batch_size % (len(data) - batch_size + 1)
        loss = -vae(data[start : start + batch_size], seed=step).elbo.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", ["learned", "closed_form"])
@pytest.mark.parametrize("linear", [False, True], ids=["mlp", "linear"])
def test_reference_operators_train_alike(kind: str, linear: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three epochs: the loss curve is that of the operators written in plain PyTorch."""
    data = logit_mnist(1000)
    ours = train(make_vae(kind=kind, linear=linear), data, 30, lr=1e-3)
    monkeypatch.setattr(_ext, "has_kernel", lambda op, device_type: False)
    _dispatch._warn_reference.cache_clear()
    with pytest.warns(RuntimeWarning, match="has no native kernel"):
        reference = train(make_vae(kind=kind, linear=linear), data, 30, lr=1e-3)
    _dispatch._warn_reference.cache_clear()
    assert ours == pytest.approx(reference, rel=1e-4)
    assert ours[-1] < ours[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fixed", "learned"])
@pytest.mark.parametrize("sigma2", [0.001, 30.0])
@pytest.mark.parametrize(
    ("lr", "logvar_bound"), [(1e-4, None), (1e-3, None), (3e-3, None), (1e-2, 10.0)], ids=str
)
def test_a_thousand_steps_from_a_bad_sigma2(
    lr: float, logvar_bound: float | None, sigma2: float, kind: str
) -> None:
    data = logit_mnist(2000)
    vae = make_vae((64, 32), 20, sigma2=sigma2, kind=kind, logvar_bound=logvar_bound)
    losses = train(vae, data, 1000, lr)
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]


def test_without_bound_a_step_too_long_overflows_and_with_it_does_not() -> None:
    """Steps of 1e-2 from σ² = 0.001 with the paper's widths: the exponential overflows at the second step."""
    data = logit_mnist(300)
    finite = {}
    for bound in (None, 10.0):
        losses = train(make_vae((1024, 512), 200, sigma2=0.001, logvar_bound=bound), data, 4, lr=1e-2)
        finite[bound] = all(math.isfinite(loss) for loss in losses)
    assert finite == {None: False, 10.0: True}


@pytest.mark.parametrize("linear", [False, True], ids=["mlp", "linear"])
def test_autocast_trains_with_the_loss_in_float32(linear: bool) -> None:
    data = logit_mnist(500)
    vae = make_vae(linear=linear)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    losses = []
    for step in range(40):
        with torch.autocast("cpu", torch.bfloat16):
            terms = vae(data[step % 5 * 100 :][:100], seed=step)
        assert all(term.dtype == torch.float32 for term in terms)
        loss = -terms.elbo.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(math.isfinite(loss) for loss in losses)
    expected = train(make_vae(linear=linear), data, 40, lr=1e-3)
    assert losses[-1] == pytest.approx(expected[-1], rel=0.02)


@pytest.mark.parametrize("kind", ["learned", "closed_form"])
@pytest.mark.parametrize("linear", [False, True], ids=["mlp", "linear"])
def test_compiles_to_one_graph(linear: bool, kind: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    vae, again = make_vae(linear=linear, kind=kind), make_vae(linear=linear, kind=kind)
    compiled = torch.compile(again, fullgraph=True, backend="aot_eager")
    x = torch.randn(8, 784)
    for step in range(3):
        seed, beta = torch.tensor(step), torch.tensor(0.1 * step)
        terms, expected = compiled(x, seed=seed, beta=beta), vae(x, seed=seed, beta=beta)
        for actual, wanted in zip(terms, expected, strict=True):
            torch.testing.assert_close(actual, wanted)
        gradients = torch.autograd.grad(terms.elbo.sum(), list(again.parameters()))
        wanted = torch.autograd.grad(expected.elbo.sum(), list(vae.parameters()))
        torch.testing.assert_close(gradients, wanted)
    counters = torch._dynamo.utils.counters["stats"]
    assert counters["unique_graphs"] == 1


def test_encode_and_decode_export() -> None:
    vae = make_vae(linear=True).eval()

    class Call(nn.Module):
        def __init__(self, method: str) -> None:
            super().__init__()
            self.vae, self.method = vae, method

        def forward(self, tensor: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            return getattr(self.vae, self.method)(tensor)

    for method, size in (("encode", 784), ("decode", 10)):
        batch = torch.export.Dim("batch", min=2)
        module = Call(method)
        program = torch.export.export(module, (torch.randn(4, size),), dynamic_shapes=({0: batch},))
        x = torch.randn(7, size)
        torch.testing.assert_close(program.module()(x), module(x))


@pytest.mark.parametrize("make", ["vae", "statistics"])
def test_what_a_model_returns_is_saved_with_its_export(make: str) -> None:
    class Statistics(nn.Module):
        def forward(self, x: Tensor) -> LatentStatistics:
            return collapse_statistics(x, 0 * x, [0.1])

    module = make_vae(linear=True).eval() if make == "vae" else Statistics()
    x = torch.randn(4, 784)
    torch.export.save(torch.export.export(module, (x,)), file := io.BytesIO())
    file.seek(0)
    loaded, expected = torch.export.load(file).module()(x), module(x)
    assert type(loaded) is type(expected)
    torch.testing.assert_close(loaded, expected)


def trained(vae: GaussianVAE) -> list[Tensor]:
    train(vae, torch.randn(20, 784, generator=torch.Generator().manual_seed(0)), 3, lr=1e-2, batch_size=10)
    return [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in vae.parameters()]


@pytest.mark.filterwarnings("ignore:.*returned a view tensor:UserWarning")
@pytest.mark.parametrize("linear", [False, True], ids=["mlp", "linear"])
def test_fully_sharded_is_the_model_to_the_bit(linear: bool, tmp_path: Path) -> None:
    def make() -> GaussianVAE:
        vae = make_vae(linear=linear)
        return GaussianVAE(vae.encoder, vae.decoder)

    expected = trained(make())
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        sharded = fully_shard(make(), mesh=init_device_mesh("cpu", (1,)))
        assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
        actual = trained(sharded)
        del sharded
        gc.collect()
    finally:
        dist.destroy_process_group()
    for parameter, wanted in zip(actual, expected, strict=True):
        assert torch.equal(parameter, wanted)
    assert make()(torch.rand(3, 784)).log_sigma2.shape == ()


def gradients_in_process(rank: int, folder: str, data: Tensor) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    vae = make_vae(linear=True)
    wrapped = DistributedDataParallel(vae)
    (-wrapped(data[rank::2]).elbo.mean()).backward()
    torch.save([parameter.grad for parameter in vae.parameters()], Path(folder, f"{rank}.pt"))
    # The wrapper must not be what ends the group: it holds Python's lock, for which Gloo's threads may wait.
    del wrapped
    gc.collect()
    dist.destroy_process_group()


@pytest.mark.slow
def test_data_parallel_gradients_are_those_of_one_process(tmp_path: Path) -> None:
    data = torch.randn(20, 784, generator=torch.Generator().manual_seed(0))
    torch.multiprocessing.spawn(gradients_in_process, (str(tmp_path), data), nprocs=2)
    vae = make_vae(linear=True)
    (-vae(data).elbo.mean()).backward()
    expected = [parameter.grad for parameter in vae.parameters()]
    for rank in range(2):
        gradients = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(gradients, expected, rtol=1e-5, atol=1e-6)
