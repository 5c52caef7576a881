"""What a decoder's columns are, beyond the subspace that they span (Lucas et al. 2019, appendix B).

The likelihood of W is that of every rotation W R. The ELBO is not: at its global maximum the columns are the
scaled principal directions, up to sign and order. `rotation_gap` is what it loses elsewhere,
`align` matches columns with directions, `subspace_angles` compares spans alone.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lineavae._arguments import check_number
from lineavae.linear.closed_forms import optimal_encoder, orthonormal_basis, unit_columns

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lineavae.linear.vae import LinearVAE


class Alignment(NamedTuple):
    """Columns of one matrix matched with those of another: (m,) each, with m the smaller number of columns.

    ``weight[:, columns] * signs`` are the columns of W that belong to ``directions[:, matched]``.

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import align
    >>> align(torch.tensor([[0.0, -3.0], [2.0, 0.0]]), torch.eye(2)).columns
    tensor([1, 0])
    """

    columns: Tensor
    """Indices of columns of W, int64."""
    matched: Tensor
    """Indices of the directions that they are matched with, ascending, int64."""
    signs: Tensor
    """1 or -1: the sign of the cosine, float64."""
    cosines: Tensor
    """Magnitudes of the cosines, float64, from 0 to 1; 0 for a column of zeros."""


@torch.no_grad()
def align(weight: Tensor, directions: Tensor) -> Alignment:
    """Match the columns of a decoder with directions so that the sum of all |cos| is largest.

    Parameters
    ----------
    weight
        Decoder W, (D, K), of any floating dtype.
    directions
        Directions, (D, L), of any length, for instance the eigenvectors of `Moments.eigh`.

    Returns
    -------
    Alignment
        min(K, L) pairs, in the order of the directions.

    Raises
    ------
    TypeError
        An argument is not a floating tensor.
    ValueError
        The shapes do not fit, or a value is not finite.

    Notes
    -----
    The assignment is the Hungarian one (Kuhn 1955): no column serves two directions. Columns of a trained
    decoder need not be close to any direction, since the ELBO is nearly flat along rotations; those of
    `LinearVAE.principal_components` are.

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import align
    >>> weight = torch.tensor([[0.5, -3.0], [2.0, 1.0]])
    >>> alignment = align(weight, torch.eye(2))
    >>> alignment.columns, alignment.signs
    (tensor([1, 0]), tensor([-1.,  1.], dtype=torch.float64))
    >>> weight[:, alignment.columns] * alignment.signs
    tensor([[ 3.0000,  0.5000],
            [-1.0000,  2.0000]], dtype=torch.float64)
    """
    weight, directions = _check_matrices("align", weight, directions)
    cosine = unit_columns(weight).mT @ unit_columns(directions)
    magnitude = cosine.abs().clamp_max(1)
    columns, matched = linear_sum_assignment(magnitude.cpu().numpy(), maximize=True)
    order = matched.argsort()
    columns, matched = (_on(index[order], weight.device) for index in (columns, matched))
    signs = torch.where(cosine[columns, matched] < 0, -1.0, 1.0).double()
    return Alignment(columns, matched, signs, magnitude[columns, matched])


@torch.no_grad()
def subspace_angles(weight: Tensor, directions: Tensor) -> Tensor:
    """Principal angles between the spans of the columns of two matrices.

    Parameters
    ----------
    weight, directions
        (D, K) and (D, L), of any floating dtype. Columns may be zero or linearly dependent.

    Returns
    -------
    Tensor
        Angles in radians, descending, float64, (m,): m is the smaller of the two ranks. All are zero where
        one span holds the other.

    Raises
    ------
    TypeError
        An argument is not a floating tensor.
    ValueError
        The shapes do not fit, or a value is not finite.

    See Also
    --------
    scipy.linalg.subspace_angles : The same for matrices of full rank.

    References
    ----------
    Knyazev and Argentati (2002). Principal angles between subspaces in an A-based scalar product. SIAM J.
    Sci. Comput. 23.

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import subspace_angles
    >>> plane = torch.eye(3)[:, :2]
    >>> subspace_angles(plane, torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 1.0]])).rad2deg().round()
    tensor([45., 0.], dtype=torch.float64)
    """
    smaller, larger = sorted(
        (orthonormal_basis(matrix) for matrix in _check_matrices("subspace_angles", weight, directions)),
        key=lambda basis: basis.shape[1],
    )
    inner = larger.mT @ smaller
    cosines = torch.linalg.svdvals(inner).flip(0).clamp_max(1)
    sines = torch.linalg.svdvals(smaller - larger @ inner).clamp_max(1)
    # a cosine has no digits of a small angle, a sine none of one near 90 degrees
    return torch.where(cosines.square() < 0.5, cosines.acos(), sines.asin())


def rotation_gap(weight: Tensor, sigma2: Tensor | float) -> Tensor:
    """ELBO that a decoder loses because its columns are not orthogonal, at its best encoder.

        log p(x) - ELBO = ½ (Σ_j log M̃_jj - log det M̃),  M̃ = WᵀW + σ² I

    The same for every x; zero where the columns are orthogonal, and only there. The rotation of
    `LinearVAE.canonicalize_` closes it and leaves the likelihood as it is.

    Parameters
    ----------
    weight
        Decoder W, (D, K), of any floating dtype.
    sigma2
        Observation noise σ² > 0, a number or ().

    Returns
    -------
    Tensor
        The gap in nats per sample, >= 0, (), float64; differentiable.

    Raises
    ------
    TypeError
        W is not a floating tensor, or σ² neither a number nor a tensor.
    ValueError
        W is not of shape (D, K) or not finite; σ² is not one finite number above 0.

    Notes
    -----
    Lucas et al. (2019), equation 27.

    Examples
    --------
    >>> import math, torch
    >>> from lineavae.linear import rotation_gap
    >>> weight = torch.diag(torch.tensor([3.0, 1.0]))
    >>> turn = torch.tensor([[1.0, -1.0], [1.0, 1.0]]) / math.sqrt(2)
    >>> rotation_gap(weight, 1.0), rotation_gap(weight @ turn, 1.0)
    (tensor(0., dtype=torch.float64), tensor(0.2939, dtype=torch.float64))
    """
    (weight,) = _check_matrices("rotation_gap", weight)
    noise = _check_sigma2("rotation_gap", sigma2, weight)
    return optimal_encoder(weight, noise)[2].clamp_min(0)


@torch.no_grad()
def rescale_latents(model: LinearVAE, scale: Tensor) -> LinearVAE:
    """Give a copy of a model whose reconstructions are the same, with another scale of each latent.

        W ← W A,  V ← A⁻¹ V,  diag d ← A⁻¹ diag d A⁻¹

    with A = diag a. The distribution of the reconstructions, N(W V (x - μ) + μ, W diag d Wᵀ), does not
    change, and so neither does the reconstruction term of the ELBO. The KL term does: it is smallest where
    each latent's posteriors together have the prior's second moment, v_jᵀ S v_j + d_j = 1, as they have at
    the ELBO's maximum. So the ELBO identifies what the reconstructions do not.

    Parameters
    ----------
    model
        The linear VAE; it is not changed.
    scale
        Diagonal a of A, (K,), finite and nowhere zero; on the model's device or the CPU.

    Returns
    -------
    LinearVAE
        The copy, of the model's dtype and device.

    Raises
    ------
    TypeError
        ``scale`` is not a floating tensor.
    ValueError
        ``scale`` is of another shape, or an entry is zero or not finite.

    Notes
    -----
    Lucas et al. (2019), equation 14.

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import LinearVAE, rescale_latents
    >>> vae = LinearVAE(3, 2, dtype=torch.float64)
    >>> other = rescale_latents(vae, torch.tensor([2.0, -0.5]))
    >>> torch.allclose(other.weight @ other.encoder, vae.weight @ vae.encoder)
    True
    """
    if not isinstance(scale, Tensor) or not scale.is_floating_point():
        raise TypeError(f"rescale_latents: scale must be a floating tensor, got {_kind(scale)}")
    if scale.shape != (model.latent_dim,):
        raise ValueError(
            f"rescale_latents: scale must have shape (K,) with K={model.latent_dim}, got {tuple(scale.shape)}"
        )
    if not (scale.isfinite() & (scale != 0)).all():
        raise ValueError(f"rescale_latents: scale must be finite and nowhere zero, got {scale.tolist()}")
    factor = scale.detach().to(model.weight.device, torch.float64)
    rescaled = copy.deepcopy(model)
    rescaled.weight.copy_(model.weight * factor)
    rescaled.encoder.copy_(model.encoder / factor.unsqueeze(1))
    rescaled.log_d.copy_(model.log_d - 2 * factor.abs().log())
    return rescaled


def _check_matrices(caller: str, weight: Tensor, directions: Tensor | None = None) -> list[Tensor]:
    """Give the matrices in float64."""
    named = {"weight": weight} if directions is None else {"weight": weight, "directions": directions}
    for name, matrix in named.items():
        if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
            raise TypeError(f"{caller}: {name} must be a floating tensor, got {_kind(matrix)}")
        if matrix.ndim != 2 or not matrix.numel():
            raise ValueError(f"{caller}: {name} must have shape (D, K), got {tuple(matrix.shape)}")
        if matrix.shape[0] != weight.shape[0]:
            raise ValueError(
                f"{caller}: {name} must have the D={weight.shape[0]} rows of weight, "
                f"got {tuple(matrix.shape)}"
            )
        if matrix.device != weight.device:
            raise ValueError(f"{caller}: {name} must be on device {weight.device}, got {matrix.device}")
        if not matrix.isfinite().all():
            raise ValueError(f"{caller}: {name} must be finite, got a NaN or an infinity")
    return [matrix.double() for matrix in named.values()]


def _check_sigma2(caller: str, sigma2: Tensor | float, like: Tensor) -> Tensor:
    number: Any = sigma2.item() if isinstance(sigma2, Tensor) and not sigma2.ndim else sigma2
    number = check_number(caller, "sigma2", number, above=0)
    return sigma2.to(like) if isinstance(sigma2, Tensor) else like.new_tensor(number)


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def _on(index: NDArray[np.intp], device: torch.device) -> Tensor:
    return torch.as_tensor(index, device=device)
