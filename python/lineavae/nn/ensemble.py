"""Many models that train as one batched program."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap


class Ensemble(nn.Module):
    """Models of one architecture, with other seeds or σ², as one module with a leading dimension of models.

    Each operation is done for all models at once: products become batched products, and a step of M small
    models costs little more than one of the launches.

    Parameters
    ----------
    models
        M modules of one class and structure; their parameters and buffers are copied.

    Raises
    ------
    ValueError
        There is no model, or one is in another mode than the first or has other parameters.

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
        for name, tensor in buffers.items():
            self.register_buffer(_flat(name), tensor)
        # outside of the registered modules: it lends its structure, its tensors are never used
        self._structure = [copy.deepcopy(models[0]).to("meta")]
        self._names = (list(parameters), list(buffers))
        self.num_models = len(models)

    def forward(self, x: Tensor, *, shared_data: bool = True, **options: Any) -> Any:
        """Call every model: what a model returns, with a leading dimension of models.

        Parameters
        ----------
        x
            Data of all models, (N, ...); without ``shared_data`` those of each, (M, N, ...).
        **options
            Passed on to the models. Random numbers differ from model to model.
        """

        def call(state: tuple[dict[str, Tensor], dict[str, Tensor]], x: Tensor) -> Any:
            return functional_call(self._structure[0], state, (x,), options)

        in_dims = (0, None if shared_data else 0)
        return vmap(call, in_dims, randomness="different")(self._state(), x)

    def to_models(self) -> list[nn.Module]:
        """Give the models one by one, as copies."""
        models = []
        for index in range(self.num_models):
            state = {name: tensor[index] for part in self._state() for name, tensor in part.items()}
            model = copy.deepcopy(self._structure[0]).to_empty(device=next(iter(state.values())).device)
            model.load_state_dict(state, assign=False)
            models.append(model)
        return models

    def train(self, mode: bool = True) -> Ensemble:
        """Set the mode of all models."""
        self._structure[0].train(mode)
        return super().train(mode)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        parameters, buffers = ({name: getattr(self, _flat(name)) for name in names} for names in self._names)
        return parameters, buffers


def _flat(name: str) -> str:
    return "stacked_" + name.replace(".", "__")


def _check_alike(models: Sequence[nn.Module]) -> None:
    if not models:
        raise ValueError("Ensemble: models must have at least one model, got none")
    first = {name: tensor.shape for name, tensor in models[0].state_dict().items()}
    for index, model in enumerate(models):
        if type(model) is not type(models[0]) or model.training != models[0].training:
            raise ValueError(
                f"Ensemble: all models must be of one class and in one mode, got {type(model).__name__} "
                f"in {'training' if model.training else 'evaluation'} mode at index {index}"
            )
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        if shapes != first:
            odd = sorted(name for name in first.keys() | shapes.keys() if first.get(name) != shapes.get(name))
            raise ValueError(
                f"Ensemble: all models must have parameters of the same names and shapes, "
                f"got others at index {index}: {', '.join(odd)}"
            )
