import io
import json
import re
import shutil
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from made_up import COLUMNS, NUM_ROWS, SCRIPT, collapse_report
from typer.testing import CliRunner

from lineavae import report
from lineavae.cli import app
from lineavae.collapse import compare
from lineavae.experiments import EXPERIMENTS
from lineavae.report import collapses, runs
from lineavae.report.numbers import write
from lineavae.report.pictures import png


def invoke(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] not in ("style", "script"):
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def found(paths):
    return report.read(paths)


@pytest.fixture(scope="module")
def html(found):
    return report.to_html(found)


def test_the_summary_counts_what_is_in_the_runs(found):
    assert found.verdicts == {"holds": 1, "does not hold": 1, "not tested": 1}
    # each row: ELBO and tuned ELBO within, the percentage in error, the KL without a tolerance
    assert found.outcomes == {
        "within": 1 + 2 * NUM_ROWS,
        "outside": 1,
        "in error": NUM_ROWS,
        "no tolerance": NUM_ROWS,
    }
    assert found.runs[1].outcomes == {}
    assert found.problems == []


def test_text_of_runs_stays_text(html):
    page = Page(html)
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert "taken over" not in html.replace(
        "&lt;script&gt;document.title = &#34;taken over&#34;&lt;/script&gt;", ""
    )
    # as name of data, as quantity and its unit, in a caption, as claim, source and evidence
    assert page.text.count(SCRIPT) >= 7
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_the_page_needs_nothing_else(html):
    page = Page(html)
    policy = next(tag["content"] for tag in page.all("meta") if "http-equiv" in tag)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    for _, attributes in page.tags:
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith(("#", "data:,"))


def test_links_lead_somewhere_and_names_are_unique(html):
    tags = Page(html).tags
    names = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(names) == len(set(names))
    for _, attributes in tags:
        for link in (attributes.get("href", ""), "#" + attributes.get("aria-labelledby", "")):
            assert link in ("", "#", "data:,") or link[1:] in names


def test_tables_and_figures_say_what_they_are(html):
    page = Page(html)
    assert len(page.all("caption")) == len(page.all("table")) == 5
    assert all(tag["scope"] in ("row", "col") for tag in page.all("th"))
    assert len(page.all("img")) == len(page.all("figcaption")) == 4
    assert all(tag["alt"] for tag in page.all("img"))
    assert "The numbers, one after another." in page.text  # from the docstring of what draws it
    assert "is 100 % where the KL is 0 | so * it" in page.text


def test_the_same_runs_give_the_same_page(paths, html):
    assert report.to_html(report.read(paths)) == html


def test_markdown_says_the_same(found, paths, tmp_path):
    markdown = report.to_markdown(found, paths[0].parent)
    assert f"Claims of the paper: 1 holds, 1 does not hold, 1 not tested. {1 + 2 * NUM_ROWS} of" in markdown
    assert "![Figure 5 as drawn from this run, MNIST-5k, N=10](deep/figure-5.png)" in markdown
    assert "| −1482.3 ± 6.1<br>−1450.3 ± 4.2<br>−7.6 × ±, within |" in markdown
    assert "is 100 % where the KL is 0 \\| so \\* it" in markdown
    assert "<script" not in markdown.replace("\\<script", "")
    rows = [line for line in markdown.splitlines() if line.startswith("| fixed")]
    assert len(rows) == NUM_ROWS
    assert all(row.replace("\\|", "").count("|") == len(COLUMNS) + 2 for row in rows)
    assert "](../" in report.to_markdown(found, tmp_path)


def test_what_is_missing_is_an_error_in_words(tmp_path, paths):
    (tmp_path / "empty").mkdir()
    for path, words in (
        (tmp_path / "nowhere", "nowhere does not exist"),
        (tmp_path / "empty", "empty holds no run"),
        (paths[0].parent, f"holds no run; name {paths[0]} {paths[1]}"),
    ):
        result = invoke(paths[1], path, "--out", tmp_path / "x.html")
        assert result.exit_code == 2
        assert words in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert not (tmp_path / "x.html").exists()


def copy(run, folder):
    return shutil.copytree(run, folder / run.name)


def damage(name, content):
    def change(run):
        (run / name).write_bytes(content)

    return change


@pytest.mark.parametrize(
    ("change", "words", "is_shown"),
    [
        (lambda run: (run / "results.json").unlink(), "unfinished run", False),
        (damage("results.json", b"{"), "results.json is damaged", False),
        (damage("curves.npz", b"PK"), "curves.npz is damaged", False),
        (damage("environment.json", b"[]]"), "environment.json is damaged", False),
        (lambda run: (run / "figure-5.png").unlink(), "has no figure-5.png", True),
        (damage("figure-5.png", b"\x89PNG"), "figure-5.png cannot be read: it is no PNG", True),
        (damage("figure-5.svg", b"<svg>"), "figure-5.svg is damaged", True),
    ],
)
def test_a_damaged_run_is_named_and_the_others_are_shown(tmp_path, paths, change, words, is_shown):
    run = copy(paths[0], tmp_path)
    change(run)
    out = tmp_path / "page.html"
    result = invoke(run, paths[1], "--out", out)
    assert result.exit_code == 1
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    page = Page(out.read_text())
    assert words in page.text
    assert ("Table 2: deep" in page.text) == is_shown
    assert "Table 2: plain" in page.text


def test_nothing_but_damaged_runs_give_no_page(tmp_path, paths):
    run = copy(paths[0], tmp_path)
    (run / "results.json").unlink()
    result = invoke(run, "--out", tmp_path / "x.html")
    assert result.exit_code == 1
    assert "unfinished run" in result.stderr.splitlines()[0]
    assert "there is nothing else to report" in result.stderr.splitlines()[1]
    assert not (tmp_path / "x.html").exists()


def test_a_run_of_an_unknown_experiment(tmp_path, paths, monkeypatch):
    monkeypatch.delitem(EXPERIMENTS.data, "deep")
    result = invoke(paths[0], paths[1], "--out", tmp_path / "x.html")
    assert result.exit_code == 1
    assert "holds a run of 'deep', which this lineavae does not know" in result.stderr


def test_the_command_writes_both_files(tmp_path, paths, html):
    out, markdown = tmp_path / "page.html", tmp_path / "page.md"
    result = invoke(*paths, "--out", out, "--markdown", markdown)
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [str(out), str(markdown)]
    assert out.read_text() == html
    assert markdown.read_text().startswith("# Published and measured")


def test_files_that_cannot_be_written_are_said_before_the_work(paths):
    result = invoke(paths[0], "--out", "/proc/page.html")
    assert result.exit_code == 2
    assert "--out: /proc/page.html cannot be written" in result.stderr


def test_a_page_is_written_over_no_file_that_is_read_or_written(tmp_path):
    report = tmp_path / "collapse.json"
    report.write_text("{}")
    result = invoke(report, "--out", report)
    assert result.exit_code == 2
    assert "collapse.json: the file must be another than one that is read" in result.stderr
    assert report.read_text() == "{}"
    result = invoke(report, "--out", tmp_path / "x", "--markdown", tmp_path / "x")
    assert "--markdown" in result.stderr
    assert "x: the file must be another than that of --out" in result.stderr
    assert not (tmp_path / "x").exists()


def test_a_missing_library_is_named(tmp_path, paths, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    result = invoke(paths[1], "--out", tmp_path / "x.html")
    assert result.exit_code == 1
    assert "pip install 'lineavae[experiments]'" in result.stderr


def test_svg_comes_before_png(tmp_path, paths):
    run = copy(paths[0], tmp_path)
    (run / "figure-5.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="144pt" height="72pt"/>')
    (figure,) = report.read([run]).runs[0].figures
    assert figure.picture.uri.startswith("data:image/svg+xml;base64,")
    assert figure.picture[1:] == (240, 120)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, ["--preset", "quick"]),
        ({"num_images": 1000}, ["--preset", "full"]),
        (
            {"seed": 4, "data": "/my data"},
            ["--preset", "quick", "--data", "'/my data'", "--seed", "4"],
        ),
        ({"num_images": 20}, ["--preset", "quick", "--set", "num_images=20"]),
        ({"seeds": [0, 1], "dims": [5, 2.5]}, ["--preset", "quick", "--seeds", "0,1", "--set", "dims=5,2.5"]),
    ],
)
def test_the_command_that_runs_a_configuration_again(paths, changes, options):
    config = {"num_images": 10, "data": None, "seed": 0, "device": "cpu", **changes}
    assert runs._command(EXPERIMENTS["deep"], config) == " ".join(["lineavae reproduce deep", *options])


def test_settings_and_environment_are_told(found):
    run = found.runs[0]
    assert run.command == "lineavae reproduce deep --preset quick --seed 3"
    assert ("num images", "10") in run.settings
    facts = dict(run.environment)
    assert facts["data: name"] == "MNIST-5k"
    assert len(facts["data: sha256"]) == 64
    assert {"lineavae", "python", "torch", "numpy", "threads", "devices"} <= facts.keys()


def test_a_collapse_report_says_what_is_printed(found):
    (collapse,) = found.collapses
    printed = str(collapse_report()).splitlines()
    for text in (*collapse.warnings, collapse.size, *(f"{label}  {fact}" for label, fact in collapse.facts)):
        words = text.replace("namely ", "").split()
        assert any(line.split() == words for line in printed), text
    rows = [re.split(r"  +", line.strip()) for line in printed[-6:]]
    for row, expected in zip(collapse.rows, rows, strict=True):
        assert [row.name.text, *row.answers] == [expected[0], *expected[3:]]
        for number, text in zip(row.numbers, expected[1:3], strict=True):
            assert number.text == " to ".join(write(float(end), ".3g") for end in text.split(" to "))


def test_figures_are_those_of_the_report(found):
    (collapse,) = found.collapses
    for figure, plot in zip(
        collapse.figures, (collapse_report().plot_curve, collapse_report().plot_spectrum), strict=True
    ):
        file = io.BytesIO()
        plot().savefig(file, format="png")
        assert figure.picture == png(file.getvalue())


def test_of_very_many_latents_some_are_shown(paths, monkeypatch):
    monkeypatch.setattr(collapses, "_MOST_LATENTS", 3)
    collapse = collapses.read_collapse(paths[2])
    assert len(collapse.rows) == 3
    assert "; 3 between the smallest and the largest are left out." in collapse.caption


def test_models_are_compared(tmp_path, paths):
    comparison = compare({SCRIPT: collapse_report().report, "same": collapse_report().report})
    (tmp_path / "models.json").write_text(json.dumps(comparison.to_dict()))
    out, markdown = tmp_path / "page.html", tmp_path / "page.md"
    result = invoke(tmp_path / "models.json", paths[2], "--out", out, "--markdown", markdown)
    assert result.exit_code == 0, result.output
    page = Page(out.read_text())
    assert len(page.all("script")) == 1
    assert len(page.all("img")) == 2 + 2
    assert f"{SCRIPT} to same" in page.text
    assert "none died or woke" in page.text
    collapse = collapses.read_collapse(tmp_path / "models.json")
    assert collapse.size == "2 models, 6 latents, N = 500"
    assert collapse.headings == (["collapsed", "undecided", "live", "active", "mean KL"], [])
    at = collapse_report()
    assert [number.text for number in collapse.rows[1].numbers] == [
        str(at.verdict.collapsed.sum()),
        str((~at.verdict.decided).sum()),
        str(at.live_latents().sum()),
        str(at.report.num_active()),
        "NaN",
    ]
    assert "| same | 1 | 1 | 1 | 4 | NaN |" in markdown.read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"latents": {}}, "is damaged (KeyError"),
        ({"latent_dim": 7}, "is damaged (ValueError"),
        ({"epsilon": None}, "is damaged (TypeError"),
        ({"delta": 2.0}, "delta must be >= 0 and < 1, got 2.0"),
        ({"schema": 0}, "must be a lineavae.collapse-report or lineavae.collapse-comparison of schema 1"),
    ],
)
def test_other_json_is_named(tmp_path, paths, change, words):
    path = tmp_path / "other.json"
    path.write_text(json.dumps({**json.loads(paths[2].read_text()), **change}))
    result = invoke(path, paths[1], "--out", tmp_path / "x.html")
    assert result.exit_code == 1
    assert f"lineavae: {path} " in result.stderr
    assert words in result.stderr


def test_what_the_command_collapse_prints_is_read(tmp_path):
    np.savez(tmp_path / "posterior.npz", mean=np.eye(8), logvar=np.zeros((8, 8)))
    printed = CliRunner().invoke(app, ["collapse", str(tmp_path / "posterior.npz"), "--json"]).stdout
    (tmp_path / "collapse.json").write_text(printed)
    result = invoke(tmp_path / "collapse.json", "--out", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    text = Page((tmp_path / "page.html").read_text()).text
    assert "posterior.npz (8)" in text
    assert "8 samples, 8 latents" in text
