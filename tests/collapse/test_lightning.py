from __future__ import annotations

import gc
import importlib
import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from lineavae.collapse import metrics
from lineavae.collapse.lightning import CollapseCallback

pytestmark = [
    # Lightning's and torch's advice on loaders, devices and loggers
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

NUM_ROWS, BATCH = 60, 10


class VAE(LightningModule):
    """Encodes x by a scale for each latent, which training leaves alone; tests set it."""

    def __init__(self, *scale: float) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 6)
        nn.init.zeros_(self.encoder.weight)
        nn.init.zeros_(self.encoder.bias)
        self.other = nn.Identity()
        self.set_scale(*scale)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return chunk(self.encoder(x))

    def set_scale(self, *scale: float) -> None:
        with torch.no_grad():
            self.encoder.weight[:3] = torch.diag(torch.tensor(scale))

    def training_step(self, batch: Tensor) -> Tensor:
        return self.encoder(batch).sum()

    def validation_step(self, batch: Tensor) -> None:
        self.encoder(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Schedule(Callback):
    """Sets the encoder's scales at the start of each epoch."""

    def __init__(self, *scales: tuple[float, ...]) -> None:
        self.scales = scales

    def on_train_epoch_start(self, trainer: Trainer, pl_module: VAE) -> None:
        pl_module.set_scale(*self.scales[trainer.current_epoch])


def data() -> Tensor:
    return torch.randn(NUM_ROWS, 3, generator=torch.Generator().manual_seed(0))


def callback_of(**kwargs: Any) -> CollapseCallback:
    return CollapseCallback(extract=chunk, **kwargs)


def chunk(output: Tensor) -> tuple[Tensor, ...]:
    return output.chunk(2, dim=-1)


def fit(
    folder: Path,
    callbacks: list[Callback],
    epochs: int = 1,
    ckpt_path: str | None = None,
    model: VAE | None = None,
    **kwargs: Any,
) -> tuple[Trainer, VAE]:
    options = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu", "devices": 1, **kwargs}
    trainer = Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    model = VAE(1.0, 0.3, 1e-3) if model is None else model
    loader = DataLoader(data(), batch_size=BATCH)
    trainer.fit(model, loader, loader, ckpt_path=ckpt_path)
    return trainer, model


LIVE, DEAD = 1.0, 1e-3
SCALES = (LIVE, LIVE, DEAD), (DEAD, LIVE, LIVE)


class TestFit:
    def test_checks_the_training_data_each_epoch(self, tmp_path):
        callback = callback_of()
        _, model = fit(tmp_path, [callback], epochs=2)
        check = callback.monitor.last
        mean = (data() * torch.tensor([1.0, 0.3, 1e-3])).double().numpy()
        assert check.step == 2 * NUM_ROWS // BATCH
        assert check.report.num_samples == NUM_ROWS  # without validation, and of one epoch
        np.testing.assert_allclose(check.report.mean_kl, 0.5 * (mean**2).mean(0), rtol=1e-5)
        np.testing.assert_array_equal(check.collapsed, (0.5 * mean**2 < 0.01).mean(0) >= 0.99)
        assert not model.encoder._forward_hooks

    def test_tensorboard(self, tmp_path):
        logger = TensorBoardLogger(str(tmp_path))
        fit(tmp_path, [Schedule(*SCALES), callback := callback_of()], epochs=2, logger=logger)
        events = EventAccumulator(logger.log_dir).Reload()

        def logged(name: str) -> list[tuple[int, float]]:
            return [(event.step, event.value) for event in events.Scalars(f"collapse/{name}")]

        assert logged("collapsed_percent") == [(6, pytest.approx(100 / 3)), (12, pytest.approx(100 / 3))]
        assert logged("active_units") == [(6, 2), (12, 2)]
        assert logged("died") == [(6, 0), (12, 1)]
        assert logged("revived") == [(6, 0), (12, 1)]
        assert logged("mean_kl")[1] == (12, pytest.approx(callback.monitor.last.report.mean_kl.sum()))
        (died,) = events.Tensors("collapse/died_latents/text_summary")
        (revived,) = events.Tensors("collapse/revived_latents/text_summary")
        assert (died.step, died.tensor_proto.string_val) == (12, [b"0"])
        assert (revived.step, revived.tensor_proto.string_val) == (12, [b"2"])

    def test_steps_between_checks_are_those_asked_for(self, tmp_path):
        """Not those at which Lightning logs, every 50 steps."""
        logger = TensorBoardLogger(str(tmp_path))
        fit(tmp_path, [callback_of(every=4)], epochs=2, logger=logger)
        events = EventAccumulator(logger.log_dir).Reload()
        assert [event.step for event in events.Scalars("collapse/mean_kl")] == [4, 8, 12]

    def test_what_is_left_is_checked_at_the_end(self, tmp_path):
        callback = callback_of(every=4)
        fit(tmp_path, [callback])
        assert (callback.monitor.last.step, callback.monitor.last.report.num_samples) == (6, 20)

    def test_early_stopping(self, tmp_path):
        stopping = EarlyStopping(
            "collapse/collapsed_percent", mode="min", patience=10, divergence_threshold=50
        )
        schedule = Schedule((LIVE, LIVE, DEAD), (LIVE, DEAD, DEAD), (LIVE, LIVE, LIVE))
        trainer, _ = fit(tmp_path, [schedule, callback_of(), stopping], epochs=3)
        assert stopping.stopped_epoch == 1
        assert trainer.callback_metrics["collapse/collapsed_percent"].item() == pytest.approx(200 / 3)

    def test_ends_on_an_exception(self, tmp_path):
        class Failure(Callback):
            def on_train_batch_end(self, trainer: Trainer, pl_module: VAE, *args: Any) -> None:
                self.model = pl_module
                raise ZeroDivisionError

        callback = callback_of()
        with pytest.raises(ZeroDivisionError):
            fit(tmp_path, [callback, failure := Failure()])
        assert not failure.model.encoder._forward_hooks
        assert callback.monitor.last is None

    def test_warns_after_the_first_batch_where_nothing_is_watched(self, tmp_path):
        class SecondBatch(Callback):
            def on_train_batch_start(
                self, trainer: Trainer, pl_module: VAE, batch: Tensor, index: int
            ) -> None:
                if index == 1:
                    warnings.warn("the second batch", RuntimeWarning, stacklevel=1)

        class Observe(Callback):
            """Does what the warning says, as training_step would."""

            def on_train_batch_start(self, trainer: Trainer, pl_module: VAE, batch: Tensor, _: int) -> None:
                callback.monitor.observe(*chunk(pl_module.encoder(batch)))

        for name in ("", "other"):
            with pytest.warns(RuntimeWarning) as warned:
                fit(tmp_path, [CollapseCallback(name), SecondBatch()])
            first, second, last = (str(w.message) for w in warned if w.category is RuntimeWarning)
            assert (
                "first batch of training did not call the " + ("submodule 'other'" if name else "Light")
                in first
            )
            assert second == "the second batch"
            for message in (first, last):
                assert "observe(mean, logvar)" in message
        callback = CollapseCallback("")
        fit(tmp_path, [callback, Observe()])
        assert callback.monitor.last.report.num_samples == NUM_ROWS

    def test_names_of_checkpoints(self, tmp_path):
        name = "kl={collapse/mean_kl:.3f}"
        checkpoint = ModelCheckpoint(
            tmp_path, name, auto_insert_metric_name=False, save_on_train_epoch_end=True
        )
        callback = callback_of()
        fit(tmp_path / "root", [callback, checkpoint], enable_checkpointing=True)
        (path,) = (path for path in tmp_path.iterdir() if path.suffix == ".ckpt")
        assert path.name == f"kl={callback.monitor.last.report.mean_kl.sum():.3f}.ckpt"

    def test_numbers_of_the_statistics_are_logged(self, tmp_path):
        """As docs/collapse.md shows it."""
        page = (Path(__file__).parents[2] / "docs" / "collapse.md").read_text(encoding="utf-8")
        (code,) = re.findall(r"```py\n(class Validation.*?)```", page, re.DOTALL)
        namespace = {"LightningModule": VAE, "MetricCollection": MetricCollection, **vars(metrics)}
        exec(code, namespace)
        model = namespace["Validation"](1.0, 0.3, 1e-3)
        trainer, _ = fit(tmp_path, [], model=model)
        mean = (data() * torch.tensor([1.0, 0.3, 1e-3])).double()
        assert trainer.callback_metrics["mean_kl"].item() == pytest.approx(
            0.5 * mean.square().sum(1).mean().item(), rel=1e-5
        )
        assert trainer.callback_metrics["active_units"] == 2

    def test_validation(self, tmp_path):
        """A check of the whole validation set in each epoch, with the model of its end."""
        logger = TensorBoardLogger(str(tmp_path))
        callbacks = [Schedule(*SCALES), callback := callback_of(validation=True), callback_of()]
        trainer, _ = fit(tmp_path, callbacks, epochs=2, logger=logger, num_sanity_val_steps=2)
        events = EventAccumulator(logger.log_dir, size_guidance={"histograms": 0}).Reload()
        steps = [6, 12]
        assert [e.step for e in events.Scalars("val_collapse/mean_kl")] == steps
        for event, scales in zip(events.Scalars("val_collapse/mean_kl"), SCALES, strict=True):
            kl = 0.5 * (data() * torch.tensor(scales)).double().square()
            assert event.value == pytest.approx(kl.sum(1).mean().item(), rel=1e-5)
        assert callback.monitor.last.report.num_samples == NUM_ROWS
        assert (callback.monitor.last.died, callback.monitor.last.revived) == ((0,), (2,))
        assert trainer.callback_metrics["val_collapse/collapsed_percent"] == pytest.approx(100 / 3)
        assert "collapse/mean_kl" in trainer.callback_metrics
        assert [e.step for e in events.Histograms("val_collapse/kl")] == steps
        assert [e.step for e in events.Images("val_collapse/spectrum")] == steps
        last = events.Tensors("val_collapse/report/text_summary")[-1].tensor_proto.string_val[0].decode()
        assert textwrap.dedent(last) == str(callback.monitor.last.report)
        assert len({callback.state_key for callback in callbacks[1:]}) == 2

    def test_validation_that_is_not_watched_warns(self, tmp_path):
        with pytest.warns(RuntimeWarning) as warned:
            fit(tmp_path, [CollapseCallback("other", validation=True)])
        first, last = (str(w.message) for w in warned if w.category is RuntimeWarning)
        assert "first batch of validation did not call the submodule 'other' in evaluation mode" in first
        assert "observe(mean, logvar)" in first
        assert "not called in evaluation mode" in last
        with pytest.raises(ValueError, match="every must be None with validation, got 3"):
            CollapseCallback(every=3, validation=True)

    def test_unknown_encoder(self, tmp_path):
        with pytest.raises(AttributeError, match=r"has no attribute `posterior`.*observe\(mean, logvar\)"):
            fit(tmp_path, [CollapseCallback("posterior")])


class TestCheckpoint:
    def test_resumed_run_knows_what_was_collapsed(self, tmp_path):
        trainer, _ = fit(tmp_path, [Schedule(*SCALES), callback_of()])
        trainer.save_checkpoint(path := tmp_path / "epoch.ckpt")
        resumed = callback_of()
        fit(tmp_path, [Schedule(*SCALES), resumed], epochs=2, ckpt_path=str(path))
        check = resumed.monitor.last
        assert (check.step, check.died, check.revived) == (12, (0,), (2,))

    def test_callbacks_of_two_encoders_are_told_apart(self):
        assert CollapseCallback("encoder.low").state_key != CollapseCallback("encoder.high").state_key


@pytest.mark.slow
def test_two_processes(tmp_path):
    """A check covers the samples of both, each of which sees its half."""
    code = Path(__file__).read_text(encoding="utf-8")
    script = tmp_path / "train.py"
    script.write_text(code + "\n\nif __name__ == '__main__':\n    train_in_process(Path(sys.argv[1]))\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*command, str(script), str(tmp_path)], check=True, timeout=120)
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    mean = data() * torch.tensor([1.0, 0.3, 1e-3])
    expected = 0.5 * mean.double().square().mean(0).sum().item()
    (event,) = events.Scalars("collapse/mean_kl")
    assert (event.step, event.value) == (3, pytest.approx(expected, rel=1e-5))
    assert (tmp_path / "num_samples-0").read_text() == (tmp_path / "num_samples-1").read_text() == "60"


def train_in_process(folder: Path) -> None:
    logger = TensorBoardLogger(str(folder), name="", version="logs")
    callback = callback_of()
    trainer, _ = fit(folder, [callback], logger=logger, devices=2, strategy="ddp")
    (folder / f"num_samples-{trainer.global_rank}").write_text(str(callback.monitor.last.report.num_samples))
    # Lightning leaves the process group, and Gloo's threads may outlive the interpreter. What wraps the model
    # must not be what ends the group: it holds Python's lock, for which those threads may wait.
    del trainer
    gc.collect()
    dist.destroy_process_group()


def test_lightning_is_imported_only_when_asked_for(monkeypatch):
    code = "import sys, lineavae.collapse, lineavae.collapse.monitor; sys.exit('lightning' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    monkeypatch.delitem(sys.modules, "lineavae.collapse.lightning")
    monkeypatch.setitem(sys.modules, "lightning", None)
    with pytest.raises(ModuleNotFoundError, match=r"lightning is needed .* 'lineavae\[experiments\]'"):
        importlib.import_module("lineavae.collapse.lightning")
