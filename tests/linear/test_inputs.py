"""What all that takes data refuses, and where it computes: masked arrays, and torch's default device."""

import numpy as np
import pytest
import torch
from torch.masked import masked_tensor

from lineavae.linear import (
    PPCA,
    BernoulliLinearVAE,
    LinearVAE,
    Moments,
    StationaryPoint,
    decompose_gap,
    forecast_collapse,
    hessian_eigenpairs,
    landscape,
    stability,
    stationarity,
    symmetric_saddle,
)


@pytest.fixture
def data():
    return np.random.default_rng(0).uniform(size=(50, 3))


CONSUMERS = {
    "Moments": Moments.from_data,
    "weights": lambda masked: Moments.from_data(np.ones((50, 2)), masked[:, 0]),
    "forecast": lambda masked: forecast_collapse(masked, 1),
    "LinearVAE.fit": lambda masked: LinearVAE(3, 1).fit(masked, objective="stochastic", steps=1),
    "BernoulliLinearVAE.fit": lambda masked: BernoulliLinearVAE(3, 1).fit(masked, steps=1),
    "PPCA.fit": lambda masked: PPCA(1).fit(masked),
    **{
        name: lambda masked, name=name: getattr(PPCA(1).fit(np.eye(3)), name)(masked)
        for name in ("transform", "posterior", "score", "score_samples")
    },
    "inverse_transform": lambda masked: PPCA(1).fit(np.eye(3)).inverse_transform(masked[:, :1]),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors:UserWarning")
@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize("kind", ["MaskedArray", "MaskedTensor"])
def test_masks_are_refused(data, consumer, kind):
    masked = np.ma.masked_greater(data, 0.9)
    if kind == "MaskedTensor":
        masked = masked_tensor(torch.from_numpy(data), torch.from_numpy(data < 0.9))
    with pytest.raises(TypeError, match=f"must not be masked: leave out the rows .* got a {kind}"):
        CONSUMERS[consumer](masked)


@pytest.mark.parametrize("num_rows", [50, 3])
def test_default_device_does_not_matter(data, num_rows, tmp_path):
    """On "meta" nothing has a value: what is made from NumPy data is made on the CPU."""

    def compute():
        rows = data[:num_rows]
        weighted = Moments.from_data(rows, np.ones(num_rows))
        moments = Moments.from_batches(np.array_split(rows, 2)).merge(weighted)
        moments.save(tmp_path / "moments.safetensors")
        moments = Moments.load(tmp_path / "moments.safetensors")
        ppca = PPCA(1).fit(rows)
        model = LinearVAE.from_ppca(ppca, device="cpu")
        history = model.fit(rows, steps=2, checkpoint=tmp_path / "fit.safetensors", history_gap=True)
        BernoulliLinearVAE(3, 1, device="cpu").fit(rows, steps=2)
        point = StationaryPoint(moments, [0], latent_dim=2, sigma2=1e-4, rotation=torch.eye(2, device="cpu"))
        verdict = stability(point)
        plane = landscape(point, (point.perturbation(0, 1), point.perturbation(1, 1)), 0.1, num=2)
        saddle = symmetric_saddle(moments, [0, 1], sigma2=1e-4)
        return [
            *moments.eigh(),
            *map(torch.from_numpy, (ppca.transform(rows), ppca.score_samples(rows), ppca.sample(2, 0))),
            torch.from_numpy(ppca.inverse_transform(np.ones((2, 1)))),
            torch.from_numpy(history.elbo),
            *verdict.escape,
            verdict.hessian_eigenvalues(),
            plane.log_likelihood,
            *saddle.parameters(),
            *hessian_eigenpairs(model, moments, 2),
            *(
                torch.tensor(value, device="cpu")
                for value in (
                    ppca.score(moments),
                    stationarity(model, moments).weight,
                    decompose_gap(model, moments).total,
                    forecast_collapse(rows, 1).elbo,
                )
            ),
        ]

    expected = compute()
    with torch.device("meta"):
        found = compute()
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
