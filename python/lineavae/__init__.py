"""Linear VAEs and posterior collapse: exact, fused C++/CUDA operators for PyTorch.

* :mod:`lineavae.ops`: loss terms as differentiable functions (KL, analytic ELBOs).
* :mod:`lineavae.linear`: sufficient statistics, probabilistic PCA and the linear VAE.
* :mod:`lineavae.data`: MNIST.
* :mod:`lineavae.experiments`: the paper's figures, one module each.

All log-densities are in nats, per sample, with every constant. An ELBO is a quantity to maximise.
"""

from lineavae.diagnostics import diagnose

__version__ = "0.1.0"

__all__ = ["__version__", "diagnose"]
