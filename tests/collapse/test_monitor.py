from __future__ import annotations

import gc
import math
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.tensorboard import SummaryWriter

from lineavae.collapse import CollapseCheck, CollapseMonitor, CollapseStatistics

LIVE, COLLAPSED = 1.0, 1e-3  # posterior means whose KL is 0.5 and 5e-7 nats


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean, self.logvar = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(x), self.logvar(x)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder()
    with torch.no_grad():
        for layer in (encoder.mean, encoder.logvar):  # the last latent is collapsed
            layer.weight[2], layer.bias[2] = 0, 0
    return encoder


def window(*means: float, num_rows: int = 4) -> tuple[Tensor, Tensor]:
    mean = torch.tensor(means).repeat(num_rows, 1)
    return mean, torch.zeros_like(mean)


def checks_of(monitor: CollapseMonitor, *windows: tuple[Tensor, Tensor]) -> list[CollapseCheck]:
    checks = []
    for posterior in windows:
        monitor.observe(*posterior)
        checks.append(monitor.check())
    return checks


class TestStatistics:
    def test_are_those_of_the_posteriors_in_training(self, encoder):
        monitor, posteriors = CollapseMonitor(epsilon=0.05, delta=0.1), []
        with monitor.watch(encoder):
            for _ in range(7):
                posteriors.append(encoder(torch.randn(9, 5)))
        mean, logvar = (torch.cat(part).detach().double().numpy() for part in zip(*posteriors, strict=True))
        kl = 0.5 * (mean**2 + np.exp(logvar) - logvar - 1)
        check = monitor.last
        assert check.step == 7
        assert check.report.num_samples == 63
        np.testing.assert_allclose(check.report.mean_kl, kl.mean(0), rtol=1e-5, atol=1e-12)
        np.testing.assert_array_equal(check.collapsed, (kl < 0.05).mean(0) >= 0.9)
        assert check.scalars() == pytest.approx(
            {
                "collapse/collapsed_percent": 100 / 3,
                "collapse/active_units": (mean.var(0) >= 0.01).sum(),
                "collapse/mean_kl": kl.sum(1).mean(),
                "collapse/died": 0,
                "collapse/revived": 0,
                "collapse/sinking": 0,
                "collapse/infinite": 0,
                "collapse/nan": 0,
            },
            rel=1e-5,
        )

    @pytest.mark.parametrize("num_rows", [1, 100, 5000])
    def test_do_not_depend_on_the_batches(self, num_rows, monkeypatch):
        mean, logvar = torch.randn(5000, 3), torch.randn(5000, 3) - 1
        metric = CollapseStatistics(3, [0.01])
        metric.update(mean, logvar)
        expected = metric.compute()
        updates, update = [], CollapseStatistics.update
        monkeypatch.setattr(
            CollapseStatistics, "update", lambda self, *args: updates.append(1) or update(self, *args)
        )
        monitor = CollapseMonitor()
        for batch in zip(mean.split(num_rows), logvar.split(num_rows), strict=True):
            monitor.observe(*batch)
        report = monitor.check().report
        assert len(updates) == 1  # not one for each small batch
        np.testing.assert_array_equal(report.counts, expected.counts)
        np.testing.assert_array_equal(report.histogram, expected.histogram)
        np.testing.assert_allclose(report.mean_kl, expected.mean_kl, rtol=1e-6)

    def test_what_waits_is_bounded_whatever_the_latents(self):
        """In bytes: 4096 rows of 16 384 latents would be 512 MiB."""
        monitor = CollapseMonitor()
        mean = torch.zeros(10, 16384)
        for _ in range(50):
            monitor.observe(mean, mean)
            assert sum(posterior.nbytes for posterior in monitor._pending) <= 2**24
        assert monitor.check().report.num_samples == 500

    def test_spatial_posteriors_are_those_of_the_elbo(self):
        """Every channel at every position is a latent if that is said; or each channel, by ``extract``."""
        mean = torch.randn(6, 2, 3, 3) * torch.tensor([1.0, 1e-3])[:, None, None]
        module, each, channels = nn.Identity(), CollapseMonitor(event_dim=3), CollapseMonitor()

        def extract(output):
            return [part.movedim(1, -1).flatten(0, -2) for part in output]

        with each.watch(module), channels.watch(module, extract):
            module((mean, torch.zeros_like(mean)))
        kl = 0.5 * mean.double().square()
        np.testing.assert_allclose(each.last.report.mean_kl, kl.mean(0).flatten(), rtol=1e-5)
        assert each.last.scalars()["collapse/mean_kl"] == pytest.approx(kl.sum().item() / 6, rel=1e-5)
        np.testing.assert_allclose(channels.last.report.mean_kl, kl.mean((0, 2, 3)), rtol=1e-5)
        assert channels.last.report.num_samples == 6 * 9
        with pytest.raises(ValueError, match=r"Monitor: mean .*: event_dim=3 makes .* movedim\(1, -1\)"):
            CollapseMonitor().observe(mean, mean)

    @pytest.mark.parametrize("form", ["variance", "std", "Normal"])
    def test_other_forms_of_a_posterior(self, form):
        mean, std = torch.randn(50, 3, dtype=torch.float64), torch.rand(50, 3, dtype=torch.float64) + 0.1
        monitor = CollapseMonitor()
        if form == "Normal":
            with monitor.watch(module := nn.Identity()):
                module(Independent(Normal(mean, std), 1))
        else:
            monitor.observe(mean.numpy(), **{form: (std if form == "std" else std.square()).numpy()})
            monitor.check()
        kl = kl_divergence(Normal(mean, std), Normal(torch.zeros_like(mean), 1.0))
        np.testing.assert_allclose(monitor.last.report.mean_kl, kl.mean(0), rtol=1e-12)

    def test_half_precision_and_mixed(self):
        mean = torch.randn(50, 3)
        monitor = CollapseMonitor()
        monitor.observe(mean.bfloat16(), torch.zeros(50, 3))
        expected = 0.5 * mean.bfloat16().double().square().mean(0)
        np.testing.assert_allclose(monitor.check().report.mean_kl, expected, rtol=1e-6)

    def test_under_autocast(self, encoder):
        monitor = CollapseMonitor()
        with monitor.watch(encoder), torch.autocast("cpu", torch.bfloat16):
            mean, _ = encoder(torch.randn(50, 5))
        assert mean.dtype == torch.bfloat16
        np.testing.assert_allclose(
            monitor.last.report.mean_of_mean, mean.double().detach().mean(0), rtol=1e-6, atol=1e-9
        )


class TestChecks:
    def test_every_few_steps_and_at_the_end(self, encoder):
        checks = []
        monitor = CollapseMonitor(checks.append, every=3)
        with monitor.watch(encoder):
            for _ in range(7):
                encoder(torch.randn(2, 5))
        assert [(check.step, check.report.num_samples) for check in checks] == [(3, 6), (6, 6), (7, 2)]
        assert checks[-1] is monitor.last

    def test_none_at_the_end_of_nothing(self, encoder):
        checks = []
        monitor = CollapseMonitor(checks.append, every=3)
        with monitor.watch(encoder):
            for _ in range(3):
                encoder(torch.randn(2, 5))
        assert len(checks) == 1
        assert monitor.check() is None

    def test_latents_that_died_and_revived(self):
        checks = checks_of(
            CollapseMonitor(),
            window(LIVE, LIVE, COLLAPSED, COLLAPSED),
            window(COLLAPSED, LIVE, COLLAPSED, LIVE),
            window(COLLAPSED, COLLAPSED, COLLAPSED, LIVE),
            window(COLLAPSED, COLLAPSED, COLLAPSED, LIVE),
        )
        assert [check.died for check in checks] == [(), (0,), (1,), ()]
        assert [check.revived for check in checks] == [(), (3,), (), ()]
        assert [check.scalars()["collapse/died"] for check in checks] == [0, 1, 1, 0]
        assert [check.scalars()["collapse/revived"] for check in checks] == [0, 1, 0, 0]
        assert checks[1].texts() == {"collapse/died_latents": "0", "collapse/revived_latents": "3"}
        assert checks[3].texts() == {}

    def test_drift_of_the_critical_epsilon(self):
        """Of means m at variance 1, whose KL is m²/2."""
        kls = [(0.4, 0.05, 0.5, 1e-4), (0.3, 0.005, 0.5, 1e-5), (np.nan, 0.004, 2, 0), (0.25, 0.004, 2, 0)]
        checks = checks_of(CollapseMonitor(), *(window(*np.sqrt(2 * np.array(kl))) for kl in kls))
        expected = [[np.nan] * 4, [0.75, 0.1, 1, 1], [np.nan, 0.8, 4, 1], [0.25 / 0.3, 1, 1, 1]]
        np.testing.assert_allclose([check.drift for check in checks], expected, rtol=1e-5)
        assert [check.sinking for check in checks] == [(), (0,), (), (0,)]
        assert [check.scalars()["collapse/sinking"] for check in checks] == [0, 1, 0, 1]

    def test_nan_is_no_news_and_no_collapse(self):
        checks = checks_of(
            CollapseMonitor(),
            window(LIVE, COLLAPSED),
            window(np.nan, np.nan),
            window(COLLAPSED, COLLAPSED),
        )
        assert [check.died for check in checks] == [(), (), (0,)]
        assert [check.revived for check in checks] == [(), (), ()]
        assert [check.scalars()["collapse/nan"] for check in checks] == [0, 8, 0]
        assert [check.scalars()["collapse/collapsed_percent"] for check in checks] == [50, 0, 100]

    def test_exploding_is_no_collapse(self):
        mean, logvar = window(COLLAPSED, COLLAPSED)
        logvar[len(logvar) // 2 :] = 1e4
        (check,) = checks_of(CollapseMonitor(), (mean, logvar))
        scalars = check.scalars()
        assert (scalars["collapse/collapsed_percent"], scalars["collapse/mean_kl"]) == (0, math.inf)
        assert scalars["collapse/infinite"] == logvar.numel() // 2

    def test_epsilon_and_delta(self):
        mean = torch.zeros(100, 2)
        mean[:2, 0], mean[:3, 1] = LIVE, LIVE
        posterior = mean, torch.zeros(100, 2)
        (check,) = checks_of(CollapseMonitor(epsilon=0.01, delta=0.02), posterior)
        assert check.collapsed.tolist() == [True, False]
        (check,) = checks_of(CollapseMonitor(epsilon=0.6, delta=0), posterior)
        assert check.collapsed.tolist() == [True, True]

    def test_state_carries_the_verdicts_over(self):
        monitor = CollapseMonitor()
        checks_of(monitor, window(LIVE, COLLAPSED), window(LIVE, COLLAPSED))
        monitor.observe(*window(LIVE, LIVE))  # a window under way is lost
        state = monitor.state_dict()
        resumed = CollapseMonitor()
        resumed.load_state_dict(state)
        (check,) = checks_of(resumed, window(COLLAPSED, LIVE))
        assert (check.step, check.died, check.revived) == (4, (0,), (1,))
        np.testing.assert_allclose(check.drift, [0.001 / 0.5, 0.5 / 0.001], rtol=1e-5)
        assert check.report.num_samples == 4

    def test_state_before_any_check(self):
        resumed = CollapseMonitor()
        resumed.load_state_dict(CollapseMonitor().state_dict())
        (check,) = checks_of(resumed, window(COLLAPSED, LIVE))
        assert (check.step, check.died) == (1, ())

    def test_prints_what_is_still_sinking(self, capsys):
        first, second = window(LIVE, LIVE), window(COLLAPSED, 0.5 * LIVE)
        checks_of(CollapseMonitor(print), first, second)
        kl = 0.5 * second[0].double().square().mean(0).sum()
        assert capsys.readouterr().out.splitlines()[-1] == (
            f"step 2: 1 of 2 latents collapsed, 0 active units, mean KL {kl:.4g} nats; died: 0; "
            "still sinking: 1"
        )

    def test_summary_writer(self, tmp_path):
        with SummaryWriter(str(tmp_path)) as writer:
            checks = checks_of(CollapseMonitor(writer), window(LIVE, LIVE), window(COLLAPSED, COLLAPSED))
        events = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0}).Reload()
        for name in checks[0].scalars():
            logged = [(event.step, event.value) for event in events.Scalars(name)]
            assert logged == [(check.step, pytest.approx(check.scalars()[name])) for check in checks]
        assert [event.value for event in events.Scalars("collapse/collapsed_percent")] == [0, 100]
        (text,) = events.Tensors("collapse/died_latents/text_summary")
        assert (text.step, text.tensor_proto.string_val) == (2, [b"0, 1"])
        for event, check in zip(events.Histograms("collapse/kl"), checks, strict=True):
            kl, histogram = check.report.mean_kl, event.histogram_value
            assert (event.step, histogram.num) == (check.step, len(kl))
            assert (histogram.min, histogram.max) == (kl.min(), kl.max())
        assert [event.step for event in events.Images("collapse/spectrum")] == [1, 2]


class TestWatch:
    def test_ignores_evaluation(self, encoder):
        monitor = CollapseMonitor()
        with monitor.watch(encoder):
            encoder(torch.randn(4, 5))
            encoder.eval()
            encoder(torch.randn(100, 5))
        assert monitor.last.report.num_samples == 4

    def test_ends(self, encoder):
        monitor = CollapseMonitor()
        with monitor.watch(encoder):
            encoder(torch.randn(4, 5))
        encoder(torch.randn(4, 5))
        assert monitor.step == 1
        assert not encoder._forward_hooks

    def test_ends_on_an_exception_without_a_check(self, encoder):
        monitor = CollapseMonitor()

        def train() -> None:
            with monitor.watch(encoder):
                encoder(torch.randn(4, 5))
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train()
        assert not encoder._forward_hooks
        assert monitor.last is None

    def test_extract(self):
        encoder = nn.Linear(5, 6)
        monitor, x = CollapseMonitor(), torch.randn(4, 5)
        with monitor.watch(encoder, extract=lambda output: output.chunk(2, dim=-1)):
            output = encoder(x)
        np.testing.assert_allclose(
            monitor.last.report.mean_of_mean, output[:, :3].double().detach().mean(0), rtol=1e-6
        )

    def test_training_is_left_alone(self, encoder):
        x = torch.randn(4, 5)

        def gradients() -> list[Tensor]:
            mean, logvar = encoder(x)
            return torch.autograd.grad((mean.square() + logvar.exp()).sum(), list(encoder.parameters()))

        expected = gradients()
        with CollapseMonitor().watch(encoder):
            for gradient, without in zip(gradients(), expected, strict=True):
                assert torch.equal(gradient, without)

    def test_keeps_copies_and_nothing_of_the_graph(self, encoder):
        monitor, x = CollapseMonitor(), 2 * torch.randn(4, 5)
        with monitor.watch(encoder):
            mean, logvar = encoder(x)
            expected = mean.detach().double().mean(0)
            mean.data.zero_()
            saved_for_backward = weakref.ref(x)
            del x, mean, logvar
            gc.collect()
            assert saved_for_backward() is None
        np.testing.assert_allclose(monitor.last.report.mean_of_mean, expected, rtol=1e-6, atol=1e-12)

    def test_does_not_wait_for_the_device_before_a_check(self, encoder):
        class NoWaiting(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                assert function not in (
                    torch.ops.aten._local_scalar_dense.default,
                    torch.ops.aten.is_nonzero.default,
                    torch.ops.aten.nonzero.default,
                )
                return function(*args, **(kwargs or {}))

        monitor = CollapseMonitor()
        with monitor.watch(encoder), NoWaiting():
            for _ in range(3):
                encoder(torch.randn(2000, 5))

    def test_watches_without_with(self, encoder):
        monitor = CollapseMonitor(every=2)
        monitor.watch(encoder)
        for _ in range(2):
            encoder(torch.randn(4, 5))
        assert monitor.last.step == 2
        assert monitor.last.report.num_samples == 8

    def test_says_when_nothing_was_observed(self, encoder):
        with (
            pytest.warns(RuntimeWarning, match="not called in training mode") as warned,
            CollapseMonitor().watch(encoder.eval()),
        ):
            encoder(torch.randn(4, 5))
        assert warned[0].filename == __file__

    def test_compiled_model(self, encoder):
        compiled = torch.compile(encoder, backend="eager")
        monitor = CollapseMonitor()
        with monitor.watch(encoder):
            for _ in range(3):
                compiled(torch.randn(4, 5))
        compiled(torch.randn(4, 5))
        assert monitor.step == 3


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"every": 0}, ValueError, "every must be at least 1, got 0"),
            ({"every": 1.5}, TypeError, "every must be an int, got float"),
            ({"epsilon": -1}, ValueError, "epsilon must be finite and >= 0, got -1"),
            ({"epsilon": "0.1"}, TypeError, "epsilon must be a number, got str"),
            ({"delta": 1}, ValueError, "delta must be >= 0 and < 1, got 1"),
            ({"log": "runs"}, TypeError, "log must be a function, a SummaryWriter .* or None, got str"),
        ],
    )
    def test_arguments(self, arguments, error, message):
        with pytest.raises(error, match=f"CollapseMonitor: {message}"):
            CollapseMonitor(**arguments)

    @pytest.mark.parametrize(
        ("output", "error", "message"),
        [
            (torch.zeros(4, 6), TypeError, "the output must be a pair .*or a Normal, .* got Tensor"),
            ((torch.zeros(4, 3),) * 3, TypeError, "got 3 items"),
            ((torch.zeros(4, 3), None), ValueError, "exactly one of logvar, variance and std must be given"),
            ((torch.zeros(3), torch.zeros(3)), ValueError, r"mean must have shape .*, got \(3,\)"),
            ((torch.zeros(4, 3), torch.zeros(4, 2)), ValueError, r"logvar must have .* got \(4, 2\)"),
        ],
    )
    def test_outputs(self, output, error, message):
        module = nn.Identity()
        with pytest.raises(error, match=f"CollapseMonitor: .*{message}"), CollapseMonitor().watch(module):
            module(output)
        assert not module._forward_hooks

    def test_change_of_latent_dim(self):
        monitor = CollapseMonitor()
        monitor.observe(*window(LIVE, LIVE))
        with pytest.raises(ValueError, match=r"mean must have K=2 latents, got \(N, K\) = \(4, 3\)"):
            monitor.observe(*window(LIVE, LIVE, LIVE))


def check_in_process(rank: int, folder: str, mean: Tensor) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    monitor = CollapseMonitor(every=2)
    for part in mean[rank].split(10):
        monitor.observe(part, torch.zeros_like(part))
    torch.save(torch.from_numpy(monitor.last.report.counts.copy()), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes(tmp_path):
    mean = torch.randn(2, 20, 3) * torch.tensor([1.0, 0.2, 0.01])
    torch.multiprocessing.spawn(check_in_process, (str(tmp_path), mean), nprocs=2)
    expected = (0.5 * mean.double().square() < 0.01).sum((0, 1))[:, None]
    for rank in range(2):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt"), expected)
