"""Sweeps: each model is the model trained alone, whatever else is in the grid, in whatever process."""

import math
import os
import random
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lineavae.linear import LinearVAE, Moments, Sweep, align, decompose_gap, sweep
from lineavae.nn import KLAnnealing

EIGENVALUES = (3.0, 1.2, 0.7, 0.4, 0.15, 0.05)


@pytest.fixture(scope="module")
def moments():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, dtype=torch.float64, generator=generator)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=generator)).Q
    return Moments.from_data(x * torch.tensor(EIGENVALUES).sqrt() @ turn + 1)


def train_alone(moments, point, steps, learn_sigma2, optimizer="adam", drawn=torch.float64, basis=None):
    """Autograd and torch.optim on one model: the truth that a sweep is compared with.

    It begins in the span of the columns of a basis.
    """
    generator = torch.Generator().manual_seed(point["seed"])
    model = LinearVAE(moments.num_features, point["latent_dim"], generator=generator, dtype=drawn).double()
    with torch.no_grad():
        model.mu.copy_(moments.sample_mean)
        model.log_sigma2.fill_(math.log(point["sigma2"]))
        model.weight.mul_(point["init_scale"])
        model.encoder.mul_(point["init_scale"])
        if basis is not None:
            model.weight.copy_(basis @ basis.T @ model.weight)
            model.encoder.copy_(model.encoder @ basis @ basis.T)
    model.mu.requires_grad_(False)
    model.log_sigma2.requires_grad_(learn_sigma2)
    make = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer]
    optimizer = make([value for value in model.parameters() if value.requires_grad], lr=point["lr"])
    annealing = KLAnnealing(point["annealing_steps"], end=point["beta"])
    covariance = moments.covariance
    for step in range(steps):
        optimizer.zero_grad()
        loss = -elbo_of(model, covariance, annealing(step))
        loss.backward()
        optimizer.step()
    return model


def elbo_of(model, covariance, beta):
    """The mean ELBO as a user would write it, with D x D matrices."""
    residual = torch.eye(len(covariance), dtype=covariance.dtype) - model.weight @ model.encoder
    d = model.log_d.exp()
    distortion = (residual @ covariance @ residual.T).trace() + (d * model.weight.square().sum(0)).sum()
    sigma2 = model.log_sigma2.exp()
    reconstruction = -distortion / (2 * sigma2) - len(covariance) / 2 * (2 * math.pi * sigma2).log()
    code = (model.encoder @ covariance @ model.encoder.T).trace()
    return reconstruction - beta / 2 * (code + (d - model.log_d - 1).sum())


GRID = {
    "sigma2": [0.1, 0.5, 2.0],
    "latent_dim": [4, 2],
    "beta": [1.0, 2.5],
    "annealing_steps": [0, 100],
    "lr": [0.001, 0.01],
    "init_scale": [1.0, 0.1],
    "seed": [0, 3],
}
NAMES = ("sigma2", "latent_dim", "beta", "annealing_steps", "lr", "init_scale", "seed")
POINTS = [
    dict(zip(NAMES, point, strict=True))
    for point in (
        (0.1, 4, 1.0, 0, 0.001, 1.0, 0),
        (2.0, 2, 2.5, 100, 0.01, 0.1, 3),
        (0.5, 4, 2.5, 100, 0.01, 1.0, 3),
        (0.1, 2, 1.0, 0, 0.01, 0.1, 0),
    )
]
QUIET = {"progress": False}


@pytest.mark.parametrize("learn_sigma2", [False, True])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_models_are_those_trained_alone(moments, learn_sigma2, optimizer):
    found = sweep(
        moments,
        GRID,
        steps=500,
        learn_sigma2=learn_sigma2,
        optimizer=optimizer,
        keep_models=True,
        dtype=torch.float64,
        **QUIET,
    )
    for point in POINTS:
        alone, together = train_alone(moments, point, 500, learn_sigma2, optimizer), found.model(**point)
        for name, expected in alone.state_dict().items():
            torch.testing.assert_close(together.state_dict()[name], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("learn_sigma2", [False, True])
@pytest.mark.parametrize("rank", [4, 6])
def test_plain_ascent_along_principal_directions_is_that_in_all(moments, rank, learn_sigma2):
    options = {"steps": 500, "learn_sigma2": learn_sigma2, "optimizer": "sgd", "record": ALL}
    found = sweep(moments, GRID, rank=rank, keep_models=True, dtype=torch.float64, **options, **QUIET)
    basis = moments.eigh()[1][:, :rank]
    for point in POINTS:
        alone = train_alone(moments, point, 500, learn_sigma2, "sgd", basis=basis)
        for name, expected in alone.state_dict().items():
            torch.testing.assert_close(found.model(**point).state_dict()[name], expected, rtol=0, atol=1e-10)
        elbo = found.dataset.sel(point).elbo.item()
        assert elbo == pytest.approx(alone.elbo(moments).item(), abs=1e-10)


def test_adam_along_principal_directions_is_adam_there(moments):
    """A sweep of the same models in these coordinates, for which the data are rotated by hand."""
    eigenvalues, basis = moments.eigh()
    point, steps = {"sigma2": 0.5, "latent_dim": 4, "lr": 0.01}, 300
    options = {"steps": steps, "learn_sigma2": True, "keep_models": True, "dtype": torch.float64}
    found = sweep(moments, point, rank=6, **options, **QUIET).model()
    model = LinearVAE(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = [(basis.T @ model.weight), (model.encoder @ basis), model.log_d, torch.tensor(0.5).double().log()]
    parts = [part.detach().clone().requires_grad_() for part in parts]
    optimizer = torch.optim.Adam(parts, lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        weight, encoder, log_d, log_sigma2 = parts
        rotated = SimpleNamespace(weight=weight, encoder=encoder, log_d=log_d, log_sigma2=log_sigma2)
        (-elbo_of(rotated, eigenvalues.diag(), 1.0)).backward()
        optimizer.step()
    torch.testing.assert_close(found.weight, basis @ parts[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(found.encoder, parts[1] @ basis.T, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.log_sigma2, parts[3], rtol=0, atol=1e-10)


def test_drift_of_float32(moments):
    """From the same numbers no parameter is farther than 2e-4 from float64 after 500 steps, of 0.001 each."""
    found = sweep(moments, {**GRID, "lr": 1e-3}, steps=500, learn_sigma2=True, keep_models=True, **QUIET)
    for point in POINTS:
        alone = train_alone(moments, {**point, "lr": 1e-3}, 500, True, drawn=torch.float32)
        together = found.model(**{name: point[name] for name in found.axes})
        for name, expected in alone.state_dict().items():
            torch.testing.assert_close(together.state_dict()[name].double(), expected, rtol=0, atol=2e-4)


ALL = ("elbo", "live", "log_sigma2", "kl", "alignment", "gap")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_does_not_depend_on_the_others(moments, dtype):
    options = {
        "steps": 150,
        "learn_sigma2": True,
        "record": ALL,
        "record_at": torch.tensor([0, 70, 150]),
        "keep_models": True,
        "dtype": dtype,
    }
    found = sweep(moments, GRID, **options, **QUIET).dataset
    for point in POINTS:
        alone = sweep(moments, point, **options, **QUIET).dataset
        together = found.sel(point)
        for name, values in alone.data_vars.items():
            expected = together[name].values
            if name in ("kl", "parameters"):  # as wide as for the largest K
                expected = expected[..., : values.shape[-1]]
            assert values.values.tobytes() == expected.tobytes(), name


def test_statistics_are_those_of_the_model(moments):
    options = {
        "steps": 800,
        "learn_sigma2": False,
        "record": ALL,
        "epsilon": 0.5,
        "keep_models": True,
        "dtype": torch.float64,
    }
    found = sweep(moments, {**GRID, "beta": 1.0, "lr": 0.01, "annealing_steps": 0}, **options, **QUIET)
    assert found.num_diverged == 0
    directions = moments.eigh()[1]
    num_partly = 0
    for sigma2 in (0.1, 0.5, 2.0):
        for latent_dim in (2, 4):
            point = {"sigma2": sigma2, "latent_dim": latent_dim, "init_scale": 1.0, "seed": 3}
            model, of = found.model(**point), found.dataset.sel(point).isel(step=-1)
            assert of.elbo.item() == pytest.approx(model.elbo(moments).item(), abs=1e-10)
            assert of.log_sigma2.item() == model.log_sigma2.item()
            code = (model.encoder @ moments.covariance @ model.encoder.T).diagonal()
            kl = 0.5 * (code + model.log_d.exp() - model.log_d - 1).detach()
            np.testing.assert_allclose(of.kl[:latent_dim], kl, atol=1e-10)
            assert of.kl[latent_dim:].isnull().all()
            live = kl >= 0.5
            assert of.live.item() == live.sum()
            num_partly += 0 < live.sum() < latent_dim
            if live.any():
                cosines = align(model.weight.detach()[:, live], directions[:, :latent_dim]).cosines
                assert of.alignment.item() == pytest.approx(cosines.mean().item(), abs=1e-10)
            else:
                assert np.isnan(of.alignment.item())
            gap = decompose_gap(model, moments, 0.5)
            for name, part in gap.parts.items():
                assert of.gap.sel(part=name).item() == pytest.approx(part, abs=1e-9), name
    assert num_partly


def test_a_staircase(moments):
    sigma2 = np.geomspace(0.02, 6, 12)
    grid = {"sigma2": sigma2, "latent_dim": [3, 5], "beta": [0.5, 2.0], "seed": range(2), "lr": 0.01}
    found = sweep(moments, grid, steps=3000, learn_sigma2=False, record=("live",), **QUIET)
    eigenvalues = moments.eigh()[0].numpy()
    expected = [
        [[min(k, (eigenvalues > beta * value).sum()) for beta in (0.5, 2.0)] for k in (3, 5)]
        for value in sigma2
    ]
    theory = found.theory().transpose("sigma2", "latent_dim", "beta")
    assert np.array_equal(theory, expected)
    is_far = found.distance() > 0.02
    assert is_far.mean() > 0.8
    assert (found.dataset.live.isel(step=-1) == theory).where(is_far, True).all()
    learned = sweep(
        moments,
        {**grid, "sigma2": [1.0, 9.0], "beta": 1.0},
        steps=3000,
        learn_sigma2=True,
        record=("live",),
        **QUIET,
    )
    assert (learned.dataset.live == learned.dataset.latent_dim).all()
    with pytest.raises(ValueError, match="σ² must have been held fixed"):
        learned.theory()


def test_a_model_stops_at_the_tolerance(moments):
    grid = {"sigma2": [0.5, 5.0], "latent_dim": 2, "lr": 0.02}
    options = {"learn_sigma2": False, "optimizer": "sgd", "keep_models": True, "record_at": [300, 4000]}
    found = sweep(moments, grid, steps=4000, tolerance=1e-3, **options, **QUIET).dataset
    steps = found.steps_taken.values
    assert (steps < 4000).all()
    assert (found.gradient_norm < 1e-3).all()
    for place, sigma2 in enumerate(grid["sigma2"]):
        (taken,) = steps[place : place + 1]
        options["record_at"] = [taken]
        short = sweep(moments, {**grid, "sigma2": [sigma2]}, steps=taken, **options, **QUIET).dataset
        assert np.array_equal(short.parameters[0], found.parameters[place])
        assert short.elbo.values[0, -1] == found.elbo.values[place, -1]


def test_what_diverges_is_counted(moments):
    grid = {"lr": [0.01, 1e6], "latent_dim": 2, "sigma2": 0.1}
    found = sweep(moments, grid, steps=50, learn_sigma2=False, optimizer="sgd", record=ALL, **QUIET)
    assert found.num_diverged == 1
    assert found.dataset.elbo.isnull().values.ravel().tolist() == [False, True]
    assert found.dataset.live.isnull().values.ravel().tolist() == [False, True]


def test_what_has_no_number_has_not_diverged(moments):
    """The KL of latents that a model lacks, and the alignment of one without a live latent, are NaN."""
    grid = {"latent_dim": [1, 2], "sigma2": [0.1, 1e3], "lr": 0.01}
    found = sweep(moments, grid, steps=2000, learn_sigma2=False, record=("kl", "alignment"), **QUIET)
    assert found.dataset.kl.isnull().any()
    assert found.dataset.alignment.isnull().any()
    assert found.num_diverged == 0
    late = sweep(moments, {"lr": 1e38, "latent_dim": 2}, steps=9, learn_sigma2=False, record_at=[0], **QUIET)
    assert late.num_diverged == 1


def test_models_of_neighbouring_values_are_told_apart(moments):
    grid = {"seed": [10**9, 10**9 + 1], "sigma2": [1.0, 1 + 1e-12], "latent_dim": 2}
    found = sweep(moments, grid, steps=3, learn_sigma2=False, keep_models=True, **QUIET)
    for seed in grid["seed"]:
        for place, sigma2 in enumerate(grid["sigma2"]):
            weight = found.model(seed=seed, sigma2=sigma2).weight.detach().numpy()
            stored = found.dataset.parameters.sel(seed=seed).values[place, : weight.size]
            assert np.array_equal(weight.ravel(), stored)
    with pytest.raises(
        ValueError, match="seed must be one of its 2 values from 1000000000 to 1000000001, got 5"
    ):
        found.model(seed=5, sigma2=1.0)
    with pytest.raises(TypeError, match=r"Sweep\.model: sigma2 must be"):
        found.model(seed=10**9, sigma2="a")


@pytest.mark.parametrize("device", ["cuda:99", "meta", "foo"])
def test_devices_that_are_not_there(moments, device):
    with pytest.raises(ValueError, match="sweep: device must be"):
        sweep(moments, {"latent_dim": 2}, steps=1, learn_sigma2=False, device=device, **QUIET)


def test_files(moments, tmp_path):
    found = sweep(moments, GRID, steps=3, learn_sigma2=False, record=ALL, record_at=[0, 3], **QUIET)
    found.save(tmp_path / "x.safetensors")
    loaded = Sweep.load(tmp_path / "x.safetensors")
    assert loaded.dataset.identical(found.dataset)
    assert loaded.axes == tuple(GRID)
    frame = found.to_dataframe()
    assert len(frame) == 2 * found.num_models
    row = frame[(frame.step == 3) & (frame[list(GRID)] == POINTS[1]).all(axis=1)]
    of = found.dataset.sel({**POINTS[1], "step": 3})
    assert row.elbo.item() == of.elbo.item()
    assert row.kl_1.item() == of.kl[1].item()
    assert row.gap_rotation.item() == of.gap.sel(part="rotation").item()
    assert row.theory.item() == found.theory().sel(
        {name: POINTS[1][name] for name in ("sigma2", "beta", "latent_dim")}
    )
    content = bytearray((tmp_path / "x.safetensors").read_bytes())
    content[-9] ^= 1
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        Sweep.load(tmp_path / "x.safetensors")


def with_grid(**changes):
    return {"latent_dim": 2, **changes}


@pytest.mark.parametrize(
    ("grid", "options", "message"),
    [
        ([("latent_dim", 2), ("seed", [0]), ("seed", [1])], {}, "each axis once, got 'seed' more often"),
        (with_grid(sigma=[1.0]), {}, "axes among sigma2, beta, .*, got 'sigma'"),
        ({"sigma2": [1.0]}, {}, "grid must have latent_dim, the latents K, got sigma2"),
        (with_grid(seed=[]), {}, "seed must have at least one value, got none"),
        (with_grid(seed=[0, 1, 0]), {}, "seed must have each value once, got 0 twice"),
        (with_grid(seed=[2**63]), {}, "seed must be below"),
        (with_grid(sigma2=[1.0, -0.1]), {}, "sigma2 must be finite and > 0, got -0.1"),
        (with_grid(sigma2=math.inf), {}, "sigma2 must be finite and > 0, got inf"),
        (with_grid(beta=[math.nan]), {}, "beta must be finite and >= 0, got nan"),
        (with_grid(lr=[0.0]), {}, "lr must be finite and > 0, got 0.0"),
        (with_grid(sigma2=10**400), {}, "sigma2 must be finite and > 0, got inf"),
        (with_grid(sigma2=np.ones((2, 2))), {}, r"sigma2 must have shape \(n,\), got \(2, 2\)"),
        ({"latent_dim": [2, 7]}, {}, "latent_dim must be at most the 6 features of the data, got 7"),
        (
            {"latent_dim": 4},
            {"rank": 3},
            "rank must be at least latent_dim, 4, and at most the 6 principal directions",
        ),
        ({"latent_dim": 4}, {"rank": 7}, "at most the 6 principal directions of the data, got 7"),
        (with_grid(seed=range(10**12)), {}, "at most 134217728 models .* got 1000000000000 = 1e\\+12"),
        (with_grid(seed=range(1000)), {"memory": 10_000}, "results fit in memory, 1e-05 GB, got 1000 models"),
        (with_grid(), {"memory": 1000}, "the training of one model must fit in memory"),
        (with_grid(), {"steps": 0}, "steps must be at least 1, got 0"),
        (with_grid(), {"record": ["loss"]}, "names among elbo, live, .*, got 'loss'"),
        (with_grid(), {"record": []}, "at least one name"),
        (with_grid(), {"record_at": [3, 1]}, "ascending, up to steps=5, got"),
        (with_grid(), {"record_at": [6]}, "ascending, up to steps=5, got"),
        (with_grid(), {"optimizer": "lbfgs"}, "optimizer must be 'adam' or 'sgd', got 'lbfgs'"),
        (with_grid(), {"tolerance": -1}, "tolerance must be finite and >= 0, got -1"),
        (with_grid(), {"resume": True}, "checkpoint must be given to resume from"),
        ({"latent_dim": 6}, {"record": ["gap"]}, "fewer latents than the rank of the covariance, 6"),
    ],
)
def test_bad_grids_fail_at_once(moments, grid, options, message):
    with pytest.raises(ValueError, match=message):
        sweep(moments, grid, **{"steps": 5, "learn_sigma2": False, **options}, **QUIET)


@pytest.mark.parametrize(
    ("grid", "options", "message"),
    [
        (with_grid(seed="01"), {}, "seed must be a number or several, got str"),
        (with_grid(seed=[0.5]), {}, "seed must be an int, got float"),
        (with_grid(lr=["1"]), {}, "lr must be a number, got str"),
        (with_grid(), {"dtype": torch.float16}, "dtype must be torch.float32 or torch.float64"),
        (with_grid(), {"learn_sigma2": None}, "learn_sigma2 must be a bool, got NoneType"),
        (None, {}, "grid must be a mapping, or pairs of a name and values, got None"),
        (["latent_dim", 2], {}, "grid must be a mapping, or pairs"),
        (with_grid(), {"record": "elbo"}, "record must be a sequence, got str"),
        (with_grid(), {"record": None}, "record must be a sequence, got NoneType"),
        (with_grid(), {"record_at": 5}, "record_at must be a sequence, got int"),
        (with_grid(), {"checkpoint": 5}, "checkpoint must be a path, got int"),
    ],
)
def test_wrong_types_are_named(moments, grid, options, message):
    with pytest.raises(TypeError, match=message):
        sweep(moments, grid, **{"steps": 5, "learn_sigma2": False, **options}, **QUIET)


def everything(path):
    """All numbers of a sweep as bytes."""
    return {str(name): values.values.tobytes() for name, values in Sweep.load(path).dataset.variables.items()}


SCRIPT = """
import sys
import torch
from lineavae.linear import Moments, sweep

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
moments = Moments.from_data(torch.randn(100, 12, generator=generator))
if len(sys.argv) > 3:
    torch.distributed.init_process_group("gloo")
found = sweep(
    moments,
    {"sigma2": [0.1, 0.4, 1.6], "seed": range(100), "latent_dim": [2, 5]},
    steps=600,
    learn_sigma2=True,
    record=("elbo", "kl"),
    record_at=range(0, 601, 150),
    keep_models=True,
    checkpoint=sys.argv[2],
    checkpoint_every=50,
    resume=True,
    progress=False,
)
found.save(sys.argv[1] + (f"-{torch.distributed.get_rank()}" if len(sys.argv) > 3 else ""))
"""


def start(*arguments, launcher=()):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *launcher, *map(str, arguments)], env=environment)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The sweep of the script, not interrupted and in one process."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "script.py").write_text(SCRIPT)
    assert start(folder / "script.py", folder / "result", folder / "parts").wait() == 0
    return folder


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("chunk-*.safetensors")}


@pytest.mark.slow
def test_killed_at_random_and_resumed_ends_at_the_same_bits(whole, tmp_path):
    arguments = (whole / "script.py", tmp_path / "result", tmp_path / "parts")
    parts, moment, num_killed = tmp_path / "parts", random.Random(0), 0
    for _ in range(3):
        known = stamps(parts)
        with start(*arguments) as process:
            while process.poll() is None and stamps(parts) == known:  # until it has written a checkpoint
                time.sleep(0.01)
            time.sleep(moment.uniform(0, 0.2))
            process.kill()
        num_killed += not (tmp_path / "result").exists()
    assert num_killed
    assert start(*arguments).wait() == 0
    assert everything(tmp_path / "result") == everything(whole / "result")


@pytest.mark.slow
def test_two_processes_give_the_same_bits(whole, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    arguments = (whole / "script.py", tmp_path / "result", tmp_path / "parts", "ranks")
    assert start(*arguments, launcher=launcher).wait() == 0
    for rank in (0, 1):
        assert everything(tmp_path / f"result-{rank}") == everything(whole / "result")


def test_checkpoints_of_another_sweep_are_refused(moments, tmp_path):
    options = dict(learn_sigma2=False, checkpoint=tmp_path / "parts", **QUIET)
    sweep(moments, with_grid(seed=[0, 1]), steps=10, **options)
    again = sweep(moments, with_grid(seed=[0, 1]), steps=10, resume=True, **options)
    assert again.num_models == 2
    with pytest.raises(ValueError, match=r"is of another sweep, with seed \[0, 1\] instead of \[0, 2\]"):
        sweep(moments, with_grid(seed=[0, 2]), steps=10, resume=True, **options)
    with pytest.raises(ValueError, match="with steps 10 instead of 20"):
        sweep(moments, with_grid(seed=[0, 1]), steps=20, resume=True, **options)
    (path,) = (tmp_path / "parts").iterdir()
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=path.name):
        sweep(moments, with_grid(seed=[0, 1]), steps=10, resume=True, **options)


def test_phase_diagrams(moments):
    grid = {"sigma2": np.geomspace(0.02, 6, 5), "beta": [0.5, 2.0], "latent_dim": [2, 4], "seed": range(2)}
    found = sweep(moments, grid, steps=5, learn_sigma2=False, **QUIET)
    (axes, _) = found.plot_phase("sigma2", "beta", "elbo", latent_dim=4).axes
    assert np.array_equal(
        axes.collections[0].get_array().ravel(),
        found.dataset.elbo.sel(latent_dim=4)
        .isel(step=-1)
        .mean("seed")
        .transpose("beta", "sigma2")
        .values.ravel(),
    )
    (axes,) = found.plot_phase("sigma2", beta=2.0, latent_dim=4).axes
    theory, measured = axes.lines
    assert (
        measured.get_ydata().tolist()
        == found.dataset.live.sel(beta=2, latent_dim=4).isel(step=-1).mean("seed").values.tolist()
    )
    x, y = np.array(theory.get_data())
    eigenvalues = moments.eigh()[0].numpy()
    assert y.tolist() == [min(4, (eigenvalues > 2 * value).sum()) for value in x]
    for arguments, message in (
        (("sigma", "beta"), "x and y must be axes, .*, got 'sigma'"),
        (("beta", "beta"), "got 'beta' twice"),
        (("beta", "sigma2", "kl"), "value must be one of elbo, live, .*, got 'kl'"),
    ):
        with pytest.raises(ValueError, match=message):
            found.plot_phase(*arguments)
    with pytest.raises(ValueError, match="latent_dim must be one of its 2 values from 2 to 4, got 3"):
        found.plot_phase("beta", latent_dim=3)
