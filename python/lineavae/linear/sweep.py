"""Thousands of linear VAEs trained together, a model at each point of a grid."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lineavae._arguments import check_integer, check_number
from lineavae._optional import require
from lineavae._paper import EPSILON
from lineavae.linear.grid import CALLER, read_grid
from lineavae.linear.moments import Moments
from lineavae.linear.sweep_result import Sweep
from lineavae.linear.sweep_statistics import STATISTICS
from lineavae.linear.sweep_training import Checkpoints, Training


def sweep(
    moments: Moments,
    grid: Mapping[str, Any] | Sequence[tuple[str, Any]],
    *,
    steps: int,
    learn_sigma2: bool,
    optimizer: Literal["adam", "sgd"] = "adam",
    rank: int | None = None,
    record: Sequence[str] = ("elbo", "live", "log_sigma2"),
    record_at: Sequence[int] | None = None,
    tolerance: float = 0.0,
    epsilon: float = EPSILON,
    keep_models: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    memory: float = 2**30,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1000,
    resume: bool = False,
    progress: bool = True,
) -> Sweep:
    """Train a linear VAE at every point of a grid, all together.

    Each model begins as ``LinearVAE(D, K, generator=torch.Generator().manual_seed(seed))`` does, but for μ,
    which is the mean of the data and stays it, and goes up the gradient of its own mean β-ELBO. It is the
    model that `LinearVAE.fit` trains from there, whatever else is in the grid.

    Parameters
    ----------
    moments
        Moments of the data.
    grid
        By their names, settings: one number for all models, or a sequence of numbers for an axis. There must
        be

        - ``latent_dim``: latents K, at most D;

        and there may be

        - ``sigma2``: the observation noise σ², fixed, or initial where it is learned, by default 1;
        - ``beta``: weight β of the KL term, by default 1;
        - ``annealing_steps``: steps over which β rises to that from 0, in a straight line, by default 0;
        - ``lr``: step size, by default 0.001;
        - ``init_scale``: factor of the initial W and V, by default 1;
        - ``seed``: of the initial parameters, by default 0.
    steps
        Steps of the optimizer.
    learn_sigma2
        Whether σ² is trained along with the other parameters.
    optimizer
        ``"adam"`` as ``torch.optim.Adam`` is by default, or plain ``"sgd"``.
    rank
        Train in coordinates along the r principal directions of largest variance, K <= r <= D, in which a
        step costs as little as with D = r. The initial W and V are projected onto these directions. With
        ``"sgd"`` the models are then those that train in all D dimensions from there, but for rounding. With
        ``"adam"``, which scales the steps of each coordinate by itself, they take another way.
    record
        What to record of each model, evaluated in float64:

        - ``"elbo"``: the mean ELBO in nats per sample, exact, and with β = 1 whatever β was in training;
        - ``"live"``: the number of latents with a mean KL of at least ε;
        - ``"log_sigma2"``: log of the observation noise;
        - ``"kl"``: the mean KL of each latent, in nats;
        - ``"alignment"``: mean cosine, without its sign, of the live latents' columns of W with the principal
          directions among the first K that `align` matches them with; NaN where none lives;
        - ``"gap"``: the parts of the gap to the largest likelihood, as `decompose_gap` names them.
    record_at
        Numbers of steps after which to record, ascending, from 0 to ``steps``; by default at the end alone.
    tolerance
        A model stops after a step at which the norm of its gradient is below this; 0 for never.
    epsilon
        Mean KL ε in nats from which on a latent is live, >= 0.
    keep_models
        Keep the trained parameters as well, for `Sweep.model`.
    dtype, device
        In which, and where the models are trained: float32 or float64.
    memory
        Bytes that the results, and the models that train together, may take each.
    checkpoint
        A folder for the state of the chunks, a file for each, which is replaced every ``checkpoint_every``
        steps.
    checkpoint_every
        Steps between two checkpoints.
    resume
        Go on from the files in that folder.
    progress
        Show a progress bar on stderr, where that is a terminal.

    Returns
    -------
    Sweep
        The statistics as a labelled array, with the theory beside them.

    Raises
    ------
    TypeError
        An argument is of another type.
    ValueError
        The grid has an axis twice, an unknown or an empty one, a value twice or out of range, or K > D; it
        does not fit in memory; a statistic is unknown, or not defined for K; another argument is out of
        range; the folder holds the checkpoints of another sweep.
    ModuleNotFoundError
        xarray, a part of the extra ``dataframe``, is not installed.

    Notes
    -----
    Models whose parameters became infinite or NaN have NaN for all statistics; ``Sweep.num_diverged`` counts
    them.

    Where ``torch.distributed`` is initialised, its processes share the chunks, and all get the whole result.
    Resumed or not, in one process or in many, it is the same to the bit on the same machine and torch.

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import Moments, sweep
    >>> x = torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0]))
    >>> moments = Moments.from_data(torch.cat([x, -x]))  # eigenvalues 16, 4, 1 and 0.25
    >>> grid = {"sigma2": [0.1, 0.5, 2.0, 8.0, 32.0], "seed": range(3), "latent_dim": 3, "lr": 0.01}
    >>> found = sweep(moments, grid, steps=2000, learn_sigma2=False, progress=False)
    >>> found.dataset.live.mean("seed").values.ravel()
    array([3., 3., 2., 1., 0.])
    >>> found.theory().values
    array([3, 3, 2, 1, 0])
    """
    if not isinstance(moments, Moments):
        raise TypeError(f"{CALLER}: moments must be Moments, got {type(moments).__name__}")
    if optimizer not in ("adam", "sgd"):
        raise ValueError(f"{CALLER}: optimizer must be 'adam' or 'sgd', got {optimizer!r}")
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{CALLER}: dtype must be torch.float32 or torch.float64, got {dtype}")
    device = _check_device(device)
    if not isinstance(learn_sigma2, bool):
        raise TypeError(f"{CALLER}: learn_sigma2 must be a bool, got {type(learn_sigma2).__name__}")
    if resume and checkpoint is None:
        raise ValueError(f"{CALLER}: checkpoint must be given to resume from, got None")
    steps = check_integer(CALLER, "steps", steps, 1)
    memory = check_number(CALLER, "memory", memory, above=0)
    rank = None if rank is None else check_integer(CALLER, "rank", rank, 1)
    record = tuple(_check_several("record", record))
    record_at = _check_record(record, record_at, steps)
    training = Training(
        moments=moments,
        grid=read_grid(grid, moments.num_features, most_models=int(memory // (8 * len(record_at)))),
        steps=steps,
        learn_sigma2=learn_sigma2,
        optimizer=optimizer,
        rank=rank,
        record=record,
        record_at=record_at,
        tolerance=check_number(CALLER, "tolerance", tolerance, at_least=0),
        epsilon=check_number(CALLER, "epsilon", epsilon, at_least=0),
        keep_models=keep_models,
        dtype=dtype,
        device=device,
        memory=memory,
    )
    files = None
    if checkpoint is not None:
        if not isinstance(checkpoint, str | os.PathLike):
            raise TypeError(f"{CALLER}: checkpoint must be a path, got {type(checkpoint).__name__}")
        every = check_integer(CALLER, "checkpoint_every", checkpoint_every, 1)
        files = Checkpoints(Path(checkpoint), every, training.identity(), resume)
    require("xarray", "dataframe")  # before the work rather than after it
    return Sweep(training.run(files, progress))


def _check_device(device: torch.device | str) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (AssertionError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{CALLER}: device must be one that there is, got {device!r}: {reason}") from error
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"{CALLER}: device must be of type cpu or cuda, got {device!r}")
    return found


def _check_several(name: str, values: Any) -> Sequence[Any]:
    if isinstance(values, np.ndarray | Tensor) and values.ndim == 1:
        several: list[Any] = values.tolist()
        return several
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"{CALLER}: {name} must be a sequence, got {type(values).__name__}")
    return values


def _check_record(record: Sequence[str], record_at: Sequence[int] | None, steps: int) -> list[int]:
    """Check what is to be recorded; give when."""
    if not record:
        raise ValueError(f"{CALLER}: record must be a sequence of at least one name, got none")
    for name in record:
        if name not in STATISTICS:
            raise ValueError(f"{CALLER}: record must have names among {', '.join(STATISTICS)}, got {name!r}")
    if len(set(record)) < len(record):
        raise ValueError(f"{CALLER}: record must have each name once, got {', '.join(record)}")
    if record_at is None:
        return [steps]
    given = _check_several("record_at", record_at)
    checked = [check_integer(CALLER, "record_at", step, 0) for step in given]
    if not checked or checked != sorted(set(checked)) or checked[-1] > steps:
        raise ValueError(
            f"{CALLER}: record_at must be at least one number of steps, ascending, up to steps={steps}, "
            f"got {checked}"
        )
    return checked
