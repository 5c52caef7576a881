"""Steps of gradient ascent on the mean ELBO of many linear VAEs at once."""

from __future__ import annotations

import torch
from torch import Tensor

from lineavae import _ext, reference
from lineavae._arguments import check_integer, check_number
from lineavae.ops._dispatch import has_native
from lineavae.ops._tensors import check_tensors
from lineavae.reference.linear_vae_ascent import Ascent, num_latents, num_parameters

_ext.load()

_OP = "linear_vae_ascent"


def linear_vae_ascent(
    covariance: Tensor,
    parameters: Tensor,
    first_moment: Tensor,
    second_moment: Tensor,
    lr: Tensor,
    beta: Tensor,
    active: Tensor,
    *,
    step: int = 0,
    tolerance: float = 0.0,
    learn_sigma2: bool = True,
    omitted_features: int = 0,
    omitted_variance: float = 0.0,
) -> Ascent:
    """S steps of gradient ascent on the mean ELBO of each of M linear VAEs of one size, on the same data.

    The objective is the β-ELBO of `linear_vae_elbo_from_moments` with μ at the sample mean, where its
    gradient is zero. The steps are those of ``torch.optim.Adam`` with its defaults and ``maximize``, or those
    of plain gradient ascent. The trajectory of a model depends on nothing but its own arguments: neither on
    the other models nor on the number of threads, to the bit.

    Parameters
    ----------
    covariance
        Biased covariance of the data about their mean, (D, D), symmetric. All tensors but ``active`` are
        float32 or all float64, and on one device.
    parameters
        (M, 2DK + K + 1): of each model the decoder W as (D, K), the encoder's transpose Vᵀ as (D, K), log d
        (K) and log σ², one after the other.
    first_moment, second_moment
        Adam's averages of the gradient and of its square, of the shape of ``parameters``, at first zero; both
        (M, 0) for plain gradient ascent.
    lr, beta
        Step size and weight of the KL in each of the S steps, (M, S). Their values are not looked at.
    active
        The models that train, (M,), bool; the others stay as they are.
    step
        How many steps were taken before, for Adam's bias corrections.
    tolerance
        A model stops for good after a step at which the norm of its gradient is below this; 0: never.
    learn_sigma2
        Whether σ² is trained.
    omitted_features, omitted_variance
        How many directions of the data, uncorrelated with those of ``covariance``, are left out of it, and
        the sum of their variances. In these W and V are zero, and stay so; only σ² depends on them.

    Returns
    -------
    Ascent
        Tensors: parameters, first_moment, second_moment, active, steps_taken and gradient_norm. A call that
        goes on from them with the next ``step`` gives the bits of one call.

    Raises
    ------
    TypeError
        An argument is no tensor, or of another dtype; ``step`` or ``omitted_features`` is no integer,
        ``tolerance`` or ``omitted_variance`` no number, or ``learn_sigma2`` no bool.
    ValueError
        A shape or device does not fit; ``step``, ``tolerance`` or what is omitted is negative or not
        finite; an argument requires grad: a trajectory is not differentiable.

    Notes
    -----
    Gradients of equations 15-20 of Lucas et al. (2019), as in `linear_vae_elbo_from_moments`.

    On CUDA models of D up to 64 and K up to 16 take all steps in one launch. Larger ones take each step by
    products of torch, which obey ``torch.set_float32_matmul_precision`` and may round another way for
    another M. Nothing waits for the device, so a CUDA graph can capture either.

    Examples
    --------
    Data of variances 4 and 1 with σ² = 2, from one start with two step sizes, until the gradient is small.

    >>> import torch
    >>> from lineavae.ops import linear_vae_ascent
    >>> covariance = torch.tensor([4.0, 1.0], dtype=torch.float64).diag()
    >>> start = torch.tensor([[0.5, 0.1, 0.1, 0.5, 0.0, 0.7]], dtype=torch.float64)  # K = 1
    >>> none = torch.empty(2, 0, dtype=torch.float64)
    >>> lr = torch.tensor([[0.05], [0.1]], dtype=torch.float64).expand(2, 1000)
    >>> all_models = torch.ones(2, dtype=torch.bool)
    >>> after = linear_vae_ascent(
    ...     covariance, start.expand(2, -1), none, none, lr, torch.ones_like(lr), all_models, tolerance=1e-3
    ... )
    >>> after.active
    tensor([False, False])
    >>> (after.parameters[:, :2].square().sum(1) + after.parameters[:, -1].exp()).round(decimals=1)
    tensor([4., 4.], dtype=torch.float64)
    """
    covariance, parameters, first_moment, second_moment, lr, beta = check_tensors(
        _OP,
        False,
        covariance=covariance,
        parameters=parameters,
        first_moment=first_moment,
        second_moment=second_moment,
        lr=lr,
        beta=beta,
    )
    tensors = (covariance, parameters, first_moment, second_moment, lr, beta)
    _check_shapes(*tensors)
    _check_active(active, parameters)
    step = check_integer(_OP, "step", step, 0)
    tolerance = check_number(_OP, "tolerance", tolerance, at_least=0)
    omitted_features = check_integer(_OP, "omitted_features", omitted_features, 0)
    omitted_variance = check_number(_OP, "omitted_variance", omitted_variance, at_least=0)
    if not isinstance(learn_sigma2, bool):
        raise TypeError(f"{_OP}: learn_sigma2 must be a bool, got {type(learn_sigma2).__name__}")
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise ValueError(
            f"{_OP}: no argument may require grad: a trajectory is not differentiable; "
            "detach it or call this under torch.no_grad()"
        )
    native = has_native(_OP, parameters.device)
    function = torch.ops.lineavae.linear_vae_ascent if native else reference.linear_vae_ascent
    settings = step, tolerance, learn_sigma2, omitted_features, omitted_variance
    return Ascent(*function(*tensors, active, *settings))


def _check_shapes(
    covariance: Tensor,
    parameters: Tensor,
    first_moment: Tensor,
    second_moment: Tensor,
    lr: Tensor,
    beta: Tensor,
) -> None:
    if parameters.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{_OP}: the tensors must be float32 or float64, got {parameters.dtype}")
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f"{_OP}: covariance must have shape (D, D), got {tuple(covariance.shape)}")
    num_features = covariance.shape[0]
    if parameters.ndim != 2 or parameters.shape[1] < 1 or _excess(parameters, num_features) != 0:
        raise ValueError(
            f"{_OP}: parameters must have shape (M, 2DK + K + 1) with D={num_features}, "
            f"got {tuple(parameters.shape)}"
        )
    num_models = parameters.shape[0]
    for name, moment in (("first_moment", first_moment), ("second_moment", second_moment)):
        if moment.shape not in (parameters.shape, (num_models, 0)) or moment.shape != first_moment.shape:
            raise ValueError(
                f"{_OP}: {name} must have the shape of parameters, {tuple(parameters.shape)}, or both "
                f"moments ({num_models}, 0), got {tuple(moment.shape)}"
            )
    for name, schedule in (("lr", lr), ("beta", beta)):
        if schedule.ndim != 2 or schedule.shape[0] != num_models or schedule.shape != lr.shape:
            raise ValueError(
                f"{_OP}: {name} must have shape (M, S) with M={num_models} and the S of lr, "
                f"got {tuple(schedule.shape)}"
            )


def _excess(parameters: Tensor, num_features: int) -> int:
    return parameters.shape[1] - num_parameters(num_features, num_latents(parameters, num_features))


def _check_active(active: Tensor, parameters: Tensor) -> None:
    if not isinstance(active, Tensor) or active.dtype != torch.bool:
        got = active.dtype if isinstance(active, Tensor) else type(active).__name__
        raise TypeError(f"{_OP}: active must be a bool tensor, got {got}")
    if active.shape != parameters.shape[:1] or active.device != parameters.device:
        raise ValueError(
            f"{_OP}: active must have shape (M,) with M={parameters.shape[0]} on device {parameters.device}, "
            f"got {tuple(active.shape)} on {active.device}"
        )


@torch.library.register_fake(f"lineavae::{_OP}")
def _fake(
    covariance: Tensor,
    parameters: Tensor,
    first_moment: Tensor,
    second_moment: Tensor,
    lr: Tensor,
    beta: Tensor,
    active: Tensor,
    step: int,
    tolerance: float,
    learn_sigma2: bool,
    omitted_features: int,
    omitted_variance: float,
) -> tuple[Tensor, ...]:
    models = parameters.shape[0]
    return (
        *(torch.empty_like(state) for state in (parameters, first_moment, second_moment)),
        torch.empty_like(active),
        active.new_empty(models, dtype=torch.int64),
        parameters.new_empty(models),
    )
