"""Numbers that ``self.log`` takes, in a real Trainer, against dense float64."""

from __future__ import annotations

import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from lineavae.collapse import ActiveUnits, CollapsedFraction, MeanKL

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::FutureWarning")

EPSILON, DELTA, THRESHOLD = 0.05, 0.1, 0.02
OF = {
    "fraction": partial(CollapsedFraction, 3, EPSILON, DELTA),
    "active": partial(ActiveUnits, 3, THRESHOLD),
    "kl": partial(MeanKL, 3),
}


def posterior_of(x: Tensor) -> tuple[Tensor, Tensor]:
    return x * torch.tensor([1.0, 0.3, 0.05]), 0.1 * x.flip(1)


def data() -> Tensor:
    return torch.randn(90, 3, generator=torch.Generator().manual_seed(0))


def truth(x: Tensor) -> dict[str, float]:
    mean, logvar = (part.double().numpy() for part in posterior_of(x))
    kl = 0.5 * (mean**2 + np.exp(logvar) - logvar - 1)
    return {
        "fraction": ((kl < EPSILON).mean(0) >= 1 - DELTA).mean(),
        "active": (mean.var(0) >= THRESHOLD).sum(),
        "kl": kl.mean(0).sum(),
    }


class Model(LightningModule):
    """Logs each metric, or all of a collection."""

    def __init__(self, collected: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.collected = collected
        metrics = {name: make() for name, make in OF.items()}
        self.metrics: Any = MetricCollection(metrics) if collected else nn.ModuleDict(metrics)

    def training_step(self, batch: Tensor) -> Tensor:
        return self.weight.square()

    def validation_step(self, batch: Tensor) -> None:
        if self.collected:
            self.metrics.update(*posterior_of(batch))
            self.log_dict(self.metrics)
            return
        for name, metric in self.metrics.items():
            metric.update(*posterior_of(batch))
            self.log(name, metric)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("collected", [False, True])
def test_lightning_logs_them(tmp_path: Path, collected: bool) -> None:
    model = Model(collected)
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_epochs=2,  # the second must not hold the first
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(data()[:10]), DataLoader(data(), batch_size=40))
    expected = truth(data())
    assert 0 < expected["fraction"] < 1
    assert 0 < expected["active"] < 3
    for name, value in expected.items():
        assert trainer.callback_metrics[name].item() == pytest.approx(value, rel=1e-6)


def check_as_torchmetrics_does(rank: int, num_processes: int) -> None:
    """What its own tests ask of a metric, each time against the truth about the samples it has to know of."""
    batches = data().split(15)
    for sync in (False, True):
        for name, make in OF.items():
            metric = make(dist_sync_on_step=sync)
            for constant in ("is_differentiable", "higher_is_better"):
                with pytest.raises(RuntimeError, match="Can't change const"):
                    setattr(metric, constant, True)
            assert type(metric.clone()) is type(metric)
            metric = pickle.loads(pickle.dumps(metric))
            for step in range(0, len(batches), num_processes):
                value = metric(*posterior_of(batches[step + rank]))
                known = batches[step : step + num_processes] if sync else [batches[step + rank]]
                assert value.item() == pytest.approx(truth(torch.cat(known))[name], rel=1e-6)
            assert isinstance(hash(metric), int)
            result = metric.compute()
            assert not result.requires_grad
            assert result.item() == pytest.approx(truth(data())[name], rel=1e-6)


def check_in_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    check_as_torchmetrics_does(rank, 2)
    dist.destroy_process_group()


def test_as_torchmetrics_tests_its_own(tmp_path: Path) -> None:
    check_as_torchmetrics_does(0, 1)
    torch.multiprocessing.spawn(check_in_process, (str(tmp_path),), nprocs=2)


def test_a_collection_counts_once() -> None:
    metrics = MetricCollection({"active": ActiveUnits(3), "kl": MeanKL(3), "fraction": CollapsedFraction(3)})
    for x in data().split(30):
        metrics.update(*posterior_of(x))
    assert len(metrics.compute_groups) == 1
    assert metrics.compute()["kl"].item() == pytest.approx(truth(data())["kl"], rel=1e-6)
    assert len({id(metric.histogram) for metric in metrics.values(copy_state=False)}) == 1


def test_of_kl_values_alone() -> None:
    kl = torch.tensor([[0.0, 0.2], [0.0, 0.4]])
    fraction, mean, active = CollapsedFraction(2), MeanKL(2), ActiveUnits(2)
    for metric in (fraction, mean, active):
        metric.update_kl(kl)
    assert (fraction.compute().item(), mean.compute().item()) == (0.5, pytest.approx(0.3))
    with pytest.raises(ValueError, match=r"active_units: means and variances .* must be known"):
        active.compute()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CollapsedFraction(2, epsilon=-1), "CollapsedFraction: epsilon must be finite and >= 0"),
        (lambda: CollapsedFraction(2, delta=1), "CollapsedFraction: delta must be .*< 1"),
        (lambda: ActiveUnits(2, threshold=-1), "ActiveUnits: threshold must be finite and >= 0"),
        (lambda: MeanKL(0), "MeanKL: latent_dim must be at least 1"),
        (lambda: MeanKL(2).update(torch.zeros(1, 3), torch.zeros(1, 3)), "MeanKL: mean must have K=2"),
    ],
)
def test_errors_name_the_metric(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_modules_are_found_without_being_imported() -> None:
    code = "import lineavae; lineavae.collapse.statistics.CollapseStatistics, lineavae.collapse.monitor"
    subprocess.run([sys.executable, "-c", code], check=True)
