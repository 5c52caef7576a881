"""Runs as experiments leave them, of made-up numbers."""

import numpy as np

from lineavae.collapse import CollapseStatistics
from lineavae.experiments import Config, Experiment
from lineavae.experiments.figures import make_panels
from lineavae.experiments.runs import quantity

SCRIPT = '<script>document.title = "taken over"</script>'
NUM_ROWS, COLUMNS = 20, ("ELBO", "σ²-tuned ELBO", "tuned σ²", "collapsed", "at ε = 0.1", "KL", "forecast")

# what two columns are sorted by: in no order; with ties and gaps, and not in the order of their letters
ELBOS = [0.5 * (7 * index % NUM_ROWS) for index in range(NUM_ROWS)]
FORECASTS = [None if index % 3 == 1 else 30.0 * (index % 5) for index in range(NUM_ROWS)]


def draw_curve(results):
    """Draw the numbers, one after another."""
    figure, (axes,) = make_panels("Numbers", 1)
    axes.plot(results["curves"]["numbers"])
    return figure


def deep(config, directory):
    """Two published numbers within their tolerance, one outside, one in error, one without; a wide table."""
    rows = {}
    for index in range(NUM_ROWS):
        elbo = -1482.257 + ELBOS[index]
        rows[f"fixed σ² = {index}"] = [
            quantity(elbo, "nats per image", -1450.3, 40.0, spread=6.128, published_spread=4.2),
            quantity(-1098.0, "nats per image", -1098.2, 28.3, spread=20.0, published_spread=28.3),
            quantity(2.96, "1"),
            quantity(94.5, "%", 89.88, note="is 100 % where the KL is 0 | so * it"),
            None,
            quantity(21.1, "nats", 28.8, spread=1.4),
            None if FORECASTS[index] is None else quantity(FORECASTS[index], "%"),
        ]
    numbers = {
        "plain": quantity(3.0, "images", 3.5, 1.0),
        "far": quantity(-10.0, "nats", 3.5, 1.0),
        "tiny": quantity(1.5e-10, "nats"),
        SCRIPT: quantity(12.0, SCRIPT),
    }
    table = {"caption": f"Deep VAEs. {SCRIPT}", "columns": list(COLUMNS), "rows": rows}
    claims = [
        {"claim": "it holds", "source": "section 6", "verdict": "holds", "evidence": "14 > 3"},
        {"claim": SCRIPT, "source": SCRIPT, "verdict": "does not hold", "evidence": SCRIPT},
        {"claim": "new", "source": "Table 3", "verdict": "not tested", "evidence": "needs a GPU"},
    ]
    return config.results(numbers, {"numbers": np.arange(5.0)}, {"table-2": table}, claims)


def plain(config, directory):
    """Nothing published, and data of another name."""
    numbers = {f"number {index}": quantity(value, "1") for index, value in enumerate((2.0, 10.0, 2.0, -1.0))}
    return {**config.results(numbers, {"numbers": np.arange(3.0)}), "data": SCRIPT}


def collapse_report():
    """Six latents of rising KL; that of the first is NaN, and the last has one that is infinite."""
    generator = np.random.default_rng(0)
    mean = generator.standard_normal((500, 6)) * 10.0 ** np.arange(-3, 3)
    mean[:, 0], mean[0, 5] = np.nan, np.inf
    statistics = CollapseStatistics(latent_dim=6)
    statistics.update(mean, np.zeros_like(mean))
    return statistics.compute().at()


def experiment(name, run):
    return Experiment(
        name,
        f"Table 2: {name}",
        {"quick": Config(num_images=10), "full": Config()},
        run,
        {"figure-5": draw_curve},
        "In the paper: far away.",
    )
