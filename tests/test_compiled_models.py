"""Models and estimators in one graph of any batch size, exported, and loaded where lineavae is imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lineavae.linear import BernoulliLinearVAE, LinearVAE
from lineavae.nn import ELBOTerms, Ensemble, GaussianVAE, MLPDecoder, MLPEncoder, ObservationNoise
from lineavae.ops import bernoulli_log_likelihood, gaussian_kl, gaussian_log_likelihood

D, K = 6, 2


def gaussian(kind: str = "learned", decoder: nn.Module | None = None) -> GaussianVAE:
    decoder = MLPDecoder(K, D, hidden=(5,)) if decoder is None else decoder
    return GaussianVAE(MLPEncoder(D, K, hidden=(5,)), decoder, ObservationNoise(kind=kind))


def elbo_of(make: Callable[[], nn.Module], **options: Any) -> Callable[[], Callable[[Tensor], Tensor]]:
    """Make a model, and of it the ELBO, whose noise is the same in every call."""

    def build() -> Callable[[Tensor], Tensor]:
        model = make()
        return lambda x: model(x, seed=torch.zeros((), dtype=torch.int64), **options).elbo

    return build


MODELS: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "GaussianVAE": elbo_of(gaussian),
    "linear decoder": elbo_of(lambda: gaussian(decoder=nn.Linear(K, D)), beta=0.5),
    "closed-form noise": elbo_of(lambda: gaussian("closed_form")),
    "free bits": elbo_of(gaussian, free_bits=0.1),
    "capacity": elbo_of(gaussian, capacity=0.1),
    "Ensemble": elbo_of(lambda: Ensemble([gaussian() for _ in range(2)])),
    "LinearVAE": lambda: LinearVAE(D, K).elbo,
    "BernoulliLinearVAE": lambda: BernoulliLinearVAE(D, K).elbo,
}
ESTIMATORS: dict[str, Callable[[], Callable[..., Tensor]]] = {
    "LinearVAE.stochastic_elbo": lambda: LinearVAE(D, K).stochastic_elbo,
    "BernoulliLinearVAE.stochastic_elbo": lambda: BernoulliLinearVAE(D, K).stochastic_elbo,
    "importance_weighted_bound": lambda: partial(gaussian().importance_weighted_bound, num_draws=3),
    "BernoulliLinearVAE.importance_weighted_bound": lambda: partial(
        BernoulliLinearVAE(D, K).importance_weighted_bound, num_draws=3
    ),
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    torch.manual_seed(0)


@pytest.mark.parametrize("name", MODELS)
def test_one_graph_of_any_batch(name):
    function = MODELS[name]()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (5, 4, 7):
        x = torch.rand(count, D)
        torch.testing.assert_close(compiled(x), function(x))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_compile_at_every_batch(name):
    compiled = torch.compile(ESTIMATORS[name](), backend="aot_eager")
    for count in (4, 5, 6):
        assert compiled(torch.rand(count, D)).isfinite().all()


class KL(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vae = gaussian(decoder=nn.Linear(K, D))

    def forward(self, x: Tensor) -> Tensor:
        mean, logvar = self.vae.encode(x)
        return self.vae(x).elbo + gaussian_kl(mean, logvar, kl_weight=0.5)


def test_exported_with_any_batch_it_trains():
    model = KL()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (torch.rand(4, D),), dynamic_shapes=({0: batch},)).module()
    x = torch.rand(9, D)
    value = model(x)
    torch.testing.assert_close(program(x), value)
    expected = torch.autograd.grad(value.sum(), list(model.parameters()))
    program(x).sum().backward()
    gradients = dict(program.named_parameters())
    for (name, _), gradient in zip(model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(gradients[name].grad, gradient)


class Reconstruction(nn.Module):
    def forward(self, x: Tensor, x_hat: Tensor) -> Tensor:
        gaussian = gaussian_log_likelihood(x, x_hat, torch.zeros(()), event_dim=1)
        return gaussian + bernoulli_log_likelihood(x, x_hat, event_dim=1)


def test_exported_with_any_number_of_samples():
    samples, batch = torch.export.Dim("samples"), torch.export.Dim("batch")
    inputs = torch.rand(4, D), torch.rand(3, 4, D)
    shapes = {0: batch}, {0: samples, 1: batch}
    program = torch.export.export(Reconstruction(), inputs, dynamic_shapes=shapes).module()
    x, x_hat = torch.rand(9, D), torch.rand(5, 9, D)
    torch.testing.assert_close(program(x, x_hat), Reconstruction()(x, x_hat))


class Terms(nn.Module):
    """All terms of the ELBO, with noise that is the same in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = gaussian()

    def forward(self, x: Tensor) -> ELBOTerms:
        return self.vae(x, seed=torch.zeros((), dtype=torch.int64))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")  # torch's own
def test_saved_programs_load_where_lineavae_alone_is_imported(tmp_path):
    model, x = KL().eval(), torch.rand(4, D)
    program = torch.export.export(model, (x,))
    torch.export.save(program, tmp_path / "exported.pt2")
    terms = Terms()
    torch.export.save(torch.export.export(terms, (x,)), tmp_path / "terms.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "compiled.pt2"))
    torch.save(x, tmp_path / "x.pt")
    script = """if True:
        import sys, torch
        import lineavae
        folder = sys.argv[1]
        x = torch.load(folder + "/x.pt")
        print(torch.export.load(folder + "/exported.pt2").module()(x).tolist())
        print(torch._inductor.aoti_load_package(folder + "/compiled.pt2")(x).tolist())
        print([term.tolist() for term in torch.export.load(folder + "/terms.pt2").module()(x)])
    """
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    *values, of_terms = map(eval, run.stdout.splitlines())
    for value in values:
        torch.testing.assert_close(torch.tensor(value), model(x))
    for value, expected in zip(of_terms, terms(x), strict=True):
        torch.testing.assert_close(torch.tensor(value), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")  # torch's own
def test_onnx_of_encoder_and_decoder(tmp_path):
    pytest.importorskip("onnxscript")
    evaluator = pytest.importorskip("onnx.reference")
    vae = gaussian().eval()
    for module, name, inputs, outputs in (
        (vae.encoder, "x", D, ["mean", "logvar"]),
        (vae.decoder, "z", K, ["x_hat"]),
    ):
        shapes = ({0: torch.export.Dim("batch")},)
        options = {"input_names": [name], "output_names": outputs, "verbose": False}
        torch.onnx.export(
            module, (torch.rand(4, inputs),), tmp_path / "model.onnx", dynamic_shapes=shapes, **options
        )
        data = torch.rand(9, inputs)
        results = evaluator.ReferenceEvaluator(str(tmp_path / "model.onnx")).run(None, {name: data.numpy()})
        expected = module(data) if len(outputs) > 1 else (module(data),)
        for result, tensor in zip(results, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(result), tensor.detach())
