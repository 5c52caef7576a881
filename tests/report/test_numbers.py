from collections import Counter

import pytest

from lineavae.experiments.runs import quantity
from lineavae.report.numbers import as_published, cell, in_words, with_spread, write


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.5, "−0.5"),
        (951.2914, "951.291"),
        (-504259.1, "−504259"),
        (1.5e-10, "1.5 × 10⁻¹⁰"),
        (-2e12, "−2 × 10¹²"),
        (float("inf"), "∞"),
        (float("nan"), "NaN"),
    ],
)
def test_numbers(value, text):
    assert write(value) == text


@pytest.mark.parametrize(
    ("value", "spread", "text"),
    [
        (-1482.257, 6.128, "−1482.3 ± 6.1"),
        (-139538.8, 21148.5, "−139539 ± 21148"),
        (0.96841, 0.00123, "0.9684 ± 0.0012"),
        (94.5, 0.0, "94.5 ± 0"),
        (94.5, 1e-9, "94.5 ± 1 × 10⁻⁹"),
        (94.5, None, "94.5"),
    ],
)
def test_measured_numbers_have_two_digits_of_their_spread(value, spread, text):
    assert with_spread(value, spread) == text


def test_published_numbers_keep_their_digits():
    assert as_published(-504259.1, 49149.8) == "−504259.1 ± 49149.8"
    assert as_published(0.0891, None) == "0.0891"


@pytest.mark.parametrize(
    ("arguments", "note", "difference", "measure", "outcome"),
    [
        # (measured - published) / published ±
        ({"published": 10.0, "tolerance": 4.0, "published_spread": 2.0}, 0, "+1.5", "±", "within"),
        ({"published": 10.0, "tolerance": 2.0, "published_spread": 2.0}, 0, "+1.5", "±", "outside"),
        ({"published": 10.0, "tolerance": 2.0, "published_spread": 2.0}, 1, "+1.5", "±", "in error"),
        ({"published": 10.0, "tolerance": 4.0}, 1, "+0.8", "tolerance", "within"),
        ({"published": 16.0, "tolerance": 6.0, "published_spread": 0.0}, 0, "−0.5", "tolerance", "within"),
        ({"published": 13.0, "tolerance": 0.0}, 0, "0", "", "within"),
        ({"published": 12.0, "tolerance": 0.0}, 0, "+1", "", "outside"),
        ({"published": 13.0625}, 0, "−0.0625", "", "no tolerance"),
        ({"published": 13.01, "published_spread": 1.0}, 0, "0.0", "±", "no tolerance"),
        ({"published": 0.0, "published_spread": 1e-8}, 0, "+1.3 × 10⁹", "±", "no tolerance"),
    ],
)
def test_differences(arguments, note, difference, measure, outcome):
    found = cell(quantity(13.0, "nats", **arguments), note)
    assert (found.difference.text, found.measure, found.outcome) == (difference, measure, outcome)


def test_nothing_published():
    found = cell(quantity(13.0, "1"))
    assert (found.published, found.difference, found.outcome, found.unit) == (None, None, None, "")


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({}, "0 published numbers"),
        ({"within": 2, "outside": 1}, "2 of 3 published numbers within their tolerance"),
        ({"no tolerance": 4}, "4 published without a tolerance"),
        (
            {"outside": 1, "in error": 2, "no tolerance": 1},
            "0 of 1 published numbers within their tolerance, 2 more known to be wrong, "
            "1 more without a tolerance",
        ),
    ],
)
def test_outcomes_in_words(counts, words):
    assert in_words(Counter(counts)) == words
