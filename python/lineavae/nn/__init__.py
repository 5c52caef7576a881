"""Deep VAEs with Gaussian decoders: modules whose loss terms are the fused operators of `lineavae.ops`.

* `GaussianVAE`: any encoder, any decoder; ELBO, σ²-tuned ELBO, importance-weighted bound, samples.
* `ObservationNoise`: σ² fixed, learned or in closed form; `sigma2_of_beta` and `beta_of_sigma2`.
* `MLPEncoder`, `MLPDecoder`, `ConvEncoder`, `ConvDecoder`: those of the paper.
* `KLAnnealing`, `Capacity`: what changes with the epoch.
* `Ensemble`: many models that train as one batched program.
"""

from lineavae.nn.architectures import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from lineavae.nn.ensemble import Ensemble
from lineavae.nn.noise import BetaOfNoise, NoiseOfBeta, ObservationNoise, beta_of_sigma2, sigma2_of_beta
from lineavae.nn.schedules import Capacity, KLAnnealing
from lineavae.nn.vae import ELBOTerms, GaussianVAE, TunedELBO

__all__ = [
    "BetaOfNoise",
    "Capacity",
    "ConvDecoder",
    "ConvEncoder",
    "ELBOTerms",
    "Ensemble",
    "GaussianVAE",
    "KLAnnealing",
    "MLPDecoder",
    "MLPEncoder",
    "NoiseOfBeta",
    "ObservationNoise",
    "TunedELBO",
    "beta_of_sigma2",
    "sigma2_of_beta",
]
