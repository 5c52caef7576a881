"""Samples of diagonal Gaussians by the reparameterization of Kingma and Welling (2014), and their KL.

z = m + ε e^(log v / 2), with standard normal noise ε that is a function of a seed and an index alone.
"""

import math

import torch
from torch import Tensor

from lineavae.reference._range import double
from lineavae.reference.gaussian_kl import gaussian_kl

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def philox(counter: Tensor, seed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words of 32 bits per counter by Philox4x32-10 (Salmon et al. 2011), in int64."""
    word = [counter & _MASK, counter >> 32, torch.zeros_like(counter), torch.zeros_like(counter)]
    key = [seed & _MASK, (seed >> 32) & _MASK]
    for _ in range(10):
        even, odd = (multiplier * w for multiplier, w in zip(_MULTIPLIERS, word[::2], strict=True))
        word = [
            ((odd >> 32) & _MASK) ^ word[1] ^ key[0],
            odd & _MASK,
            ((even >> 32) & _MASK) ^ word[3] ^ key[1],
            even & _MASK,
        ]
        key = [(k + step) & _MASK for k, step in zip(key, _KEY_STEPS, strict=True)]
    return word[0], word[1], word[2], word[3]


def standard_normal(seed: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Noise of this shape for a seed, a 0-d int64 tensor, by the transform of Box and Muller (1958).

    Counter c gives the elements 4c to 4c + 3 of the flat tensor: with u = (w | 1) / 2³² and a = 2π w' / 2³²
    for two words w, w' each, √(-2 ln u) cos a and √(-2 ln u) sin a.
    """
    size = math.prod(shape)
    words = philox(torch.arange((size + 3) // 4, device=seed.device), seed)
    quads = []
    for radius_word, angle_word in (words[:2], words[2:]):
        odd = radius_word | 1
        u, complement = odd.to(dtype) / 2**32, (2**32 - odd).to(dtype) / 2**32
        log_u = torch.where(u < 0.5, u.log(), torch.log1p(-complement))
        radius = (-2 * log_u).sqrt()
        signed = torch.where(angle_word < 2**31, angle_word, angle_word - 2**32)
        angle = signed.to(dtype) * (2 * math.pi / 2**32)
        quads += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(quads, -1).flatten()[:size].reshape(shape)


def reparameterized_kl(
    mean: Tensor,
    logvar: Tensor,
    seed: Tensor,
    num_draws: int = 1,
    kl_weight: Tensor | float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Sample, and take the KL: (..., K), (..., K) -> (num_draws, ..., K), (...)."""
    noise = standard_normal(seed, (num_draws, *mean.shape), mean.dtype)
    wide_mean, wide_logvar = double(mean, logvar)
    z = wide_mean + (0.5 * wide_logvar).exp() * noise
    return z.to(mean.dtype), gaussian_kl(wide_mean, wide_logvar, kl_weight).to(mean.dtype)
