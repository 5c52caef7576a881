"""Where all that takes data computes, whatever torch's default device is."""

import numpy as np
import pytest
import torch

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
