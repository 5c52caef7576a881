"""Derives the constants of the Bernoulli likelihoods; run it to print them."""

from collections.abc import Callable

import mpmath
import numpy as np
from numpy.polynomial import Chebyshev, Polynomial
from scipy.optimize import linprog
from scipy.special import erfcx, log_ndtr

NUM_TERMS = 6


def fit_mixture() -> tuple[np.ndarray, np.ndarray]:
    """Weights p and scales τ of the mixture whose largest error, in E softplus, is smallest.

    The error is largest where the variance is zero, because averaging over a normal distribution cannot
    increase it, and even in the mean because Σ p = 1. Each step solves the linearised problem.
    """
    x = -40 * np.linspace(0, 1, 801) ** 2
    p, tau = np.full(NUM_TERMS, 1 / NUM_TERMS), np.geomspace(0.85, 3.9, NUM_TERMS)
    column, row = np.ones((len(x), 1)), np.ones(NUM_TERMS)
    for _ in range(12):
        u = x[:, None] / tau
        density, cdf = np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi), np.exp(log_ndtr(u))
        values = tau * (u * cdf + density)
        error = np.logaddexp(0, x) - values @ p
        unit = abs(error).max()
        slopes = np.hstack([values, p * tau * density])  # by p and by log τ
        low = np.r_[-0.9 * p / unit, -0.1 / unit * row, 0]
        high = np.r_[np.inf * row, 0.1 / unit * row, np.inf]
        step = linprog(
            np.r_[0 * row, 0 * row, 1],
            A_ub=np.block([[slopes, -column], [-slopes, -column]]),
            b_ub=np.r_[error, -error] / unit,
            A_eq=[np.r_[row, 0 * row, 0]],
            b_eq=[(1 - p.sum()) / unit],
            bounds=np.column_stack([low, high]),
        ).x
        p, tau = p + unit * step[:NUM_TERMS], tau * np.exp(unit * step[NUM_TERMS:-1])
    return p, tau


def fit_normal_tail(limit: float, degree: int) -> np.ndarray:
    """Coefficients of q, highest power first, with Φ(-x) = e^(-x²/2) q(1 / (1 + 0.32 x)) on [0, limit].

    The weights make the errors those of Φ and of φ(x) - x Φ(-x).
    """
    low = 1 / (1 + 0.32 * limit)
    t = (1 + low) / 2 + (1 - low) / 2 * np.cos(np.linspace(0, np.pi, 2001))
    x = (1 / t - 1) / 0.32
    weights = np.exp(-(x**2) / 2) * np.maximum(1, x)
    fit = Chebyshev.fit(t, erfcx(x / np.sqrt(2)) / 2, degree, w=weights)
    return fit.convert(kind=Polynomial, domain=[-1, 1], window=[-1, 1]).coef[::-1]


def interpolate(function: Callable, low: float, high: float, degree: int) -> list[float]:
    """Coefficients, highest power first, of what equals a function of mpmath at Chebyshev's nodes."""
    with mpmath.workdps(60):
        middle, half = mpmath.mpf(low + high) / 2, mpmath.mpf(high - low) / 2
        nodes = [middle + half * mpmath.cos(mpmath.pi * (k + 0.5) / (degree + 1)) for k in range(degree + 1)]
        powers = mpmath.matrix([[node ** (degree - j) for j in range(degree + 1)] for node in nodes])
        return [float(c) for c in mpmath.lu_solve(powers, mpmath.matrix([function(x) for x in nodes]))]


def log1p_ratio(e: mpmath.mpf) -> mpmath.mpf:
    return mpmath.log1p(e) / e


if __name__ == "__main__":
    weights, scales = fit_mixture()
    for name, values in {
        "weights of the mixture": weights,
        "their logarithms": np.log2(weights),
        "scales of the mixture": scales,
        "csrc/ops/bernoulli_log_likelihood.h, float": interpolate(log1p_ratio, 0, 1, 9),
        "csrc/ops/bernoulli_log_likelihood.h, double": interpolate(log1p_ratio, 0, 1, 20),
        "csrc/common/expm1.h, 2ʳ": interpolate(lambda r: mpmath.mpf(2) ** r, -0.5, 0.5, 5),
        "csrc/common/normal_tail.h, float": fit_normal_tail(6.5, 5),
        "csrc/common/normal_tail.h, double": fit_normal_tail(9.0, 14),
    }.items():
        print(name, *(repr(float(value)) for value in values), sep="\n    ")
