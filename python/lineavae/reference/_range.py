"""How the formulas with variances keep to the range of their result, not to that of 1 / σ²."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor
from torch.autograd import Function

from lineavae._dynamo import allow_in_graph

_P = ParamSpec("_P")


def double(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Give the tensors in float64, where all squares and variances of float32 fit.

    On a device that may not have it, any but CPU and CUDA, as they are.
    """
    has_float64 = tensors[0].device.type in ("cpu", "cuda", "meta")
    return tuple(tensor.double() for tensor in tensors) if has_float64 else tensors


def in_double(formula: Callable[_P, Tensor]) -> Callable[_P, Tensor]:
    """Compute ``formula`` in float64, where all squares and variances of float32 fit, and round its value.

    On other devices than CPU and CUDA, which may lack it, in the dtype of the tensors.
    """

    @wraps(formula)
    def rounded(*args: _P.args, **kwargs: _P.kwargs) -> Tensor:
        first = next(arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor))
        if first.device.type not in ("cpu", "cuda", "meta"):
            return formula(*args, **kwargs)
        wide: Any = [arg.double() if isinstance(arg, Tensor) else arg for arg in args]
        named: Any = {key: arg.double() if isinstance(arg, Tensor) else arg for key, arg in kwargs.items()}
        return formula(*wide, **named).to(first.dtype)

    return rounded


def standardize(residual: Tensor, log_sigma2: Tensor) -> Tensor:
    """Give residual / σ, elementwise, finite whenever it fits.

    Its derivatives are those of the quotient without a factor 1 / σ, which may be infinite where the residual
    is 0: by log σ² it is -½ residual / σ.
    """
    shape = torch.broadcast_shapes(residual.shape, log_sigma2.shape)
    scaled: Tensor = _Standardize.apply(residual.expand(shape), log_sigma2.expand(shape))
    return scaled


@allow_in_graph  # Dynamo does not trace a Function with a jvp
class _Standardize(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(residual: Tensor, log_sigma2: Tensor) -> Tensor:
        # √(1 / σ), twice: 1 / σ may be out of range. Never infinite, so that its product with 0 is 0.
        limit = 88 if residual.dtype == torch.float32 else 700
        root = (-0.25 * log_sigma2).clamp(-limit, limit).exp()
        return residual * root * root

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        residual, log_sigma2 = ctx.saved_tensors
        return standardize(grad, log_sigma2), -0.5 * grad * standardize(residual, log_sigma2)

    @staticmethod
    def jvp(ctx: Any, residual_tangent: Tensor, log_sigma2_tangent: Tensor) -> Tensor:
        residual, log_sigma2 = ctx.saved_tensors
        by_log_sigma2 = -0.5 * standardize(residual, log_sigma2) * log_sigma2_tangent
        return standardize(residual_tangent, log_sigma2) + by_log_sigma2
