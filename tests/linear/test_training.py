import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from importlib.machinery import ModuleSpec
from io import StringIO
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open

from lineavae import _ascent as ascent
from lineavae import reference
from lineavae.linear import PPCA, LinearVAE, Moments, training

NUM_SAMPLES, NUM_FEATURES, LATENT_DIM = 50, 6, 2
PARAMETERS = ("weight", "encoder", "mu", "log_d", "log_sigma2")


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(3, 0.5, NUM_FEATURES, dtype=torch.float64)
    return 1 + scale * torch.randn(NUM_SAMPLES, NUM_FEATURES, dtype=torch.float64, generator=generator)


def make(dtype=torch.float64, num_features=NUM_FEATURES):
    generator = torch.Generator().manual_seed(1)
    return LinearVAE(num_features, LATENT_DIM, generator=generator, dtype=dtype)


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same(run, expected):
    """Bitwise equality of two (model, history) pairs."""
    (model, history), (expected_model, expected_history) = run, expected
    for name in PARAMETERS:
        assert torch.equal(model.get_parameter(name), expected_model.get_parameter(name)), name
    for name in ("steps", "elbo", "log_sigma2", "dropped_features"):
        assert np.array_equal(getattr(history, name), getattr(expected_history, name)), name


def optimum(x):
    """Largest mean log-likelihood of probabilistic PCA, from the eigenvalues (Tipping and Bishop 1999)."""
    eigenvalues = np.linalg.eigvalsh(np.cov(x.numpy(), rowvar=False, bias=True))[::-1]
    noise = eigenvalues[LATENT_DIM:].mean()
    log_det = np.log(eigenvalues[:LATENT_DIM]).sum() + (len(eigenvalues) - LATENT_DIM) * np.log(noise)
    return -0.5 * (len(eigenvalues) * (np.log(2 * np.pi) + 1) + log_det)


def lbfgs(parameters):
    return torch.optim.LBFGS(
        parameters, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-15
    )


def cut_power(monkeypatch, at_step):
    """Let runs fail before their step number ``at_step``, counted from zero."""
    advance = ascent._Run.advance

    def advance_or_fail(run):
        if run.step == at_step:
            raise RuntimeError("power cut")
        advance(run)

    monkeypatch.setattr(ascent._Run, "advance", advance_or_fail)


@pytest.mark.parametrize("from_moments", [False, True])
def test_training_reaches_the_optimum_of_ppca(x, from_moments):
    model = make()
    data = Moments.from_data(x) if from_moments else x.numpy()
    history = model.fit(data, optimizer=lbfgs, steps=50, progress=False)
    assert history.elbo[-1] == pytest.approx(optimum(x), abs=1e-6)
    assert model.log_marginal_likelihood(x).mean().item() == pytest.approx(optimum(x), abs=1e-6)
    assert PPCA(LATENT_DIM).fit(x.numpy()).noise_variance_ == pytest.approx(
        model.log_sigma2.exp().item(), rel=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "tolerance"), [("analytic", 1e-3), ("stochastic", 0.05)])
def test_adam_comes_near_the_optimum(x, objective, tolerance):
    history = make().fit(x, objective=objective, lr=1e-2, steps=4000, progress=False)
    assert history.elbo[-1] == pytest.approx(optimum(x), abs=tolerance)


@pytest.mark.parametrize(("learn_sigma2", "beta"), [(True, 1.0), (False, 0.5)])
def test_analytic_fit_is_adam_on_the_samples(x, learn_sigma2, beta):
    model, twin = make(), make()
    trained = [p for name, p in twin.named_parameters() if learn_sigma2 or name != "log_sigma2"]
    optimizer = torch.optim.Adam(trained, lr=0.01)
    elbos = []
    for _ in range(21):
        optimizer.zero_grad()
        loss = -reference.linear_vae_elbo(x, *twin.parameters(), beta).mean()
        elbos.append(-loss.item())
        loss.backward()
        if len(elbos) < 21:
            optimizer.step()
    history = model.fit(
        x, lr=0.01, steps=20, learn_sigma2=learn_sigma2, beta=beta, history_every=8, progress=False
    )
    for name in PARAMETERS:
        torch.testing.assert_close(model.get_parameter(name), twin.get_parameter(name), rtol=1e-9, atol=1e-12)
    assert history.steps.tolist() == [0, 8, 16, 20]
    np.testing.assert_allclose(history.elbo, np.array(elbos)[history.steps], rtol=1e-12)
    assert history.log_sigma2[-1] == model.log_sigma2.item()
    assert (model.log_sigma2.item() != 0) == learn_sigma2


def test_sgd_takes_the_step_of_the_gradient(x):
    model, twin = make(), make()
    gradients = torch.autograd.grad(
        reference.linear_vae_elbo(x, *twin.parameters()).mean(), twin.parameters()
    )
    model.fit(x, optimizer="sgd", lr=0.01, steps=1, progress=False)
    for parameter, start, gradient in zip(model.parameters(), twin.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter, start + 0.01 * gradient, rtol=1e-10, atol=1e-12)


def test_few_samples_train_through_their_factor(x):
    model, twin = make(), make()
    moments = Moments.from_data(x[:3])
    assert moments.factor is not None
    model.fit(moments, steps=50, progress=False)
    twin.fit(torch.cat([x[:3]] * 4), steps=50, progress=False)  # the same moments, of full rank in storage
    for name in PARAMETERS:
        torch.testing.assert_close(model.get_parameter(name), twin.get_parameter(name), rtol=1e-9, atol=1e-12)


def test_frozen_parameters_stay(x):
    model = make()
    model.mu.requires_grad_(False)
    before = snapshot(model)
    model.fit(x, steps=5, progress=False)
    assert torch.equal(model.mu, before["mu"])
    assert not torch.equal(model.weight, before["weight"])
    assert not model.mu.requires_grad
    assert model.weight.requires_grad
    assert model.weight.grad is None


@pytest.mark.parametrize("name", ["weight", "encoder", "mu"])
def test_dropping_features_does_not_touch_frozen_parameters(x, name):
    model = make()
    model.get_parameter(name).requires_grad_(False)
    model.fit(x, steps=1, drop_constant_features=True, progress=False)  # there are none
    x[:, 2] = 1
    with pytest.raises(ValueError, match=f"drop_constant_features must be False .* got frozen {name}"):
        model.fit(x, steps=1, drop_constant_features=True, progress=False)


@pytest.mark.parametrize("options", [{"learn_sigma2": False}, {"learn_sigma2": False, "optimizer": lbfgs}])
def test_nothing_to_train_is_named(x, options):
    model = make()
    for name in PARAMETERS[:-1]:
        model.get_parameter(name).requires_grad_(False)
    with pytest.raises(ValueError, match=r"LinearVAE\.fit: some parameter must require grad, got all frozen"):
        model.fit(x, progress=False, **options)


def test_inference_mode_is_named(x):
    with (
        torch.inference_mode(),
        pytest.raises(RuntimeError, match="gradients must be enabled, got a call in"),
    ):
        make().fit(x, progress=False)


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array[::-1].copy()[::-1],
        lambda array: np.flip(array, 1).copy()[:, ::-1],
        lambda array: array.astype(">f8"),
        lambda array: array.astype(np.longdouble),
    ],
)
def test_arrays_of_any_layout_and_real_dtype(x, tmp_path, view):
    options = {"objective": "stochastic", "batch_size": 20, "steps": 3, "progress": False}
    options["checkpoint"] = tmp_path / "c"
    twin = make()
    expected = twin.fit(x, **options)
    for resume in (True, False):
        model = make()
        assert_same((model, model.fit(view(x.numpy()), resume=resume, **options)), (twin, expected))


def test_numbers_of_numpy(x, tmp_path):
    options = {"objective": "stochastic", "checkpoint": tmp_path / "c", "progress": False}
    python = {"steps": 4, "batch_size": 20, "seed": 2, "history_every": 2, "checkpoint_every": 2}
    numpy = {name: np.int64(value) for name, value in python.items()}
    model, twin = make(), make()
    expected = twin.fit(x, lr=0.5, beta=0.25, **python, **options)
    assert_same(
        (model, model.fit(x, lr=np.float32(0.5), beta=np.float32(0.25), **numpy, **options)), (twin, expected)
    )
    make().fit(x, lr=0.5, beta=0.25, resume=True, **python, **options)


def test_history_of_the_stochastic_objective_is_exact(x):
    model = make()
    start = reference.linear_vae_elbo(x, *model.parameters()).mean().item()
    history = model.fit(x, objective="stochastic", steps=30, progress=False)
    assert history.elbo[0] == pytest.approx(start, rel=1e-12)
    end = reference.linear_vae_elbo(x, *model.parameters()).mean().item()
    assert history.elbo[-1] == pytest.approx(end, rel=1e-12)


def test_history_of_float32_is_evaluated_in_float64(x):
    model = make(torch.float32)
    history = model.fit(x, steps=3, progress=False)
    exact = reference.linear_vae_elbo(x, *make(torch.float32).double().parameters()).mean().item()
    assert history.elbo[0] == pytest.approx(exact, rel=1e-13)
    assert history.elbo.dtype == np.float64
    assert model.weight.dtype == torch.float32


@pytest.mark.parametrize("batch_size", [None, 20])
def test_randomness_is_a_function_of_the_seed(x, batch_size):
    def run(seed):
        model = make()
        return model, model.fit(
            x, objective="stochastic", batch_size=batch_size, steps=20, seed=seed, progress=False
        )

    state = torch.get_rng_state()
    first = run(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert_same(run(0), first)
    assert not torch.equal(run(1)[0].weight, first[0].weight)


def test_each_step_has_its_own_noise(x, monkeypatch):
    drawn = []
    estimator = training.stochastic_elbo

    def spy(parameters, batch, num_samples, generator, beta):
        drawn.append(torch.randn(1000, generator=generator.clone_state()))
        return estimator(parameters, batch, num_samples, generator, beta)

    monkeypatch.setattr(training, "stochastic_elbo", spy)
    make().fit(x, objective="stochastic", steps=40, progress=False)
    correlation = torch.corrcoef(torch.stack(drawn)) - torch.eye(40)
    assert correlation.abs().max() < 0.2  # 6 standard errors of independent draws


def test_every_epoch_visits_every_sample_in_its_own_order(x, monkeypatch):
    batches = []
    estimator = training.stochastic_elbo

    def spy(parameters, batch, *args):
        batches.append(batch)
        return estimator(parameters, batch, *args)

    monkeypatch.setattr(training, "stochastic_elbo", spy)
    make().fit(x, objective="stochastic", batch_size=20, steps=6, progress=False)
    assert [len(batch) for batch in batches] == [20, 20, 10] * 2
    epochs = [torch.cat(batches[:3]), torch.cat(batches[3:])]
    assert not torch.equal(*epochs)
    for epoch in epochs:
        assert torch.equal(epoch.sort(0).values, x.sort(0).values)


@pytest.mark.parametrize(
    "options", [{}, {"objective": "stochastic", "batch_size": 20}, {"optimizer": "sgd", "lr": 1e-3}]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dropping_constant_features_changes_nothing_but_the_cost(x, options, dtype):
    data = torch.cat([torch.full_like(x[:, :1], 0.3), x, torch.zeros_like(x[:, :1])], dim=1).to(dtype)
    model, twin = make(dtype, NUM_FEATURES + 2), make(dtype, NUM_FEATURES + 2)
    history = model.fit(data, steps=100, drop_constant_features=True, progress=False, **options)
    constant = [0, NUM_FEATURES + 1]
    with torch.no_grad():
        twin.weight[constant] = 0
        twin.encoder[:, constant] = 0
        twin.mu[constant] = data[0, constant]
    expected = twin.fit(data, steps=100, progress=False, **options)
    assert history.dropped_features.tolist() == constant
    assert expected.dropped_features.tolist() == []
    rtol, atol = (1e-9, 1e-12) if dtype == torch.float64 else (1e-3, 1e-5)
    for name in PARAMETERS:
        torch.testing.assert_close(model.get_parameter(name), twin.get_parameter(name), rtol=rtol, atol=atol)
    np.testing.assert_allclose(history.elbo, expected.elbo, rtol=rtol)
    assert not model.weight[constant].any()
    assert not model.encoder[:, constant].any()
    assert torch.equal(model.mu[constant], data[0, constant])


def test_dropping_constant_features_says_so(x, capsys):
    data = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    make(num_features=NUM_FEATURES + 1).fit(data, steps=1, drop_constant_features=True)
    assert capsys.readouterr().err == "1 of 7 features are constant and left out\n"
    make(num_features=NUM_FEATURES + 1).fit(data, steps=1, drop_constant_features=True, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"objective": "stochastic", "batch_size": 20},
        {"optimizer": lbfgs},
        {"drop_constant_features": True},
    ],
)
@pytest.mark.parametrize("at_step", [3, 23, 30])
def test_interrupted_and_resumed_ends_at_the_same_bits(x, tmp_path, monkeypatch, options, at_step):
    x[:, 2] = 1
    options = {**options, "steps": 40, "history_every": 7, "checkpoint_every": 10, "progress": False}
    whole = make()
    expected = whole.fit(x, **options)
    path = tmp_path / "run" / "checkpoint.safetensors"

    interrupted = make()
    before = snapshot(interrupted)
    with monkeypatch.context() as patch:
        cut_power(patch, at_step)
        with pytest.raises(RuntimeError, match="power cut"):
            interrupted.fit(x, checkpoint=path, **options)
    assert all(torch.equal(interrupted.get_parameter(name), before[name]) for name in PARAMETERS)
    assert path.exists() == (at_step > 10)

    # a checkpoint stands for the parameters too
    resumed = LinearVAE(NUM_FEATURES, LATENT_DIM, dtype=torch.float64) if path.exists() else make()
    history = resumed.fit(x, checkpoint=path, resume=True, **options)
    assert_same((resumed, history), (whole, expected))
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.safetensors"]


def test_resuming_a_finished_run_returns_at_once(x, tmp_path, monkeypatch):
    first = make()
    options = {"steps": 15, "checkpoint": tmp_path / "c", "progress": False}
    expected = first.fit(x, **options)
    monkeypatch.setattr(ascent._Run, "advance", None)  # a step would raise
    second = make()
    assert_same((second, second.fit(x, resume=True, **options)), (first, expected))


def test_without_resume_a_run_begins_anew(x, tmp_path):
    options = {"steps": 15, "checkpoint": tmp_path / "c", "progress": False}
    first = make()
    expected = first.fit(x, **options)
    second = make()
    second.fit(x, seed=5, **options)
    third = make()
    assert_same((third, third.fit(x, **options)), (first, expected))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.02}, r"optimizer's lr \['0\.01'\] instead of \['0\.02'\]"),
        ({"steps": 30}, "steps 20 instead of 30"),
        ({"seed": 1}, "seed 0 instead of 1"),
        ({"beta": 0.5}, r"beta 1\.0 instead of 0\.5"),
        ({"objective": "stochastic"}, "objective 'analytic' instead of 'stochastic'"),
        ({"optimizer": "sgd"}, "optimizer 'Adam' instead of 'SGD'"),
        ({"learn_sigma2": False}, "learn_sigma2 True instead of False"),
        ({"history_every": 3}, "history_every 100 instead of 3"),
        ({"drop_constant_features": True}, "drop_constant_features False instead of True"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(x, tmp_path, change, message):
    options = {"lr": 0.01, "steps": 20, "checkpoint": tmp_path / "c", "progress": False}
    make().fit(x, **options)
    before = (tmp_path / "c").read_bytes()
    with pytest.raises(ValueError, match=f"is of another run, with .*{message}"):
        make().fit(x, resume=True, **{**options, **change})
    assert (tmp_path / "c").read_bytes() == before


def test_a_checkpoint_of_other_data_or_another_model_is_refused(x, tmp_path):
    options = {"steps": 5, "checkpoint": tmp_path / "c", "progress": False}
    make().fit(x, **options)
    with pytest.raises(
        ValueError, match=r"is of another run, with data '[0-9a-f]{32}' instead of '[0-9a-f]{32}'"
    ):
        make().fit(x + 1e-12, resume=True, **options)
    with pytest.raises(ValueError, match=r"dtype 'torch\.float64' instead of 'torch\.float32'"):
        make(torch.float32).fit(x, resume=True, **options)
    with pytest.raises(ValueError, match="latent_dim 2 instead of 3"):
        LinearVAE(NUM_FEATURES, 3, dtype=torch.float64).fit(x, resume=True, **options)
    frozen = make()
    frozen.mu.requires_grad_(False)
    with pytest.raises(ValueError, match=r"trained .*'mu', .* instead of .*'encoder', 'log_d'"):
        frozen.fit(x, resume=True, **options)
    (tmp_path / "c").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"LinearVAE\.fit: .*c is not a safetensors file"):
        make().fit(x, resume=True, **options)
    make().save(tmp_path / "c")
    with pytest.raises(ValueError, match=r"c must be a file of lineavae\.LinearVAE\.fit"):
        make().fit(x, resume=True, **options)


def test_moments_resume_too(x, tmp_path):
    options = {"steps": 5, "checkpoint": tmp_path / "c", "progress": False}
    make().fit(Moments.from_data(x), **options)
    make().fit(Moments.from_data(x), resume=True, **options)
    with pytest.raises(ValueError, match="of another run, with data"):
        make().fit(Moments.from_data(x + 1e-12), resume=True, **options)


def test_divergence_is_named_and_no_checkpoint_holds_it(x, tmp_path):
    model = make()
    before = snapshot(model)
    options = {"optimizer": "sgd", "lr": 3.0, "steps": 50, "history_every": 10, "checkpoint_every": 1}
    message = r"the ELBO is (nan|-inf) at step \d+; the last finite one was -\d.*, at step 0"
    with pytest.raises(FloatingPointError, match=message):
        model.fit(x, checkpoint=tmp_path / "c", progress=False, **options)
    assert all(torch.equal(model.get_parameter(name), before[name]) for name in PARAMETERS)
    with safe_open(tmp_path / "c", framework="pt") as file:
        names = list(file.keys())
        assert "parameter.weight" in names
        assert all(file.get_tensor(name).isfinite().all() for name in names)


def test_divergence_at_the_start_is_named(x):
    model = make()
    torch.nn.init.constant_(model.log_sigma2, float("nan"))
    with pytest.raises(FloatingPointError, match="the ELBO is nan at step 0; none was recorded"):
        model.fit(x, steps=5, progress=False)


def test_an_optimizer_whose_state_cannot_be_written_is_named(x, tmp_path):
    class Odd(torch.optim.Adam):
        def step(self, closure=None):
            super().step(closure)
            next(iter(self.state.values()))["odd"] = object()

    with pytest.raises(TypeError, match=r"got a object at optimizer\.state\.0\.odd"):
        make().fit(x, optimizer=Odd, steps=2, checkpoint=tmp_path / "c", progress=False)


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_of_the_optimizer_fire(x, register):
    seen = []

    def hooked(parameters):
        for parameter in parameters:
            getattr(parameter, register)(lambda tensor: seen.append(tensor.shape))
        return torch.optim.SGD(parameters, lr=1e-3)

    make().fit(x, optimizer=hooked, steps=3, progress=False)
    assert len(seen) == 3 * 5


def test_a_parametrization_is_refused(x):
    model = torch.nn.utils.parametrizations.orthogonal(make(), "weight")
    with pytest.raises(ValueError, match=r"must hold its parameters, got computed \['weight'\]"):
        model.fit(x, steps=1, progress=False)


def test_ctrl_c_ends_the_run_and_keeps_what_was_reached(x):
    taken, model = [], make()

    class Pressing(torch.optim.Adam):
        def step(self, closure=None):
            taken.append(1)
            if len(taken) == 5:
                os.kill(os.getpid(), signal.SIGINT)
            return super().step(closure)

    # a process started in the background ignores the signal
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as interrupt:
            model.fit(x, optimizer=Pressing, steps=1_000_000, progress=False)
    finally:
        signal.signal(signal.SIGINT, before)
    reached = make()
    history = reached.fit(x, optimizer=torch.optim.Adam, steps=len(taken), progress=False)
    assert_same((model, history), (reached, history))
    assert str(interrupt.value) == (
        f"LinearVAE.fit was interrupted at step {len(taken)} of 1000000, ELBO {history.elbo[-1]:.6g}: "
        "the parameters are those of this step"
    )


def test_ctrl_c_while_the_thread_is_started_leaves_no_step_behind(monkeypatch):
    taken, start = [], threading.Thread.start

    def interrupted_start(thread):
        start(thread)
        time.sleep(0.1)
        raise KeyboardInterrupt

    def train(interrupted):
        while not interrupted.is_set():
            taken.append(1)
            time.sleep(0.001)

    monkeypatch.setattr(threading.Thread, "start", interrupted_start)
    with pytest.raises(KeyboardInterrupt):
        ascent.run_flushing_denormals(train)
    assert not taken


def test_a_history_prints_ten_rows_at_the_most(x):
    history = make().fit(x, steps=100, history_every=3, progress=False)
    heading, *rows = str(history).splitlines()
    assert heading.split() == ["step", "ELBO", "σ²"]
    numbers = np.array([row.split() for row in rows], float)
    assert (len(rows), numbers[0, 0], numbers[-1, 0]) == (10, 0, 100)
    found = np.isin(history.steps, numbers[:, 0])
    np.testing.assert_allclose(numbers[:, 1], history.elbo[found], rtol=1e-5)
    np.testing.assert_allclose(numbers[:, 2], np.exp(history.log_sigma2[found]), rtol=1e-5)
    assert len(str(make().fit(x, steps=1, progress=False)).splitlines()) == 3


def test_an_interrupted_run_that_diverged_keeps_nothing(x, monkeypatch):
    def diverge(run):
        if run.step == 3:
            raise KeyboardInterrupt
        run.problem.trained["weight"].detach().fill_(torch.nan)
        run.step += 1

    monkeypatch.setattr(ascent._Run, "advance", diverge)
    model = make()
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt, match="ELBO nan: the parameters are as before"):
        model.fit(x, steps=10, progress=False)
    assert all(torch.equal(model.get_parameter(name), before[name]) for name in PARAMETERS)


def test_denormals_are_zero_in_all_threads_of_the_run_and_only_there(x):
    # enough for several threads, whose workers are there before the run
    denormal = torch.full((1 << 20,), 1e-40)
    assert (denormal * 0.5).count_nonzero() == len(denormal)
    left = []

    class Looking(torch.optim.Adam):
        def step(self, closure=None):
            left.append((denormal * 0.5).count_nonzero().item())
            return super().step(closure)

    make().fit(x, optimizer=Looking, steps=2, progress=False)
    assert left == [0, 0]
    assert (denormal * 0.5).count_nonzero() == len(denormal)


def test_progress_is_for_terminals(x, monkeypatch, capsys):
    make().fit(x, steps=3)
    assert capsys.readouterr() == ("", "")
    terminal = StringIO()
    monkeypatch.setattr(ascent, "Console", lambda **_: Console(file=terminal, force_terminal=True))
    make().fit(x, steps=3, history_every=1)
    assert "ELBO -" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"objective": "exact"}, ValueError, "objective must be 'analytic' or 'stochastic', got 'exact'"),
        ({"optimizer": "rmsprop"}, ValueError, r"optimizer must be one of \['adam', 'sgd'\] or a function"),
        ({"optimizer": ["adam"]}, ValueError, r"optimizer must be .* or a function, got \['adam'\]"),
        ({"optimizer": lambda parameters: None}, TypeError, "optimizer must return a torch.optim.Optimizer"),
        ({"lr": 0.0}, ValueError, r"lr must be finite and > 0, got 0\.0"),
        ({"lr": "fast"}, TypeError, "lr must be a number, got str"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"steps": 10.0}, TypeError, "steps must be an int, got float"),
        ({"steps": True}, TypeError, "steps must be an int, got bool"),
        ({"steps": np.float64(10)}, TypeError, "steps must be an int, got float64"),
        ({"lr": np.True_}, TypeError, "lr must be a number, got bool"),
        ({"beta": -1.0}, ValueError, r"beta must be finite and >= 0, got -1\.0"),
        ({"beta": float("nan")}, ValueError, "beta must be finite"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"history_every": 0}, ValueError, "history_every must be at least 1"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be at least 1"),
        ({"batch_size": 10}, ValueError, "batch_size must be None for the analytic objective"),
        (
            {"batch_size": 51, "objective": "stochastic"},
            ValueError,
            "batch_size must be at most the 50 samples",
        ),
        ({"resume": True}, ValueError, "checkpoint must be given to resume from"),
    ],
)
def test_bad_options(x, options, error, message):
    with pytest.raises(error, match=f"LinearVAE.fit: {message}"):
        make().fit(x, progress=False, **options)


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (torch.randn(5, 4), {}, ValueError, "data must have the 6 features of the model, got 4"),
        (torch.ones(5, 6), {"drop_constant_features": True}, ValueError, "data must vary in some feature"),
        (torch.full((5, 6), float("nan")), {}, ValueError, "data must be finite"),
        ([[1.0] * 6], {}, TypeError, "data must be a NumPy array or a torch.Tensor, got list"),
        (
            Moments.from_data(torch.randn(5, 6)),
            {"objective": "stochastic"},
            ValueError,
            "data must be samples for the stochastic objective, got Moments",
        ),
    ],
)
def test_bad_data(data, options, error, message):
    with pytest.raises(error, match=message):
        make().fit(data, progress=False, **options)


def test_half_precision_is_refused(x):
    with pytest.raises(TypeError, match=r"must be float32 or float64, got torch\.bfloat16"):
        make(torch.bfloat16).fit(x, progress=False)


def test_fit_on_each_device(x, device):
    model, twin = make().to(device), make()
    options = {"steps": 50, "lr": 0.01, "progress": False}
    history = model.fit(x.to(device), **options)
    expected = twin.fit(x, **options)
    np.testing.assert_allclose(history.elbo, expected.elbo, rtol=1e-9)
    assert model.weight.device.type == device
    torch.testing.assert_close(model.weight.cpu(), twin.weight, rtol=1e-7, atol=1e-9)
    model.fit(x.to(device), objective="stochastic", batch_size=20, **options)


SCRIPT = """
import sys
import torch
from lineavae.linear import LinearVAE

generator = torch.Generator().manual_seed(0)
x = torch.randn(200, 40, generator=generator) * torch.linspace(2, 0.5, 40)
x[:, 7] = 1
model = LinearVAE(40, 8, generator=generator)
checkpoint, result, steps = sys.argv[1:]
history = model.fit(
    x, objective="stochastic", batch_size=64, lr=0.01, steps=int(steps), drop_constant_features=True,
    history_every=50, checkpoint=checkpoint, checkpoint_every=20, resume=True, progress=False,
)
numbers = {k: torch.tensor(v) for k, v in vars(history).items() if v is not None}
torch.save(model.state_dict() | numbers, result)
"""


def step_of(checkpoint):
    if not checkpoint.exists():
        return 0
    with safe_open(checkpoint, framework="pt") as file:
        return json.loads(file.metadata()["state"])["step"]


@pytest.mark.slow
def test_killed_three_times_and_resumed_ends_at_the_same_bits(tmp_path):
    steps = 1000
    checkpoint = tmp_path / "killed.safetensors"
    (tmp_path / "train.py").write_text(SCRIPT)

    def start(name):
        files = [tmp_path / f"{name}.safetensors", tmp_path / f"{name}.pt"]
        return subprocess.Popen([sys.executable, tmp_path / "train.py", *files, str(steps)])

    random_numbers = random.Random(0)
    for least in sorted(random_numbers.sample(range(steps * 3 // 4), 3)):
        with start("killed") as process:
            while step_of(checkpoint) < least and process.poll() is None:
                time.sleep(0.001)
            time.sleep(random_numbers.uniform(0, 0.05))
            process.kill()
        assert process.returncode == -signal.SIGKILL
    for name in ("killed", "whole"):
        with start(name) as process:
            pass
        assert process.returncode == 0
    whole, killed = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert len(whole["elbo"]) == steps // 50 + 1
    for name, tensor in whole.items():
        assert torch.equal(tensor, killed[name]), name


@pytest.mark.parametrize("has_widgets", [True, False])
def test_a_notebook_shows_progress(monkeypatch, has_widgets):
    """Where it can: without ipywidgets rich would warn, which is an error here, and show nothing."""
    shown = []
    contents = {
        "IPython": {},
        "IPython.display": {"display": shown.append},
        "ipywidgets": {"Output": MagicMock()},
    }
    for name, content in contents.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    if not has_widgets:
        monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    LinearVAE(2, 1).fit(torch.eye(2), steps=3)
    assert bool(shown) == has_widgets
