import json
import os
import re
import signal
import struct
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from typer.main import get_command
from typer.testing import CliRunner

import lineavae
from lineavae import _ext
from lineavae.cli import app
from lineavae.experiments import EXPERIMENTS, Config, Experiment
from lineavae.experiments.runs import quantity


@dataclass(frozen=True, kw_only=True)
class CountConfig(Config):
    num_images: int = 10
    limit: int = 3


def count(config, run_dir):
    return {
        "data": config.images.name,
        "config": {"num_images": config.num_images},
        "quantities": {
            "limit": quantity(config.limit, "images", published=3.5, tolerance=1.0),
            "seed": quantity(config.seed, "1"),
        },
        "curves": {"numbers": np.arange(config.limit)},
        "tables": {},
        "claims": [],
    }


def make(run=count, plot=lambda results: Figure()):
    presets = {"quick": CountConfig(), "full": CountConfig(limit=30)}
    return Experiment(
        "count",
        "Figure 0: counting",
        presets,
        run,
        {"figure-0": plot},
        "as in the paper",
        shows=("figure-0",),
    )


@pytest.fixture(autouse=True)
def counting(monkeypatch):
    """An experiment that takes no time."""
    monkeypatch.setitem(EXPERIMENTS, "count", make())
    monkeypatch.delenv("LINEAVAE_DATA", raising=False)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run_process(*arguments, **keywords):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, **keywords
    )


def test_version():
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.stdout == f"lineavae {lineavae.__version__}\n"


def test_help_names_the_commands_and_an_example():
    for command in COMMANDS:
        assert command in invoke("--help").stdout
    text = " ".join(invoke("reproduce", "--help").stdout.split())
    assert "Example: lineavae reproduce analytic-vs-stochastic --preset quick" in text
    assert "LINEAVAE_DATA" in text


def test_module_is_the_command():
    process = run_process("-m", "lineavae", "--version")
    assert process.returncode == 0
    assert process.stdout == f"lineavae {lineavae.__version__}\n"


def test_diagnose():
    result = invoke("diagnose")
    assert result.exit_code == 0
    assert result.stdout == f"{lineavae.diagnose()}\n"


def test_diagnose_json():
    result = invoke("diagnose", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == lineavae.diagnose().to_dict()


def test_diagnose_with_a_broken_native_module(monkeypatch):
    def load():
        raise ImportError("no _C")

    monkeypatch.setattr(_ext, "load", load)
    result = invoke("diagnose")
    assert result.exit_code == 1
    assert "native module could not be loaded: no _C" in result.stdout
    assert json.loads(invoke("diagnose", "--json").stdout)["native_error"] == "no _C"


BREAK_NATIVE = "import sys; sys.modules['lineavae._C'] = None; from lineavae.cli import main; main()"


def test_only_reproduce_needs_the_native_module(tmp_path):
    process = run_process("-c", BREAK_NATIVE, "diagnose")
    assert process.returncode == 1
    assert "native module could not be loaded" in process.stdout
    process = run_process("-c", BREAK_NATIVE, "reproduce", "stationary-points", "--out", str(tmp_path))
    assert process.returncode == 1
    assert process.stderr.startswith("lineavae: lineavae's native module could not be loaded")
    assert "Traceback" not in process.stderr


COMMANDS = ("diagnose", "collapse", "forecast", "sweep", "reproduce", "report")


def modules_of(*arguments, **environment):
    """What the command prints, and the modules that it loads."""
    code = f"""
import atexit, sys
atexit.register(lambda: print("loaded", *sys.modules))
sys.argv = ["lineavae", *{[str(argument) for argument in arguments]}]
from lineavae.cli import main
main()
"""
    printed, _, loaded = run_process("-c", code, env=os.environ | environment).stdout.rpartition("loaded")
    return printed, loaded.split()


@pytest.mark.parametrize(
    "options",
    ["--help", "--version", "no-such-command", "reproduce --list", *(f"{name} -h" for name in COMMANDS)],
)
def test_what_computes_nothing_imports_nothing_heavy(options):
    _, loaded = modules_of(*options.split())
    assert "lineavae.cli" in loaded
    commands = [] if " " in options else ["lineavae.commands"]
    for package in ("torch", "numpy", "scipy", "pandas", "matplotlib", "jinja2", "lineavae.ops", *commands):
        assert package not in loaded


def test_a_shell_completes_options_without_torch():
    words = {"COMP_WORDS": "lineavae collapse --ep", "COMP_CWORD": "2"}
    printed, loaded = modules_of(_LINEAVAE_COMPLETE="complete_bash", **words)
    assert printed.split() == ["--epsilon"]
    assert "torch" not in loaded


def test_collapse_imports_neither_metrics_nor_compilers(tmp_path):
    np.savez(tmp_path / "posterior.npz", mean=np.ones((9, 2)), std=np.ones((9, 2)))
    printed, loaded = modules_of("collapse", tmp_path / "posterior.npz")
    assert "9 samples, 2 latents" in printed
    for package in ("torchmetrics", "torch._dynamo", "sympy", "sklearn", "pandas", "matplotlib", "lightning"):
        assert package not in loaded


@pytest.mark.parametrize("columns", ["50", "120"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_whole_names_and_no_type_of_flags(command, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    text = invoke(command, "-h").stdout
    assert text == invoke(command, "--help").stdout
    for parameter in get_command(app).commands[command]._load().params:
        assert parameter.param_type_name == "argument" or f" {max(parameter.opts, key=len)} " in text
    assert not re.search(r"bool|…|\[/?bold\]", text, re.I)


def test_list():
    result = invoke("reproduce", "--list")
    assert result.exit_code == 0
    for name in ("latent-dimensions", "analytic-vs-stochastic", "count"):
        assert name in result.stdout
    listed = json.loads(invoke("reproduce", "--list", "--json").stdout)["experiments"]
    assert listed[-1] == {
        "name": "count",
        "title": "Figure 0: counting",
        "shows": ["figure-0"],
        "presets": {
            preset: {"seconds": None, "needs_gpu": False, "state": None, "seeds": {}}
            for preset in ("quick", "full")
        },
    }


def test_reproduce_reports_and_leaves_its_files(tmp_path):
    result = invoke("reproduce", "count", "--out", tmp_path, "--seed", 7)
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["limit", "3", "3.5", "images"] in rows
    assert ["seed", "7", "1"] in rows
    figure = tmp_path / "count-quick" / "figure-0.png"
    assert rows[-1] == [str(figure)]
    assert figure.exists()
    config = json.loads((tmp_path / "count-quick" / "config.json").read_text())
    assert config == {
        "num_images": 10,
        "data": None,
        "image_size": None,
        "seed": 7,
        "device": "cpu",
        "limit": 3,
    }


def test_reproduce_full(tmp_path):
    assert invoke("reproduce", "count", "--preset", "full", "--out", tmp_path).exit_code == 0
    assert json.loads((tmp_path / "count-full" / "config.json").read_text())["limit"] == 30


def test_settings_seeds_and_formats(tmp_path):
    arguments = ["reproduce", "figure-0", "--out", tmp_path, "--set", "limit=5", "--format", "svg", "--json"]
    (run,) = json.loads(invoke(*arguments, "--seeds", "0,4").stdout)["runs"]
    directory = tmp_path / "count-quick-seeds"
    assert run["directory"] == str(directory)
    assert run["quantities"]["limit"]["measured"] == 5
    assert run["quantities"]["seed"]["measured"] == 2
    assert run["quantities"]["seed"]["spread"] == pytest.approx(8**0.5)
    assert run["figures"] == {"figure-0": [str(directory / "figure-0.svg")]}
    assert not (directory / "figure-0.png").exists()
    assert "2 ± 2.8" in invoke(*arguments[:-1], "--seeds", "0,4").stdout
    (directory / "seed-0" / "results.json").unlink()
    result = invoke("reproduce", "--list", "--out", tmp_path)
    assert "seed 4 finished, seed 0 unfinished" in " ".join(result.stdout.split())


@dataclass(frozen=True, kw_only=True)
class TogetherConfig(CountConfig):
    seeds: tuple[int, ...] = (0, 1)


def test_seeds_of_an_experiment_that_trains_them_together(tmp_path, monkeypatch):
    experiment = replace(make(), presets={"quick": TogetherConfig()})
    monkeypatch.setitem(EXPERIMENTS, "count", experiment)
    result = invoke("reproduce", "count", "--out", tmp_path, "--seeds", "0:3", "--seed", "7")
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "count-quick" / "config.json").read_text())
    assert (config["seeds"], config["seed"]) == ([0, 1, 2], 7)


def test_settings_that_an_experiment_refuses_are_said(tmp_path, monkeypatch):
    def run(config, run_dir):
        raise ValueError(f"limit must be positive, got {config.limit}")

    monkeypatch.setitem(EXPERIMENTS, "count", make(run=run))
    result = invoke("reproduce", "count", "--out", tmp_path, "--set", "limit=0")
    assert result.exit_code == 2
    assert "these settings or data do not fit the experiment: limit must be positive, got 0" in result.stderr


def test_data_that_an_experiment_refuses_are_said(tmp_path):
    random = np.random.default_rng(0)
    np.save(tmp_path / "flat.npy", random.standard_normal((1000, 3)) @ random.standard_normal((3, 300)))
    result = invoke("reproduce", "analytic-vs-stochastic", "--data", tmp_path / "flat.npy", "--out", tmp_path)
    assert result.exit_code == 2, result.output
    assert "these settings or data do not fit the experiment: " in result.stderr


def test_reproduce_json_alone_on_stdout(tmp_path):
    result = invoke("reproduce", "count", "--out", tmp_path, "--json")
    assert result.exit_code == 0
    (run,) = json.loads(result.stdout)["runs"]
    assert run["name"] == "count"
    assert run["preset"] == "quick"
    assert run["skipped"] is False
    assert run["quantities"]["limit"] == quantity(3.0, "images", published=3.5, tolerance=1.0)
    assert run["figures"]["figure-0"] == [str(tmp_path / "count-quick" / "figure-0.png")]
    assert "Figure 0" in result.stderr


def test_reproduce_several_in_order(tmp_path, monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "again", make())
    result = invoke("reproduce", "again", "count", "--out", tmp_path, "--json")
    assert [run["name"] for run in json.loads(result.stdout)["runs"]] == ["again", "count"]
    assert (tmp_path / "again-quick" / "results.json").exists()
    assert (tmp_path / "count-quick" / "results.json").exists()


def test_a_finished_run_is_skipped_and_said(tmp_path):
    assert "not run again" not in invoke("reproduce", "count", "--out", tmp_path).output
    result = invoke("reproduce", "count", "--out", tmp_path)
    assert result.exit_code == 0
    assert "finished earlier, not run again" in result.stdout
    (run,) = json.loads(invoke("reproduce", "count", "--out", tmp_path, "--json").stdout)["runs"]
    assert run["skipped"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name an experiment"),
        (["nothing"], "no experiment 'nothing', only stationary-points, latent-dimensions"),
        (["figure-14"], "no experiment 'figure-14'"),
        (["count", "--device", "tpu9"], "--device tpu9"),
        (
            ["count", "--set", "size=3"],
            "no setting 'size', only num_images, data, image_size, seed, device",
        ),
        (["count", "--set", "limit=x"], "limit must be a whole number, got 'x'"),
        (["count", "--seeds", "3:1"], "seeds must be different whole numbers"),
        (["count", "--seeds", "0:2", "--seed", "1"], "give either --seed or --seeds"),
        (["count", "--data", "nowhere"], "nowhere does not exist"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path, arguments, message):
    result = invoke("reproduce", "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["--preset", "slow"], ["--seed", "-1"], ["--colour"]])
def test_wrong_usage_exits_with_2(arguments):
    assert invoke("reproduce", "count", *arguments).exit_code == 2


def test_data_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("LINEAVAE_DATA", str(tmp_path / "nowhere"))
    result = invoke("reproduce", "count", "--out", tmp_path)
    assert result.exit_code == 2
    assert f"{tmp_path / 'nowhere'} does not exist" in result.stderr


def test_another_configuration_exits_with_2(tmp_path):
    invoke("reproduce", "count", "--out", tmp_path)
    result = invoke("reproduce", "count", "--out", tmp_path, "--seed", 1)
    assert result.exit_code == 2
    assert "seed 0 instead of 1" in result.stderr


def test_interrupted_then_resumed(tmp_path, monkeypatch):
    def interrupted(config, run_dir):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(EXPERIMENTS, "count", make(run=interrupted))
        result = invoke("reproduce", "count", "--out", tmp_path)
    assert result.exit_code == 130
    assert "--resume continues" in result.stderr
    result = invoke("reproduce", "count", "--out", tmp_path)
    assert result.exit_code == 2
    assert "pass --resume" in result.stderr
    assert invoke("reproduce", "count", "--out", tmp_path, "--resume").exit_code == 0


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = invoke("reproduce", "count", "--out", tmp_path)
    assert result.exit_code == 1
    assert "pip install 'lineavae[experiments]'" in result.stderr
    assert not (tmp_path / "count-quick").exists()


def test_a_finished_run_of_which_a_file_is_damaged(tmp_path):
    invoke("reproduce", "count", "--out", tmp_path)
    (tmp_path / "count-quick" / "curves.npz").unlink()
    result = invoke("reproduce", "count", "--out", tmp_path, "--json")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "results.json, and the same run with --resume makes it anew" in result.stderr


@pytest.mark.usefixtures("full_disk")
def test_the_report_comes_before_what_cannot_be_written_after_all(tmp_path, monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "count", make(plot=lambda results: Figure(figsize=(20, 20))))
    result = invoke("reproduce", "count", "--out", tmp_path, "--json")
    assert result.exit_code == 1
    (run,) = json.loads(result.stdout)["runs"]
    assert run["quantities"]["limit"]["measured"] == 3
    assert run["figures"] == {"figure-0": []}
    assert f"lineavae: {tmp_path / 'count-quick'} cannot be written: File too large" in result.stderr


def test_other_images_are_called_by_their_folder(tmp_path):
    """The report has neither the paper's values nor its line, and a name is no markup."""
    folder = tmp_path / "[b]fashion:cat:"
    folder.mkdir()
    (folder / "train-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x0803, 12, 28, 28) + bytes(12 * 784))
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x0801, 12) + bytes(12))
    result = invoke("reproduce", "count", "--out", tmp_path / "out", "--data", folder)
    assert result.exit_code == 0, result.output
    assert "([b]fashion:cat:, N=10)" in result.stdout
    assert "3.5" not in result.stdout
    assert "as in the paper" not in result.stdout
    result = invoke("reproduce", "count", "--out", tmp_path / "mnist")
    assert "3.5" in result.stdout
    assert "as in the paper" in result.stdout


@pytest.mark.parametrize("arguments", [["--version"], ["diagnose", "--json"]])
def test_output_on_a_full_disk(arguments):
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "lineavae", *arguments], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert process.returncode == 1
    assert process.stderr == "lineavae: the output cannot be written: No space left on device\n"


SLOW_TO_LOAD = """
import time
try:
    print("loading", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    raise ImportError("half loaded")
"""


def test_an_interrupted_command_waits_for_no_thread():
    """Python before 3.13 lets one run on where Ctrl-C came in its join, and torch may abort then."""
    code = """
import atexit, sys, threading
from lineavae import cli

def app():
    threading.Thread(target=threading.Event().wait).start()
    atexit.register(print, "at exit")
    sys.exit(130)

cli.app = app
cli.main()
"""
    result = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (130, "at exit\n")


@pytest.mark.parametrize("module", ["typer", "torch"])
def test_ctrl_c_while_modules_load(tmp_path, module):
    (tmp_path / f"{module}.py").write_text(SLOW_TO_LOAD)
    with subprocess.Popen(
        [sys.executable, "-m", "lineavae", "diagnose"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    assert process.returncode == 130
    assert stderr == ""


FAIL = """
from lineavae import cli
from lineavae.experiments import EXPERIMENTS, Config, Experiment

def run(config, run_dir):
    return 1 / 0

EXPERIMENTS["fails"] = Experiment("fails", "Figure 0", {"quick": Config(num_images=10)}, run, {})
cli.main()
"""


def test_a_failed_run_shows_its_traceback_and_exits_with_1(tmp_path):
    process = run_process("-c", FAIL, "reproduce", "fails", "--out", tmp_path)
    assert process.returncode == 1
    assert "Traceback" in process.stderr
    assert "ZeroDivisionError" in process.stderr


def test_ctrl_c_exits_with_130(tmp_path):
    arguments = ["-m", "lineavae", "reproduce", "analytic-vs-stochastic", "--out", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # a process started in the background ignores the signal, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        while "analytic training" not in (line := process.stderr.readline()):
            assert line, "ended before the training"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "the same command with --resume continues" in stderr
    assert "Traceback" not in stderr
