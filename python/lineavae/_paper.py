"""The pair (ε, δ) at which the paper counts collapsed latents, section 6.2."""

from __future__ import annotations

EPSILON = 0.01
"""KL in nats below which a latent tells nothing of a sample."""

DELTA = 0.01
"""Fraction of the samples of which a collapsed latent may tell more."""
