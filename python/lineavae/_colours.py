"""Colours of figures.

Okabe and Ito's palette: told apart with every kind of colour vision, and in grey.
"""

from __future__ import annotations

BLUE, VERMILION, GREEN, PURPLE, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000"
