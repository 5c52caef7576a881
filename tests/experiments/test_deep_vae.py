import csv
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.distributions import Normal, kl_divergence

from lineavae._ascent import noise_seed
from lineavae.experiments import EXPERIMENTS, deep_vae, execute
from lineavae.experiments.deep_vae import (
    EPSILONS,
    Chunk,
    chunks_of,
    evaluate,
    make_vae,
    prepare,
    train,
)
from lineavae.ops import reparameterized_kl

EXPERIMENT = EXPERIMENTS["deep-mnist"]
TINY = replace(
    EXPERIMENT.presets["quick"],
    num_images=60,
    sigma2=(10.0, 1.0),
    seeds=(0, 1),
    latent_dim=3,
    hidden=(8, 6),
    epochs=4,
    batch_size=25,
    learning_rates=(3e-3,),
    record_every=2,
)
PIXELS = replace(TINY, logits=False)
RAW = replace(TINY, standardise=False)
# with a checkpoint after each of its epochs
LONG = replace(TINY, epochs=20, record_every=1)


@pytest.fixture(scope="module")
def data():
    return prepare(TINY)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return execute(EXPERIMENT, TINY, tmp_path_factory.mktemp("runs") / "deep-mnist")


@pytest.mark.parametrize("config", [TINY, PIXELS, RAW], ids=["logits", "pixels", "raw"])
def test_data_are_the_images_less_their_offset(config):
    data = prepare(config)
    grey = np.floor(256 * _pixels(data, config).numpy()).astype(int).reshape(60, 28, 28)
    # a float32 logit of a grey level next to another may come out on its other side
    assert (np.abs(grey - config.images.images) <= (1 if config.logits else 0)).all()
    if config.standardise:
        assert data.x.mean(0).abs().max() < 1e-5
        assert (data.x / data.scale).square().mean().item() == pytest.approx(1, rel=1e-5)
    else:
        assert (data.offset == 0).all()
        assert data.scale == 1


def _pixels(data, config):
    x = data.x.double().cpu() + data.offset
    return ((x.sigmoid() - 1e-6) / (1 - 2e-6)) if config.logits else x


@pytest.mark.parametrize("config", [TINY, PIXELS, RAW], ids=["logits", "pixels", "raw"])
def test_models_begin_as_if_nothing_had_been_subtracted(config):
    """In the frame of the data themselves: the encoder standardises, the bias is the mean of the logits."""
    data = prepare(config)
    vae = make_vae(config, data, 0.5, "fixed", seed=3)
    torch.manual_seed(3)
    encoder = deep_vae.MLPEncoder(784, 3, (8, 6))
    decoder = deep_vae.MLPDecoder(3, 784, (6, 8))
    x = data.x + data.offset
    if config.standardise:
        expected = encoder((x - x.mean(0)) / (x - x.mean(0)).square().mean().sqrt())
        if config.logits:
            decoder[-1].bias.data.copy_(x.mean(0))
    else:
        expected = encoder(x)
    for found, posterior in zip(vae.encode(data.x), expected, strict=True):
        torch.testing.assert_close(found, posterior, rtol=1e-4, atol=1e-5)
    z = torch.randn(5, 3)
    torch.testing.assert_close(vae.decode(z) + data.offset, decoder(z), rtol=1e-5, atol=1e-5)


def test_evaluation_is_the_elbo_of_its_draws(data):
    vae = make_vae(TINY, data, 0.7, "learned", seed=0)
    found = evaluate(vae, data, seed=5)
    mean, logvar = vae.encode(data.x)
    z, _ = reparameterized_kl(mean, logvar, num_draws=2, seed=5)
    kls = kl_divergence(Normal(mean.double(), (0.5 * logvar.double()).exp()), Normal(0.0, 1.0))
    x_hat = vae.decode(z).double()

    def elbo(sigma2):
        likelihood = Normal(x_hat, sigma2**0.5).log_prob(data.x.double()).sum(-1).mean()
        return (likelihood - kls.sum(1).mean()).item() + data.log_det

    best = minimize_scalar(lambda log_sigma2: -elbo(np.exp(log_sigma2)), bounds=(-3, 3), method="bounded")
    assert found.elbo == pytest.approx(elbo(0.7), rel=1e-6)
    assert found.tuned_elbo == pytest.approx(-best.fun, rel=1e-6)
    assert found.tuned_sigma2 == pytest.approx(np.exp(best.x), rel=1e-3)
    assert found.tuned_elbo > found.elbo
    assert found.bits_per_dimension == pytest.approx(-elbo(0.7) / np.log(2) / 784, rel=1e-6)
    for epsilon in (EPSILONS[0], 0.01, 0.1, 1.0):
        collapsed = (kls < epsilon).double().mean(0) >= 0.99
        assert found.collapse(epsilon) == pytest.approx(100 * collapsed.double().mean().item())


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk("learned", TINY.sigma2, 1, 3e-3),
        Chunk("fixed", TINY.sigma2, 0, 3e-3, annealing_epochs=3),
        Chunk("learned", (1.0,), 0, 3e-3, annealing_epochs=3),
    ],
)
def test_a_chunk_trains_each_model_as_a_plain_loop_does(chunk, data, tmp_path):
    (outcome,) = train(TINY, [chunk], data, tmp_path)
    for index, sigma2 in enumerate(chunk.sigma2):
        vae = make_vae(TINY, data, sigma2, chunk.kind, chunk.seed)
        _train_plainly(vae, data, chunk)
        expected = evaluate(vae, data, chunk.seed)
        found = outcome.evaluations[index]
        for name in ("elbo", "tuned_elbo", "kl", "sigma2"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=2e-5), name
        assert outcome.elbo[index, -1] == found.elbo
        assert outcome.collapse[index, :, -1].tolist() == [found.collapse(epsilon) for epsilon in EPSILONS]
    assert outcome.epochs.tolist() == [0, 2, 4]


def _train_plainly(vae, data, chunk):
    settings = deep_vae._settings(TINY, chunk)
    batch = deep_vae.batches(settings, data.x)
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
    for step in range(12):
        beta = min(1.0, step / 3 / chunk.annealing_epochs) if chunk.annealing_epochs else 1.0
        optimizer.zero_grad()
        loss = -vae.elbo(batch(step), beta=beta, seed=noise_seed(settings, step)).elbo.mean()
        loss.backward()
        optimizer.step()


def test_a_history_is_written_as_csv(run):
    paths = sorted(run.directory.glob("*.csv"))
    assert len(paths) == 8
    tables = [list(csv.reader(path.read_text().splitlines())) for path in paths]
    assert {tuple(table[0][:5]) for table in tables} == {("step", "initial sigma2", "ELBO", "KL", "sigma2")}
    assert sorted(tuple(row[:2]) for table in tables for row in table[1:]) == sorted(
        (str(step), sigma2) for step in (0, 6, 12) for sigma2 in ("10.0", "1.0") for _ in range(4)
    )


def test_event_files_for_tensorboard(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = replace(TINY, tensorboard=True)
    (outcome,) = train(config, chunks_of(config)[:1], data, tmp_path)
    (folder,) = (tmp_path / "tensorboard").iterdir()
    events = EventAccumulator(str(folder)).Reload().Scalars("ELBO/initial sigma2 10")
    assert [event.step for event in events] == [0, 6, 12]
    assert [event.value for event in events] == pytest.approx(outcome.elbo[0], rel=1e-6)


def test_what_a_run_beside_has_trained_is_not_trained_again(run, monkeypatch):
    def never(*arguments):
        raise AssertionError("it is trained already")

    monkeypatch.setattr(deep_vae._Problem, "objective", never)
    other = execute(EXPERIMENTS["collapse-curves"], TINY, run.directory.parent / "collapse-curves")
    for name in ("fixed 10", "learned 1"):
        found = other.results["quantities"][f"{name}: collapse, ε = 0.1"]
        assert found == run.results["quantities"][f"{name}: collapse, ε = 0.1"]
    assert len(list(other.directory.glob("*.csv"))) == 8


@pytest.mark.parametrize(
    "change",
    [
        {"latent_dim": 4},
        {"hidden": (8, 7)},
        {"epochs": 5},
        {"seed": 1},
        {"logits": False},
        {"sigma2": (1.0,)},
    ],
)
def test_another_training_has_another_file(change):
    names = set()
    for config in (TINY, replace(TINY, **change)):
        settings = deep_vae._settings(config, chunks_of(config)[0])
        names.add(deep_vae._file_name(settings, config, prepare(config)))
    assert len(names) == 2


@pytest.mark.parametrize(
    ("option", "tolerance"),
    [
        ({"precision": "bfloat16"}, 0.1),
        pytest.param({"compile": True}, 1e-3, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_options_of_speed_change_no_conclusion(data, option, tolerance, tmp_path):
    plain = replace(TINY, epochs=40, record_every=20)
    chunk = Chunk("learned", TINY.sigma2, 0, 3e-3)
    found, expected = (
        train(config, [chunk], data, tmp_path)[0] for config in (replace(plain, **option), plain)
    )
    gain, expected_gain = (outcome.elbo[:, -1] - outcome.elbo[:, 0] for outcome in (found, expected))
    assert not np.array_equal(gain, expected_gain)  # the option was in force
    np.testing.assert_allclose(gain, expected_gain, rtol=tolerance)
    np.testing.assert_allclose(found.kl[:, -1], expected.kl[:, -1], rtol=tolerance, atol=0.02)


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="precision must be 'float32' or 'bfloat16', got 'float16'"):
        replace(TINY, precision="float16")
    with pytest.raises(ValueError, match="sigma2 must have at least one value, got none"):
        replace(TINY, sigma2=())
    with pytest.raises(ValueError, match="seeds must have each value once, got 0, 0"):
        replace(TINY, seeds=(0, 0))


def test_settings_that_cannot_be_leave_nothing_in_the_way(tmp_path):
    with pytest.raises(ValueError, match="batch_size must be at most the 60 samples, got 61"):
        execute(EXPERIMENT, replace(TINY, batch_size=61), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def run_long(directory):
    torch.set_num_threads(1)
    execute(EXPERIMENT, LONG, directory, resume=True)


def start(directory):
    """Start the run in a process that has imported everything before."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lineavae.experiments.deep_mnist", "matplotlib.figure"])
    process = context.Process(target=run_long, args=(directory,))
    process.start()
    return process


def assert_same_results(directory, expected):
    for name in ("results.json", "curves.npz", "config.json"):
        assert (directory / name).read_bytes() == (expected / name).read_bytes(), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole") / "run"
    process = start(directory)
    process.join()
    assert process.exitcode == 0
    return directory


def checkpoints(directory):
    return {(path.name, path.stat().st_mtime_ns) for path in directory.glob("[!.]*.safetensors")}


@pytest.mark.slow
@pytest.mark.parametrize("while_writing", [False, True])
def test_a_run_that_is_killed_five_times_ends_as_if_it_was_not(whole, tmp_path, while_writing):
    """After some checkpoints, at any moment or as soon as the next of them is being written."""
    directory, moments = tmp_path / "run", random.Random(0)
    for _ in range(5):
        process = start(directory)
        seen = checkpoints(directory)
        wanted = len(seen) + moments.randint(1, 6)
        while len(seen) < wanted:
            assert process.is_alive()
            seen |= checkpoints(directory)
            time.sleep(0.0005)
        if while_writing:
            while not any(directory.glob(".*.partial.safetensors")):
                assert process.is_alive()
        else:
            time.sleep(moments.uniform(0, 0.03))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert not (directory / "results.json").exists()
    process = start(directory)
    process.join()
    assert process.exitcode == 0
    assert_same_results(directory, whole)


SCRIPT = """
import os
import sys
from pathlib import Path
import torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from test_deep_vae import execute, EXPERIMENT, LONG
if __name__ == "__main__":
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    execute(EXPERIMENT, LONG, Path(sys.argv[2]))
    if dist.is_initialized():
        dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"), ()],
    ids=["torchrun", ""],
)
def test_two_processes_find_what_one_finds(whole, tmp_path, launcher):
    """Those of torchrun, and those that there are for two threads."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    here = str(Path(__file__).parent)
    threads = {} if launcher else {"OMP_NUM_THREADS": "2"}
    subprocess.run(
        [sys.executable, *launcher, str(script), here, str(tmp_path / "run")],
        check=True,
        env=os.environ | threads,
    )
    assert_same_results(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_processes_that_train_end_with_the_first(tmp_path, sent, code):
    """Though the signal goes to the first alone."""
    settings = (
        "num_images=60",
        "batch_size=30",
        "hidden=8,6",
        "latent_dim=3",
        "epochs=10000",
        "record_every=1",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "lineavae", "reproduce", "deep-mnist", "--out", str(tmp_path)]
        + [f"--set={setting}" for setting in settings],
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while len(checkpoints(tmp_path / "deep-mnist-quick")) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(sent)
    assert process.wait() == code
    for _ in range(600):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("processes are left")
