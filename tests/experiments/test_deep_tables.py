"""Tables and claims, of models whose numbers are given."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lineavae.collapse import CollapseReport
from lineavae.experiments import EXPERIMENTS, deep_mnist, deep_mnist_pixels, execute
from lineavae.experiments.deep_claims import claims_on_noise
from lineavae.experiments.deep_tables import consistency, forecasts, rows_of, table
from lineavae.experiments.deep_vae import EPSILONS, Chunk, Evaluation, Outcome, prepare
from lineavae.experiments.published import TABLE_1, TABLE_2, TABLE_4
from lineavae.ops import collapse_statistics

CONFIG = replace(
    EXPERIMENTS["deep-mnist"].presets["quick"],
    num_images=50,
    sigma2=(10.0, 1.0),
    seeds=(0, 1),
    latent_dim=4,
    learning_rates=(1e-4, 1e-3),
)


def evaluation(tuned_sigma2, kl, num_collapsed, sigma2=1.0):
    mean = torch.full((1000, 4), 3.0)
    mean[:, :num_collapsed] = 0.0
    report = CollapseReport(collapse_statistics(mean, torch.zeros(1000, 4), EPSILONS), EPSILONS)
    return Evaluation(784, 270.0, sigma2, tuned_sigma2, kl, report)


def outcome(kind, seed, lr, *evaluations):
    collapse = np.array([[found.collapse(epsilon) for epsilon in EPSILONS] for found in evaluations])
    one = np.zeros((len(evaluations), 1))
    return Outcome(
        Chunk(kind, CONFIG.sigma2, seed, lr), one[0], one, one, one, collapse[:, :, None], list(evaluations)
    )


def outcomes(**changes):
    """Of two learning rates, the larger of which is worse; for each σ² tuned σ², KL, collapsed latents."""
    found = {
        "fixed0": (2.0, 20.0, 3),
        "fixed1": (1.5, 90.0, 1),
        "learned0": (1.45, 40.0, 3),
        "learned1": (1.25, 90.0, 1),
        **changes,
    }
    return [
        outcome(
            kind,
            seed,
            lr,
            *(
                evaluation(tuned * (1 + 0.001 * seed) * (2 if lr > 5e-4 else 1), kl, collapsed, sigma2)
                for index, sigma2 in enumerate((10.0, 1.0) if kind == "fixed" else (1.4, 1.2))
                for tuned, kl, collapsed in [found[f"{kind}{index}"]]
            ),
        )
        for kind in ("fixed", "learned")
        for seed in (0, 1)
        for lr in (1e-4, 1e-3)
    ]


def test_rows_have_mean_spread_and_the_better_learning_rate():
    rows = rows_of(CONFIG, outcomes())
    assert list(rows) == [("fixed", 10.0), ("fixed", 1.0), ("learned", 10.0), ("learned", 1.0)]
    row = rows["fixed", 10.0]
    assert row.learning_rate == 1e-4
    found = row.quantity(lambda model: model.tuned_sigma2, "1", 1.797)
    assert found["measured"] == pytest.approx(2.001)
    assert found["spread"] == pytest.approx(0.002 / math.sqrt(2))  # of two values, of the sample
    assert found["published"] == 1.797


def test_table_has_the_published_row_and_the_forecast():
    shown = table("Table 1", CONFIG, rows_of(CONFIG, outcomes()), TABLE_1, {10.0: 93.0, 1.0: 50.0})
    assert shown["caption"] == "Table 1, after 200 steps"
    row = dict(zip(shown["columns"], shown["rows"]["fixed 10"], strict=True))
    assert row["ELBO"]["published"] == -1450.3
    assert row["ELBO"]["published_spread"] == 4.2
    assert row["ELBO"]["measured"] < row["σ²-tuned ELBO"]["measured"]
    assert row["collapse, ε = 0.01"]["measured"] == 75
    assert row["collapse proven"]["measured"] == row["collapse not disproven"]["measured"] == 75
    assert row["linear forecast of collapse"]["measured"] == 93
    assert row["final σ²"]["published"] is None
    row = dict(zip(shown["columns"], shown["rows"]["learned 1"], strict=True))
    assert row["linear forecast of collapse"] is None
    assert row["final σ²"]["published"] == 1.183


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({"fixed1": (1.5, 90.0, 3)}, 0),
        ({"fixed1": (2.5, 90.0, 1)}, 1),
        ({"learned0": (1.4, 1e5, 3)}, 2),
        ({"learned1": (1.2, 90.0, 3)}, 3),
    ],
)
def test_claims_hold_or_do_not(changes, number):
    claims = claims_on_noise(CONFIG, rows_of(CONFIG, outcomes()))
    assert [claim["verdict"] for claim in claims] == ["holds"] * 4
    assert all("after 200 steps" in claim["evidence"] for claim in claims)
    claims = claims_on_noise(CONFIG, rows_of(CONFIG, outcomes(**changes)))
    assert claims[number]["verdict"] == "does not hold"


def test_models_whose_noise_is_still_moving_are_no_evidence():
    claims = claims_on_noise(CONFIG, rows_of(CONFIG, outcomes(learned0=(3.0, 40.0, 3))))
    assert claims[2]["verdict"] == "not tested"
    assert "still moving: 1.400 (10)" in claims[2]["evidence"]


def test_one_seed_proves_no_difference_in_elbo():
    claims = claims_on_noise(
        CONFIG, rows_of(CONFIG, [found for found in outcomes() if found.chunk.seed == 0])
    )
    assert [claim["verdict"] for claim in claims] == ["holds", "not tested", "not tested", "holds"]
    assert "one seed has no spread" in claims[1]["evidence"]


def test_forecast_counts_eigenvalues():
    config = replace(CONFIG, latent_dim=20, sigma2=(300.0, 3.0))
    x = prepare(config).x.double().numpy()
    eigenvalues = np.linalg.eigvalsh(np.cov(x, rowvar=False, bias=True))[::-1][:20]
    expected = {sigma2: 100 * float((eigenvalues < sigma2).mean()) for sigma2 in config.sigma2}
    assert forecasts(config, prepare(config)) == expected
    assert 0 < expected[300.0] < 100


def test_published_table_2_is_closed_form_tuning_but_for_rows_that_are_named():
    shown, inconsistent = consistency("Table 2", TABLE_2, 784, deep_mnist.LOG_DET_OF_MNIST)
    within = {name: row[0]["measured"] / row[0]["published"] - 1 for name, row in shown["rows"].items()}
    assert all(abs(within[f"fixed {sigma2:g}"]) < 0.01 for sigma2 in (30, 10, 3, 1, 0.3, 0.1, 0.03, 0.01))
    for sigma2, expected in ((10, -1099.9), (3, -1018.8), (1, -1018.4), (0.1, -1195.0), (0.3, -1113.6)):
        assert shown["rows"][f"fixed {sigma2:g}"][1]["measured"] == pytest.approx(expected, abs=0.05)
    assert inconsistent == [f"fixed {sigma2:g}" for sigma2 in (30, 0.3, 0.1, 0.03, 0.003, 0.001)]


def test_errors_of_the_published_tables_are_marked():
    wrong, right = TABLE_1["fixed", 0.01], TABLE_2["fixed", 0.003]
    for name in ("tuned_elbo", "tuned_sigma2", "collapse", "kl"):
        assert getattr(wrong, name) == getattr(right, name)
        assert "0.003" in wrong.notes[name]
    assert [key for key, row in TABLE_4.items() if "collapse" in row.notes] == [
        ("fixed", 30.0),
        ("fixed", 10.0),
        ("learned", 30.0),
    ]
    tuned = [key[1] for key, row in TABLE_4.items() if "tuned_sigma2" in row.notes]
    assert tuned == [30, 10, 3, 1, 0.3, 0.1, 0.03, 0.01]
    assert "0.066" in TABLE_4["fixed", 30.0].notes["tuned_elbo"]


def test_collapsed_elbo_is_that_of_table_4():
    config = replace(EXPERIMENTS["deep-mnist-pixels"].presets["quick"], num_images=2000)
    found = deep_mnist_pixels.collapsed_elbo(prepare(config), 30.0)
    assert found == pytest.approx(TABLE_4["fixed", 30.0].elbo, abs=0.05)


TINY = {
    "num_images": 60,
    "seeds": (0, 1),
    "latent_dim": 3,
    "hidden": (8, 6),
    "epochs": 4,
    "batch_size": 30,
    "record_every": 2,
}


@pytest.mark.parametrize(
    ("name", "changes", "shown"),
    [
        ("deep-mnist", {"sigma2": (10.0, 1.0)}, {"linear-forecast"}),
        ("deep-mnist-pixels", {"sigma2": (30.0, 1.0)}, set()),
        ("collapse-curves", {"sigma2": (10.0, 1.0)}, {"figure-5", "figure-6"}),
        (
            "kl-annealing",
            {"sigma2": (10.0, 1.0), "annealing_epochs": 2, "snapshot_epoch": 2},
            {"figure-7", "figure-8"},
        ),
    ],
)
def test_an_experiment_has_its_tables_figures_and_claims(tmp_path, name, changes, shown):
    experiment = EXPERIMENTS[name]
    run = execute(experiment, replace(experiment.presets["quick"], **TINY, **changes), tmp_path / name)
    results = run.results
    assert set(run.figures) == shown
    assert {figure for figure in experiment.shows if figure.startswith("figure")} <= shown
    assert {table for table in experiment.shows if table.startswith("table")} <= results["tables"].keys()
    assert len(results["claims"]) >= 3
    assert all("steps" in claim["evidence"] or "rows" in claim["evidence"] for claim in results["claims"])
    assert set(experiment.headline) <= results["quantities"].keys()
    if name == "kl-annealing":
        for curve in ("fixed 10, annealed", "fixed 10, plain"):
            now, before = (results["curves"][key] for key in (curve, f"{curve}, epoch 2"))
            assert now.shape == before.shape == (2, len(EPSILONS))
            assert not np.array_equal(now, before)


def test_a_snapshot_is_of_an_epoch_that_is_recorded():
    preset = EXPERIMENTS["kl-annealing"].presets["quick"]
    with pytest.raises(ValueError, match="snapshot_epoch must be a multiple of record_every, 20, up to 200"):
        replace(preset, snapshot_epoch=85)
