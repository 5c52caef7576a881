"""Linear models of a dataset, from its mean and covariance: probabilistic PCA and the linear VAE."""

from lineavae.linear.bernoulli import BernoulliHistory, BernoulliLinearVAE
from lineavae.linear.forecast import CollapseForecast, forecast_collapse
from lineavae.linear.gap import GapDecomposition, decompose_gap
from lineavae.linear.identifiability import (
    Alignment,
    align,
    rescale_latents,
    rotation_gap,
    subspace_angles,
)
from lineavae.linear.landscape import Landscape, landscape
from lineavae.linear.moments import Moments
from lineavae.linear.parameters import LinearParameters
from lineavae.linear.ppca import PPCA
from lineavae.linear.stability import Stability, hessian_eigenpairs, stability, stable_sigma2
from lineavae.linear.stationary import Stationarity, StationaryPoint, stationarity, symmetric_saddle
from lineavae.linear.sweep import sweep
from lineavae.linear.sweep_result import Sweep
from lineavae.linear.training import History
from lineavae.linear.vae import LinearVAE

__all__ = [
    "PPCA",
    "Alignment",
    "BernoulliHistory",
    "BernoulliLinearVAE",
    "CollapseForecast",
    "GapDecomposition",
    "History",
    "Landscape",
    "LinearParameters",
    "LinearVAE",
    "Moments",
    "Stability",
    "Stationarity",
    "StationaryPoint",
    "Sweep",
    "align",
    "decompose_gap",
    "forecast_collapse",
    "hessian_eigenpairs",
    "landscape",
    "rescale_latents",
    "rotation_gap",
    "stability",
    "stable_sigma2",
    "stationarity",
    "subspace_angles",
    "sweep",
    "symmetric_saddle",
]
