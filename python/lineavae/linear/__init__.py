"""Linear models of a dataset, from its mean and covariance: probabilistic PCA and the linear VAE."""

from lineavae.linear.moments import Moments
from lineavae.linear.ppca import PPCA
from lineavae.linear.training import History
from lineavae.linear.vae import LinearVAE

__all__ = ["PPCA", "History", "LinearVAE", "Moments"]
