from __future__ import annotations

import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray
from scipy.stats import multivariate_normal
from sklearn.base import BaseEstimator, clone
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor

from lineavae.linear import _blocks as blocks_module
from lineavae.linear import moments as moments_module
from lineavae.linear import ppca as ppca_module
from lineavae.linear.moments import Moments
from lineavae.linear.ppca import PPCA


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def data(random: np.random.Generator) -> NDArray[np.float64]:
    return random.standard_normal((200, 7)) @ random.standard_normal((7, 7)) + 3


def dense(ppca: PPCA) -> Any:
    """The fitted density through its D x D covariance."""
    weight, noise_variance = np.asarray(ppca.weight_), ppca.noise_variance_
    return multivariate_normal(
        np.asarray(ppca.mean_), weight @ weight.T + noise_variance * np.eye(len(weight))
    )


def dense_likelihood(data: Tensor, mean: Tensor, weight: Tensor, log_sigma2: Tensor) -> Tensor:
    """Average log-density through the D x D covariance, differentiable."""
    covariance = weight @ weight.mT + log_sigma2.exp() * torch.eye(len(mean), dtype=torch.float64)
    return torch.distributions.MultivariateNormal(mean, covariance).log_prob(data).mean()


@pytest.mark.filterwarnings("ignore:Skipping check:sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks([PPCA(), PPCA(n_components=1), PPCA(noise_variance=0.1)])
def test_is_a_scikit_learn_estimator(estimator: BaseEstimator, check: Any) -> None:
    check(estimator)


class TestMaximum:
    @pytest.mark.parametrize(
        ("n_components", "shape"), [(1, (200, 7)), (3, (200, 7)), (6, (200, 7)), (4, (12, 30))]
    )
    def test_gradient_of_the_dense_likelihood_is_zero(
        self, random: np.random.Generator, n_components: int, shape: tuple[int, int]
    ) -> None:
        data = random.standard_normal(shape) * np.linspace(1, 2, shape[1]) + 3
        ppca = PPCA(n_components).fit(data)
        parameters = [torch.tensor(ppca.mean_), torch.tensor(ppca.weight_)]
        parameters.append(torch.tensor(math.log(ppca.noise_variance_), dtype=torch.float64))
        for parameter in parameters:
            parameter.requires_grad_()
        likelihood = dense_likelihood(torch.from_numpy(data), *parameters)
        assert ppca.score(data) == pytest.approx(likelihood.item(), abs=1e-11)
        for gradient in torch.autograd.grad(likelihood, parameters):
            assert gradient.abs().max() < 1e-11

    @pytest.mark.parametrize("n_components", [1, 3, 6])
    def test_no_perturbation_raises_the_likelihood(
        self, data: NDArray[np.float64], random: np.random.Generator, n_components: int
    ) -> None:
        ppca = PPCA(n_components).fit(data)
        best = ppca.score(data)
        rows = torch.from_numpy(data)
        for size in (1e-3, 1e-1, 1.0):
            for _ in range(30):
                mean = ppca.mean_ + size * random.standard_normal(7)
                weight = ppca.weight_ + size * random.standard_normal((7, n_components))
                log_sigma2 = math.log(ppca.noise_variance_) + size * random.standard_normal()
                changed = map(torch.as_tensor, (mean, weight, np.float64(log_sigma2)))
                assert dense_likelihood(rows, *changed).item() < best

    def test_fixed_noise_is_the_maximum_over_the_weights(self, data: NDArray[np.float64]) -> None:
        ppca = PPCA(4, noise_variance=2.0).fit(data)
        weight = torch.tensor(ppca.weight_, requires_grad=True)
        log_sigma2 = torch.tensor(math.log(2.0), dtype=torch.float64)
        likelihood = dense_likelihood(torch.from_numpy(data), torch.tensor(ppca.mean_), weight, log_sigma2)
        assert torch.autograd.grad(likelihood, weight)[0].abs().max() < 1e-12

    def test_closed_form(self, data: NDArray[np.float64]) -> None:
        ppca = PPCA(3).fit(data)
        eigenvalues = np.linalg.eigvalsh(np.cov(data.T, bias=True))[::-1]
        noise_variance = eigenvalues[3:].mean()
        assert ppca.noise_variance_ == pytest.approx(noise_variance, rel=1e-12)
        np.testing.assert_allclose(ppca.explained_variance_, eigenvalues[:3], rtol=1e-12)
        np.testing.assert_allclose((ppca.weight_**2).sum(0), eigenvalues[:3] - noise_variance, rtol=1e-12)
        log_det = np.log(eigenvalues[:3]).sum() + 4 * math.log(noise_variance)
        assert ppca.score(data) == pytest.approx(-0.5 * (7 * math.log(2 * math.pi) + log_det + 7), abs=1e-12)


class TestDensity:
    @pytest.fixture(params=["most", "some", "fixed noise", "fewer samples than features", "tiny noise"])
    def case(
        self, request: pytest.FixtureRequest, data: NDArray[np.float64], random: np.random.Generator
    ) -> tuple[PPCA, NDArray[np.float64]]:
        wide = random.standard_normal((12, 30)) + 1
        cases = {
            "most": (PPCA(), data),
            "some": (PPCA(2), data),
            "fixed noise": (PPCA(5, noise_variance=2.0), data),
            "fewer samples than features": (PPCA(4), wide),
            "tiny noise": (PPCA(noise_variance=1e-6), data),
        }
        ppca, rows = cases[request.param]
        return ppca.fit(rows), rows

    def test_log_density(self, case: tuple[PPCA, NDArray[np.float64]], random: np.random.Generator) -> None:
        ppca, data = case
        points = np.r_[data, random.standard_normal((5, data.shape[1]))]
        expected = dense(ppca).logpdf(points)
        np.testing.assert_allclose(ppca.score_samples(points), expected, rtol=1e-9)
        assert ppca.score(points) == pytest.approx(expected.mean(), rel=1e-9)

    def test_score_of_moments(
        self, case: tuple[PPCA, NDArray[np.float64]], random: np.random.Generator
    ) -> None:
        ppca, data = case
        for rows in (
            data,
            data[:5] + 1,
            data.repeat(9, 0) + random.standard_normal((9 * len(data), data.shape[1])),
        ):
            assert ppca.score(Moments.from_data(rows)) == pytest.approx(
                dense(ppca).logpdf(rows).mean(), rel=1e-9
            )

    def test_covariance_and_precision(self, case: tuple[PPCA, NDArray[np.float64]]) -> None:
        ppca, _ = case
        np.testing.assert_allclose(ppca.get_covariance(), dense(ppca).cov, rtol=1e-12, atol=1e-14)
        identity = ppca.get_precision() @ dense(ppca).cov
        np.testing.assert_allclose(identity, np.eye(len(identity)), atol=1e-8)

    def test_posterior(self, case: tuple[PPCA, NDArray[np.float64]]) -> None:
        """Gaussian conditioning of the joint density of x and z, through the D x D covariance."""
        ppca, data = case
        gain = np.linalg.solve(dense(ppca).cov, ppca.weight_).T
        mean, covariance = ppca.posterior(data)
        np.testing.assert_allclose(mean, (data - ppca.mean_) @ gain.T, rtol=1e-7, atol=1e-7)
        expected = np.eye(ppca.n_components_) - gain @ ppca.weight_
        np.testing.assert_allclose(covariance, expected, rtol=1e-7, atol=1e-9)
        np.testing.assert_array_equal(ppca.transform(data), mean)

    def test_samples(self, case: tuple[PPCA, NDArray[np.float64]]) -> None:
        """Sample mean and covariance are within five standard errors of the model's."""
        ppca, _ = case
        count, covariance = 40_000, dense(ppca).cov
        samples = ppca.sample(count, random_state=0)
        variances = covariance.diagonal()
        assert (abs(samples.mean(0) - ppca.mean_) < 5 * np.sqrt(variances / count)).all()
        error = abs(np.cov(samples.T) - covariance)
        assert (error < 5 * np.sqrt((np.outer(variances, variances) + covariance**2) / count)).all()
        np.testing.assert_array_equal(samples, ppca.sample(count, random_state=0))

    def test_weighted_moments(self, data: NDArray[np.float64], random: np.random.Generator) -> None:
        weights = random.integers(0, 3, len(data))
        weighted = PPCA(3).fit(Moments.from_data(data, weights))
        repeated = PPCA(3).fit(data.repeat(weights, 0))
        np.testing.assert_allclose(weighted.weight_.numpy(), repeated.weight_, atol=1e-12)
        assert weighted.n_samples_ == repeated.n_samples_ == weights.sum()


class TestPeers:
    def test_pca(self, data: NDArray[np.float64]) -> None:
        """scikit-learn's PCA is the same model but for its covariance over N - 1."""
        ppca, pca = PPCA(3).fit(data), PCA(3).fit(data)
        bias = (len(data) - 1) / len(data)
        signs = np.sign((ppca.components_ * pca.components_).sum(1, keepdims=True))
        np.testing.assert_allclose(ppca.components_, signs * pca.components_, atol=1e-12)
        np.testing.assert_allclose(ppca.explained_variance_, bias * pca.explained_variance_, rtol=1e-12)
        assert ppca.noise_variance_ == pytest.approx(bias * pca.noise_variance_, rel=1e-12)
        assert ppca.score(data) > pca.score(data)
        pca.explained_variance_ *= bias
        pca.noise_variance_ *= bias
        np.testing.assert_allclose(ppca.score_samples(data), pca.score_samples(data), rtol=1e-12)
        np.testing.assert_allclose(ppca.get_covariance(), pca.get_covariance(), rtol=1e-10)
        np.testing.assert_allclose(ppca.get_precision(), pca.get_precision(), rtol=1e-10)

    def test_factor_analysis_with_isotropic_noise(self, data: NDArray[np.float64]) -> None:
        """The density and posterior of scikit-learn's factor analysis with our parameters."""
        ppca, peer = PPCA(3).fit(data), FactorAnalysis(3).fit(data)
        assert ppca.score(data) <= peer.score(data)
        peer.components_ = ppca.weight_.T
        peer.noise_variance_ = np.full(7, ppca.noise_variance_)
        np.testing.assert_allclose(ppca.score_samples(data), peer.score_samples(data), rtol=1e-12)
        np.testing.assert_allclose(ppca.transform(data), peer.transform(data), atol=1e-12)

    def test_pipeline_and_names(self, data: NDArray[np.float64]) -> None:
        pipeline = make_pipeline(StandardScaler(), PPCA(3)).fit(data)
        assert list(pipeline.get_feature_names_out()) == ["ppca0", "ppca1", "ppca2"]
        assert pipeline.transform(data).shape == (200, 3)
        assert pipeline.score(data) == pytest.approx(
            dense(pipeline[-1]).logpdf(pipeline[0].transform(data)).mean()
        )


class TestDimensions:
    def test_default_is_the_rank_less_one(
        self, random: np.random.Generator, data: NDArray[np.float64]
    ) -> None:
        assert PPCA().fit(data).n_components_ == 6
        low_rank = random.standard_normal((50, 3)) @ random.standard_normal((3, 8))
        assert PPCA().fit(low_rank).n_components_ == 2
        assert PPCA().fit(random.standard_normal((5, 20))).n_components_ == 3

    def test_default_with_fixed_noise_is_the_number_of_living_latents(
        self, data: NDArray[np.float64]
    ) -> None:
        eigenvalues = np.linalg.eigvalsh(np.cov(data.T, bias=True))
        for noise_variance in (1e-3, 1.0, 4.0):
            ppca = PPCA(noise_variance=noise_variance).fit(data)
            assert ppca.n_components_ == (eigenvalues > noise_variance).sum()
            assert (ppca.weight_ != 0).any(0).all()
        assert PPCA(noise_variance=1e3).fit(data).n_components_ == 1

    def test_fixed_noise_collapses_latents(self, data: NDArray[np.float64]) -> None:
        noise_variance = 2.0
        ppca = PPCA(7, noise_variance=noise_variance).fit(data)
        alive = ppca.explained_variance_ > noise_variance
        assert 0 < alive.sum() < 7
        assert ppca.weight_.shape == (7, 7)
        assert (ppca.weight_[:, ~alive] == 0).all()
        assert (ppca.transform(data)[:, ~alive] == 0).all()
        np.testing.assert_allclose(ppca.components_ @ ppca.components_.T, np.eye(7), atol=1e-12)

    @pytest.mark.parametrize(
        ("parameters", "shape", "message"),
        [
            ({"n_components": 7}, (200, 7), r"at most 6 .* got 7 with n_samples = 200, n_features = 7"),
            ({"n_components": 4}, (5, 20), r"at most 3 .* got 4 with n_samples = 5, n_features = 20"),
            (
                {"n_components": 8, "noise_variance": 0.1},
                (200, 7),
                r"at most 7 \(min\(n_features, n_samples - 1\)\)",
            ),
            (
                {"n_components": 5, "noise_variance": 0.1},
                (5, 20),
                r"at most 4 \(min\(n_features, n_samples - 1\)\)",
            ),
            ({}, (200, 1), r"variance left for the noise .* rank 1 with n_samples = 200, n_features = 1"),
            ({"n_components": 1}, (1, 7), "variance left for the noise .* rank 0 with n_samples = 1"),
            ({"n_components": 0}, (200, 7), "'n_components' parameter of PPCA must be an int in the range"),
            ({"n_components": 1.5}, (200, 7), "'n_components' parameter of PPCA must be an int in the range"),
            (
                {"noise_variance": 0.0},
                (200, 7),
                "'noise_variance' parameter of PPCA must be a float in the range",
            ),
            ({"noise_variance": math.inf}, (200, 7), "'noise_variance' parameter of PPCA must be a float"),
            ({"noise_variance": math.nan}, (200, 7), "'noise_variance' parameter of PPCA must be a float"),
        ],
    )
    def test_out_of_range(
        self, random: np.random.Generator, parameters: dict[str, Any], shape: tuple[int, int], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            PPCA(**parameters).fit(random.standard_normal(shape))

    def test_noise_that_would_be_rounding_errors(self, random: np.random.Generator) -> None:
        low_rank = random.standard_normal((50, 3)) @ random.standard_normal((3, 8))
        with pytest.raises(ValueError, match=r"at most 2 .*the rank of the covariance less one"):
            PPCA(3).fit(low_rank)

    def test_constant_data(self) -> None:
        for n_components in (None, 1, 2):
            with pytest.raises(ValueError, match=r"PPCA: X must have variance left for the noise .* rank 0"):
                PPCA(n_components).fit(np.full((10, 3), 0.1))
        ppca = PPCA(noise_variance=0.5).fit(np.full((10, 3), 0.1))
        assert ppca.score(np.full((1, 3), 0.1)) == pytest.approx(
            -1.5 * math.log(2 * math.pi * 0.5), abs=1e-12
        )

    def test_signs_are_deterministic(self, data: NDArray[np.float64]) -> None:
        for rows in (data, data[:5]):
            components = PPCA(2).fit(rows).components_
            assert (components[[0, 1], abs(components).argmax(1)] > 0).all()
            np.testing.assert_allclose(components, PPCA(2).fit(rows[::-1]).components_, atol=1e-10)

    def test_signs_of_equal_entries_do_not_depend_on_the_order(self, random: np.random.Generator) -> None:
        """Both components of two standardised features are at 45 degrees."""
        for _ in range(50):
            rows = StandardScaler().fit_transform(random.standard_normal((40, 2)))
            components = PPCA(1).fit(rows).components_
            np.testing.assert_allclose(components, PPCA(1).fit(rows[::-1]).components_, atol=1e-10)

    @pytest.mark.parametrize("name", ["n_components", "noise_variance"])
    def test_a_bool_is_no_number(self, data: NDArray[np.float64], name: str) -> None:
        with pytest.raises(TypeError, match=f"PPCA: {name} must be a number or None, got True"):
            PPCA(**{name: True}).fit(data)


class TestMemory:
    def test_samples_are_taken_in_blocks(
        self, random: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A memory map of float32 is never in memory as a whole."""
        data = np.memmap(tmp_path / "data", np.float32, "w+", shape=(60_000, 10))
        data[:] = random.standard_normal(data.shape)
        held = []

        def to_float64(rows: NDArray[Any], memory: Tensor | None = None) -> Tensor:
            assert np.shares_memory(rows, data)
            held.append(rows.size)
            return copy(rows, memory)

        copy = blocks_module.to_float64
        monkeypatch.setattr(blocks_module, "to_float64", to_float64)
        monkeypatch.setattr(ppca_module, "to_float64", to_float64)
        ppca = PPCA(2).fit(data)
        for method in (ppca.transform, ppca.score_samples):
            np.testing.assert_allclose(method(data)[::999], method(data[::999]), rtol=1e-12, atol=1e-12)
        assert 3 * data.size <= sum(held) < 3.1 * data.size
        assert max(held) <= 1 << 18


class TestTensors:
    def test_results_are_those_of_arrays(self, data: NDArray[np.float64]) -> None:
        rows = torch.from_numpy(data)
        ours, theirs = PPCA(3).fit(rows), PPCA(3).fit(data)
        for name in ("mean_", "weight_", "components_", "explained_variance_"):
            assert isinstance(getattr(ours, name), Tensor)
            np.testing.assert_array_equal(getattr(ours, name).numpy(), getattr(theirs, name))
        assert ours.noise_variance_ == theirs.noise_variance_
        assert ours.score(rows) == pytest.approx(theirs.score(data), rel=1e-12)
        latents = theirs.transform(data)
        pairs = [
            (ours.transform(rows), latents),
            (ours.posterior(rows)[1], theirs.posterior(data)[1]),
            (ours.inverse_transform(torch.from_numpy(latents)), theirs.inverse_transform(latents)),
            (ours.score_samples(rows), theirs.score_samples(data)),
            (ours.get_covariance(), theirs.get_covariance()),
            (ours.get_precision(), theirs.get_precision()),
            (ours.sample(4, random_state=1), theirs.sample(4, random_state=1)),
        ]
        for tensor, array in pairs:
            assert isinstance(tensor, Tensor)
            assert isinstance(array, np.ndarray)
            np.testing.assert_allclose(tensor.numpy(), array, rtol=1e-12, atol=1e-12)

    def test_methods_give_back_what_they_get(self, data: NDArray[np.float64]) -> None:
        ppca = PPCA(3).fit(torch.from_numpy(data))
        assert isinstance(ppca.transform(data), np.ndarray)
        assert isinstance(PPCA(3).fit(data).transform(torch.from_numpy(data)), Tensor)

    def test_moments(self, data: NDArray[np.float64]) -> None:
        moments = Moments.from_data(data)
        ppca = PPCA(3).fit(moments)
        np.testing.assert_array_equal(ppca.weight_.numpy(), PPCA(3).fit(data).weight_)
        assert ppca.score(moments) == pytest.approx(ppca.score(data), abs=1e-12)
        with pytest.raises(ValueError, match="X has 2 features, but PPCA is expecting 7"):
            ppca.score(moments.select([0, 1]))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
    def test_dtypes_are_computed_in_float64(self, data: NDArray[np.float64], dtype: torch.dtype) -> None:
        rows = torch.from_numpy(data).abs().to(dtype)
        ppca = PPCA(3).fit(rows)
        scores = ppca.score_samples(rows)
        assert scores.dtype == torch.float64
        np.testing.assert_allclose(scores.numpy(), dense(ppca).logpdf(rows.double().numpy()), rtol=1e-10)

    def test_devices(self, data: NDArray[np.float64], device: str) -> None:
        rows = torch.from_numpy(data).to(device)
        ppca, expected = PPCA(3).fit(rows), PPCA(3).fit(data)
        np.testing.assert_allclose(ppca.weight_.cpu(), expected.weight_, atol=1e-10)
        samples = ppca.sample(5, random_state=0)
        for result in (*ppca.posterior(rows), ppca.score_samples(rows), ppca.get_covariance(), samples):
            assert result.device.type == device
        assert ppca.score(Moments.from_data(rows)) == pytest.approx(expected.score(data), abs=1e-10)
        np.testing.assert_allclose(ppca.transform(data), expected.transform(data), atol=1e-10)

    def test_gradients_are_left_behind(self, data: NDArray[np.float64]) -> None:
        rows = torch.from_numpy(data).requires_grad_()
        ppca = PPCA(3).fit(rows)
        assert not ppca.transform(rows).requires_grad
        assert not ppca.weight_.requires_grad

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_not_finite(self, data: NDArray[np.float64], bad: float) -> None:
        rows = torch.from_numpy(data)
        ppca = PPCA(3).fit(rows)
        rows[5, 2] = bad
        with pytest.raises(ValueError, match="in row 5, feature 2"):
            PPCA(3).fit(rows)
        for method in (ppca.transform, ppca.score_samples, ppca.score):
            with pytest.raises(ValueError, match="PPCA: X must be finite"):
                method(rows)

    def test_shapes(self, data: NDArray[np.float64]) -> None:
        ppca = PPCA(3).fit(torch.from_numpy(data))
        with pytest.raises(ValueError, match="X has 2 features, but PPCA is expecting 7"):
            ppca.transform(torch.zeros(3, 2))
        for shape in [(2, 7, 3), (0, 7)]:
            message = re.escape(f"PPCA: X must have shape (N, D) with N >= 1, got {shape}")
            for method in (PPCA(3).fit, ppca.transform, ppca.score_samples, ppca.score):
                with pytest.raises(ValueError, match=message):
                    method(torch.zeros(shape))
        with pytest.raises(ValueError, match=r"shape \(N, K\) with K=3, got \(4, 7\)"):
            ppca.inverse_transform(torch.zeros(4, 7))
        with pytest.raises(ValueError, match=r"shape \(N, K\) with K=3, got \(2, 3, 3\)"):
            ppca.inverse_transform(torch.zeros(2, 3, 3))
        with pytest.raises(ValueError, match="n_samples must be at least 1, got 0"):
            ppca.sample(0)

    def test_fit_on_tensors_forgets_the_names_of_features(self, data: NDArray[np.float64]) -> None:
        ppca = PPCA(2).fit(data)
        ppca.feature_names_in_ = np.array(list("abcdefg"), dtype=object)
        for fresh in (torch.from_numpy(data), Moments.from_data(data)):
            assert not hasattr(clone(ppca).fit(fresh), "feature_names_in_")
            ppca.fit(fresh)
            assert not hasattr(ppca, "feature_names_in_")

    def test_not_fitted(self) -> None:
        for method in ("transform", "score_samples", "score", "inverse_transform", "posterior"):
            with pytest.raises(NotFittedError):
                getattr(PPCA(), method)(torch.zeros(2, 2))
        for method in ("sample", "get_covariance", "get_precision"):
            with pytest.raises(NotFittedError):
                getattr(PPCA(), method)()
        with pytest.raises(NotFittedError):
            PPCA().score(Moments.from_data(np.eye(2)))

    def test_pickle(self, data: NDArray[np.float64]) -> None:
        ppca = PPCA(3).fit(torch.from_numpy(data))
        assert pickle.loads(pickle.dumps(ppca)).score(data) == ppca.score(data)


@pytest.mark.parametrize(("num_rows", "num_features"), [(400, 7), (60, 100)])
@pytest.mark.parametrize(("scale", "is_leading"), [(1.0, True), (1e-3, False)])
def test_leading_components_are_those_of_all(
    random: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    scale: float,
    is_leading: bool,
    num_rows: int,
    num_features: int,
) -> None:
    """One decomposition of the covariance, or of the Gram matrix, serves for eigenvalues that are large."""
    deviations = np.array([2.0, 1.5, 1.0, 0.5, 0.5, 0.4, 0.0]) * [1, 1, 1, *[scale] * 4]
    turn = np.linalg.qr(random.standard_normal((num_features, 7)))[0].T
    moments = Moments.from_data(random.standard_normal((num_rows, 7)) * deviations @ turn + 5)
    assert (moments._leading_eigenpairs(3) is not None) == is_leading
    fast = PPCA(3).fit(moments)
    monkeypatch.setattr(Moments, "_leading_eigenpairs", lambda self, count: None)
    exact = PPCA(3).fit(moments)
    for name in ("weight_", "components_", "explained_variance_"):
        torch.testing.assert_close(getattr(fast, name), getattr(exact, name), rtol=1e-10, atol=1e-12)
    assert fast.noise_variance_ == pytest.approx(exact.noise_variance_, rel=1e-10)
    assert fast.n_components_ == exact.n_components_ == 3


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(("num_features", "latent_dim"), [(100, 3), (128, 2), (137, 1), (137, 8)])
def test_equal_eigenvalues(
    monkeypatch: pytest.MonkeyPatch, num_features: int, latent_dim: int, fails: bool
) -> None:
    """LAPACK finds fewer of some equal eigenvalues than it is asked for, or says that it failed."""

    def eigh(matrix: NDArray[np.float64], driver: str, **options: Any) -> Any:
        if fails and driver == "evr":
            raise np.linalg.LinAlgError("Internal Error.")
        return scipy.linalg.eigh(matrix, driver=driver, **options)

    monkeypatch.setattr(moments_module, "eigh", eigh)
    axes = np.eye(num_features)
    ppca = PPCA(latent_dim).fit(np.vstack([axes, -axes]))
    np.testing.assert_allclose(ppca.explained_variance_, np.full(latent_dim, 1 / num_features), rtol=1e-12)
    assert ppca.noise_variance_ == pytest.approx(1 / num_features, rel=1e-12)
    components = ppca.components_
    np.testing.assert_allclose(components @ components.T, np.eye(latent_dim), atol=1e-12)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_integers_beyond_float64_are_refused_where_it_matters(
    random: np.random.Generator, as_tensor: bool
) -> None:
    """Only moments take them exactly: a mean in float64 is off by as much as the data."""
    near = random.integers(-1000, 1000, size=(200, 3))
    far = near + np.int64(1_700_000_000_000_000_000)
    data = torch.from_numpy(far) if as_tensor else far
    ppca = PPCA(1).fit(data)
    assert ppca.score(Moments.from_data(far)) == pytest.approx(PPCA(1).fit(near).score(near), rel=1e-12)
    for method in (ppca.transform, ppca.score, ppca.score_samples):
        with pytest.raises(ValueError, match="X must fit in float64 up to 1e-09 of the noise σ"):
            method(data)
    # of so large a spread the roundings do not matter
    wide = np.int64(10) ** 12 * near + np.int64(10) ** 17
    assert PPCA(1).fit(wide).score(wide) == pytest.approx(
        PPCA(1).fit(near * 1e12).score(near * 1e12), rel=1e-9
    )


def test_complex_tensors_are_refused(data: NDArray[np.float64]) -> None:
    ppca = PPCA(2).fit(data)
    samples, latents = torch.from_numpy(data) + 0j, torch.zeros(3, 2) + 0j
    for method in (ppca.fit, ppca.transform, ppca.score):
        with pytest.raises(TypeError, match=r"PPCA: X must be real, got torch\.complex128"):
            method(samples)
    with pytest.raises(TypeError, match=r"PPCA\.inverse_transform: X must be real, got torch\.complex64"):
        ppca.inverse_transform(latents)
