"""Log-likelihood of Bernoulli variables given their logits, per sample.

log p(x|a) = x a - softplus(a) = x log sigmoid(a) + (1 - x) log sigmoid(-a)
"""

from torch import Tensor
from torch.nn.functional import logsigmoid


def bernoulli_log_likelihood(x: Tensor, logits: Tensor) -> Tensor:
    """x (..., N, D), logits (..., N, D) -> (..., N), in nats."""
    return (x * logsigmoid(logits) + (1 - x) * logsigmoid(-logits)).sum(-1)
