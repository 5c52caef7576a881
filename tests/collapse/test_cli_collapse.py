"""The command ``lineavae collapse``, in this process, in others, in several at once, and killed."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file
from typer.testing import CliRunner

from lineavae.cli import app
from lineavae.collapse import CollapseAt, CollapseComparison, CollapseReport
from lineavae.collapse import scan as scan_module
from lineavae.ops import collapse_statistics

NUM_SAMPLES, LATENT_DIM = 600, 12
SCALE = np.logspace(-3, 0, LATENT_DIM)


def draw(num_samples=NUM_SAMPLES, seed=0):
    """Posteriors of a pPCA model; mean KL is ½ log(1 + s²)."""
    generator = torch.Generator().manual_seed(seed)
    square = torch.from_numpy(SCALE) ** 2
    mean = torch.randn(num_samples, LATENT_DIM, generator=generator, dtype=torch.float64)
    mean *= (square / (1 + square)).sqrt()
    return {"mean": mean, "logvar": -square.log1p().expand_as(mean).contiguous()}


def save(folder, num_shards=3, num_samples=NUM_SAMPLES):
    """Save shards, and give all posteriors together."""
    folder.mkdir(exist_ok=True, parents=True)
    for index in range(num_shards):
        save_file(draw(num_samples, index), folder / f"shard-{index:03d}.safetensors")
    parts = [draw(num_samples, index) for index in range(num_shards)]
    return {name: torch.cat([part[name] for part in parts]) for name in ("mean", "logvar")}


def invoke(*arguments):
    return CliRunner().invoke(app, ["collapse", *map(str, arguments)])


def report_of(*arguments):
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def expected_report(posterior, thresholds, epsilon, delta):
    statistics = collapse_statistics(posterior["mean"], posterior["logvar"], thresholds)
    return CollapseReport(statistics, thresholds).at(epsilon, delta).to_dict()


def test_json_is_the_report_of_all_rows(tmp_path):
    posterior = save(tmp_path / "posterior")
    found = report_of(tmp_path / "posterior", "--epsilon", 0.02, "--epsilon", 0.5, "--delta", 0.05)
    thresholds = [0.0, 0.001, 0.01, 0.02, 0.1, 0.5, 1.0]
    expected = expected_report(posterior, thresholds, 0.02, 0.05)
    assert found.pop("rows") == [NUM_SAMPLES] * 3
    assert found.pop("files") == [str(tmp_path / "posterior" / f"shard-00{i}.safetensors") for i in range(3)]
    curve = found.pop("curve")
    latents, expected_latents = found.pop("latents"), expected.pop("latents")
    assert found == expected
    for name, column in expected_latents.items():
        if isinstance(column[0], float):
            np.testing.assert_allclose(latents[name], column, rtol=1e-12, atol=1e-15, err_msg=name)
        else:
            assert latents[name] == column, name
    # by hand: the share of the latents of which at most 5 % of the KL are not below ε
    variance = posterior["logvar"].exp()
    kl = 0.5 * (posterior["mean"].square() + variance - 1 - posterior["logvar"]).numpy()
    percent = [
        100 * np.mean((kl >= (threshold or 5e-324)).sum(0) <= 0.05 * len(kl)) for threshold in thresholds
    ]
    assert curve == {"epsilon": thresholds, "collapsed_percent": percent}
    assert 0 < percent[3] < 100


def test_table(tmp_path):
    save(tmp_path / "posterior")
    result = invoke(tmp_path / "posterior", "--epsilon", 0.02)
    assert result.exit_code == 0
    found = report_of(tmp_path / "posterior", "--epsilon", 0.02)
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[0] == "3 files, pooled"
    rows = [line for line in lines if line.startswith("600 ")]
    assert rows == [f"600 {tmp_path}/posterior/shard-00{index}.safetensors" for index in range(3)]
    head = lines.index("1800 samples, 12 latents")
    assert lines[head + 1].startswith(f"(0.02, 0.01)-collapsed {found['num_collapsed']} of 12 latents")
    percent = dict(zip(*found["curve"].values(), strict=True))[0.02]
    assert f"0.02 {percent:.1f} %" in lines
    assert 0 < percent < 100
    # progress goes elsewhere
    assert re.search(r"reading .* 345.6/345.6 kB .* [kM]B/s", result.stderr)
    assert "kB" not in result.stdout


def test_names_of_the_arrays(tmp_path):
    posterior = draw()
    np.savez(tmp_path / "x.npz", m=posterior["mean"], s=(posterior["logvar"] / 2).exp())
    result = invoke(tmp_path / "x.npz")
    assert result.exit_code == 2
    assert "there is no mean, such as 'mean', among 'm', 's': name it by --mean-key" in result.stderr
    found = report_of(tmp_path / "x.npz", "--mean-key", "m", "--std-key", "s")
    expected = expected_report(posterior, [0.01], 0.01, 0.01)
    assert found["latents"]["collapsed"] == expected["latents"]["collapsed"]
    renamed = {"mu": posterior["mean"].clone(), "lv": posterior["logvar"].clone()}
    save_file(renamed, tmp_path / "x.safetensors")
    again = report_of(tmp_path / "x.safetensors", "--mean-key", "mu", "--logvar-key", "lv")
    assert again["latents"]["collapsed"] == found["latents"]["collapsed"]


def test_variances_in_the_place_of_log_variances_are_refused(tmp_path):
    """Mean KL from the formula in float64; the file's name does not say what it holds."""
    mean, variance = draw()["mean"].numpy(), draw()["logvar"].exp().numpy()
    np.savez(tmp_path / "x.npz", mean=mean, v=variance)
    result = invoke(tmp_path / "x.npz", "--logvar-key", "v")
    assert result.exit_code == 2
    assert "every latent's posterior is wider than the prior" in result.stderr
    assert "--var-key" in result.stderr
    assert report_of(tmp_path / "x.npz", "--logvar-key", "v", "--allow-wide")["is_wider_than_prior"]
    found = report_of(tmp_path / "x.npz", "--var-key", "v")["latents"]["mean_kl"]
    np.testing.assert_allclose(found, (0.5 * (mean**2 + variance - np.log(variance) - 1)).mean(0), rtol=1e-9)


def test_several_models_in_one_folder(tmp_path):
    """Checkpoints with ever more dead latents; pooled, not one of them is collapsed."""
    for index, num_dead in enumerate((0, 2, 3, 5, 7)):
        posterior = {name: array.clone() for name, array in draw(1000, index).items()}
        for name in posterior:
            posterior[name][:, : 12 - num_dead] = draw(1000, index)[name][:, -1:]
            posterior[name][:, 12 - num_dead :] = 0
        save_file(posterior, tmp_path / f"epoch-{index}.safetensors")
    result = invoke(tmp_path, "--epsilon", 0.02)
    assert result.exit_code == 0
    assert (
        "look like those of 5 models (epoch-0, epoch-1, epoch-2, ...), and are pooled as one; --each"
        in result.stderr
    )
    two = invoke(*(tmp_path / f"epoch-{index}.safetensors" for index in (0, 1)))
    assert "look like those of 2 models (epoch-0, epoch-1), and" in two.stderr
    assert "latents 5-11 are collapsed in some files and not in others" in result.stderr
    assert "0 of 12 latents, 0.0 %" in " ".join(result.stdout.split())
    one = invoke(tmp_path / "epoch-3.safetensors")
    assert "warning" not in one.stderr


def save_epochs(folder):
    """Checkpoints of one model, with ever more dead latents, in the folder's files."""
    folder.mkdir()
    for epoch, num_dead in ((2, 0), (10, 3), (100, 5)):
        posterior = {name: array.clone() for name, array in draw(1000, epoch).items()}
        for name in posterior:
            posterior[name][:, :num_dead] = 0
            posterior[name][:, num_dead:] = draw(1000, epoch)[name][:, -1:]
        save_file(posterior, folder / f"epoch={epoch}.safetensors")


@pytest.mark.parametrize("how", ["--each", "--compare", "pattern", "--each --resume"])
def test_checkpoints_are_compared_in_their_order(tmp_path, how):
    save_epochs(tmp_path / "run")
    paths = [tmp_path / "run"]
    if how == "--compare":
        paths = sorted(paths[0].iterdir())  # epoch=10, epoch=100, epoch=2, as of a shell
    elif how == "pattern":
        paths = [tmp_path / "run" / "epoch=*"]
    options = ["--compare"] if how == "--compare" else ["--each"]
    if how.endswith("--resume"):
        options += ["--resume", tmp_path / "state"]
        assert invoke(*paths, *options).exit_code == 0
    document = report_of(*paths, *options)
    names = [f"epoch={epoch}.safetensors" for epoch in (2, 10, 100)]
    assert list(document["models"]) == names
    assert [model["num_collapsed"] for model in document["models"].values()] == [0, 3, 5]
    died = [[latent["latent"] for latent in change["died"]] for change in document["changes"]]
    assert died == [[0, 1, 2], [3, 4]]
    for name, epoch in zip(names, (2, 10, 100), strict=True):
        alone = report_of(tmp_path / "run" / f"epoch={epoch}.safetensors")
        alone.pop("curve")
        assert document["models"][name] == alone


def test_models_that_are_folders_and_saved_reports(tmp_path):
    """One is a folder of shards; of another there is the report alone; a third has fewer latents."""
    save(tmp_path / "b" / "posterior")
    (tmp_path / "a").mkdir()
    saved = invoke(tmp_path / "b" / "posterior", "--json").stdout
    (tmp_path / "a" / "posterior.json").write_text(saved)
    np.savez(tmp_path / "small.npz", mean=np.zeros((400, 2)), std=np.ones((400, 2)))
    models = [tmp_path / "b" / "posterior", tmp_path / "a" / "posterior.json", tmp_path / "small.npz"]
    result = invoke(*models, "--compare", "--csv", tmp_path / "models.csv")
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[0] == "3 models, 2 to 12 latents, N = 400 to 1800, at ε = 0.01, δ = 0.01"
    assert "b/posterior to a/posterior.json none died or woke" in lines
    assert "a/posterior.json to small.npz not matched: 12 latents and 2" in lines
    with (tmp_path / "models.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["b/posterior", "a/posterior.json", "small.npz"]
    assert {key: rows[0][key] for key in rows[0] if key != "model"} == {
        key: rows[1][key] for key in rows[1] if key != "model"
    }
    result = invoke(*models, "--compare", "--plot", tmp_path / "x.png", "--draw", "heat-map")
    assert result.exit_code == 1
    assert "models must have the same number of latents, got 12 of b/posterior, 12 of" in result.stderr
    again = json.loads(invoke(tmp_path / "a" / "posterior.json", "--json").stdout)
    expected = json.loads(saved)
    assert len(expected.pop("files")) == len(expected.pop("rows")) == 3
    assert again == expected


def test_a_file_beside_the_folder_of_another_has_a_name(tmp_path):
    for name in ("x.npz", "sub/x.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.savez(tmp_path / name, **draw(50))
    models = report_of(tmp_path / "x.npz", tmp_path / "sub" / "x.npz", "--compare")["models"]
    assert sorted(models) == ["sub/x.npz", "x.npz"]
    models = report_of(tmp_path / "sub", tmp_path / "sub" / "x.npz", "--compare")["models"]
    assert sorted(models) == ["sub", "sub/x.npz"]


def test_page_and_table_of_one_report(tmp_path):
    save(tmp_path / "posterior")
    page, table = tmp_path / "page.html", tmp_path / "latents.csv"
    result = invoke(tmp_path / "posterior", "--html", page, "--csv", table, "--level", 0.999)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-2:] == [str(table), str(page)]
    assert "at 99.9 %" in result.stdout
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "at 99.9 %" in text
    assert "shard-002.safetensors (600)" in text
    assert "shard-000.safetensors and 2 more" in text
    assert "A latent is (ε, δ)-collapsed if" in text
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = report_of(tmp_path / "posterior", "--level", 0.999)["latents"]
    assert [row["latent"] for row in rows] == list(map(str, range(LATENT_DIM)))
    for name in ("mean_kl", "critical_epsilon", "count_below_0.01"):
        assert [float(row[name]) for row in rows] == columns[name]
    assert [row["collapse_test"] for row in rows] == columns["collapse_test"]


@pytest.mark.parametrize("drawing", ["curve", "spectrum", "surface", "heat-map"])
def test_drawings(tmp_path, monkeypatch, drawing):
    drawn = []
    monkeypatch.setattr(CollapseAt, "plot_curve", lambda _: drawn.append("curve") or Figure())
    monkeypatch.setattr(CollapseAt, "plot_spectrum", lambda _: drawn.append("spectrum") or Figure())
    monkeypatch.setattr(CollapseReport, "plot_surface", lambda _: drawn.append("surface") or Figure())
    monkeypatch.setattr(CollapseComparison, "plot_heat_map", lambda _: drawn.append("heat-map") or Figure())
    save(tmp_path / "posterior")
    options = ["--each"] if drawing == "heat-map" else []
    plot = tmp_path / "x.png"
    result = invoke(tmp_path / "posterior", "--plot", plot, "--draw", drawing, *options)
    assert result.exit_code == 0, result.output
    assert drawn == [drawing]
    assert plot.exists()


def test_shards_of_one_posterior_give_no_warning(tmp_path):
    save(tmp_path / "run1" / "posterior")
    result = invoke(tmp_path / "run1" / "posterior", "--epsilon", 0.1)
    assert result.exit_code == 0
    assert "warning" not in result.stderr


def test_a_row_for_every_latent(tmp_path):
    np.savez(tmp_path / "x.npz", mean=np.zeros((2, 30)), std=np.ones((2, 30)))
    assert "10 more" in invoke(tmp_path / "x.npz").stdout
    assert "more" not in invoke(tmp_path / "x.npz", "--all").stdout


def test_plot(tmp_path):
    save(tmp_path / "posterior", num_shards=1)
    result = invoke(tmp_path / "posterior", "--plot", tmp_path / "figures" / "curve.png")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(tmp_path / "figures" / "curve.png")
    assert (tmp_path / "figures" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "figures").iterdir())) == 1


def test_json_alone_on_stdout(tmp_path):
    save(tmp_path / "posterior", num_shards=1)
    result = invoke(tmp_path / "posterior", "--json", "--plot", tmp_path / "curve.pdf")
    assert json.loads(result.stdout)["num_samples"] == NUM_SAMPLES
    assert "600 samples" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.npz"], "nothing.npz: there is no such file or folder"),
        (["posterior", "nothing-*.npz"], "nothing-*.npz: no file matches"),
        (["posterior", "--mean-key", "mu"], "there is no mean, such as 'mu', among"),
        (["posterior", "--mean-key", "x", "--std-key", "x"], "keys must differ from each other"),
        (["posterior", "--std-key", "var"], "'var' is the usual name of the variance: name it by --var-key"),
        (["posterior", "--epsilon", "nan"], "--epsilon: collapse_statistics: every threshold must be finite"),
        (["posterior", "--epsilon", "-1"], "--epsilon: collapse_statistics: every threshold must be finite"),
        (["posterior", "--delta", "-0.1"], "--delta must be at least 0 and below 1, got -0.1"),
        (["posterior", "--delta", "1"], "--delta must be at least 0 and below 1, got 1.0"),
        (["posterior", "--delta", "nan"], "--delta must be at least 0 and below 1, got nan"),
        (["posterior", "--device", "tpu9"], "--device tpu9"),
        (["posterior", "--plot", "curve.xyz"], "--plot curve.xyz: the name must end with one of"),
        (["posterior", "broken.npz"], "broken.npz is damaged: File is not a zip file"),
        (["posterior", "--level", "1"], "--level must be above 0 and below 1, got 1.0"),
        (["posterior", "--draw", "surface"], "--draw surface needs --plot FILE"),
        (
            ["posterior", "--plot", "x.png", "--draw", "heat-map"],
            "--draw heat-map is of several, by --compare",
        ),
        (["posterior", "--plot", "x.png", "--draw", "surface", "--each"], "--draw surface is of one model"),
        (["posterior", "posterior", "--compare"], "posterior is named twice"),
        (["posterior", "broken.json"], "reports cannot be pooled: --compare shows several models"),
        (["broken.json"], "broken.json is damaged ("),
        (["posterior", "nothing.json", "--compare"], "nothing.json: cannot be read: No such file"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path, monkeypatch, arguments, message):
    save(tmp_path / "posterior", num_shards=1)
    (tmp_path / "broken.npz").write_text("")
    (tmp_path / "broken.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments, "--resume", "state")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("arguments", [[], ["x.npz", "--epsilon", "one"], ["x.npz", "--colour"]])
def test_wrong_usage_exits_with_2(arguments):
    assert invoke(*arguments).exit_code == 2


def test_a_missing_library_is_named_before_the_work(tmp_path, monkeypatch):
    save(tmp_path / "posterior", num_shards=1)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    result = invoke(tmp_path / "posterior", "--plot", tmp_path / "x.png", "--resume", tmp_path / "state")
    assert result.exit_code == 1
    assert "pip install 'lineavae[experiments]'" in result.stderr
    assert not (tmp_path / "state").exists()


def test_resumed_after_an_interrupt(tmp_path, monkeypatch):
    save(tmp_path / "posterior")
    expected = report_of(tmp_path / "posterior")
    state = tmp_path / "state"
    scan_shard, calls = scan_module._scan_shard, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return scan_shard(*arguments)

    monkeypatch.setattr(scan_module, "_scan_shard", interrupted)
    result = invoke(tmp_path / "posterior", "--resume", state)
    assert result.exit_code == 130
    assert "interrupted; the same command continues after the finished files" in result.stderr
    result = invoke(tmp_path / "posterior", "--resume", state, "--json")
    assert len(calls) == 4  # the third shard alone
    assert "2 of 3 files were finished earlier" in result.stderr
    assert json.loads(result.stdout) == expected
    assert "3 of 3 files were finished earlier" in invoke(tmp_path / "posterior", "--resume", state).stderr
    assert len(calls) == 4


def test_an_interrupt_without_a_folder_says_what_would_help(tmp_path, monkeypatch):
    save(tmp_path / "posterior", num_shards=1)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(scan_module, "_scan_shard", interrupted)
    result = invoke(tmp_path / "posterior")
    assert result.exit_code == 130
    assert "interrupted; a command with --resume DIR continues after the finished files" in result.stderr


def test_results_in_the_folder_of_the_shards(tmp_path):
    save(tmp_path)
    expected = report_of(tmp_path, "--resume", tmp_path)
    for where in (tmp_path, tmp_path / "*"):
        result = invoke(where, "--resume", tmp_path, "--json")
        assert "3 of 3 files were finished earlier" in result.stderr
        assert json.loads(result.stdout) == expected


@pytest.mark.parametrize("option", ["--plot", "--resume", "--html", "--csv"])
def test_what_cannot_be_written_is_said_before_the_work(tmp_path, monkeypatch, option):
    save(tmp_path / "posterior", num_shards=1)
    monkeypatch.setattr(scan_module, "_scan_shard", None)  # would raise
    result = invoke(tmp_path / "posterior", option, "/proc/x.png", "--json")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"lineavae: {option}: /proc/x.png")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("option", ["--plot", "--html", "--csv"])
def test_outputs_replace_neither_inputs_nor_each_other(tmp_path, option):
    report = tmp_path / "report.json"
    CollapseReport(collapse_statistics(*draw(50).values(), [0.01]), [0.01]).save(report)
    content = report.read_bytes()
    (tmp_path / "x.png").symlink_to(report)
    result = invoke(report, option, tmp_path / "x.png")
    assert (result.exit_code, report.read_bytes()) == (2, content)
    assert "x.png: the file must be another than one that is read" in result.stderr
    first, second = sorted({"--plot", "--html", "--csv"} - {option}, reverse=True)
    result = invoke(report, first, tmp_path / "y.png", second, tmp_path / "y.png")
    assert f"y.png: the file must be another than that of {first}" in result.stderr
    assert not (tmp_path / "y.png").exists()
    np.savez(tmp_path / "x.npz", **draw(50))
    report.rename(tmp_path / "x.npz.json")
    if option != "--plot":
        result = invoke(tmp_path, option, tmp_path / "x.npz")
        assert "x.npz: the file must be another than one that is read" in result.stderr


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize(("option", "name"), [("--plot", "curve.png"), ("--resume", "state")])
def test_the_report_comes_before_what_cannot_be_written_after_all(tmp_path, monkeypatch, option, name):
    monkeypatch.chdir(tmp_path)
    for key, array in draw(50).items():
        np.save(f"{key}.npy", array)
    result = invoke("mean.npy", option, name, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["num_samples"] == 50
    assert f"lineavae: {name} cannot be written: " in result.stderr
    assert "Traceback" not in result.stderr


def test_numbers_are_whole_in_a_narrow_terminal(tmp_path, monkeypatch):
    save(tmp_path / "posterior", num_shards=1)
    wide = invoke(tmp_path / "posterior").stdout
    monkeypatch.setenv("COLUMNS", "50")
    narrow = invoke(tmp_path / "posterior").stdout
    assert re.findall(r"[\d.]+", narrow) == re.findall(r"[\d.]+", wide)


def test_transposed_arrays_are_remarked_on(tmp_path):
    np.savez(tmp_path / "x.npz", mean=np.zeros((2, 30)), std=np.ones((2, 30)))
    result = invoke(tmp_path / "x.npz")
    assert result.exit_code == 0
    assert result.stderr.startswith("lineavae: there are more latents, 30, than samples, 2")


def test_any_terminal_and_any_name(tmp_path):
    """Letters that latin-1 lacks, in a shard whose name is not UTF-8."""
    path, plot = (tmp_path / os.fsdecode(b"\xff[b]:cat:" + suffix) for suffix in (b".npz", b".png"))
    with path.open("wb") as file:
        np.savez(file, mean=np.zeros((3, 2)), std=np.ones((3, 2)))
    arguments = [path, "--resume", tmp_path / "state", "--plot", plot]
    process = subprocess.run(
        [sys.executable, "-m", "lineavae", "collapse", *arguments],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )
    assert process.returncode == 0, process.stderr
    assert b"critical ?" in process.stdout
    assert process.stdout.splitlines()[-1].rstrip().endswith(b"?[b]:cat:.png")
    assert plot.exists()


def start(*arguments, launcher=(), **keywords):
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "lineavae", "collapse", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **keywords,
    )


def torchrun(num_processes):
    return ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}")


@pytest.mark.slow
def test_torchrun(tmp_path):
    """A result by one of two processes resumed by the other, more processes than shards, and two models."""
    posterior, state = tmp_path / "posterior", tmp_path / "state"
    save(posterior)
    expected = report_of(posterior)
    for num_processes in (2, 4):
        if num_processes == 4:
            next(state.iterdir()).unlink()
        process = start(posterior, "--json", "--resume", state, launcher=torchrun(num_processes))
        stdout, stderr = process.communicate()
        assert process.returncode == 0, stderr
        assert json.loads(stdout) == expected
        assert stderr.count("1800 samples, 12 latents") == 1
    (tmp_path / "saved.json").write_text(stdout)
    models = (tmp_path / "saved.json", posterior, "--compare", "--json")
    stdout, stderr = start(*models, launcher=torchrun(2)).communicate()
    assert json.loads(stdout) == report_of(*models[:3]), stderr


def add_other_model(folder):
    np.savez(folder / "other.npz", mean=np.zeros((3, 2)), std=np.ones((3, 2)))


def add_damaged(folder):
    """A fourth file, which is thus the second of the second process; seen only by reading it."""
    np.savez(folder / "z.npz", **draw())
    content = bytearray((folder / "z.npz").read_bytes())
    content[len(content) // 3] ^= 0xFF
    (folder / "z.npz").write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "message"), [(add_other_model, "latents where"), (add_damaged, "z.npz is damaged")]
)
def test_torchrun_says_an_error_once(tmp_path, spoil, message):
    save(tmp_path / "posterior")
    spoil(tmp_path / "posterior")
    process = start(tmp_path / "posterior", "--json", launcher=torchrun(2))
    stdout, stderr = process.communicate()
    assert process.returncode != 0
    assert stdout == ""
    assert stderr.count(message) == 1
    assert "PosteriorFileError" not in stderr


def results_in(folder):
    """Finished results and when they were written; hidden files are being written."""
    if not folder.exists():
        return {}
    return {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if not p.name.startswith(".")}


@pytest.mark.slow
def test_killed_at_five_moments(tmp_path):
    """No shard is counted twice and none is missed: the report is that of an uninterrupted run."""
    num_shards, chance = 64, random.Random(0)
    posterior, state = tmp_path / "posterior", tmp_path / "state"
    save(posterior, num_shards, num_samples=2000)
    expected = report_of(posterior)
    found = {}
    for _ in range(5):
        goal = len(found) + chance.randrange(3, 9)
        with start(posterior, "--resume", state) as process:
            while len(results_in(state)) < goal and process.poll() is None:
                time.sleep(1e-4)
            time.sleep(chance.uniform(0, 0.01))
            process.kill()
        assert process.returncode == -signal.SIGKILL, process.stderr.read()
        before, found = found, results_in(state)
        assert before.items() <= found.items()
    assert 10 < len(found) < num_shards
    with start(posterior, "--resume", state, "--json") as process:
        stdout, stderr = process.communicate()
    assert f"{len(found)} of {num_shards} files were finished earlier" in stderr
    assert json.loads(stdout) == expected
    assert found.items() <= results_in(state).items()
    assert len(results_in(state)) == num_shards


@pytest.mark.slow
def test_ctrl_c_exits_with_130(tmp_path):
    posterior, state = tmp_path / "posterior", tmp_path / "state"
    save(posterior, 64, num_samples=20_000)
    # a process started in the background ignores the signal, and so would its children
    with start(
        posterior, "--resume", state, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    ) as process:
        while not results_in(state):
            assert process.poll() is None, process.stderr.read()
            time.sleep(1e-3)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "the same command continues after the finished files" in stderr
    assert "Traceback" not in stderr
    assert len(results_in(state)) < 64
