"""Many models that train as one batched program."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

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
