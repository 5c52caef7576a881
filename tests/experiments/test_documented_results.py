"""What the pages state and show is what the documented runs found: docs/update.py takes it from them."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from lineavae.experiments import EXPERIMENTS
from lineavae.experiments.settings import change, parse_seeds

ROOT = Path(__file__).parents[2]
DOCUMENTED = json.loads((ROOT / "docs" / "results.json").read_text(encoding="utf-8"))
PAGES = {
    name: " ".join((ROOT / name).read_text(encoding="utf-8").split())
    for name in ("README.md", "docs/figures.md", "docs/sweeps.md")
}


def measured(experiment):
    return {name: number for name, (number, _) in DOCUMENTED[experiment]["quantities"].items()}


def statements():
    """Give each sentence that has a number of a run, by its page."""
    figures, readme = "docs/figures.md", "README.md"
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
    yield readme, f"| pPCA optimum of these images | {optimum} |"
    yield readme, f"| trained by the analytic ELBO | {analytic} | 950.7 |"
    yield readme, f"| trained by the stochastic ELBO | {stochastic} | 939.3 |"
    assert found["analytic: learning rate"] == found["stochastic: learning rate"] == 0.001  # says the README
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
    found = measured("phase-diagram")
    for name, words in (
        ("σ² fixed", "with σ² fixed"),
        ("σ² fixed, map over β", "in the map"),
        ("annealed", "annealed"),
        ("by samples", "trained by samples"),
    ):
        away, wrong = (
            found[f"{name}: {what}"] for what in ("models away from a step", "of these not as in theory")
        )
        yield "docs/sweeps.md", f"{away - wrong:.0f} of {away:.0f} {words}"
    assert found["σ² learned: fewest live latents"] == 16  # "all 16 latents live"
    found = measured("stationary-points")
    assert found["σ² = λ6: directions of ascent"] == 4  # "four ways up"


@pytest.mark.parametrize(("page", "statement"), list(statements()))
def test_numbers(page, statement):
    assert statement in PAGES[page]


def test_pictures_are_of_these_results():
    for entry in DOCUMENTED.values():
        for name in entry["pictures"]:
            description = Image.open(ROOT / "docs" / name).text["Description"]
            assert description == f"results {entry['checksum']}"
    pictures = {name for entry in DOCUMENTED.values() for name in entry["pictures"]}
    assert pictures <= {path.name for path in (ROOT / "docs").glob("*.png")}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_runs_are_those_of_the_commands(name):
    """The preset may have changed since."""
    command = rf"lineavae reproduce {name} --preset (\w+)((?: --set \S+)*)(?: --seeds (\S+))?"
    preset, settings, seeds = re.search(command, PAGES["docs/figures.md"] + PAGES["docs/sweeps.md"]).groups()
    config = change(EXPERIMENTS[name].presets[preset], settings.split(" --set ")[1:])
    found = DOCUMENTED[name]["config"]
    where = {"data", "device", "seed"}
    for key, value in vars(config).items():
        assert key in where or found[key] == json.loads(json.dumps(value)), key
    assert found.get("seed") == (None if seeds else 0)
    if not hasattr(config, "seeds"):  # which trains all of them together
        assert found.get("seeds") == (list(parse_seeds(seeds)) if seeds else None)
