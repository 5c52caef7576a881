"""Log-likelihood of Bernoulli variables given their logits.

log p(x|a) = x a - softplus(a) = x log sigmoid(a) + (1 - x) log sigmoid(-a)
"""

from torch import Tensor
from torch.nn.functional import logsigmoid


def bernoulli_log_likelihood(x: Tensor, logits: Tensor) -> Tensor:
    """x (N, ...), logits (N, ...) -> (N,), in nats."""
    each = x * logsigmoid(logits) + (1 - x) * logsigmoid(-logits)
    return each.reshape(x.shape[0], x.shape[1:].numel()).sum(-1)
