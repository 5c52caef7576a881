"""The command ``lineavae sweep``."""

import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from lineavae.cli import app
from lineavae.commands.sweep import _parse_axis
from lineavae.linear import Moments, Sweep, sweep

SAMPLES = np.random.default_rng(0).normal(size=(80, 5)) * [3.0, 2.0, 1.0, 0.5, 0.2]
GRID = ("--axis", "sigma2=0.1:9:log:3", "--axis", "seed=0:2", "--axis", "latent_dim=3", "--axis", "lr=0.02")


@pytest.fixture
def data(tmp_path):
    np.save(tmp_path / "x.npy", SAMPLES)
    return str(tmp_path / "x.npy")


@pytest.fixture
def expected():
    grid = {"sigma2": np.geomspace(0.1, 9, 3), "seed": range(2), "latent_dim": 3, "lr": 0.02}
    return sweep(Moments.from_data(SAMPLES), grid, steps=700, learn_sigma2=False, progress=False)


def invoke(*arguments, **options):
    return CliRunner().invoke(app, ["sweep", *map(str, arguments)], **options)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("lr=0.003", 0.003),
        ("seed=0:3", [0, 1, 2]),
        ("seed=0:2,7", [0, 1, 7]),
        ("latent_dim=4, 8", [4, 8]),
        ("latent_dim=2:32:log:5", [2, 4, 8, 16, 32]),
        ("sigma2=1e-4:1:log:3", [1e-4, 1e-2, 1.0]),
        ("beta=0:1:lin:3", [0.0, 0.5, 1.0]),
    ],
)
def test_axes(text, values):
    name, found = _parse_axis(text)
    assert name == text.partition("=")[0]
    assert found == (pytest.approx(values) if isinstance(values, list) else values)


def test_files_and_json(tmp_path, data, expected):
    out, csv, plot = (tmp_path / name for name in ("x.safetensors", "x.csv", "x.png"))
    files = ("--out", out, "--csv", csv, "--plot", plot)
    result = invoke("--data", data, *GRID, "--steps", 700, *files, "--json")
    assert result.exit_code == 0, result.output
    assert Sweep.load(out).dataset.identical(expected.dataset)
    rows = np.genfromtxt(csv, delimiter=",", names=True)
    assert np.array_equal(rows["elbo"], expected.dataset.elbo.values.ravel())
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "x.safetensors.parts").exists()
    summary = json.loads(result.stdout)
    assert summary["settings"]["latent_dim"] == 3
    assert summary["axes"]["seed"] == [0, 1]
    assert [point["theory"] for point in summary["points"]] == expected.theory().values.tolist()
    live = expected.dataset.live.isel(step=-1)
    assert [point["live"] for point in summary["points"]] == live.mean("seed").values.tolist()
    assert summary["theory"]["far"] + summary["theory"]["close"] == 6
    assert summary["theory"]["far_agreeing"] == int(
        ((live == expected.theory()) & (expected.distance() > 0.02)).sum()
    )
    again = invoke("--data", data, *GRID, "--out", out)
    assert again.exit_code == 2
    assert "x.safetensors exists: choose another file, or delete it" in again.output


def test_table(data, expected):
    result = invoke("--data", data, *GRID, "--steps", 700, env={"COLUMNS": "50", "NO_COLOR": "1"})
    assert result.exit_code == 0
    assert re.search(r"sigma2 +elbo +live +log_sigma2 +gradient_norm +theory", result.stdout)
    live, theory = expected.dataset.live.mean("seed").values[:, -1], expected.theory().values
    for sigma2, counts in zip(("0.1", "0.94868", "9"), zip(live, theory, strict=True), strict=True):
        assert re.search(rf"^ +{sigma2} .* {counts[0]:g} .* {counts[1]} +$", result.stdout, re.MULTILINE)
    assert "as many live latents as in theory: 6 of 6 models" in result.stdout


def test_rank(data):
    result = invoke("--data", data, *GRID, "--steps", 700, "--rank", 3)
    assert result.exit_code == 0, result.output
    assert "700 steps of adam along 3 principal directions, σ² fixed" in " ".join(result.stdout.split())
    assert "as many live latents as in theory: 6 of 6 models" in " ".join(result.stdout.split())
    result = invoke("--data", data, *GRID, "--rank", 2)
    assert result.exit_code == 2
    assert "rank must be at least latent_dim, 3" in " ".join(result.output.split())


def test_killed_and_resumed(tmp_path, data, monkeypatch, expected):
    out = tmp_path / "x.safetensors"

    def interrupt(*arguments):
        raise KeyboardInterrupt

    arguments = ("--data", data, *GRID, "--steps", 700, "--out", out)
    monkeypatch.setattr("lineavae.linear.sweep_training.Training._label", interrupt)
    result = invoke(*arguments)
    assert result.exit_code == 130
    assert "interrupted; the same command with --resume continues" in result.output
    monkeypatch.undo()
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "holds an unfinished sweep: pass --resume, or delete it" in result.output
    monkeypatch.setattr("lineavae.linear.sweep_training.linear_vae_ascent", None)  # all is done
    assert invoke(*arguments, "--resume").exit_code == 0
    assert Sweep.load(out).dataset.identical(expected.dataset)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--axis", "sigma2"), "--axis must be NAME=VALUES with NAME among sigma2, beta"),
        (("--axis", "sigma=1"), "got 'sigma=1'"),
        (
            ("--axis", "sigma2=1:2:3"),
            "--axis sigma2 must be numbers with commas between them, or first:last:log",
        ),
        (("--axis", "seed=0:10000000000"), "at most a million"),
        (("--axis", "seed=1.5"), "--axis seed must be whole numbers"),
        (("--axis", "lr=0.1"), "grid must have each axis once, got 'lr' more often"),
        (("--axis", "beta=-1"), "beta must be finite and >= 0, got -1"),
        (("--record", "elbo,loss"), "got 'loss'"),
        (("--resume",), "--resume: give the --out of the sweep"),
        (("--plot", "x.gif"), "--plot: the name must end with .png, .pdf or .svg, got x.gif"),
        (("--memory", "1e-6"), "fit in memory"),
        (("--device", "nowhere"), "--device nowhere:"),
    ],
)
def test_bad_usage(data, arguments, message):
    result = invoke("--data", data, *GRID, *arguments)
    assert result.exit_code == 2
    assert message in result.output
    missing = invoke("--data", "nowhere.npy", *GRID)
    assert missing.exit_code == 2
    assert "nowhere.npy" in missing.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--axis", "latent_dim=2", "--plot", "x.png"),
            "--plot: a setting must be an axis, of several values",
        ),
        ((*GRID, "--record", "kl,gap", "--plot", "x.png"), "--plot: --record must have a statistic with one"),
        ((*GRID, "--csv", "x.png", "--plot", "x.png"), "--csv, --plot: each must be another file"),
        ((*GRID, "--csv", "x.npy"), "--csv x.npy: the file must be another than one that is read"),
        (("--axis", "sigma2=-1:1:log:3", "--axis", "latent_dim=2"), "sigma2 must be"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(tmp_path, data, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    result = invoke("--data", data, *options, "--steps", 5, "--out", "x.safetensors")
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Warning" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy"]


def test_only_checkpoints_are_removed(tmp_path, data):
    parts = tmp_path / "x.safetensors.parts"
    parts.mkdir()
    (parts / "notes.txt").write_text("mine")
    result = invoke("--data", data, *GRID, "--steps", 5, "--out", tmp_path / "x.safetensors", "--resume")
    assert result.exit_code == 0, result.output
    assert [path.name for path in parts.iterdir()] == ["notes.txt"]
