"""One specification per operator: what the contract tests, and nothing else about it, need to know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from lineavae import ops, reference


@dataclass(frozen=True)
class Sample:
    """Arguments of one call: the tensors by name, in the order of the signature, and the other options."""

    tensors: dict[str, Tensor]
    options: dict[str, Tensor | float | int]

    def call(self, function: Callable[..., Tensor]) -> Tensor:
        return function(**self.tensors, **self.options)

    def map(self, function: Callable[[Tensor], Tensor]) -> Sample:
        return replace(self, tensors={name: function(tensor) for name, tensor in self.tensors.items()})

    def to(self, dtype: torch.dtype) -> Sample:
        options = {
            name: option.to(dtype) if isinstance(option, Tensor) and option.is_floating_point() else option
            for name, option in self.options.items()
        }
        return Sample({name: tensor.to(dtype) for name, tensor in self.tensors.items()}, options)


@dataclass(frozen=True)
class OpSpec:
    """An operator, its reference, and how to call both.

    ``tolerance`` is that of float32, relative to the largest entry of a result. ``any_threads``: whether the
    number of threads changes no bit, which holds for what is fused but not for MKL's products. ``cases``
    makes, for a label, the arguments in float64 on the CPU. ``second_derivatives``: whether there are any.
    ``kernels``: the op whose raw operators it calls, where it has none of its own.
    """

    name: str
    op: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    differentiable: tuple[str, ...]
    tolerance: float
    any_threads: bool
    cases: dict[str, Callable[[], Sample]]
    second_derivatives: bool = True
    kernels: str | None = None

    @property
    def native(self) -> str:
        """The raw operator of a call, named as the op is everywhere."""
        return self.kernels or self.op.__name__

    @property
    def raw(self) -> set[str]:
        """The raw operators of a call and its backward."""
        names = (self.native, f"{self.native}_backward")
        return {name for name in names if hasattr(torch.ops.lineavae, name)}

    def sample(
        self, case: str, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> Sample:
        sample = self.cases[case]()
        options = {name: o.to(device) if isinstance(o, Tensor) else o for name, o in sample.options.items()}
        return replace(sample.map(lambda tensor: tensor.to(device)), options=options).to(dtype)


# arguments that may have models of their own
ROWS = ("x", "x_hat", "log_sigma2", "mean")


def of_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have a reference, which knows rows alone, take events of ``event_dim`` dimensions."""

    @wraps(function)
    def call(*, event_dim: int = 1, **arguments: Any) -> Any:
        if event_dim > 1:
            samples = [arguments[name].shape for name in ROWS if name in arguments]
            whole = torch.broadcast_shapes(*samples)
            for name, shape in {"log_sigma2": whole, "kl_weight": whole[-event_dim:]}.items():
                if isinstance(arguments.get(name), Tensor):
                    arguments[name] = arguments[name].expand(shape)
            arguments = {
                name: value.flatten(-event_dim) if isinstance(value, Tensor) and value.ndim else value
                for name, value in arguments.items()
            }
        return function(**arguments)

    return call


POSTERIOR_SHAPES = {
    "plain": (5, 3),
    "one_row": (3,),
    "one_sample": (1, 3),
    "no_samples": (0, 3),
    "one_latent": (5, 1),
    "no_latents": (5, 0),
    "models": (3, 5, 2),
    "event": (3, 2, 2, 3),
    "large": (300, 133),
}
EVENT_DIMS = {"models": {"event_dim": 1}, "event": {"event_dim": 3}}


def posterior_cases(
    weighted: bool = False, per_dimension: bool = False, **options: Tensor | float | int
) -> dict[str, Callable[[], Sample]]:
    """Make Gaussian posteriors, and where ``weighted`` one weight of the KL per latent or channel."""

    def make(label: str, shape: tuple[int, ...]) -> Sample:
        generator = torch.Generator().manual_seed(sum(shape))
        mean = torch.randn(shape, generator=generator, dtype=torch.float64)
        logvar = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
        of_weight = (shape[1], 1, 1) if label == "event" else (shape[-1],)
        weight = torch.rand(of_weight, generator=generator, dtype=torch.float64)
        event_dim = {} if per_dimension else EVENT_DIMS.get(label, {})
        weights = {"kl_weight": weight} if weighted else {}
        return Sample({"mean": mean, "logvar": logvar}, options | event_dim | weights)

    shapes = POSTERIOR_SHAPES.items()
    return {label: lambda label=label, shape=shape: make(label, shape) for label, shape in shapes}


def joined(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    """Make one tensor of the samples, (S, *batch, *event), and the KL, (*batch,): (*batch, S * K + 1)."""

    @wraps(function)
    def join(*args: Any, **options: Any) -> Tensor:
        z, kl = function(*args, **options)
        return torch.cat([z.flatten(kl.ndim + 1).movedim(0, -2).flatten(-2), kl.unsqueeze(-1)], -1)

    return join


def batch_cases(**options: float) -> dict[str, Callable[[], Sample]]:
    """Make the posteriors that are batches of at least one sample."""
    cases = posterior_cases(**options)
    return {label: case for label, case in cases.items() if label not in ("one_row", "no_samples")}


def free_bits_kl(mean: Tensor, logvar: Tensor, free_bits: float) -> tuple[Tensor, Tensor]:
    kl = reference.gaussian_kl_per_dimension(mean, logvar).mean(-2)
    return kl.clamp(min=free_bits).sum(-1), kl.sum(-1)


def stacked(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    """Make one tensor of two results of one shape."""

    @wraps(function)
    def stack(*args: Any, **options: Any) -> Tensor:
        return torch.stack(function(*args, **options), -1)

    return stack


# of x and of the logits
BERNOULLI_SHAPES = {
    "plain": ((5, 3), (5, 3)),
    "one_sample": ((1, 3), (1, 3)),
    "no_samples": ((0, 3), (0, 3)),
    "one_feature": ((5, 1), (5, 1)),
    "no_features": ((5, 0), (5, 0)),
    "models": ((3, 5, 2), (3, 5, 2)),
    "models_share_statistics": ((5, 2), (3, 5, 2)),
    "models_share_logits": ((3, 5, 2), (1, 5, 2)),
    "two_model_dimensions": ((2, 1, 5, 2), (2, 5, 2)),
    "event": ((3, 2, 2, 3), (2, 3, 2, 2, 3)),
    "large": ((300, 133), (300, 133)),
}


def bernoulli_cases() -> dict[str, Callable[[], Sample]]:
    def make(label: str, x_shape: tuple[int, ...], logits_shape: tuple[int, ...]) -> Sample:
        generator = torch.Generator().manual_seed(sum(x_shape))
        x = torch.rand(x_shape, generator=generator, dtype=torch.float64)
        logits = 3 * torch.randn(logits_shape, generator=generator, dtype=torch.float64)
        event_dim = {"event_dim": 3 if label == "event" else 1} if x.ndim > 2 else {}
        return Sample({"x": x, "logits": logits}, event_dim)

    shapes = BERNOULLI_SHAPES.items()
    return {label: lambda label=label, shapes=shapes: make(label, *shapes) for label, shapes in shapes}


@dataclass(frozen=True)
class DecoderCase:
    """Sizes of one call with posterior and linear decoder; a tensor in ``shared`` has only one model."""

    num_samples: int = 5
    num_features: int = 4
    latent_dim: int = 3
    models: tuple[int, ...] = ()
    shared: tuple[str, ...] = ()


DECODER_CASES = {
    "plain": DecoderCase(),
    "one_sample": DecoderCase(num_samples=1),
    "no_samples": DecoderCase(num_samples=0),
    "one_feature": DecoderCase(num_features=1),
    "one_latent": DecoderCase(latent_dim=1),
    "no_latents": DecoderCase(latent_dim=0),
    "large": DecoderCase(num_samples=150, num_features=133, latent_dim=35),
    "models": DecoderCase(models=(3,)),
    "models_share_statistics": DecoderCase(models=(3,), shared=("x",)),
    "models_share_decoder": DecoderCase(models=(3,), shared=("weight", "bias")),
    "two_model_dimensions": DecoderCase(models=(2, 2)),
}


def decoder_cases() -> dict[str, Callable[[], Sample]]:
    def make(case: DecoderCase) -> Sample:
        N, D, K = case.num_samples, case.num_features, case.latent_dim  # noqa: N806
        generator = torch.Generator().manual_seed(N + 10 * D + 100 * K)

        def random(name: str, *shape: int) -> Tensor:
            models = () if name in case.shared else case.models
            return torch.randn((*models, *shape), generator=generator, dtype=torch.float64)

        tensors = {
            "x": random("x", N, D).sigmoid(),
            "mean": random("mean", N, K),
            "logvar": random("logvar", N, K),
            "weight": random("weight", D, K),
            "bias": random("bias", D),
        }
        return Sample(tensors, {})

    return {label: lambda case=case: make(case) for label, case in DECODER_CASES.items()}


@dataclass(frozen=True)
class LikelihoodCase:
    """Sizes of one call of a Gaussian likelihood; a tensor in ``shared`` has only one model."""

    noise: tuple[str | int, ...] = ()  # the shape of log_sigma2 after the models
    num_samples: int = 5
    num_features: int = 4
    event: tuple[int, ...] = ()  # (C, H, W) in place of the features
    latent_dim: int = 3
    models: tuple[int, ...] = ()
    shared: tuple[str, ...] = ()
    noise_of_models: bool = False


def likelihood_cases(noise: tuple[str | int, ...]) -> dict[str, LikelihoodCase]:
    """Name the cases in which ``log_sigma2`` has this shape; "N" and "D" stand for the sizes."""
    cases = {
        "plain": LikelihoodCase(noise),
        "large": LikelihoodCase(noise, num_samples=150, num_features=133, latent_dim=35),
        "models": LikelihoodCase((1,) * (2 - len(noise)) + noise, models=(3,), noise_of_models=True),
        "models_share_statistics": LikelihoodCase(noise, models=(3,), shared=("x",)),
        "event": LikelihoodCase(
            EVENT_NOISE[noise], num_samples=3, event=(2, 2, 3), models=(2,), shared=("x",)
        ),
    }
    if noise == ONE:
        cases |= {
            "one_sample": LikelihoodCase(noise, num_samples=1),
            "no_samples": LikelihoodCase(noise, num_samples=0),
            "one_feature": LikelihoodCase(noise, num_features=1),
        }
    return cases


ONE, PER_FEATURE, PER_SAMPLE, FULL = (), ("D",), ("N", 1), ("N", "D")
EVENT_NOISE = {
    ONE: (),
    PER_FEATURE: ("C", 1, 1),
    PER_SAMPLE: ("N", 1, 1, 1),
    FULL: ("N", "C", 2, 3),
}


def gaussian_cases(
    cases: dict[str, LikelihoodCase], expected: bool = False
) -> dict[str, Callable[[], Sample]]:
    """Make the arguments of ``cases``; those of the expected likelihood have a posterior and a decoder."""

    def make(case: LikelihoodCase) -> Sample:
        N, D, K = case.num_samples, case.num_features, case.latent_dim  # noqa: N806
        generator = torch.Generator().manual_seed(N + 10 * D + 100 * K)

        def random(name: str, *shape: int, scale: float = 1.0) -> Tensor:
            models = () if name in case.shared else case.models
            return scale * torch.randn((*models, *shape), generator=generator, dtype=torch.float64)

        event = case.event or (D,)
        tensors = {"x": random("x", N, *event)}
        if expected:
            tensors |= {
                "mean": random("mean", N, K),
                "logvar": random("logvar", N, K) - 1,
                "weight": random("weight", D, K, scale=K**-0.5),
                "bias": random("bias", D),
            }
        else:
            tensors["x_hat"] = random("x_hat", N, *event)
        shape = tuple({"N": N, "D": D, "C": event[0]}.get(size, size) for size in case.noise)
        models = case.models if case.noise_of_models else ()
        tensors["log_sigma2"] = torch.randn((*models, *shape), generator=generator, dtype=torch.float64) - 0.3
        said = tensors["x"].ndim > 2 and not expected
        return Sample(tensors, {"event_dim": len(event)} if said else {})

    return {
        label: lambda case=case: make(case) for label, case in cases.items() if not (expected and case.event)
    }


@dataclass(frozen=True)
class LinearCase:
    """Sizes and options of one call of a linear VAE's ELBO; a tensor in ``shared`` has only one model."""

    num_samples: int = 5
    num_features: int = 4
    latent_dim: int = 3
    models: tuple[int, ...] = ()
    shared: tuple[str, ...] = ()
    offset: float = 0.5
    beta: float | tuple[float, ...] = 1.0
    extra_features: int = 0


PARAMETERS = ("weight", "encoder", "mu", "log_d", "log_sigma2")
STATISTICS = ("x", "sample_mean", "covariance", "factor")

LINEAR_CASES = {
    "plain": LinearCase(),
    "one_sample": LinearCase(num_samples=1),
    "no_samples": LinearCase(num_samples=0),
    "one_feature": LinearCase(num_features=1),
    "one_latent": LinearCase(latent_dim=1),
    "large": LinearCase(num_samples=150, num_features=133, latent_dim=35),
    "mu_far_from_mean": LinearCase(offset=10.0),
    "beta_number": LinearCase(beta=0.3),
    "beta_zero": LinearCase(beta=0.0),
    "models": LinearCase(models=(3,), beta=(0.5, 1.0, 2.0)),
    "models_share_statistics": LinearCase(models=(3,), shared=STATISTICS),
    "models_share_decoder": LinearCase(models=(3,), shared=("weight", "log_sigma2")),
    "two_model_dimensions": LinearCase(models=(2, 2), beta=(0.5, 2.0)),
}
DROPPED_FEATURES = {"dropped_features": LinearCase(extra_features=3)}


def linear_cases(data: str, cases: dict[str, LinearCase]) -> dict[str, Callable[[], Sample]]:
    """Make the arguments of ``cases``; ``data`` says in which form the op takes its data."""

    def make(case: LinearCase) -> Sample:
        N, D, K = case.num_samples, case.num_features, case.latent_dim  # noqa: N806
        generator = torch.Generator().manual_seed(N + 10 * D + 100 * K)

        def random(name: str, *shape: int, scale: float = 1.0) -> Tensor:
            models = () if name in case.shared else case.models
            return scale * torch.randn((*models, *shape), generator=generator, dtype=torch.float64)

        tensors = {}
        if data == "batch":
            tensors["x"] = random("x", N, D)
        else:
            tensors["sample_mean"] = random("sample_mean", D)
            if data == "diagonal":
                tensors["factor"] = random("factor", D)
            else:
                factor = random("factor", D, N)
                tensors |= {"factor": factor} if data == "factor" else {"covariance": factor @ factor.mT}
        tensors |= {
            "weight": random("weight", D, K, scale=K**-0.5),
            "encoder": random("encoder", K, D, scale=D**-0.5),
            "mu": random("mu", D) + case.offset,
            "log_d": random("log_d", K) - 1,
            "log_sigma2": random("log_sigma2") - 0.3,
        }
        beta = case.beta if isinstance(case.beta, float) else torch.tensor(case.beta, dtype=torch.float64)
        options: dict[str, Tensor | float | int] = {"beta": beta}
        if case.extra_features:
            options["num_features"] = D + case.extra_features
        return Sample(tensors, options)

    return {label: lambda case=case: make(case) for label, case in cases.items()}


SPECS = [
    OpSpec(
        name="bernoulli_log_likelihood",
        op=ops.bernoulli_log_likelihood,
        reference=of_rows(reference.bernoulli_log_likelihood),
        differentiable=("x", "logits"),
        tolerance=1e-6,
        any_threads=True,
        cases=bernoulli_cases(),
    ),
    OpSpec(
        name="expected_bernoulli_log_likelihood",
        op=ops.expected_bernoulli_log_likelihood,
        reference=reference.expected_bernoulli_log_likelihood,
        differentiable=("x", "mean", "logvar", "weight", "bias"),
        tolerance=2e-6,
        any_threads=False,
        cases=decoder_cases(),
    ),
    OpSpec(
        name="gaussian_kl",
        op=ops.gaussian_kl,
        reference=of_rows(reference.gaussian_kl),
        differentiable=("mean", "logvar"),
        tolerance=1e-6,
        any_threads=True,
        cases=posterior_cases(),
    ),
    OpSpec(
        name="gaussian_kl_weighted",
        op=ops.gaussian_kl,
        reference=of_rows(reference.gaussian_kl),
        differentiable=("mean", "logvar"),
        tolerance=1e-6,
        any_threads=True,
        cases=posterior_cases(weighted=True),
    ),
    OpSpec(
        name="gaussian_kl_per_dimension",
        op=ops.gaussian_kl_per_dimension,
        reference=reference.gaussian_kl_per_dimension,
        differentiable=("mean", "logvar"),
        tolerance=1e-6,
        any_threads=True,
        cases=posterior_cases(per_dimension=True),
    ),
    OpSpec(
        name="free_bits_kl",
        op=stacked(ops.free_bits_kl),
        reference=stacked(of_rows(free_bits_kl)),
        differentiable=("mean", "logvar"),
        tolerance=1e-6,
        any_threads=False,
        cases=batch_cases(free_bits=1.5),
        kernels="gaussian_kl_per_dimension",
    ),
    OpSpec(
        name="linear_vae_elbo",
        op=ops.linear_vae_elbo,
        reference=reference.linear_vae_elbo,
        differentiable=("x", *PARAMETERS),
        tolerance=2e-6,
        any_threads=False,
        cases=linear_cases("batch", LINEAR_CASES),
    ),
    OpSpec(
        name="linear_vae_elbo_from_moments",
        op=ops.linear_vae_elbo_from_moments,
        reference=reference.linear_vae_elbo_from_moments,
        differentiable=PARAMETERS,
        tolerance=2e-6,
        any_threads=False,
        cases=linear_cases("moments", LINEAR_CASES | DROPPED_FEATURES),
    ),
    OpSpec(
        name="linear_vae_elbo_from_factor",
        op=ops.linear_vae_elbo_from_factor,
        reference=reference.linear_vae_elbo_from_factor,
        differentiable=PARAMETERS,
        tolerance=2e-6,
        any_threads=False,
        cases=linear_cases("factor", LINEAR_CASES | DROPPED_FEATURES),
    ),
    OpSpec(
        name="linear_vae_elbo_from_diagonal_factor",
        op=ops.linear_vae_elbo_from_factor,
        reference=reference.linear_vae_elbo_from_factor,
        differentiable=PARAMETERS,
        tolerance=2e-6,
        any_threads=False,
        cases=linear_cases("diagonal", LINEAR_CASES | DROPPED_FEATURES),
    ),
    OpSpec(
        name="reparameterized_kl",
        op=joined(ops.reparameterized_kl),
        reference=joined(of_rows(reference.reparameterized_kl)),
        differentiable=("mean", "logvar"),
        tolerance=1e-6,
        any_threads=True,
        cases=posterior_cases(seed=torch.tensor(7)),
    ),
    OpSpec(
        name="reparameterized_kl_weighted",
        op=joined(ops.reparameterized_kl),
        reference=joined(of_rows(reference.reparameterized_kl)),
        differentiable=("mean", "logvar"),
        tolerance=1e-6,
        any_threads=True,
        cases=posterior_cases(weighted=True, seed=torch.tensor(2**62 + 2**40 + 7), num_draws=3),
    ),
    *(
        OpSpec(
            name=f"gaussian_log_likelihood{suffix}",
            op=ops.gaussian_log_likelihood,
            reference=of_rows(reference.gaussian_log_likelihood),
            differentiable=("x", "x_hat", "log_sigma2"),
            tolerance=1e-6,
            any_threads=True,
            cases=gaussian_cases(likelihood_cases(noise)),
        )
        for suffix, noise in [
            ("", ONE),
            ("_per_feature", PER_FEATURE),
            ("_per_sample", PER_SAMPLE),
            ("_full", FULL),
        ]
    ),
    *(
        OpSpec(
            name=f"gaussian_log_likelihood_mean{suffix}",
            op=ops.gaussian_log_likelihood_mean,
            reference=of_rows(reference.gaussian_log_likelihood_mean),
            differentiable=("x", "x_hat", "log_sigma2"),
            tolerance=1e-6,
            any_threads=True,
            # the mean of no samples is NaN
            cases=gaussian_cases(
                {label: case for label, case in likelihood_cases(noise).items() if case.num_samples}
            ),
            second_derivatives=False,
        )
        for suffix, noise in [("", ONE), ("_per_feature", PER_FEATURE)]
    ),
    *(
        OpSpec(
            name=f"expected_gaussian_log_likelihood{suffix}",
            op=ops.expected_gaussian_log_likelihood,
            reference=reference.expected_gaussian_log_likelihood,
            differentiable=("x", "mean", "logvar", "weight", "bias", "log_sigma2"),
            tolerance=2e-6,
            any_threads=False,
            cases=gaussian_cases(likelihood_cases(noise), expected=True),
            kernels="gaussian_log_likelihood",
        )
        for suffix, noise in [("", ONE), ("_full", FULL)]
    ),
]
