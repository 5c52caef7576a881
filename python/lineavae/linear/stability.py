"""Which stationary points are maxima: the Hessians of the likelihood and of the ELBO of linear models.

At the stationary points of probabilistic PCA both Hessians fall apart, in the eigenbasis of the covariance,
into blocks of at most 4 x 4 (and one more where σ² is learned), so their whole spectra are closed forms. The
blocks of a column with variance k (its eigenvalue, or σ² where the column is zero), per sample:

- Towards an unused component of eigenvalue λ the likelihood has curvature (λ/k - 1)/σ²: equation 13 of Lucas
  et al. (2019). The ELBO has ((-1, λ), (λ, -λk))/σ² in W and V, with one positive eigenvalue iff λ > k.
- Along its own component, of eigenvalue λ = k: -2 (λ - σ²)/λ², and below zero for the ELBO.
- Between two kept components: a rotation, along which the likelihood is flat and the ELBO curved downwards,
  and a change of both, along which both are.

So whether λ > k for some column and some unused component decides alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from lineavae._arguments import check_integer
from lineavae._printing import PrintsInNotebooks
from lineavae.linear.closed_forms import log_likelihood_and_gap
from lineavae.linear.moments import Moments, check_features
from lineavae.linear.parameters import LinearModel, LinearParameters
from lineavae.linear.stationary import Noise, Objective, StationaryPoint, check_choices, check_point
from lineavae.reference.linear_vae_elbo_from_moments import linear_vae_elbo_from_moments

# Relative distance from the stationary σ² up to which a point counts as stationary in it.
_AT_OPTIMAL_NOISE = 1e-9

# Parameters up to which the whole Hessian takes about a second. Near a maximum the upper end of the spectrum
# is crowded, with zeros where a feature is constant, and there Lanczos's method takes longer or fails.
_DENSE = 1024

# Least size of the basis of Lanczos's method, and restarts after which it gives up.
_LANCZOS_VECTORS = 60
_LANCZOS_RESTARTS = 300

# Norm of the residual of an eigenvector beside its eigenvalue; the error of the eigenvalue is its square.
_LANCZOS_TOLERANCE = 1e-7


@dataclass(frozen=True, eq=False)
class Stability(PrintsInNotebooks):
    """What kind of stationary point one is; `stability` makes it. Prints as a summary.

    Attributes
    ----------
    point : StationaryPoint
        The point judged.
    noise : {"fixed", "learned"}
        Whether σ² is a parameter beside W.
    kind : {"maximum", "saddle", "minimum"}
        What the point is for the likelihood. For the ELBO, with V and log d as further parameters, a maximum
        and a saddle are the same, and a minimum is a saddle.
    index : int
        Number of positive eigenvalues of the Hessian, the same for the likelihood and the ELBO.
    curvature : Tensor
        Second derivative of the average log-likelihood along each eigenvector (column) added to each column
        of W (row), (K, D), float64: nats per sample and squared length.
    escape : Tensor
        The rows and columns of ``curvature`` along which the likelihood rises, and with it, without a
        rotation, the ELBO under the best encoder: the steepest first, (index, 2), int64.
        `StationaryPoint.perturbation` makes the direction of each.

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import Moments, StationaryPoint, stability
    >>> x = torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    >>> verdict = stability(StationaryPoint(Moments.from_data(x), kept=[0], latent_dim=2, sigma2=1.0))
    >>> round(verdict.curvature[1, 1].item(), 6)  # of the zero column towards the component left: 2 / 1 - 1
    1.0
    >>> verdict.hessian_eigenvalues().round(decimals=3)
    tensor([ 1.0000,  0.0000, -0.2190, -0.7500], dtype=torch.float64)
    """

    point: StationaryPoint
    noise: Noise
    kind: Literal["maximum", "saddle", "minimum"]
    index: int
    curvature: Tensor
    escape: Tensor

    def hessian_eigenvalues(self, objective: Objective = "likelihood") -> Tensor:
        """All eigenvalues of the Hessian per sample, descending, float64.

        Parameters
        ----------
        objective
            "likelihood": of the average log-likelihood by W, and log σ² where it is learned, (DK [+ 1],).
            "elbo": of the average ELBO by W, V and log d, and log σ² where it is learned,
            (2DK + K [+ 1],). The mean μ, which is decoupled from them all, is left out.

        Raises
        ------
        ValueError
            The objective is neither, or is the ELBO of a rotated point, at which it is not stationary.
        """
        check_choices("Stability.hessian_eigenvalues", objective, self.noise)
        if objective == "elbo" and self.point.rotation is not None:
            raise ValueError(
                "Stability.hessian_eigenvalues: the point must have no rotation for objective 'elbo', "
                "which is not stationary at it"
            )
        blocks = _likelihood_blocks if objective == "likelihood" else _elbo_blocks
        eigenvalues = torch.cat([part.flatten() for part in blocks(self.point, self.noise)])
        return eigenvalues.sort(descending=True).values

    def __str__(self) -> str:
        lines = [f"a {self.kind} of the likelihood, with σ² {self.noise}"]
        if self.index:
            row, column = self.escape[0].tolist()
            steepest = self.curvature[row, column].item()
            lines += [
                f"{self.index} directions of ascent",
                f"the steepest: column {row} of W along eigenvector {column}, with curvature {steepest:.4g}",
            ]
        return "\n".join(lines)


def stability(point: StationaryPoint, noise: Noise = "fixed") -> Stability:
    """Decide whether a stationary point of probabilistic PCA is a maximum or a saddle.

    Parameters
    ----------
    point
        The point. A rotation changes nothing.
    noise
        "fixed": over W alone. "learned": over W and σ², for a point that is stationary in both.

    Returns
    -------
    Stability
        The verdict, the number of directions of ascent, and the directions.

    Raises
    ------
    ValueError
        With learned noise, the σ² of the point is not the mean of the eigenvalues that are not kept.

    Notes
    -----
    Lucas et al. (2019), appendix A.1: column i rises towards unused component j iff λ_j > k_i. Eigenvalues
    closer than rounding count as equal, and the curvature between them as zero. No such case is left
    undecided: where no curvature is positive, the kept components are leading ones and no component above σ²
    is missing while a column is zero, and the point is the **global** maximum at this K and this σ² (at the
    best σ² where it is learned). A latent that has collapsed at a fixed σ² was not trapped: at that σ² the
    likelihood wants it so.

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import Moments, StationaryPoint, stability
    >>> x = torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    >>> collapsed = StationaryPoint(Moments.from_data(x), kept=[0], latent_dim=2, sigma2=3.0)
    >>> stability(collapsed).kind  # σ² is above the second eigenvalue, 2
    'maximum'
    >>> verdict = stability(collapsed.with_sigma2(1.0))
    >>> verdict.kind, verdict.index, verdict.escape.tolist()
    ('saddle', 1, [[1, 1]])
    """
    check_point("stability", point)
    check_choices("stability", "likelihood", noise)
    if noise == "learned" and len(point.kept) < point.num_features:
        best = point.unused_eigenvalues.mean().item()
        if not abs(point.sigma2 - best) <= _AT_OPTIMAL_NOISE * best:
            raise ValueError(
                "stability: sigma2 of the point must be the mean of the eigenvalues that are not kept, "
                f"{best:g}, for noise 'learned', got {point.sigma2:g}; with_sigma2(None) sets it"
            )
    elif noise == "learned":
        raise ValueError(
            "stability: noise must be 'fixed' where all components are kept: no σ² is stationary"
        )
    curvature, unused = _curvature(point), point.unused
    gaps = point.unused_eigenvalues - point.column_variances.unsqueeze(1)
    own = torch.nn.functional.pad(point._rounding[list(point.kept)], (0, len(gaps) - len(point.kept)))
    rises = gaps > point._rounding[unused] + own.unsqueeze(1)
    column, position = rises.nonzero(as_tuple=True)
    direction = unused[position]
    order = curvature[column, direction].argsort(descending=True, stable=True)
    index = len(order)
    kind: Literal["maximum", "saddle", "minimum"] = "saddle"
    if index == 0:
        kind = "maximum"
    elif noise == "fixed" and index == curvature.numel():
        kind = "minimum"
    return Stability(
        point=point,
        noise=noise,
        kind=kind,
        index=index,
        curvature=curvature,
        escape=torch.stack([column, direction], 1)[order],
    )


def stable_sigma2(point: StationaryPoint) -> tuple[float, float] | None:
    """Give the interval of fixed σ² on which the point with these components exists and is a maximum.

    Parameters
    ----------
    point
        The point; its own σ² does not matter.

    Returns
    -------
    tuple of float, or None
        (low, high) for low <= σ² < high. low is the largest eigenvalue that is not kept, or 0 where no
        column is zero and σ² > 0 suffices; high is the smallest kept. None where an eigenvalue larger than a
        kept one is not kept: then the point is a saddle at every σ².

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import Moments, StationaryPoint, stable_sigma2
    >>> x = torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    >>> low, high = stable_sigma2(StationaryPoint(Moments.from_data(x), kept=[0], latent_dim=2, sigma2=1.0))
    >>> round(low, 6), round(high, 6)
    (2.0, 8.0)
    """
    check_point("stable_sigma2", point)
    first, last = int(point.unused[0]) if len(point.unused) else None, max(point.kept, default=None)
    largest_unused = 0.0 if first is None else point.eigenvalues[first].item()
    smallest_kept = math.inf if last is None else point.eigenvalues[last].item()
    if first is not None and last is not None:
        rounding = point._rounding[first] + point._rounding[last]
        if largest_unused - smallest_kept > rounding:
            return None
    low = largest_unused if len(point.kept) < point.latent_dim else 0.0
    return (low, smallest_kept) if low < smallest_kept else None


def hessian_eigenpairs(
    model: LinearModel,
    moments: Moments,
    count: int = 6,
    *,
    objective: Objective = "elbo",
    noise: Noise = "fixed",
    largest: bool = True,
) -> tuple[Tensor, Tensor]:
    """Find extreme eigenvalues of the Hessian of the ELBO or the likelihood at any linear VAE.

    Up to 1024 parameters the whole Hessian is formed; beyond them Lanczos's method takes products of it with
    a vector alone, each as much as a few gradients. This is for trained models; at a `StationaryPoint`,
    `stability` has the whole spectrum in closed form, and of eigenvalues that are equal it has each, where
    Lanczos's method may find but one.

    Parameters
    ----------
    model
        A linear VAE of any dtype, or its `LinearParameters`; the computation is in float64 on its device. The
        likelihood does not depend on the encoder.
    moments
        Moments of the data.
    count
        Number of eigenvalues, at most that of parameters.
    objective
        "elbo", by W, V and log d, or "likelihood", by W; the mean μ is held.
    noise
        "learned": by log σ² as well. "fixed": not.
    largest
        Whether those at the upper end are wanted, among which a positive one tells a saddle, or at the lower.

    Returns
    -------
    eigenvalues : Tensor
        Per sample, the outermost first, (count,), float64.
    eigenvectors : Tensor
        Unit vectors, (P, count): W, then V, log d and log σ² as far as they are parameters, each flattened.

    Raises
    ------
    ValueError
        The numbers of features differ, or count is not between 1 and the number P of parameters.
    scipy.sparse.linalg.ArpackNoConvergence
        Lanczos's method did not converge: the eigenvalues at that end lie too close together beside the whole
        width of the spectrum.

    Examples
    --------
    >>> import torch
    >>> from lineavae.linear import Moments, StationaryPoint, hessian_eigenpairs, stability
    >>> x = torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    >>> moments = Moments.from_data(x)
    >>> point = StationaryPoint(moments, kept=[0], latent_dim=2, sigma2=1.0)
    >>> eigenvalues, _ = hessian_eigenpairs(point.to_vae(), moments, count=2)
    >>> bool((eigenvalues - stability(point).hessian_eigenvalues("elbo")[:2]).abs().max() < 1e-8)
    True
    """
    check_choices("hessian_eigenpairs", objective, noise)
    held = LinearParameters.of(model).detach().to(torch.float64)
    check_features("hessian_eigenpairs", "moments", moments, held.num_features)
    function, names = _function(held, moments, objective, noise)
    parameters = [getattr(held, name).detach().requires_grad_() for name in names]
    size = sum(parameter.numel() for parameter in parameters)
    if check_integer("hessian_eigenpairs", "count", count, minimum=1) > size:
        raise ValueError(f"hessian_eigenpairs: count must be at most the {size} parameters, got {count}")
    with torch.enable_grad():
        value = function(**dict(zip(names, parameters, strict=True)))
        gradient = _flatten(torch.autograd.grad(value, parameters, create_graph=True))

    def times(vector: Tensor) -> Tensor:
        product = torch.autograd.grad(gradient, parameters, vector, retain_graph=True)
        return _flatten(product)

    # Lanczos finds at most P - 1 eigenvalues and is no gain near that many
    if size <= _DENSE or 2 * count + 1 >= size:
        identity = torch.eye(size, dtype=gradient.dtype, device=gradient.device)
        hessian = torch.stack([times(row) for row in identity])
        eigenvalues, eigenvectors = torch.linalg.eigh((hessian + hessian.mT) / 2)
    else:

        def matvec(vector: NDArray[np.float64]) -> NDArray[np.float64]:
            return times(torch.from_numpy(vector).flatten().to(gradient)).cpu().numpy()

        operator = LinearOperator((size, size), matvec=matvec, dtype=np.float64)
        # a start of its own makes the result a function of the arguments
        start = np.random.default_rng(0).standard_normal(size)
        basis = min(size - 1, max(4 * count, _LANCZOS_VECTORS))
        found = eigsh(
            operator,
            k=count,
            which="LA" if largest else "SA",
            v0=start,
            ncv=basis,
            maxiter=_LANCZOS_RESTARTS,
            tol=_LANCZOS_TOLERANCE,
        )
        eigenvalues, eigenvectors = (torch.from_numpy(part).to(gradient) for part in found)
    order = eigenvalues.argsort(descending=largest)[:count]
    return eigenvalues[order].detach(), eigenvectors[:, order].detach()


def _curvature(point: StationaryPoint) -> Tensor:
    """Diagonal of the Hessian of the likelihood in the eigenbasis, (K, D)."""
    variances, lengths = point.column_variances.unsqueeze(1), point.column_lengths
    curvature = (point.eigenvalues / variances - 1) / point.sigma2
    kept = list(point.kept)
    curvature[:, kept] = -lengths.square().unsqueeze(1) / (variances * point.kept_eigenvalues)
    own = torch.arange(len(kept), device=curvature.device)
    curvature[own, kept] *= 2
    return curvature


def _likelihood_blocks(point: StationaryPoint, noise: Noise) -> list[Tensor]:
    sigma2, kept = point.sigma2, point.kept_eigenvalues
    lengths = point.column_lengths[: len(kept)]
    first, second = torch.triu_indices(len(kept), len(kept), 1, device=kept.device)
    own = -2 * (lengths / kept).square()
    if noise == "learned":
        unused = point.unused_eigenvalues
        # d²/d(log σ²)², less the first derivative, which is zero here
        corner = 0.5 * (sigma2 / kept).square().sum() - (sigma2 / kept).square().sum()
        corner += 0.5 * len(unused) - unused.sum() / sigma2
        own = torch.linalg.eigvalsh(_arrow(own.diag(), -sigma2 * lengths / kept.square(), corner))
    joint = -(lengths[first].square() + lengths[second].square()) / (kept[first] * kept[second])
    # rotations of two kept components, and of a kept one into an empty column
    flat = len(joint) + (point.latent_dim - len(kept)) * len(kept)
    return [_curvature(point)[:, point.unused], own, joint, kept.new_zeros(flat)]


def _elbo_blocks(point: StationaryPoint, noise: Noise) -> list[Tensor]:
    sigma2, kept, unused = point.sigma2, point.kept_eigenvalues, point.unused_eigenvalues
    lengths, variances = point.column_lengths[: len(kept)], point.column_variances.unsqueeze(1)
    empty = point.latent_dim - len(kept)
    first, second = torch.triu_indices(len(kept), len(kept), 1, device=kept.device)

    # a column and an unused component: W and V
    blocks = [_pair(unused * variances, unused * (variances - unused), sigma2)]
    # an empty column and a kept component
    blocks += [_pair(kept * sigma2, sigma2 * (kept - sigma2), sigma2)] * empty
    # two kept components: their symmetric and antisymmetric change, the latter a rotation
    for sign in (1, -1):
        slack = sigma2 * (lengths[first] + sign * lengths[second]).square()
        blocks.append(_pair(kept[first] * kept[second], slack, sigma2))
    # a kept component by itself: W, V and log d
    own = kept.new_zeros(len(kept), 3, 3)
    own[:, 0, 0] = -1 / sigma2
    own[:, 1, 1] = -kept.square() / sigma2
    own[:, 2, 2] = -0.5
    own[:, 0, 1] = own[:, 1, 0] = (sigma2 - lengths.square()) / sigma2
    own[:, 0, 2] = own[:, 2, 0] = -lengths / kept
    if noise == "learned":
        border = torch.stack([torch.zeros_like(kept), -lengths, 0.5 * lengths.square() / kept], 1)
        corner = kept.new_tensor(-0.5 * point.num_features)
        blocks.append(torch.linalg.eigvalsh(_arrow(_block_diagonal(own), border.flatten(), corner)))
    else:
        blocks.append(torch.linalg.eigvalsh(own))
    blocks.append(kept.new_full((empty,), -0.5))
    return blocks


def _pair(product: Tensor, determinant: Tensor, sigma2: float) -> Tensor:
    """Both eigenvalues of ((-1, b), (b, -p)) / σ² from p and the determinant p - b², whatever its sign."""
    trace = 1 + product
    lower = -0.5 * (trace + (trace.square() - 4 * determinant).sqrt())
    # the other one as the quotient keeps its digits where it is small
    return torch.stack([lower, determinant / lower]) / sigma2


def _block_diagonal(blocks: Tensor) -> Tensor:
    """Put blocks (q, n, n) onto the diagonal of a matrix."""
    count, size, _ = blocks.shape
    matrix = blocks.new_zeros(count, size, count, size)
    index = torch.arange(count, device=blocks.device)
    matrix[index, :, index] = blocks
    return matrix.reshape(count * size, count * size)


def _arrow(core: Tensor, border: Tensor, corner: Tensor) -> Tensor:
    """Border a symmetric matrix with one more row and column."""
    top = torch.cat([core.reshape(len(border), len(border)), border.unsqueeze(1)], 1)
    bottom = torch.cat([border, corner.reshape(1)]).unsqueeze(0)
    return torch.cat([top, bottom])


def _function(
    held: LinearParameters, moments: Moments, objective: Objective, noise: Noise
) -> tuple[Callable[..., Tensor], list[str]]:
    """Give the objective as a function of its parameters, which go by name, and their names."""
    sample_mean, covariance = moments.sample_mean.to(held.mu), moments.covariance.to(held.mu)
    learned = ["log_sigma2"] if noise == "learned" else []
    if objective == "elbo":

        def elbo(**parameters: Tensor) -> Tensor:
            return linear_vae_elbo_from_moments(sample_mean, covariance, *held._replace(**parameters))

        return elbo, ["weight", "encoder", "log_d", *learned]

    offset = sample_mean - held.mu
    second_moment = covariance + offset.outer(offset)

    def likelihood(weight: Tensor, log_sigma2: Tensor = held.log_sigma2) -> Tensor:
        gram, projected = weight.mT @ weight, weight.mT @ second_moment @ weight
        return log_likelihood_and_gap(gram, projected, second_moment.trace(), log_sigma2, len(offset))[0]

    return likelihood, ["weight", *learned]


def _flatten(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
