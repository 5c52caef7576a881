"""Theorem 1 as an experiment: the ELBO of the linear VAE has no local maximum that is not global.

Which stationary points are there? From many random decoders Newton's method takes the ELBO under the best
encoder to stationary points of any kind, and gradient ascent to where training ends. Each is judged by its
height and by its Hessian.

Is the proof's way out of a saddle one? It turns W by a small part of the rotation that makes its columns
orthogonal, taken from a singular value decomposition, and says that the ELBO rises. It need not: the singular
values come in some order, and on its way there W may first have to get further from orthogonal columns. A
rotation of Jacobi's in the plane of two columns that are not orthogonal, by the smaller of the angles that
make them so, raises the ELBO all the way, whatever W. So the theorem holds, by another rotation than printed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import expm, schur
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lineavae._colours import BLACK, BLUE, GREEN, VERMILION
from lineavae.experiments.figures import draw, make_panels, setting
from lineavae.experiments.runs import NATS, POINTS, Claim, Config, Quantity, Results, claim, quantity
from lineavae.linear import Moments, StationaryPoint, hessian_eigenpairs, stationarity, symmetric_saddle
from lineavae.linear.closed_forms import log_likelihood_and_gap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[Any]

_SEARCHES = ("Newton", "ascent")
_ROTATIONS = ("proof, order of the SVD", "proof, nearest order", "Jacobi")

_AXES = {
    "part": ("part",),
    **{f"path: {name}": ("part",) for name in (*_ROTATIONS, "symmetric saddle")},
    **{
        f"{noise}, {search}: {key}": (f"{POINTS}: {noise}, {search}",)
        for noise in ("fixed", "learned")
        for search in _SEARCHES
        for key in ("shortfall", "curvature", "cosine")
    },
}

# Points of a path that are kept, evenly along it.
_PARTS = 241

# A point counts as found at this norm of the gradient, as the global maximum at this distance in nats, and as
# curved upwards from this eigenvalue on; W is in units of the data's largest standard deviation.
_STATIONARY = 1e-9
_NEGLIGIBLE = 1e-6

# Of Newton's method, in the same units.
_LONGEST_STEP = 0.1

# Cosine between two columns up to which they are orthogonal.
_ORTHOGONAL = 1e-4


@dataclass(frozen=True, kw_only=True)
class TheoremConfig(Config):
    """The sizes of the problem and of the search.

    Attributes
    ----------
    num_features
        Leading principal components of the images that serve as data, D.
    latent_dim
        Latent dimensions K.
    num_starts
        Random decoders from which stationary points are sought, for each kind of noise.
    newton_steps, ascent_steps
        Of Newton's method, which finds stationary points of all kinds, also at the end of the ascent, and of
        that ascent, by Adam.
    learning_rate
        Of Adam.
    num_rotations
        Random decoders on which the rotations are tried.
    """

    takes_samples: ClassVar[bool] = True

    num_features: int = 6
    latent_dim: int = 3
    num_starts: int = 150
    newton_steps: int = 100
    ascent_steps: int = 1500
    learning_rate: float = 0.03
    num_rotations: int = 1000

    @property
    def min_features(self) -> int:
        """Dimensions D that the data must have."""
        return self.num_features


def run(config: TheoremConfig, run_dir: Path) -> Results:
    """Seek the stationary points, judge them, and try the rotations."""
    images = config.samples.to_tensor(torch.float64)
    _, directions = Moments.from_data(images).eigh()
    moments = Moments.from_data(images @ directions[:, : config.num_features])
    best = StationaryPoint(moments, range(config.latent_dim))
    generator = torch.Generator().manual_seed(config.seed)
    quantities: dict[str, Quantity] = {}
    curves: dict[str, Array] = {"part": np.linspace(0, 1, _PARTS)}
    for noise in ("fixed", "learned"):
        problem = _Problem(moments, config.latent_dim, best.sigma2 if noise == "fixed" else None)
        starts = problem.draw(config.num_starts, generator)
        climbed = problem.ascend(starts, config.ascent_steps, config.learning_rate)
        for search, origins in zip(_SEARCHES, (starts, climbed), strict=True):
            found = problem.judge(problem.newton(origins, config.newton_steps), best.elbo)
            shortfall, curvature, cosine = found
            is_global, is_saddle = shortfall < _NEGLIGIBLE, curvature > _NEGLIGIBLE
            name = f"σ² {noise}, {search}"
            quantities |= {
                f"{name}: stationary points": quantity(len(shortfall), f"of {config.num_starts} starts"),
                f"{name}: global maxima": quantity(is_global.sum(), "points"),
                f"{name}: saddles": quantity((~is_global & is_saddle).sum(), "points"),
                f"{name}: other maxima": quantity((~is_global & ~is_saddle).sum(), "points", 0.0, 0.0),
                f"{name}: columns not orthogonal": quantity((cosine > _ORTHOGONAL).sum(), "points"),
            }
            curves |= {
                f"{noise}, {search}: {key}": values
                for key, values in zip(("shortfall", "curvature", "cosine"), found, strict=True)
            }
    for found_quantities, paths in (
        _leave_a_symmetric_saddle(moments, best),
        _rotate_random_weights(config, best),
    ):
        quantities |= found_quantities
        for name, path in paths.items():
            curves[name] = np.interp(curves["part"], np.linspace(0, 1, len(path)), path)
    return config.results(quantities, curves, claims=_claims(quantities), axes=_AXES)


def _claims(quantities: dict[str, Quantity]) -> list[Claim]:
    def total(kind: str) -> float:
        return sum(entry["measured"] for name, entry in quantities.items() if name.endswith(f": {kind}"))

    falls = [quantities[f"random W: ELBO falls at first, {name}"]["measured"] for name in _ROTATIONS]
    return [
        claim(
            "The ELBO of a linear VAE has no local maximum that is not global",
            "Theorem 1",
            total("other maxima") == 0,
            f"{total('stationary points'):.0f} stationary points found: {total('global maxima'):.0f} global "
            f"maxima, {total('saddles'):.0f} saddles, {total('other maxima'):.0f} other maxima",
        ),
        claim(
            "A small part of the rotation that makes the columns of W orthogonal raises the ELBO",
            "Proof of Theorem 1",
            falls[0] == 0,
            f"from random W it falls at first in {falls[0]:.1f} % of cases with the order of the singular "
            f"value decomposition, in {falls[1]:.1f} % with the nearest order, in {falls[2]:.1f} % with "
            "Jacobi's rotations",
        ),
    ]


def plot(results: Results) -> Figure:
    """Draw the stationary points by height and curvature, and the ELBO along the rotations."""
    config, curves = results["config"], results["curves"]
    shortfall, curvature = (
        np.concatenate([curve for name, curve in curves.items() if name.endswith(key)])
        for key in (": shortfall", ": curvature")
    )
    others = ((shortfall >= _NEGLIGIBLE) & (curvature <= _NEGLIGIBLE)).sum()
    figure, (points, rotations) = make_panels(
        f"{others or 'None'} of {len(shortfall)} stationary points found is a maximum below the global one",
        2,
        setting(
            results,
            f"Linear VAEs, $K$ = {config['latent_dim']}, on {config['num_features']} principal components",
        ),
    )
    for noise, marker in (("fixed", "o"), ("learned", "^")):
        shortfall, curvature, cosine = (
            np.concatenate([curves[f"{noise}, {search}: {key}"] for search in _SEARCHES])
            for key in ("shortfall", "curvature", "cosine")
        )
        for chosen, colour, kind in (
            (cosine <= _ORTHOGONAL, BLUE, "orthogonal columns"),
            (cosine > _ORTHOGONAL, VERMILION, "other columns"),
        ):
            points.plot(
                shortfall[chosen],
                curvature[chosen],
                color=colour,
                marker=marker,
                linestyle="none",
                markersize=5,
                markerfacecolor="none",
                label=rf"{kind}, $\sigma^2$ {noise}",
            )
    points.axhline(0, color=BLACK, linewidth=0.8)
    points.set_xlabel(f"below the global maximum ({NATS})")
    points.set_ylabel("largest eigenvalue of the Hessian (nats)")
    points.set_title("Stationary points: all above 0 are saddles", loc="left", fontsize=10)
    points.legend(loc="upper left", frameon=False, fontsize=8)
    for name, colour in zip(_ROTATIONS, (VERMILION, BLUE, GREEN), strict=True):
        draw(rotations, curves, "part", f"path: {name}", color=colour, label=name)
    draw(
        rotations,
        curves,
        "part",
        "path: symmetric saddle",
        color=BLACK,
        linestyle="--",
        label="symmetric saddle, proof",
    )
    rotations.axhline(0, color=BLACK, linewidth=0.8)
    rotations.set_xlabel("part of the way to orthogonal columns")
    rotations.set_ylabel(f"ELBO above the start ({NATS})")
    rotations.set_title("Rotations of one random $W$, and of a saddle", loc="left", fontsize=10)
    low, high = rotations.get_ylim()
    rotations.set_ylim(low, high + 0.25 * (high - low))
    rotations.legend(loc="upper center", ncols=2, frameon=False, fontsize=8)
    return figure


def generator_of_proof(weight: Array) -> Array:
    """Skew-symmetric log R of the proof's rotation: W R = U L, by the singular value decomposition.

    Parameters
    ----------
    weight
        W with K <= D, (D, K).

    Returns
    -------
    Array
        (K, K); exp of a small part of it is the R_ε of the proof.

    Examples
    --------
    >>> import numpy as np
    >>> from lineavae.experiments.theorem_1 import generator_of_proof
    >>> from scipy.linalg import expm
    >>> weight = np.array([[2.0, 2.0], [1.0, -1.0]])
    >>> turned = weight @ expm(generator_of_proof(weight))
    >>> (turned.T @ turned).round(6) + 0.0
    array([[8., 0.],
           [0., 2.]])
    """
    rotation = np.linalg.svd(weight, full_matrices=False)[2].T
    return _skew_log(rotation)


def generator_of_nearest_order(weight: Array) -> Array:
    """As `generator_of_proof`, with the columns of U L in the order and signs closest to those of W."""
    rotation = np.linalg.svd(weight, full_matrices=False)[2].T
    rotation = rotation[:, linear_sum_assignment(-abs(rotation))[1]]
    return _skew_log(rotation * np.sign(rotation.diagonal()))


def generators_of_jacobi(weight: Array, tolerance: float = 1e-12) -> list[Array]:
    """Skew-symmetric logarithms of Jacobi's rotations: in planes of two columns, one after the other.

    None is by more than an eighth of a turn. Each makes the two columns orthogonal that are the least so,
    and raises the ELBO all the way. With m the mean of M_jj and M_kk, their product is m² - ρ² cos² φ, and
    the angle φ goes straight to the nearest multiple of π: the product shrinks, and the gap with it.

    Examples
    --------
    >>> import numpy as np
    >>> from lineavae.experiments.theorem_1 import generators_of_jacobi
    >>> [generator.round(4) + 0.0 for generator in generators_of_jacobi(np.array([[1.0, 1.0], [0.0, 1.0]]))]
    [array([[ 0.    ,  0.5536],
           [-0.5536,  0.    ]])]
    """
    gram = weight.T @ weight
    generators: list[Array] = []
    while True:
        off_diagonal = abs(np.triu(gram, 1))
        first, second = np.unravel_index(off_diagonal.argmax(), gram.shape)
        if off_diagonal[first, second] <= tolerance * gram.trace():
            return generators
        angle = 0.5 * np.arctan2(2 * gram[first, second], gram[second, second] - gram[first, first])
        angle = (angle + np.pi / 4) % (np.pi / 2) - np.pi / 4
        generator = np.zeros_like(gram)
        generator[first, second], generator[second, first] = angle, -angle
        turn = expm(generator)
        gram = turn.T @ gram @ turn
        generators.append(generator)


def slope_of_elbo(weight: Array, sigma2: float, generator: Array) -> float:
    """Differentiate the ELBO under the best encoder along W exp(tB) at t = 0: -Σ_j (M B)_jj / M_jj."""
    precision = weight.T @ weight + sigma2 * np.eye(weight.shape[1])
    return -float(((precision @ generator).diagonal() / precision.diagonal()).sum())


def path_of_elbo(weight: Array, sigma2: float, generators: list[Array], parts: int = 120) -> Array:
    """ELBO above its start along rotations one after the other, each in so many parts, (1 + parts · r,)."""
    turns = [turn for generator in generators for turn in [expm(generator / parts)] * parts]
    logs = []
    for turn in [np.eye(weight.shape[1]), *turns]:
        weight = weight @ turn
        logs.append(np.log(np.square(weight).sum(0) + sigma2).sum())
    path: Array = -0.5 * (np.array(logs) - logs[0])
    return path


def _skew_log(rotation: Array) -> Array:
    """Logarithm of an orthogonal matrix, whose weakest diagonal entry changes sign where it reflects."""
    if np.linalg.det(rotation) < 0:
        rotation = rotation.copy()
        rotation[:, abs(rotation.diagonal()).argmin()] *= -1
    # an orthogonal matrix is normal, so that its Schur form is diagonal
    diagonal, basis = schur(rotation, output="complex")
    logarithm: Array = (basis * (1j * np.angle(diagonal.diagonal())) @ basis.conj().T).real
    skew: Array = (logarithm - logarithm.T) / 2
    return skew


def _leave_a_symmetric_saddle(
    moments: Moments, best: StationaryPoint
) -> tuple[dict[str, Quantity], dict[str, Array]]:
    """Check the symmetric saddle with the leading components, and follow the proof's rotation from there."""
    model = symmetric_saddle(moments, best.kept, sigma2=best.sigma2)
    found = stationarity(model, moments)
    weight = model.weight.detach().numpy()
    path = path_of_elbo(weight, best.sigma2, [generator_of_proof(weight)])
    (curvature,), _ = hessian_eigenpairs(model, moments, 1)
    quantities = {
        "symmetric saddle: gradient of the ELBO": quantity(
            max(found.weight, found.encoder, found.log_d, found.mu), "nats per σ"
        ),
        "symmetric saddle: gradient of the likelihood": quantity(found.likelihood_weight, "nats per σ"),
        "symmetric saddle: largest eigenvalue of the Hessian": quantity(curvature.item(), NATS),
        "symmetric saddle: ELBO gained by the rotation": quantity(path[-1], NATS),
    }
    return quantities, {"path: symmetric saddle": path}


def _rotate_random_weights(
    config: TheoremConfig, best: StationaryPoint
) -> tuple[dict[str, Quantity], dict[str, Array]]:
    """Count how often the ELBO falls at the start of each rotation, and follow those of the worst W."""
    random = np.random.default_rng(config.seed)
    scale = math.sqrt(best.eigenvalues[0].item())
    falls, worst, paths = dict.fromkeys(_ROTATIONS, 0), 0.0, {}
    for _ in range(config.num_rotations):
        weight = scale * random.standard_normal((config.num_features, config.latent_dim))
        generators = dict(
            zip(
                _ROTATIONS,
                (
                    [generator_of_proof(weight)],
                    [generator_of_nearest_order(weight)],
                    generators_of_jacobi(weight),
                ),
                strict=True,
            )
        )
        slopes = {name: slope_of_elbo(weight, best.sigma2, steps[0]) for name, steps in generators.items()}
        for name, slope in slopes.items():
            falls[name] += slope < 0
        if slopes[_ROTATIONS[0]] < worst:
            worst = slopes[_ROTATIONS[0]]
            paths = {name: path_of_elbo(weight, best.sigma2, steps) for name, steps in generators.items()}
    quantities = {
        f"random W: ELBO falls at first, {name}": quantity(100 * count / config.num_rotations, "%")
        for name, count in falls.items()
    }
    return quantities, {f"path: {name}": path for name, path in paths.items()}


class _Problem:
    """The ELBO under the best encoder, over W, and log σ² where no σ² is given, in batches.

    W is in units of the square root of the largest eigenvalue, so that all its entries are of order one.
    """

    def __init__(self, moments: Moments, latent_dim: int, sigma2: float | None) -> None:
        covariance = moments.covariance
        self.shape = (len(covariance), latent_dim)
        self.unit = moments.eigh()[0][0].sqrt()
        self.log_sigma2 = None if sigma2 is None else covariance.new_tensor(sigma2).log()

        def elbo(flat: Tensor) -> Tensor:
            weight, log_sigma2 = self.split(flat)
            gram, projected = weight.mT @ weight, weight.mT @ covariance @ weight
            value, gap = log_likelihood_and_gap(
                gram, projected, covariance.trace(), log_sigma2, len(covariance)
            )
            return value - gap

        self.elbo = torch.func.vmap(elbo)
        self.gradient = torch.func.vmap(torch.func.grad(elbo))
        self.hessian = torch.func.vmap(torch.func.hessian(elbo))

    def split(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """W and log σ² of one point, or of many."""
        size = math.prod(self.shape)
        weight = self.unit * flat[..., :size].reshape(*flat.shape[:-1], *self.shape)
        return weight, flat[..., size] if self.log_sigma2 is None else self.log_sigma2

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Random starts: normal W, and noises from a tenth of the largest eigenvalue to all of it."""
        weight = torch.randn(count, math.prod(self.shape), dtype=torch.float64, generator=generator) / 2
        if self.log_sigma2 is not None:
            return weight
        part = torch.rand(count, 1, dtype=torch.float64, generator=generator)
        return torch.cat([weight, 2 * self.unit.log() + math.log(0.1) * part], 1)

    def newton(self, points: Tensor, steps: int) -> Tensor:
        """Newton's method in short steps: from all over the space to stationary points of any kind."""
        # beside it a Hessian that is singular, as that of two equal eigenvalues, has a solution
        damping = 1e-12 * torch.eye(points.shape[1], dtype=torch.float64)
        for _ in range(steps):
            step = torch.linalg.solve(self.hessian(points) + damping, self.gradient(points))
            points = points - step * (_LONGEST_STEP / step.norm(dim=1, keepdim=True)).clamp_max(1)
        return points

    def ascend(self, points: Tensor, steps: int, lr: float) -> Tensor:
        """Adam on all points at once."""
        points = points.clone().requires_grad_()
        optimiser = torch.optim.Adam([points], lr=lr)
        for _ in range(steps):
            points.grad = -self.gradient(points.detach())
            optimiser.step()
        return points.detach()

    def judge(self, points: Tensor, maximum: float) -> tuple[Array, Array, Array]:
        """Give for each stationary one: nats below the maximum, largest curvature and cosine of two columns.

        Columns that are short beside the noise count as orthogonal to all others.
        """
        points = points[self.gradient(points).norm(dim=1) < _STATIONARY]
        weight, log_sigma2 = self.split(points)
        gram = weight.mT @ weight
        floor = 1e-6 * log_sigma2.exp().expand(len(points))
        lengths = (gram.diagonal(dim1=1, dim2=2) + floor.unsqueeze(1)).sqrt()
        cosines = gram / (lengths.unsqueeze(1) * lengths.unsqueeze(2))
        cosines.diagonal(dim1=1, dim2=2).zero_()
        shortfall = maximum - self.elbo(points)
        curvature = torch.linalg.eigvalsh(self.hessian(points))[:, -1]
        return shortfall.numpy(), curvature.numpy(), cosines.abs().flatten(1).amax(1).numpy()


PRESETS = {
    "quick": TheoremConfig(),
    "full": TheoremConfig(
        num_features=8, latent_dim=4, num_starts=2000, newton_steps=400, num_rotations=10_000
    ),
}

FIGURES = {"theorem-1": plot}

PAPER = "In the paper: no local maximum but those of the likelihood; the proof's rotation raises the ELBO."

HEADLINE = (
    *(
        f"σ² {noise}, {search}: {kind}"
        for noise in ("fixed", "learned")
        for search in _SEARCHES
        for kind in ("stationary points", "global maxima", "saddles", "other maxima")
    ),
    "symmetric saddle: ELBO gained by the rotation",
    *(f"random W: ELBO falls at first, {name}" for name in _ROTATIONS),
)
