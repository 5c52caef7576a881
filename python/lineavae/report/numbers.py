"""Numbers as they are printed, and how a measured one stands beside the published one."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lineavae.experiments.runs import Quantity

Outcome = Literal["within", "outside", "in error", "no tolerance"]
Measure = Literal["±", "tolerance", ""]

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

# Decimals from which on a number is written with a power of ten.
_MOST_DECIMALS = 6


class Number(NamedTuple):
    """A number as it is printed, and by which a column is sorted."""

    text: str
    value: float


@dataclass(frozen=True)
class Cell:
    """A quantity as it is shown.

    Attributes
    ----------
    measured, published
        With their ± where there is one.
    unit
        "" for pure numbers.
    difference
        Measured minus published, divided by what `measure` says.
    measure
        The "±" of the published number, or its "tolerance"; "" where it has neither, or they are zero: the
        difference is then in the unit of the quantity.
    outcome
        Whether the difference is within the tolerance; None where nothing was published. "in error" is a
        number that is not, and of which a note says what is wrong with it.
    note
        That note's number in its run; 0 for none.
    """

    measured: Number
    unit: str
    published: Number | None = None
    difference: Number | None = None
    measure: Measure = ""
    outcome: Outcome | None = None
    note: int = 0

    @property
    def comparison(self) -> str:
        """The difference and the outcome; nothing where nothing was published."""
        if self.difference is None:
            return ""
        ratio = f"{self.difference.text} × {self.measure}" if self.measure else self.difference.text
        return f"{ratio}, {self.outcome}" if self.outcome in ("within", "outside") else ratio


def in_words(outcomes: Counter[Outcome]) -> str:
    """Say how many published numbers are reproduced.

    Examples
    --------
    >>> from collections import Counter
    >>> from lineavae.report.numbers import in_words
    >>> in_words(Counter({"within": 12, "outside": 2, "in error": 1}))
    '12 of 14 published numbers within their tolerance, 1 more known to be wrong'
    """
    judged = outcomes["within"] + outcomes["outside"]
    parts = [f"{outcomes['within']} of {judged} published numbers within their tolerance"] if judged else []
    others: dict[Outcome, str] = {"in error": "known to be wrong", "no tolerance": "without a tolerance"}
    for outcome, what in others.items():
        count = outcomes[outcome]
        if count:
            parts.append(f"{count} more {what}" if parts else f"{count} published {what}")
    return ", ".join(parts) or "0 published numbers"


def write(value: float, spec: str = ".6g") -> str:
    """Write a number as it is printed.

    Examples
    --------
    >>> from lineavae.report.numbers import write
    >>> write(-1482.25), write(1.5e-10)
    ('−1482.25', '1.5 × 10⁻¹⁰')
    """
    mantissa, _, exponent = format(value, spec).partition("e")
    power = f" × 10{str(int(exponent)).translate(_SUPERSCRIPTS)}" if exponent else ""
    return mantissa.replace("-", "−").replace("inf", "∞").replace("nan", "NaN") + power


def with_spread(value: float, spread: float | None) -> str:
    """Write a measured number to two digits of its spread, and the spread.

    Examples
    --------
    >>> from lineavae.report.numbers import with_spread
    >>> with_spread(-1482.257, 6.128), with_spread(0.5, None)
    ('−1482.3 ± 6.1', '0.5')
    """
    if spread is None:
        return write(value)
    decimals = 1 - math.floor(math.log10(spread)) if spread > 0 else math.inf
    if decimals > _MOST_DECIMALS:
        return f"{write(value)} ± {write(spread, '.2g')}"
    spec = f".{max(decimals, 0)}f"
    return f"{write(value, spec)} ± {write(spread, spec)}"


def as_published(value: float, spread: float | None) -> str:
    """Write a number with the digits that it was published with, but for zeros at its end."""
    text = write(value, ".10g")
    return text if spread is None else f"{text} ± {write(spread, '.10g')}"


def cell(entry: Quantity, note: int = 0) -> Cell:
    """Compare what was measured with what was published.

    Examples
    --------
    >>> from lineavae.experiments.runs import quantity
    >>> from lineavae.report.numbers import cell
    >>> found = cell(quantity(-1458.2, "nats per image", -1450.3, 10.0, published_spread=4.2))
    >>> found.difference.text, found.measure, found.outcome
    ('−1.9', '±', 'within')
    """
    measured, published, tolerance = entry["measured"], entry["published"], entry["tolerance"]
    value = Number(with_spread(measured, entry["spread"]), measured)
    unit = show_unit(entry["unit"])
    if published is None:
        return Cell(value, unit)
    difference, outcome = measured - published, _judge(measured - published, tolerance, bool(note))
    measure: Measure = "±" if entry["published_spread"] else "tolerance" if tolerance else ""
    ratio = difference / (entry["published_spread"] or tolerance or 1.0)
    beside = Number(as_published(published, entry["published_spread"]), published)
    return Cell(value, unit, beside, Number(_signed(ratio, measure), ratio), measure, outcome, note)


def show_unit(unit: str) -> str:
    """Give what is printed of a unit: nothing of "1"."""
    return "" if unit == "1" else unit


def _judge(difference: float, tolerance: float | None, has_error: bool) -> Outcome:
    if tolerance is not None and abs(difference) <= tolerance:
        return "within"
    if has_error:
        return "in error"
    return "no tolerance" if tolerance is None else "outside"


def _signed(ratio: float, measure: Measure) -> str:
    """Write a difference: to a tenth of what it is measured by, or to three digits."""
    text = write(ratio, "+.3g" if not measure else "+.1f" if abs(ratio) < 1e5 else "+.1e")
    return text.lstrip("+−") if text in ("+0", "+0.0", "−0.0") else text
