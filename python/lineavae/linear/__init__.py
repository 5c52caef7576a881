"""Linear models of a dataset, from its mean and covariance: probabilistic PCA and the linear VAE."""

from lineavae.linear.landscape import Landscape, landscape
from lineavae.linear.moments import Moments
from lineavae.linear.ppca import PPCA
from lineavae.linear.stability import Stability, hessian_eigenpairs, stability, stable_sigma2
from lineavae.linear.stationary import Stationarity, StationaryPoint, stationarity, symmetric_saddle
from lineavae.linear.training import History
from lineavae.linear.vae import LinearVAE

__all__ = [
    "PPCA",
    "History",
    "Landscape",
    "LinearVAE",
    "Moments",
    "Stability",
    "Stationarity",
    "StationaryPoint",
    "hessian_eigenpairs",
    "landscape",
    "stability",
    "stable_sigma2",
    "stationarity",
    "symmetric_saddle",
]
