"""Likelihood and ELBO on a plane through a stationary point of probabilistic PCA."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lineavae._arguments import check_integer, check_number
from lineavae.linear.closed_forms import log_likelihood_and_gap
from lineavae.linear.stationary import StationaryPoint, check_point

# Elements of the (K, K) matrices held at a time: 32 MB of each kind in float64.
_BATCH_ELEMENTS = 1 << 22


@dataclass(frozen=True, eq=False)
class Landscape:
    """Likelihood and ELBO at W + a P + b Q for a grid of a and b; `landscape` makes it.

    Attributes
    ----------
    coordinates : Tensor
        The values of a, and of b, ascending, (num,), float64.
    log_likelihood : Tensor
        Average log-likelihood in nats per sample, (num, num), float64: a by row, b by column.
    elbo : Tensor
        Average ELBO under the best encoder of each W, likewise.

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import Moments, StationaryPoint, landscape
    >>> x = torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    >>> point = StationaryPoint(Moments.from_data(x), kept=[], latent_dim=2, sigma2=3.0)
    >>> oblique = point.perturbation(0, 0) + point.perturbation(1, 0), point.perturbation(1, 1)
    >>> plane = landscape(point, oblique, radius=1.0, num=3)
    >>> plane.log_likelihood - plane.elbo  # the columns are oblique unless the first coordinate is 0
    tensor([[0.0256, 0.0323, 0.0256],
            [0.0000, 0.0000, 0.0000],
            [0.0256, 0.0323, 0.0256]], dtype=torch.float64)
    """

    coordinates: Tensor
    log_likelihood: Tensor
    elbo: Tensor


@torch.no_grad()
def landscape(
    point: StationaryPoint, directions: tuple[Tensor, Tensor], radius: float, num: int = 41
) -> Landscape:
    """Evaluate the likelihood and the ELBO on a plane through a stationary point.

    Parameters
    ----------
    point
        The centre of the plane; its σ² is held.
    directions
        Two changes of W, (D, K) each, as `StationaryPoint.perturbation` gives.
    radius
        Both coordinates go from -radius to radius.
    num
        Values of each coordinate, at least 2. The point itself is on the grid where it is odd.

    Returns
    -------
    Landscape
        num x num values of both, from one batch of K x K matrices.

    Raises
    ------
    ValueError
        A shape does not fit, or a number is out of its range.

    Notes
    -----
    Figure 1 of Lucas et al. (2019) is this for two zero columns and the eigenvectors 5 and 7.

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import Moments, StationaryPoint, landscape
    >>> x = torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    >>> point = StationaryPoint(Moments.from_data(x), kept=[], latent_dim=2, sigma2=3.0)
    >>> plane = landscape(point, (point.perturbation(0, 0), point.perturbation(1, 1)), radius=1.0, num=3)
    >>> plane.log_likelihood - point.log_likelihood  # rises along the first, of eigenvalue 8, alone
    tensor([[ 0.1290,  0.1895,  0.1290],
            [-0.0605,  0.0000, -0.0605],
            [ 0.1290,  0.1895,  0.1290]], dtype=torch.float64)
    """
    check_point("landscape", point)
    expected = (point.num_features, point.latent_dim)
    if len(directions) != 2 or any(tuple(direction.shape) != expected for direction in directions):
        raise ValueError(
            f"landscape: directions must be two of shape (D, K) = {expected}, "
            f"got {[tuple(direction.shape) for direction in directions]}"
        )
    radius = check_number("landscape", "radius", radius, above=0)
    num = check_integer("landscape", "num", num, minimum=2)
    corners = torch.stack([point.weight, *(direction.to(point.weight) for direction in directions)])

    # WᵀW and WᵀSW of W + aP + bQ are sums of these of pairs of corners; S goes by its eigenvectors
    scores = point.eigenvectors.mT @ corners
    rank = scores.shape[1]
    grams = torch.einsum("pdk,qdl->pqkl", corners, corners)
    spectral = point.eigenvalues[:rank].unsqueeze(1) * scores
    projections = torch.einsum("prk,qrl->pqkl", scores, spectral)

    coordinates = torch.linspace(-radius, radius, num, device=corners.device).to(corners)
    grid = torch.cartesian_prod(coordinates, coordinates)
    mixtures = torch.cat([torch.ones_like(grid[:, :1]), grid], 1)
    log_sigma2 = point.eigenvalues.new_tensor(point.sigma2).log()
    parts = []
    for mixture in torch.split(mixtures, max(1, _BATCH_ELEMENTS // point.latent_dim**2)):
        gram, projected = (
            torch.einsum("gp,gq,pqkl->gkl", mixture, mixture, pairs) for pairs in (grams, projections)
        )
        total = point.eigenvalues.sum()
        parts.append(torch.stack(log_likelihood_and_gap(gram, projected, total, log_sigma2, expected[0])))
    log_likelihood, gap = torch.cat(parts, 1).reshape(2, num, num)
    return Landscape(coordinates, log_likelihood, log_likelihood - gap)
