"""Many models that train as one batched program."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad
from torch.func import functional_call, stack_module_state, vmap
from torch.overrides import TorchFunctionMode

from lineavae.nn.noise import ObservationNoise, keep_wide


class Ensemble(nn.Module):
    """Models of one architecture, with other seeds or σ², as one module with a leading dimension of models.

    Each operation is done for all models at once: products become batched products, and a step of M small
    models costs little more than one of the launches.

    Parameters
    ----------
    models
        M modules that differ in the values of their parameters and buffers alone, which are copied. Models
        with several β become models with several σ² by `sigma2_of_beta`.

    Raises
    ------
    ValueError
        There is no model, or one differs from the first in more than values: in a class, a mode, a setting,
        or a shape.

    Notes
    -----
    The sum of the models' losses has for each model the gradient of its own. Adam and plain gradient descent
    then train each as if alone; what mixes parameters, such as clipping of the gradient's norm, does not.

    Linear layers of data (N, features) are products of our own, but for those that are compiled, under
    autocast or in forward mode: vmap's leave gradients of weights transposed, which are then copied.

    Examples
    --------
    >>> import torch
    >>> from lineavae.nn import Ensemble, GaussianVAE, MLPDecoder, MLPEncoder, ObservationNoise
    >>> vaes = [
    ...     GaussianVAE(MLPEncoder(6, 2, (8,)), MLPDecoder(2, 6, (8,)), ObservationNoise(sigma2))
    ...     for sigma2 in (0.5, 1.0, 10.0)
    ... ]
    >>> ensemble = Ensemble(vaes)
    >>> terms = ensemble(torch.rand(5, 6))
    >>> terms.elbo.shape
    torch.Size([3, 5])
    >>> (-terms.elbo.mean(dim=-1)).sum().backward()
    >>> [vae.noise.log_sigma2.exp().item() for vae in ensemble.to_models()]
    [0.5, 1.0, 10.0...]
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        _check_alike(models)
        parameters, buffers = stack_module_state(list(models))
        # names of nested modules have dots, which names of parameters must not have
        for name, tensor in parameters.items():
            self.register_parameter(
                _flat(name), nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad)
            )
        saved = models[0].state_dict().keys()
        for name, tensor in buffers.items():
            self.register_buffer(_flat(name), tensor, persistent=name in saved)
        # outside of the registered modules: it lends its structure, its tensors are never used
        self._structure = [copy.deepcopy(models[0]).to("meta")]
        self._names = (list(parameters), list(buffers))
        self.num_models = len(models)
        self.training = models[0].training

    def forward(self, x: Tensor, *, shared_data: bool = True, **options: Any) -> Any:
        """Call every model: what a model returns, with a leading dimension of models.

        Parameters
        ----------
        x
            Data of all models, (N, ...); without ``shared_data`` those of each, (M, N, ...).
        **options
            Passed on to all models. Random numbers differ from model to model, unless a seed is among these.
        """

        def call(state: tuple[dict[str, Tensor], dict[str, Tensor]], x: Tensor) -> Any:
            return functional_call(self._structure[0], state, (x,), options)

        in_dims = (0, None if shared_data else 0)
        with _linear_layers_as_products(x):
            return vmap(call, in_dims, randomness="different")(self._state(), x)

    def to_models(self) -> list[nn.Module]:
        """Give the models one by one, as copies."""
        models = []
        for index in range(self.num_models):
            model = copy.deepcopy(self._structure[0])
            for tensors in self._state():
                for name, stacked in tensors.items():
                    module, _, own_name = name.rpartition(".")
                    tensor = stacked[index].detach().clone()
                    if isinstance(stacked, nn.Parameter):
                        tensor = nn.Parameter(tensor, stacked.requires_grad)
                    setattr(model.get_submodule(module), own_name, tensor)
            models.append(model)
        return models

    def train(self, mode: bool = True) -> Ensemble:
        """Set the mode of all models."""
        self._structure[0].train(mode)
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Ensemble:
        # a noise keeps its tensors wide, and so must who holds them for it; their gradients as well
        held = [
            tensor
            for path, module in self._structure[0].named_modules()
            if isinstance(module, ObservationNoise)
            for tensors in self._state()
            for name, tensor in tensors.items()
            if name.rpartition(".")[0] == path
        ]
        wide = {id(tensor) for tensor in (*held, *(tensor.grad for tensor in held))}
        super()._apply(lambda tensor: (keep_wide(fn) if id(tensor) in wide else fn)(tensor), recurse)
        return self

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        parameters, buffers = ({name: getattr(self, _flat(name)) for name in names} for names in self._names)
        return parameters, buffers


def _linear_layers_as_products(x: Tensor) -> AbstractContextManager[Any]:
    plain = (
        torch.compiler.is_compiling()
        or torch.is_autocast_enabled(x.device.type)
        or forward_ad._current_level >= 0
    )
    return nullcontext() if plain else _LinearLayersAsProducts()


class _LinearLayersAsProducts(TorchFunctionMode):
    """Has `nn.functional.linear` of (N, features) be `_Linear`."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is nn.functional.linear and not kwargs and len(args) == 3 and args[0].ndim == 2:
            return _Linear.apply(*args)
        return function(*args, **(kwargs or {}))


class _Linear(Function):
    """A linear layer, which vmap makes the products of all models."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, weight, bias = inputs
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        by_x = grad @ weight if ctx.needs_input_grad[0] else None
        return by_x, grad.mT @ x, grad.sum(-2) if ctx.has_bias else None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, int]:
        def of_models(tensor: Tensor, dim: int | None) -> Tensor:
            return tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

        x = x if in_dims[0] is None else x.movedim(in_dims[0], 0)
        weight, bias = of_models(weight, in_dims[1]), None if bias is None else of_models(bias, in_dims[2])
        return _LinearOfModels.apply(x, weight, bias), 0


class _LinearOfModels(Function):
    """From x, (M, N, I) or (N, I) for all models, weight (M, O, I) and bias (M, O) to (M, N, O).

    Of data that all models share it is one product of matrices, and so is the gradient of the weight.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        if x.ndim == 2:
            flat = nn.functional.linear(x, weight.flatten(0, 1), None if bias is None else bias.flatten())
            return flat.reshape(len(x), *weight.shape[:2]).transpose(0, 1)
        return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        by_x = None
        if x.ndim == 2:
            flat = grad.transpose(0, 1).flatten(1)  # (N, M·O)
            by_weight = (flat.mT @ x).reshape(weight.shape)
            if ctx.needs_input_grad[0]:
                by_x = flat @ weight.flatten(0, 1)
        else:
            by_weight = grad.mT @ x
            if ctx.needs_input_grad[0]:
                by_x = grad @ weight
        return by_x, by_weight, grad.sum(1) if ctx.has_bias else None


def _flat(name: str) -> str:
    return "stacked_" + name.replace(".", "__")


def _check_alike(models: Sequence[nn.Module]) -> None:
    if not models:
        raise ValueError("Ensemble: models must have at least one model, got none")
    first = _description(models[0])
    for index, model in enumerate(models):
        other = _description(model)
        odd = sorted(name for name in first.keys() | other.keys() if first.get(name) != other.get(name))
        if odd:
            raise ValueError(
                "Ensemble: all models must be alike but for the values of parameters and buffers, "
                f"got others at index {index}: {', '.join(odd)}"
            )


def _description(model: nn.Module) -> dict[str, object]:
    """All that models of an ensemble share, by name: classes, plain settings, what tensors are."""
    description: dict[str, object] = {}
    for path, module in model.named_modules():
        prefix = path + "." if path else ""
        description[prefix + "class"] = type(module)
        for name, value in vars(module).items():
            if not name.startswith("_") and _is_plain(value):
                description[prefix + name] = value
    for kind in ("parameters", "buffers"):
        for name, tensor in getattr(model, f"named_{kind}")():
            description[name] = (kind, tensor.shape, tensor.dtype, tensor.requires_grad)
    return description


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
