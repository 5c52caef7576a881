"""Posterior collapse in the training loop of Lightning, which is needed to import this module."""

from __future__ import annotations

import textwrap
import warnings
from contextlib import ExitStack
from typing import Any

import torch

from lineavae._optional import require
from lineavae._paper import DELTA, EPSILON
from lineavae.collapse.monitor import CollapseCheck, CollapseMonitor, Extract, write_kl

require("lightning", "experiments")

from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402

_OBSERVE = (
    "where a method such as encode or two heads give the posterior, let the step of the LightningModule call "
    "callback.monitor.observe(mean, logvar)"
)


class CollapseCallback(Callback):
    """Watches the encoder of a LightningModule for posterior collapse, with a `CollapseMonitor`.

    Each check goes to all loggers of the trainer, at its ``global_step``, and to its ``callback_metrics``,
    where ``EarlyStopping`` and ``ModelCheckpoint`` find it: ``collapse/collapsed_percent``,
    ``collapse/active_units``, ``collapse/mean_kl``, ``collapse/died``, ``collapse/revived``,
    ``collapse/sinking``, ``collapse/infinite`` and ``collapse/nan``. TensorBoard's logger also gets the
    indices of the latents that died or revived, and the KL of all latents, as a histogram and, if there is
    matplotlib, as a spectrum. For the validation set these names begin with ``val_collapse/``, and
    TensorBoard gets the whole report.

    ``ModelCheckpoint`` inserts the names of metrics into its file names, and the / in these makes folders;
    ``ModelCheckpoint(filename="kl={collapse/mean_kl:.3f}", auto_insert_metric_name=False)`` does not.

    Parameters
    ----------
    encoder
        Name of the submodule whose output is the posterior, as in ``get_submodule``; "" is the module itself,
        if its ``forward`` gives it. If a method such as ``encode`` or two heads give it, nothing can be
        watched: let ``training_step`` or ``validation_step`` call ``callback.monitor.observe(mean, logvar)``.
    extract
        Function of the submodule's output that gives mean and log-variance; see `CollapseMonitor.watch`.
    every
        Forward passes of training between checks; None checks at the end of each epoch.
    epsilon, delta
        A latent is collapsed if its KL is below ε nats for at least the fraction 1 - δ of the samples.
    event_dim
        Number of last dimensions that are the latents, see `CollapseMonitor`.
    validation
        Watch validation in place of training: each time the validation loop ends there is a check of the
        whole validation set, with the model as it then is. For both, add two callbacks.

    Attributes
    ----------
    monitor : CollapseMonitor
        Its ``last`` is the last check.

    Warns
    -----
    RuntimeWarning
        The first batch brought no posterior.

    Notes
    -----
    In distributed training a check is over the samples of all processes. Checkpoints hold the last verdicts,
    so that a resumed run knows what died since; a window under way begins anew.

    Examples
    --------
    >>> from lineavae.collapse.lightning import CollapseCallback
    >>> callback = CollapseCallback("encoder", extract=lambda output: output.chunk(2, dim=-1), every=1000)

    Then ``Trainer(callbacks=[callback])``.
    """

    def __init__(
        self,
        encoder: str = "encoder",
        extract: Extract | None = None,
        *,
        every: int | None = None,
        epsilon: float = EPSILON,
        delta: float = DELTA,
        event_dim: int | None = None,
        validation: bool = False,
    ) -> None:
        if validation and every is not None:
            raise ValueError(f"CollapseCallback: every must be None with validation, got {every}")
        self.encoder = encoder
        self.extract = extract
        self.validation = validation
        self.monitor = CollapseMonitor(every=every, epsilon=epsilon, delta=delta, event_dim=event_dim)
        self._watching = ExitStack()
        self._logged: CollapseCheck | None = None
        self._first_step: int | None = None  # the monitor's before the first batch of this run, until its end

    @property
    def state_key(self) -> str:
        """Tell the callbacks of several encoders apart in a checkpoint."""
        of_validation = {"validation": True} if self.validation else {}
        return self._generate_state_key(encoder=self.encoder, **of_validation)

    def state_dict(self) -> dict[str, Any]:
        """Give the monitor's state, for a checkpoint."""
        return self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the state in a checkpoint."""
        self.monitor.load_state_dict(state_dict)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the encoder."""
        if not self.validation:
            self._watch(pl_module)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Log the check that the batch brought about, if any; warn if the first one brought no posterior."""
        if not self.validation:
            self._warn_after_first_batch("training")
            self._log_news(trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the encoder, unless this is Lightning's trial before training."""
        if self.validation and not trainer.sanity_checking:
            self._watch(pl_module)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Warn if the first batch brought no posterior."""
        if self.validation and not trainer.sanity_checking:
            self._warn_after_first_batch("validation")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the validation set, and watch no longer."""
        if self.validation and not trainer.sanity_checking:
            self._watching.close()
            self._log_news(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check, unless that is done by the step."""
        if self.monitor.every is None and not self.validation:
            self.monitor.check()
            self._log_news(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what is left and watch no longer."""
        self._watching.close()
        self._log_news(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Watch no longer, and check nothing."""
        self._watching.pop_all().__exit__(type(exception), exception, exception.__traceback__)

    def _watch(self, pl_module: LightningModule) -> None:
        try:
            module = pl_module.get_submodule(self.encoder)
        except AttributeError as error:
            raise AttributeError(
                f"CollapseCallback: encoder must name a submodule: {error}; {_OBSERVE}"
            ) from None
        self._watching.enter_context(self.monitor.watch(module, self.extract, training=not self.validation))
        self._first_step = self.monitor.step

    def _warn_after_first_batch(self, loop: str) -> None:
        if self.monitor.step == self._first_step:
            watched = f"submodule {self.encoder!r}" if self.encoder else "LightningModule itself"
            mode = "evaluation" if self.validation else "training"
            warnings.warn(
                f"CollapseCallback: the first batch of {loop} did not call the {watched} in {mode} mode, so "
                f"nothing was observed; {_OBSERVE}",
                RuntimeWarning,
                stacklevel=3,
            )
        self._first_step = None

    def _log_news(self, trainer: Trainer) -> None:
        check = self.monitor.last
        if check is None or check is self._logged:
            return
        self._logged = check
        place = "val_" if self.validation else ""
        scalars = {place + name: number for name, number in check.scalars().items()}
        texts = {place + name: text for name, text in check.texts().items()}
        if self.validation:
            # as code in Markdown, which TensorBoard takes texts for
            report = str(check.report.at(self.monitor.epsilon, self.monitor.delta))
            texts["val_collapse/report"] = textwrap.indent(report, "    ")
        # not by LightningModule.log, which drops what is not at a multiple of log_every_n_steps
        device = trainer.strategy.root_device
        trainer.callback_metrics.update(
            {name: torch.tensor(number, device=device) for name, number in scalars.items()}
        )
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=trainer.global_step)
            writer: Any = getattr(logger, "experiment", None)
            if hasattr(writer, "add_text"):
                for name, text in texts.items():
                    writer.add_text(name, text, trainer.global_step)
            at = self.monitor.epsilon, self.monitor.delta
            write_kl(writer, check, *at, trainer.global_step, f"{place}collapse")
