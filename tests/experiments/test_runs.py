import json
import struct
from dataclasses import dataclass, replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from lineavae.data import DataError, load_mnist5k
from lineavae.experiments import Config, Experiment, RunDirectoryError, RunWriteError, execute, load_results
from lineavae.experiments.runs import quantity

FILES = {"config.json", "environment.json", "curves", "curves.npz", "figure-0.png", "results.json"}


@dataclass(frozen=True, kw_only=True)
class SquaresConfig(Config):
    numbers: tuple[int, ...] = (1, 2, 3)


def squares(config, run_dir):
    """An experiment that leaves a checkpoint per number and continues from those it finds."""
    values = []
    for number in config.numbers:
        checkpoint = run_dir / f"{number}.txt"
        if not checkpoint.exists():
            checkpoint.write_text(str(number**2))
        values.append(float(checkpoint.read_text()))
    return {
        "data": config.images.name,
        "config": {"numbers": list(config.numbers)},
        "quantities": {"sum": quantity(sum(values), "1", published=14.0, tolerance=0.5)},
        "curves": {"squares": np.array(values)},
        "tables": {},
        "claims": [],
    }


def make(run=squares, plot=lambda results: Figure()):
    return Experiment("squares", "Figure 0", {"quick": SquaresConfig(num_images=10)}, run, {"figure-0": plot})


def never(config, run_dir):
    raise AssertionError("this run was to be skipped")


CONFIG = SquaresConfig(num_images=10)


def test_a_run_leaves_its_files(tmp_path):
    run = execute(make(), CONFIG, tmp_path / "run")
    assert {path.name for path in run.directory.iterdir()} == FILES | {"1.txt", "2.txt", "3.txt"}
    assert json.loads((run.directory / "config.json").read_text()) == {
        "num_images": 10,
        "data": None,
        "image_size": None,
        "seed": 0,
        "device": "cpu",
        "numbers": [1, 2, 3],
    }
    results = json.loads((run.directory / "results.json").read_text())
    assert results["schema"] == 3
    assert results["experiment"] == "squares"
    assert results["quantities"] == {"sum": quantity(14.0, "1", published=14.0, tolerance=0.5)}
    environment = json.loads((run.directory / "environment.json").read_text())
    assert environment["data"]["name"] == "MNIST-5k"
    assert environment["threads"] >= 1
    (figure,) = run.figures["figure-0"]
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert not run.skipped


def test_results_come_back_from_the_files(tmp_path):
    run = execute(make(), CONFIG, tmp_path)
    loaded = load_results(tmp_path)
    assert loaded["data"] == "MNIST-5k"
    assert loaded["config"] == {"numbers": [1, 2, 3]}
    assert loaded["quantities"] == run.results["quantities"]
    assert loaded["curves"].keys() == {"squares"}
    assert np.array_equal(loaded["curves"]["squares"], [1.0, 4.0, 9.0])


def test_a_finished_run_is_skipped(tmp_path):
    first = execute(make(), CONFIG, tmp_path)
    second = execute(make(run=never), CONFIG, tmp_path)
    assert second.skipped
    assert second.results["quantities"] == first.results["quantities"]


def test_another_configuration_is_refused(tmp_path):
    execute(make(), CONFIG, tmp_path)
    other = replace(CONFIG, numbers=(4,), seed=7)
    for resume in (False, True):
        with pytest.raises(RunDirectoryError, match=r"seed 0 instead of 7") as error:
            execute(make(run=never), other, tmp_path, resume=resume)
        assert "numbers [1, 2, 3] instead of [4]" in str(error.value)
        assert "another --out" in str(error.value)


def fail_after_two(config, run_dir):
    squares(replace(config, numbers=config.numbers[:2]), run_dir)
    raise KeyboardInterrupt


def test_an_unfinished_run_is_refused_without_resume(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        execute(make(run=fail_after_two), CONFIG, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "environment.json", "1.txt", "2.txt"}
    with pytest.raises(RunDirectoryError, match="unfinished run: pass --resume, or choose another --out"):
        execute(make(run=never), CONFIG, tmp_path)


def test_an_unfinished_run_is_resumed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        execute(make(run=fail_after_two), CONFIG, tmp_path)
    (tmp_path / "2.txt").write_text("40")  # shows that the checkpoint was used
    run = execute(make(), CONFIG, tmp_path, resume=True)
    assert np.array_equal(run.results["curves"]["squares"], [1.0, 40.0, 9.0])


def test_resume_without_a_run_begins_one(tmp_path):
    assert not execute(make(), CONFIG, tmp_path / "run", resume=True).skipped


def test_results_are_written_last(tmp_path):
    def plot(results):
        assert (tmp_path / "curves.npz").exists()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        execute(make(plot=plot), CONFIG, tmp_path)
    assert not (tmp_path / "results.json").exists()


def test_a_directory_of_other_files_is_refused(tmp_path):
    (tmp_path / "letter.txt").touch()
    with pytest.raises(RunDirectoryError, match="holds files but no run"):
        execute(make(run=never), CONFIG, tmp_path)


def test_a_temporary_file_left_by_a_kill_is_no_obstacle(tmp_path):
    (tmp_path / ".config-x7.json").touch()
    assert not execute(make(), CONFIG, tmp_path).skipped


def test_wrong_data_leave_nothing_behind(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        execute(make(run=never), replace(CONFIG, data=str(tmp_path / "nowhere")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_quantity_that_is_no_number_is_no_result(tmp_path):
    def run(config, run_dir):
        results = squares(config, run_dir)
        results["quantities"]["sum"]["measured"] = float("nan")
        return results

    with pytest.raises(ValueError, match="Out of range float values"):
        execute(make(run=run), CONFIG, tmp_path)
    assert not (tmp_path / "results.json").exists()


def test_results_of_another_schema_are_refused(tmp_path):
    execute(make(), CONFIG, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps({**results, "schema": 1}))
    with pytest.raises(RunDirectoryError, match=r"schema 1 .* reads 3: delete .*results\.json"):
        load_results(tmp_path)


def test_curves_are_never_unpickled(tmp_path):
    execute(make(), CONFIG, tmp_path)
    np.savez(tmp_path / "curves.npz", squares=np.array([print], dtype=object))
    with pytest.raises(ValueError, match="holds pickled Python objects"):
        load_results(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.json", None),
        ("results.json", b"{"),
        ("results.json", b'{"schema": 3}'),
        ("curves.npz", None),
        ("curves.npz", b"PK"),
    ],
)
def test_a_damaged_result_says_what_to_delete(tmp_path, name, content):
    run = execute(make(), CONFIG, tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    if (tmp_path / "results.json").exists():
        with pytest.raises(RunDirectoryError, match=rf"{name}.*delete .*results\.json, and .* --resume"):
            execute(make(run=never), CONFIG, tmp_path)
        (tmp_path / "results.json").unlink()
    assert execute(make(), CONFIG, tmp_path, resume=True).results["quantities"] == run.results["quantities"]


def test_a_missing_figure_is_drawn_again(tmp_path):
    run = execute(make(), CONFIG, tmp_path)
    (figure,) = run.figures["figure-0"]
    figure.unlink()
    (again,) = execute(make(run=never), CONFIG, tmp_path).figures["figure-0"]
    assert again.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("full_disk")
def test_results_that_cannot_be_written_are_not_lost(tmp_path):
    with pytest.raises(RunWriteError, match=r"File too large") as caught:
        execute(make(plot=lambda results: Figure(figsize=(20, 20))), CONFIG, tmp_path)
    assert caught.value.run.results["quantities"]["sum"]["measured"] == 14
    assert not (tmp_path / "results.json").exists()


def test_a_place_that_cannot_be_written_is_said_before_the_run(tmp_path):
    with pytest.raises(RunDirectoryError, match="/proc/run cannot be written"):
        execute(make(run=never), CONFIG, tmp_path.__class__("/proc/run"))


def test_published_values_are_those_of_mnist(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    folder = tmp_path / "fashion"
    folder.mkdir()
    (folder / "train-images-idx3-ubyte").write_bytes(
        struct.pack(">4I", 0x0803, *pixels.shape) + pixels.tobytes()
    )
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x0801, 20) + bytes(20))
    run = execute(make(), replace(CONFIG, data=str(folder)), tmp_path / "run")
    assert run.results["data"] == "fashion"
    assert run.results["quantities"]["sum"]["published"] is None
    assert run.results["quantities"]["sum"]["tolerance"] is None
    assert execute(make(), CONFIG, tmp_path / "mnist").results["quantities"]["sum"]["published"] == 14


def test_published_values_may_be_those_of_other_data(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class OfFaces(SquaresConfig):
        published_data = ("faces",)

    np.save(tmp_path / "faces.npy", np.zeros((20, 5, 4, 3), np.uint8))
    config = OfFaces(num_images=10, data=str(tmp_path / "faces.npy"))
    assert execute(make(), config, tmp_path / "run").results["quantities"]["sum"]["published"] == 14
    run = execute(make(), OfFaces(num_images=10), tmp_path / "mnist")
    assert run.results["quantities"]["sum"]["published"] is None


def test_a_run_says_what_was_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LINEAVAE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "[b]dots"
    folder.mkdir()
    for index in range(100):
        Image.new("L", (2, 2), index).save(folder / f"{index}.png")
    (folder / "letter.jpg").write_text("no image")
    run = execute(make(), replace(CONFIG, data=str(folder)), tmp_path / "run")
    remark = "left out: 1 of 101 images cannot be decoded: letter.jpg (neither JPEG nor PNG)"
    assert remark in " ".join(capsys.readouterr().err.split())
    data = json.loads((run.directory / "environment.json").read_text())["data"]
    assert data["name"] == run.results["data"] == "[b]dots"
    assert data["remarks"] == [remark]


def test_the_images_are_the_seeded_subset():
    images = replace(CONFIG, num_images=20, seed=3).images
    assert np.array_equal(images.images, load_mnist5k().subset(20, seed=3).images)


def test_too_few_images_are_an_input_error(tmp_path):
    with pytest.raises(DataError, match="5000 images, 6000 are needed"):
        execute(make(), replace(CONFIG, num_images=6000), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunDirectoryError, match=r"config\.json is damaged"):
        execute(make(), CONFIG, tmp_path)


def test_curves_come_as_csv_with_all_digits(tmp_path):
    def run(config, run_dir):
        results = squares(config, run_dir)
        results["curves"] |= {
            "steps": np.array([0, 10]),
            "elbo": np.random.default_rng(0).random((3, 2)),
            "best": np.array([0.1, 1 / 3]),
        }
        results["axes"] = {"steps": ["steps"], "best": ["steps"], "elbo": ["rate", "steps"]}
        return results

    folder = execute(make(run=run), CONFIG, tmp_path).directory / "curves"
    assert sorted(path.name for path in folder.iterdir()) == ["rate-steps.csv", "squares.csv", "steps.csv"]
    curves = load_results(tmp_path)["curves"]
    steps, rate = (
        np.genfromtxt(folder / f"{name}.csv", delimiter=",", names=True) for name in ("steps", "rate-steps")
    )
    assert steps.dtype.names == ("steps", "best")
    assert np.array_equal(steps["best"], curves["best"])
    assert np.array_equal(rate["elbo"].reshape(3, 2), curves["elbo"])
    assert rate["rate"].tolist() == [0, 0, 1, 1, 2, 2]
    assert rate["steps"].tolist() == [0, 10] * 3
    squared = np.genfromtxt(folder / "squares.csv", delimiter=",", skip_header=1)
    assert squared.tolist() == [[0, 1], [1, 4], [2, 9]]


def test_figures_in_several_formats(tmp_path):
    def plot(results):
        figure = Figure()
        figure.suptitle("finding")
        return figure

    execute(make(plot=plot), CONFIG, tmp_path)
    execute(make(run=never, plot=plot), CONFIG, tmp_path, formats=("pdf", "svg"))
    checksum = json.loads((tmp_path / "results.json").read_text())["checksum"]
    assert Image.open(tmp_path / "figure-0.png").text["Description"] == f"results {checksum}"
    pdf, svg = (tmp_path / "figure-0.pdf").read_bytes(), (tmp_path / "figure-0.svg").read_text()
    assert b"/FontFile2" in pdf  # TrueType
    assert ">finding</text>" in svg
    assert checksum in svg
    assert checksum.encode() in pdf
