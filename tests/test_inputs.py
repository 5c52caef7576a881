"""What all that takes arrays refuses: those with a mask, and tensors that do not store every element."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.masked import masked_tensor

from lineavae.collapse import CollapseMonitor, CollapseStatistics, PosteriorWriter, mutual_information
from lineavae.data import logit_transform
from lineavae.linear import PPCA, BernoulliLinearVAE, LinearVAE, Moments, forecast_collapse
from lineavae.nn import GaussianVAE
from lineavae.ops import (
    collapse_statistics,
    gaussian_kl,
    gaussian_log_likelihood,
    reparameterized_kl,
)

DATA = np.random.default_rng(0).uniform(size=(50, 3))

CONSUMERS = {
    "Moments": Moments.from_data,
    "forecast_collapse": lambda data: forecast_collapse(data, 1),
    "LinearVAE.fit": lambda data: LinearVAE(3, 1).fit(data, objective="stochastic", steps=1),
    "BernoulliLinearVAE.fit": lambda data: BernoulliLinearVAE(3, 1).fit(data, steps=1),
    "PPCA.fit": lambda data: PPCA(1).fit(data),
    **{
        f"PPCA.{name}": lambda data, name=name: getattr(PPCA(1).fit(DATA), name)(data)
        for name in ("transform", "posterior", "score", "score_samples")
    },
    "PPCA.inverse_transform": lambda data: PPCA(3).fit(np.eye(5)).inverse_transform(data),
    "CollapseStatistics": lambda data: CollapseStatistics(3).update(data, 0 * DATA),
    "logvar": lambda data: CollapseStatistics(3).update(DATA, data),
    "mutual_information": lambda data: mutual_information(data, std=data),
    "PosteriorWriter": lambda data: PosteriorWriter("of posteriors").write(data, variance=data),
}
OF_TENSORS = {
    "CollapseMonitor": lambda data: CollapseMonitor().observe(data, data),
    "GaussianVAE": lambda data: GaussianVAE(nn.Linear(3, 4), nn.Linear(2, 3))(data),
    "LinearVAE": lambda data: LinearVAE(3, 1)(data),
    "BernoulliLinearVAE": lambda data: BernoulliLinearVAE(3, 1)(data),
    "encode": lambda data: LinearVAE(3, 1).encode(data),
    "gaussian_kl": lambda data: gaussian_kl(data, data),
    "gaussian_log_likelihood": lambda data: gaussian_log_likelihood(data, data, torch.zeros(())),
    "collapse_statistics": lambda data: collapse_statistics(data, data, [0.01]),
}
OF_ARRAYS = {
    "weights": lambda data: Moments.from_data(DATA, data[:, 0]),
    "logit_transform": lambda data: logit_transform(data.astype(np.uint8), seed=0),
}

OF_POSTERIORS = {
    "gaussian_kl": gaussian_kl,
    "collapse_statistics": lambda mean, logvar: collapse_statistics(mean, logvar, [0.01]),
    "CollapseStatistics": lambda mean, logvar: CollapseStatistics(3).update(mean, logvar),
    "std": lambda mean, std: CollapseStatistics(3).update(mean, std=std),
    "PosteriorWriter": lambda mean, logvar: PosteriorWriter("of posteriors").write(mean, logvar),
    "mutual_information": mutual_information,
    "CollapseMonitor": lambda mean, logvar: CollapseMonitor().observe(mean, logvar),
    "GaussianVAE": lambda mean, logvar: GaussianVAE(Gives(mean, logvar), nn.Linear(3, 3))(DENSE),
}


class Gives(nn.Module):
    """An encoder that returns this posterior, whatever the data."""

    def __init__(self, *posterior):
        super().__init__()
        self.posterior = posterior

    def forward(self, x):
        return self.posterior


DENSE = torch.from_numpy(DATA).float()
TENSORS = {
    "torch.sparse_coo": DENSE.to_sparse,
    "torch.sparse_csr": DENSE.to_sparse_csr,
    "torch._mkldnn": DENSE.to_mkldnn,
    "a nested one": lambda: torch.nested.nested_tensor(list(DENSE)),
}


@pytest.mark.parametrize("consumer", [*CONSUMERS, *OF_ARRAYS])
def test_masked_arrays(consumer):
    """What is beneath a mask is no number to compute with."""
    with pytest.raises(TypeError, match=r"must not be masked: leave out the rows .* got a MaskedArray"):
        (CONSUMERS | OF_ARRAYS)[consumer](np.ma.masked_greater(DATA, 0.9))


def special(kind):
    with warnings.catch_warnings():  # that torch has only begun to support them
        warnings.simplefilter("ignore", UserWarning)
        if kind == "MaskedTensor":
            return masked_tensor(DENSE, DENSE < 0.9)
        return TENSORS[kind]()


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_masked_tensors(consumer):
    with pytest.raises(TypeError, match=r"must not be masked: leave out the rows .* got a MaskedTensor"):
        CONSUMERS[consumer](special("MaskedTensor"))


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.parametrize("consumer", [*CONSUMERS, *OF_TENSORS])
def test_tensors_that_are_not_dense(consumer, kind):
    with pytest.raises(TypeError, match=f"must be a dense tensor, torch.strided, got {kind}"):
        (CONSUMERS | OF_TENSORS)[consumer](special(kind))


@pytest.mark.parametrize(
    ("spread", "error", "message"),
    [
        (DENSE[:, :1], ValueError, r"must have the shape of (the encoder's )?mean, \(50, 3\), got \(50, 1\)"),
        (DENSE.to("meta"), ValueError, "must be on the device of (the encoder's )?mean, cpu, got meta"),
        (DENSE.int(), TypeError, r"must be float64, float32, bfloat16 or float16, got torch\.int32"),
    ],
)
@pytest.mark.parametrize("taker", OF_POSTERIORS)
def test_posteriors(taker, spread, error, message):
    """Every taker of posteriors says the same of a wrong one."""
    caller, name = ("CollapseStatistics", "std") if taker == "std" else (taker, "logvar")
    with pytest.raises(error, match=f"^{caller}: (the encoder's )?{name} {message}"):
        OF_POSTERIORS[taker](DENSE, spread)


def test_writer_takes_one_dtype_as_the_statistics_do():
    with pytest.raises(TypeError, match="PosteriorWriter: logvar must have the dtype of mean"):
        PosteriorWriter("of posteriors").write(DENSE, DENSE.double())


BACKWARDS = DATA[:1][::-1]  # a stride below 0 that NumPy calls contiguous


@pytest.mark.parametrize(
    "array", [BACKWARDS, DATA[:1].astype(">f4").astype(">f8")], ids=["one row", "big-endian"]
)
def test_arrays_as_torch_does_not_take_them(array):
    """One row backwards has a negative stride, though it is contiguous."""
    native = np.array(array, "<f8")
    statistics, expected = CollapseStatistics(3), CollapseStatistics(3)
    statistics.update(array, array)
    expected.update(native, native)
    assert statistics.compute().at().to_dict() == expected.compute().at().to_dict()
    ppca = PPCA(3).fit(np.eye(5) + np.arange(5))
    latents = np.array(array, array.dtype)[::-1]
    assert np.array_equal(ppca.inverse_transform(latents), ppca.inverse_transform(np.array(latents, "<f8")))
    models = [BernoulliLinearVAE(3, 1, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    for model, data in zip(models, (array, native), strict=True):
        model.fit(data, steps=2, progress=False)
    assert torch.equal(models[0].weight, models[1].weight)


def test_integers_that_torch_does_not_compare():
    models = [BernoulliLinearVAE(3, 1, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    binary = (DATA > 0.5).astype(np.float32)
    for model, data in zip(models, (binary, binary.astype(np.uint16)), strict=True):
        model.fit(data, steps=2, progress=False)
    assert torch.equal(models[0].weight, models[1].weight)
    with pytest.raises(ValueError, match=r"BernoulliLinearVAE\.fit: data must be in \[0, 1\], got 300"):
        models[0].fit(np.full((5, 3), 300, np.uint16), steps=1)


@pytest.mark.parametrize("consumer", sorted(CONSUMERS.keys() - {"CollapseStatistics", "logvar"}))
def test_dates_are_no_numbers(consumer):
    dates = np.zeros((50, 3), "M8[s]")
    with pytest.raises(TypeError, match=r"\w: .* must be (real|of floating numbers), got .*datetime64"):
        CONSUMERS[consumer](dates if consumer != "PPCA.inverse_transform" else dates[:5])


def test_images_have_a_dimension():
    with pytest.raises(ValueError, match=r"logit_transform: images must have shape \(N, \.\.\.\), got \(\)"):
        logit_transform(np.array(3, np.uint8), seed=0)


@pytest.mark.parametrize("weight", [torch.tensor(1j), torch.ones(3).to_sparse()], ids=["complex", "sparse"])
def test_weights_are_dense_and_real(weight):
    with pytest.raises(TypeError, match=r"gaussian_kl: kl_weight must be (real|a dense tensor)"):
        gaussian_kl(DENSE, DENSE, kl_weight=weight)


@pytest.mark.parametrize("option", ["num_draws", "seed"])
def test_integers_beyond_64_bits(option):
    with pytest.raises(
        ValueError, match=rf"reparameterized_kl: {option} must be below 2\*\*63, got 9223372036854775808"
    ):
        reparameterized_kl(DENSE, DENSE, **{option: 2**63})
