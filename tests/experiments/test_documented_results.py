"""What the pages state and show is what the documented runs found: docs/update.py takes it from them."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lineavae.experiments import EXPERIMENTS
from lineavae.experiments.deep_vae import prepare
from lineavae.experiments.settings import change, parse_seeds
from lineavae.linear import Moments

ROOT = Path(__file__).parents[2]
DOCUMENTED = json.loads((ROOT / "docs" / "results.json").read_text(encoding="utf-8"))
PAGES = {
    name: " ".join((ROOT / name).read_text(encoding="utf-8").split())
    for name in ("docs/figures.md", "docs/forecast.md", "docs/sweeps.md")
}


def measured(experiment):
    return {name: number for name, (number, _) in DOCUMENTED[experiment]["quantities"].items()}


def statements():
    """Give each sentence that has a number of a run, by its page."""
    figures = "docs/figures.md"
    found = measured("latent-dimensions")
    yield (
        figures,
        f"deviates by at most {found['optimal ELBO: largest deviation']:.0e} nats".replace("e-0", "e-"),
    )
    yield figures, f"highest at K = {found['noise of K=50: best K']:.0f} and"
    yield figures, f"loses {found['noise of K=50: lost from there to K=500']:.1f} nats from there to K = 500"
    found = measured("analytic-vs-stochastic")
    optimum, analytic, stochastic = (
        f"{found[name]:.2f}" for name in ("pPCA optimum", "analytic: ELBO", "stochastic: ELBO")
    )
    yield figures, f"Here they end at {analytic} and {stochastic}."
    yield figures, f"which are not the paper's, is {optimum}"
    assert found["analytic: learning rate"] == found["stochastic: learning rate"] == 0.001  # "best with"
    found = measured("nonlinear-encoders")
    linear, deep, one, two = (
        f"{found[f'{name}: gap to the maximum']:.2f}"
        for name in ("linear", "deep linear", "one ReLU layer", "two ReLU layers")
    )
    yield (
        figures,
        f"The linear encoder ends {linear} nats below it, deep linear {deep}, one ReLU layer {one},",
    )
    yield figures, f"two ReLU layers {two}."
    found = measured("bernoulli-ppca")
    yield (
        figures,
        (
            f"800 steps by samples reach, {found['stochastic: ELBO']:.1f} nats per image, after "
            f"{found['analytic: steps to stochastic end']:.0f}, and ends at {found['analytic: ELBO']:.1f}."
        ),
    )
    yield figures, f"{150 - found['analytic: live latents']:.0f} of 150 latents collapse without sampling"
    assert found["stochastic: live latents"] == 150  # "none by samples"
    for run, *several_words in (
        ("phase-diagram", "with σ² fixed", "in the map", "annealed", "trained by samples"),
        ("phase-diagram-mnist5k", "with σ² fixed", "over β and σ²", "with annealing", "that saw samples"),
    ):
        found = measured(run)
        names = "σ² fixed", "σ² fixed, map over β", "annealed", "by samples"
        for name, words in zip(names, several_words, strict=True):
            away, wrong = (
                found[f"{name}: {what}"] for what in ("models away from a step", "of these not as in theory")
            )
            yield "docs/sweeps.md", f"{away - wrong:.0f} of {away:.0f} {words}"
        assert found["σ² learned: fewest live latents"] == 16  # "all 16 latents live"
    found = measured("stationary-points")
    assert found["σ² = λ6: directions of ascent"] == 4  # "four ways up"
    for (name, quantity), (value, spread) in of_deep_rows("deep-mnist"):
        if quantity == "ELBO":
            yield figures, f"| {name} | {value:.0f} ± {spread:.0f} |"
        elif quantity == "collapse, ε = 0.1":
            yield figures, f"| {value:.1f} ± {spread:.1f} |"
    found = measured("deep-mnist-pixels")
    assert found["fixed 30: collapse, ε = 0.01"] == found["fixed 10: collapse, ε = 0.01"] == 100
    for name in ("fixed 30", "fixed 10"):
        assert abs(found[f"{name}: ELBO"] - found[f"{name}: ELBO of the collapsed"]) < 0.01
    yield figures, f"ELBOs {found['fixed 30: ELBO']:.2f} and {found['fixed 10: ELBO']:.2f} as printed"
    found = measured("kl-annealing")
    annealed, plain = (
        [f"{found[f'fixed 10, {name}: collapse, ε = 0.1, {when}']:.0f} %" for when in ("epoch 80", "end")]
        for name in ("annealed", "plain")
    )
    yield figures, f"annealing leaves {annealed[0]} of the latents within 0.1 nats of the prior at epoch 80"
    yield figures, f"without it there are {plain[0]}; at the end there are {annealed[1]} and {plain[1]}"
    annealed, plain = (
        [found[f"learned 10, {name}: {quantity}"] for quantity in ("final σ²", "ELBO")]
        for name in ("annealed", "plain")
    )
    yield figures, f"σ² ends at {annealed[0]:.2f} with annealing and at {plain[0]:.2f} without"
    yield figures, f"and the ELBO at {annealed[1]:.0f} and {plain[1]:.0f}"
    found = measured("forecast")
    for sigma2 in DOCUMENTED["forecast"]["config"]["sigma2"]:
        forecast, live = (
            200 - 2 * found[f"fixed {sigma2:g}: {quantity}"]
            for quantity in ("linear forecast", "collapse, ε = 0.1")
        )
        yield "docs/forecast.md", f"| {sigma2:g} | {forecast:.0f} | {live:.0f} |"


def of_deep_rows(experiment):
    """Give the quantities of a deep experiment with the row that each is of."""
    for name, entry in DOCUMENTED[experiment]["quantities"].items():
        if name.startswith(("fixed", "learned")):
            yield name.split(": "), entry


@pytest.mark.parametrize(("page", "statement"), list(statements()))
def test_numbers(page, statement):
    assert statement in PAGES[page]


def test_pictures_are_of_these_results():
    for entry in DOCUMENTED.values():
        for name in entry["pictures"]:
            description = Image.open(ROOT / "docs" / name).text["Description"]
            assert description == f"results {entry['checksum']}"
    pictures = {name for entry in DOCUMENTED.values() for name in entry["pictures"]}
    of_speed = {"speed.png", "scaling.png"}
    assert pictures | of_speed == {path.name for path in (ROOT / "docs").glob("*.png")}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_runs_are_those_of_the_commands(name):
    """The preset may have changed since."""
    experiment, found = DOCUMENTED[name]["experiment"], DOCUMENTED[name]["config"]
    page = (
        PAGES["docs/forecast.md"]
        if name == "forecast"
        else PAGES["docs/figures.md"] + PAGES["docs/sweeps.md"]
    )
    command = rf"lineavae reproduce {experiment} --preset (\w+)((?: --set [^\s`]+)*)(?: --seeds (\S+))?"
    assert any(is_run_of(experiment, found, *match.groups()) for match in re.finditer(command, page))


def is_run_of(experiment, found, preset, settings, seeds):
    config = change(EXPERIMENTS[experiment].presets[preset], settings.split(" --set ")[1:])
    if hasattr(config, "seeds"):
        expected = {"seed": 0}
    else:
        expected = {"seed": None, "seeds": list(parse_seeds(seeds))} if seeds else {"seed": 0, "seeds": None}
    expected = {**json.loads(json.dumps(vars(config))), **expected}
    return all(found.get(key) == value for key, value in expected.items() if key not in ("data", "device"))


def test_linear_vaes_of_the_forecasts_page(capsys):
    """The σ² with which a linear VAE keeps as many latents as the deep one did: an eigenvalue, or less."""
    page = PAGES["docs/forecast.md"]
    config = replace(EXPERIMENTS["deep-mnist"].presets["quick"])
    eigenvalues, _ = Moments.from_data(prepare(config).x.double()).eigh()
    rows = re.findall(r"\| ([\d.]+) \| \d+ \| (\d+) \| ([\d.]+) \| (\d*) ?\|", page)
    assert len(rows) == 6
    for sigma2, live, as_noisy, times in rows:
        least = eigenvalues[int(live) - 1].item()
        assert float(as_noisy) == float(f"{least:.{3 if least > 10 else 2}g}")
        assert not times or int(times) == round(least / float(sigma2))
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/forecast.md").read_text("utf-8"), re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out == re.search(r"# (\d of 10.*\n)", code)[1]
