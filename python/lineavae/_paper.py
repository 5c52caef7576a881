"""What a verdict is about by default: the pair (ε, δ) of the paper, section 6.2, and the confidence in it."""

from __future__ import annotations

EPSILON = 0.01
"""KL in nats below which a latent tells nothing of a sample."""

DELTA = 0.01
"""Fraction of the samples of which a collapsed latent may tell more."""

LEVEL = 0.95
"""Confidence in what the samples prove."""
