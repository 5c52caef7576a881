from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import norm
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lineavae.collapse import InformationBoundWarning, MutualInformation, mutual_information
from lineavae.linear import LinearVAE

MODULE = importlib.import_module("lineavae.collapse.mutual_information")

near_bound = pytest.mark.filterwarnings("ignore::lineavae.collapse.InformationBoundWarning")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def posteriors(num_rows: int, latent_dim: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Rows of a few latents, live and collapsed ones, with variances that differ between rows."""
    generator = seeded(1)
    scale = torch.linspace(0, 1.2, latent_dim, dtype=torch.float64)
    mean, noise = torch.randn(2, num_rows, latent_dim, generator=generator, dtype=torch.float64)
    return (scale * mean + 0.3).to(dtype), (-scale + 0.4 * scale * noise).to(dtype)


def draw(mean: Tensor, logvar: Tensor, rows: Tensor, generator: torch.Generator) -> NDArray[np.float64]:
    """The z that the function draws, by its documented order."""
    noise = torch.randn(len(rows), mean.shape[1], generator=generator, dtype=torch.float64)
    return (mean[rows].double() + (0.5 * logvar[rows].double()).exp() * noise).numpy()


def dense(z: NDArray[np.float64], mean: Tensor, logvar: Tensor, rows: Tensor) -> NDArray[np.float64]:
    """log q(z|x) - log q(z) of each row from the whole matrix of densities, by SciPy."""
    means, deviations = mean.double().numpy(), np.exp(0.5 * logvar.double().numpy())
    log_density = sum(
        norm.logpdf(z[:, j, None], means[:, j], deviations[:, j]) for j in range(means.shape[1])
    )
    own = log_density[np.arange(len(rows)), rows.numpy()]
    return own - (logsumexp(log_density, axis=1) - math.log(len(means)))


def test_other_forms_of_the_same_posterior():
    mean, logvar = posteriors(300, 4)
    expected = mutual_information(mean, logvar, generator=seeded()).value
    std = (0.5 * logvar).exp()
    for arguments in (
        {"mean": mean.numpy(), "variance": logvar.exp().numpy()},
        {"mean": mean.reshape(300, 2, 2), "std": std.reshape(300, 2, 2), "event_dim": 2},
        {"mean": torch.distributions.Normal(mean, std)},
    ):
        assert mutual_information(**arguments, generator=seeded()).value == pytest.approx(expected, abs=1e-9)


class TestAgainstDense:
    def test_2000_rows(self):
        mean, logvar = posteriors(2000, 6)
        result = mutual_information(mean, logvar, generator=seeded())
        expected = dense(draw(mean, logvar, rows := torch.arange(2000), seeded()), mean, logvar, rows)
        assert result.value == pytest.approx(expected.mean(), abs=1e-9)
        assert result.standard_error == pytest.approx(expected.std(ddof=1) / math.sqrt(2000), rel=1e-9)
        assert result.upper_bound == math.log(2000)
        assert result.num_rows == 2000
        assert result.per_dimension is None

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_other_dtypes_are_computed_in_float64(self, dtype):
        mean, logvar = posteriors(300, 4, dtype)
        result = mutual_information(mean, logvar, generator=seeded())
        expected = dense(draw(mean, logvar, rows := torch.arange(300), seeded()), mean, logvar, rows)
        assert result.value == pytest.approx(expected.mean(), abs=1e-9)

    def test_kl_is_exact(self):
        mean, logvar = (tensor.numpy() for tensor in posteriors(1500, 6))
        result = mutual_information(*posteriors(1500, 6))
        expected = 0.5 * (mean**2 + np.exp(logvar) - logvar - 1).sum(1).mean()
        assert result.kl == pytest.approx(expected, rel=1e-12)
        assert result.marginal_kl == result.kl - result.value

    def test_draws_are_averaged_within_rows(self):
        mean, logvar = posteriors(400, 3)
        result = mutual_information(mean, logvar, num_draws=3, generator=seeded())
        generator, rows = seeded(), torch.arange(400)
        draws = [draw(mean, logvar, rows, generator) for _ in range(3)]
        expected = np.mean([dense(z, mean, logvar, rows) for z in draws], axis=0)
        assert result.value == pytest.approx(expected.mean(), abs=1e-9)
        assert result.standard_error == pytest.approx(expected.std(ddof=1) / 20, rel=1e-9)

    def test_subset_of_rows_among_all_components(self):
        mean, logvar = posteriors(500, 3)
        result = mutual_information(mean, logvar, generator=seeded(), num_rows=50)
        rows = torch.randperm(500, generator=(generator := seeded()))[:50].sort().values
        expected = dense(draw(mean, logvar, rows, generator), mean, logvar, rows)
        assert result.value == pytest.approx(expected.mean(), abs=1e-9)
        assert result.num_rows == 50
        assert result.upper_bound == math.log(500)

    def test_per_dimension(self):
        mean, logvar = posteriors(300, 4)
        result = mutual_information(mean, logvar, generator=seeded(), per_dimension=True)
        generator, rows = seeded(), torch.arange(300)
        draw(mean, logvar, rows, generator)
        z = draw(mean, logvar, rows, generator)
        for j in range(4):
            expected = dense(z[:, [j]], mean[:, [j]], logvar[:, [j]], rows)
            assert result.per_dimension[j] == pytest.approx(expected.mean(), abs=1e-9)
            error = expected.std(ddof=1) / math.sqrt(300)
            assert result.per_dimension_standard_error[j] == pytest.approx(error, abs=1e-9)

    def test_per_dimension_takes_2000_rows(self):
        mean, logvar = posteriors(2100, 2)
        result = mutual_information(mean, logvar, generator=seeded(), per_dimension=True)
        assert (result.num_rows, result.per_dimension_num_rows) == (2100, 2000)
        result = mutual_information(mean, logvar, generator=seeded(), per_dimension=True, num_rows=2050)
        assert (result.num_rows, result.per_dimension_num_rows) == (2050, 2050)

    @pytest.mark.parametrize("offset", [0.0, 1e6])
    def test_narrow_posteriors_do_not_cancel(self, offset):
        """Posteriors 1e-7 wide that overlap: the squares are 1e14, their difference is about 1."""
        logvar = torch.tensor([0.0, -32.0]).expand(600, 2)
        clusters = torch.randn(20, 2, generator=seeded(2), dtype=torch.float64).repeat(30, 1)
        mean = offset + clusters + 1e-7 * torch.randn(600, 2, generator=seeded(3), dtype=torch.float64)
        result = mutual_information(mean, logvar.double(), generator=seeded())
        expected = dense(draw(mean, logvar, rows := torch.arange(600), seeded()), mean, logvar, rows)
        assert 1 < expected.mean() < 5
        assert result.value == pytest.approx(expected.mean(), abs=1e-9)

    def test_posteriors_far_apart_keep_their_digits(self):
        """Two clusters, around 0 and 1e12: what is small near 0 is lost beside their distance."""
        clusters = torch.tensor([0.0, 1e12], dtype=torch.float64).repeat(300)[:, None]
        mean = clusters + torch.randn(600, 1, generator=seeded(2), dtype=torch.float64)
        logvar = torch.full_like(mean, -1.0)
        result = mutual_information(mean, logvar, generator=seeded())
        expected = dense(draw(mean, logvar, rows := torch.arange(600), seeded()), mean, logvar, rows)
        assert result.value == pytest.approx(expected.mean(), abs=1e-9)

    def test_posteriors_narrower_than_float64_resolves(self):
        mean = torch.tensor([[1.0], [2.0], [3.0], [4.0]]).repeat(100, 1)
        result = mutual_information(mean, torch.full((400, 1), -600.0), generator=seeded())
        assert result.value == pytest.approx(math.log(4), abs=1e-9)


class TestAgainstClosedForms:
    @staticmethod
    def assert_probabilistic_pca(num_samples: int, num_rows: int) -> None:
        """Data of a pPCA model under its exact posteriors: I = ½ Σ log(λ_j/σ²), and q(z) is the prior."""
        ratios, sigma2 = (
            torch.tensor([4.0, 2.0, 1.5, 1.0], dtype=torch.float64),
            0.25,
        )  # λ_j/σ²; the last is dead
        generator = seeded(5)
        model = LinearVAE(8, 4, dtype=torch.float64)
        directions = torch.linalg.qr(torch.randn(8, 4, generator=generator, dtype=torch.float64)).Q
        with torch.no_grad():
            model.weight.copy_(directions * (sigma2 * (ratios - 1)).sqrt())
            model.log_sigma2.fill_(math.log(sigma2))
            model.optimal_encoder_()
            latents = torch.randn(num_samples, 4, generator=generator, dtype=torch.float64)
            noise = torch.randn(num_samples, 8, generator=generator, dtype=torch.float64)
            mean, logvar = model.encode(model.decode(latents) + math.sqrt(sigma2) * noise)
        result = mutual_information(mean, logvar, generator=generator, num_rows=num_rows)
        expected = 0.5 * ratios.log().sum().item()  # 1.24 nats
        assert abs(result.value - expected) < 4 * result.standard_error
        assert abs(result.marginal_kl) < 4 * (result.standard_error + 1 / math.sqrt(num_rows))

    def test_probabilistic_pca(self):
        self.assert_probabilistic_pca(10_000, num_rows=10_000)

    @pytest.mark.slow
    def test_probabilistic_pca_of_100_000_rows(self):
        self.assert_probabilistic_pca(100_000, num_rows=20_000)

    def test_split_of_the_kl(self):
        """Where q(z) is N(1, 0.8²) both parts are known: I = ½ log(0.64/0.16), and a KL of two Gaussians."""
        mean = 1 + math.sqrt(0.48) * torch.randn(10_000, 1, generator=seeded(6), dtype=torch.float64)
        logvar = torch.full_like(mean, math.log(0.16))
        result = mutual_information(mean, logvar, generator=seeded())
        assert abs(result.value - 0.5 * math.log(4)) < 4 * result.standard_error
        marginal = 0.5 * (1 + 0.64 - 1 - math.log(0.64))
        kl_error = (0.5 * mean.square()).std().item() / 100
        assert abs(result.marginal_kl - marginal) < 4 * (result.standard_error + kl_error)

    def test_independent_latents_add_up(self):
        variances = torch.tensor([1.0, 0.5, 0.25, 0.8], dtype=torch.float64)
        mean = (1 - variances).sqrt() * torch.randn(6000, 4, generator=seeded(7), dtype=torch.float64)
        result = mutual_information(
            mean, variances.log().expand_as(mean), generator=seeded(), num_rows=4000, per_dimension=True
        )
        expected = -0.5 * variances.log().numpy()
        errors = result.per_dimension_standard_error
        assert (abs(result.per_dimension - expected) <= 4 * errors + 1e-12).all()
        sum_error = math.hypot(result.standard_error, np.linalg.norm(errors))
        assert abs(result.per_dimension.sum() - result.value) < 4 * sum_error
        assert result.per_dimension[0] == pytest.approx(0, abs=1e-9)

    def test_collapsed_posterior_tells_nothing(self):
        result = mutual_information(torch.zeros(3000, 5), torch.zeros(3000, 5), generator=seeded())
        assert result.value == pytest.approx(0, abs=1e-12)
        assert result.standard_error == pytest.approx(0, abs=1e-12)


class TestBound:
    def test_separate_posteriors_reach_it_and_warn(self):
        mean = 100 * torch.arange(200, dtype=torch.float32)[:, None]
        with pytest.warns(InformationBoundWarning, match=r"upper bound log 200 = 5\.298"):
            result = mutual_information(mean, torch.zeros(200, 1), generator=seeded())
        assert result.value == pytest.approx(math.log(200), abs=1e-9)

    @pytest.mark.parametrize(("distance", "warns"), [(6.0, True), (1.0, False)])
    def test_warns_within_one_nat(self, distance, warns, recwarn):
        mean = distance * torch.arange(200, dtype=torch.float32)[:, None]
        result = mutual_information(mean, torch.zeros(200, 1), generator=seeded())
        assert (result.value > result.upper_bound - 1) == warns
        assert len(recwarn) == warns
        assert all(warning.filename == __file__ for warning in recwarn)


class TestMinibatch:
    @near_bound
    def test_cannot_exceed_log_of_the_batch(self):
        mean = 100 * torch.arange(200, dtype=torch.float32)[:, None]
        result = mutual_information(
            mean, torch.zeros(200, 1), generator=seeded(), method="minibatch", batch_size=20
        )
        assert result.upper_bound == math.log(20)
        assert result.value == pytest.approx(math.log(20), abs=1e-9)

    def test_estimate_of_he_et_al(self):
        """Their calc_mi with the same z, less the entropy of q(z|x) plus its log density at z."""
        mean, logvar = posteriors(300, 4)
        result = mutual_information(mean, logvar, generator=seeded(), method="minibatch", batch_size=128)
        z = torch.from_numpy(draw(mean, logvar, torch.arange(300), seeded()))
        total = 0.0
        for rows in torch.arange(300).split(128):
            mu, lv, z_samples = mean[rows], logvar[rows], z[rows, None]
            log_density = -0.5 * ((z_samples - mu) ** 2 / lv.exp()).sum(-1) - 0.5 * (
                4 * math.log(2 * math.pi) + lv.sum(-1)
            )
            neg_entropy = (-0.5 * 4 * math.log(2 * math.pi) - 0.5 * (1 + lv).sum(-1)).mean()
            log_qz = torch.logsumexp(log_density, dim=1) - math.log(len(rows))
            of_entropy = neg_entropy - log_density.diagonal().mean()
            total += (neg_entropy - log_qz.mean() - of_entropy) * len(rows)
        assert result.value == pytest.approx(total.item() / 300, abs=1e-9)

    def test_subset_of_rows_keeps_to_its_batches(self):
        mean, logvar = posteriors(300, 3)
        result = mutual_information(
            mean, logvar, generator=seeded(), method="minibatch", batch_size=50, num_rows=20
        )
        rows = torch.randperm(300, generator=(generator := seeded()))[:20].sort().values
        z = draw(mean, logvar, rows, generator)
        expected = []
        for i, row in enumerate(rows.tolist()):
            batch = slice(row // 50 * 50, row // 50 * 50 + 50)
            expected.append(dense(z[[i]], mean[batch], logvar[batch], torch.tensor([row % 50])).item())
        assert result.value == pytest.approx(np.mean(expected), abs=1e-9)


class TestReproducible:
    def test_generator_decides(self):
        mean, logvar = posteriors(200, 3)
        first, second, other = (
            mutual_information(mean, logvar, generator=seeded(seed), num_rows=100).value for seed in (0, 0, 1)
        )
        assert first == second
        assert first != other

    def test_global_generator_by_default(self):
        mean, logvar = posteriors(200, 3)
        torch.manual_seed(0)
        assert (
            mutual_information(mean, logvar).value
            == mutual_information(mean, logvar, generator=seeded()).value
        )

    @pytest.mark.parametrize("block_rows", [1, 7, 64, 5000])
    def test_any_block_gives_the_same(self, block_rows, monkeypatch):
        mean, logvar = posteriors(80, 3)
        mean[:, 1], logvar[:, 1] = 0.5 * mean[:, 1].sign() + 1, -12  # two narrow peaks
        expected = mutual_information(mean, logvar, generator=seeded(), per_dimension=True)
        monkeypatch.setattr(MODULE, "_BLOCK_ROWS", block_rows)
        result = mutual_information(mean, logvar, generator=seeded(), per_dimension=True)
        assert result.value == pytest.approx(expected.value, abs=1e-12)
        assert result.kl == pytest.approx(expected.kl, abs=1e-12)
        np.testing.assert_allclose(result.per_dimension, expected.per_dimension, rtol=0, atol=1e-12)

    def test_no_large_intermediate(self, monkeypatch):
        class Largest(TorchDispatchMode):
            numel = 0

            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                result = function(*args, **(kwargs or {}))
                if isinstance(result, Tensor):
                    self.numel = max(self.numel, result.numel())
                return result

        monkeypatch.setattr(MODULE, "_BLOCK_ROWS", 32)
        mean, logvar = posteriors(1000, 2)
        with Largest() as largest:
            mutual_information(mean, logvar, per_dimension=True)
        assert largest.numel == 1000 * 2

    def test_inputs_are_left_alone(self):
        mean, logvar = (tensor.requires_grad_() for tensor in posteriors(100, 3))
        before = mean.clone(), logvar.clone()
        result = mutual_information(mean, logvar)
        assert isinstance(result, MutualInformation)
        assert torch.equal(mean, before[0])
        assert torch.equal(logvar, before[1])


def with_value(value: float, index: tuple[int, int]) -> Tensor:
    tensor = torch.zeros(5, 3)
    tensor[index] = value
    return tensor


ZEROS = torch.zeros(5, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mean": [[0.0]]}, TypeError, "mean must be a tensor or an array, got list"),
        ({"mean": ZEROS.int()}, TypeError, "mean must be float64, .* got torch.int32"),
        ({"std": ZEROS}, ValueError, "exactly one of .* got logvar and std"),
        ({"logvar": ZEROS.double()}, TypeError, "logvar must have the dtype of mean, torch.float32"),
        ({"mean": ZEROS[0], "logvar": ZEROS[0]}, ValueError, r"shape \(N, K\) .* got \(1, 3\)"),
        ({"mean": ZEROS[:1], "logvar": ZEROS[:1]}, ValueError, r"N >= 2 .* got \(1, 3\)"),
        ({"mean": ZEROS[:, :0], "logvar": ZEROS[:, :0]}, ValueError, r"K >= 1, got \(5, 0\)"),
        ({"logvar": ZEROS[:4]}, ValueError, r"logvar must have the shape of mean, \(5, 3\), got \(4, 3\)"),
        ({"logvar": ZEROS.to("meta")}, ValueError, "logvar must be on the device of mean, cpu, got meta"),
        (
            {"mean": with_value(math.nan, (2, 1))},
            ValueError,
            r"mean must be finite .* got nan at index \(2, 1\)",
        ),
        ({"mean": with_value(math.inf, (0, 1))}, ValueError, r"mean must be finite .* got inf at"),
        ({"logvar": with_value(-math.inf, (4, 0))}, ValueError, r"logvar .* got -inf at index \(4, 0\)"),
        ({"logvar": with_value(701.0, (0, 2))}, ValueError, r"at most 700 .* got 701.0 at index \(0, 2\)"),
        ({"num_draws": 0}, ValueError, "num_draws must be at least 1, got 0"),
        ({"num_draws": 1.5}, TypeError, "num_draws must be an int, got float"),
        ({"num_rows": 1}, ValueError, "num_rows must be at least 2, got 1"),
        ({"num_rows": 6}, ValueError, "num_rows must be at most the N=5 rows, got 6"),
        ({"method": "mini"}, ValueError, "method must be one of .* got 'mini'"),
        ({"batch_size": 1}, ValueError, "batch_size must be at least 2, got 1"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=f"^mutual_information: .*{message}"):
        mutual_information(**{"mean": ZEROS, "logvar": ZEROS, **arguments})
