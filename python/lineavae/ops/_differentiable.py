"""How every operator differentiates: a Function over its raw operator, whose backward is a Function as well.

Values and gradients are those of the raw operators; second derivatives and forward mode are the reference's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import Function, forward_ad

from lineavae._dynamo import allow_in_graph
from lineavae.ops._dispatch import without_autocast

_library = torch.library.Library("lineavae", "IMPL")


def raw(op: str) -> Callable[..., Any]:
    """Give ``torch.ops.lineavae.<op>`` as Functions call it: below autograd, which they are."""
    overload = getattr(torch.ops.lineavae, op).default
    below_autograd = torch._C._AutoDispatchBelowAutograd

    def call(*arguments: Any) -> Any:
        try:
            with below_autograd():
                return overload(*arguments)
        except RuntimeError as error:
            # torch's stable ABI passes on the words of an error, not its type
            if str(error).startswith("CUDA out of memory"):
                raise torch.OutOfMemoryError(str(error)) from None
            raise

    return call


class Operator(Function):
    """A Function that costs little to apply; its forward takes positional arguments and has no defaults."""

    @classmethod
    def apply(cls, *arguments: Any) -> Any:
        """Apply it; only its forward where nothing differentiates it."""
        if torch._C._are_functorch_transforms_active():
            return super().apply(*arguments)
        if not _differentiates(arguments):
            return cls.forward(*arguments)
        # what Function.apply does, but for binding the arguments to forward's signature: as slow as a kernel
        return super(Function, cls).apply(*unwrap_dead_wrappers(arguments))  # type: ignore[misc]


def differentiable(
    op: str,
    values: Callable[..., Any],
    gradients: Callable[..., Any],
    formula: Callable[..., Any],
    *,
    inputs: slice,
    num_arguments: int,
    num_plain: int = 0,
    num_values: int = 1,
) -> type[Function]:
    """Make the Function of an operator.

    Parameters
    ----------
    op
        The name that errors begin with.
    values
        Of the arguments: the operator's values, then what the gradients need beside the arguments.
    gradients
        Of whether the first argument needs a gradient, the gradients of the values, the arguments and what
        came with the values: a gradient for each input.
    formula
        The reference, of the arguments.
    inputs
        Which of the arguments have gradients; the others are statistics, weights and seeds.
    num_arguments, num_plain
        How many arguments there are, and how many of them, the last ones, are no tensors.
    num_values
        How many values there are.
    """
    num_tensors = num_arguments - num_plain
    num_before, num_after = inputs.start, num_arguments - inputs.stop
    constants = (*range(num_before), *range(inputs.stop, num_arguments))

    def of_inputs(arguments: Sequence[Any]) -> Callable[..., tuple[Tensor, ...]]:
        def function(*values: Tensor) -> tuple[Tensor, ...]:
            result = formula(*arguments[: inputs.start], *values, *arguments[inputs.stop :])
            return (result,) if num_values == 1 else result

        return function

    def check_constants(differ: Sequence[bool]) -> None:
        for constant in constants:
            if differ[constant]:
                raise ValueError(f"{op}: statistics of the data, weights and seeds carry no gradient")

    def check_one_forward_mode() -> None:
        # torch calls a jvp with forward mode off: tangents of an outer one would be lost in it
        stack = torch._C._functorch.get_interpreter_stack() or []
        if sum(interpreter.key() == torch._C._functorch.TransformType.Jvp for interpreter in stack) > 1:
            raise NotImplementedError(
                f"{op}: forward mode cannot be nested in forward mode; jacfwd(jacrev(...)), "
                "jacrev(jacfwd(...)) and torch.func.hessian work"
            )

    def save(ctx: Any, tensors: Sequence[Tensor | None], plain: Sequence[Any]) -> None:
        ctx.plain = plain
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    class Backward(Operator):
        generate_vmap_rule = True
        forward = staticmethod(gradients)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            _, *arguments = inputs
            tensors, rest = arguments[: num_values + num_tensors], arguments[num_values + num_tensors :]
            save(ctx, tensors, rest[:num_plain])
            ctx.num_kept = len(rest) - num_plain
            ctx.has_first = output[0] is not None

        @staticmethod
        def backward(ctx: Any, *upstream: Tensor | None) -> Any:
            grads, arguments = ctx.saved_tensors[:num_values], (*ctx.saved_tensors[num_values:], *ctx.plain)
            by_grads, by_inputs = _second_order(of_inputs(arguments), grads, arguments[inputs], upstream)
            return None, *by_grads, *(None,) * num_before, *by_inputs, *(None,) * (num_after + ctx.num_kept)

        @staticmethod
        def jvp(ctx: Any, _: Any, *tangents: Tensor | None) -> Any:
            check_one_forward_mode()
            grads, arguments = ctx.saved_tensors[:num_values], (*ctx.saved_tensors[num_values:], *ctx.plain)
            of_grads, of_arguments = tangents[:num_values], tangents[num_values : num_values + num_arguments]
            check_constants([tangent is not None for tangent in of_arguments])
            function = of_inputs(arguments)
            # the gradients are linear in grads, and their derivative by the inputs is symmetric
            linear = _pull_back(function, _zeros_for_none(of_grads, grads), arguments[inputs])
            _, curved = _second_order(function, grads, arguments[inputs], of_arguments[inputs])
            first, *others = (a + b for a, b in zip(linear, curved, strict=True))
            return first if ctx.has_first else None, *others

    @allow_in_graph
    class Forward(Operator):
        generate_vmap_rule = True
        forward = staticmethod(values)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            kept = () if isinstance(output, Tensor) else output[num_values:]
            save(ctx, (*inputs[:num_tensors], *kept), inputs[num_tensors:])
            if kept:
                ctx.mark_non_differentiable(*kept)
            if num_values > 1:
                ctx.shapes = [value.shape for value in output[:num_values]]

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            needed, saved = ctx.needs_input_grad, ctx.saved_tensors
            check_constants(needed)
            grads = grads[:num_values]
            given = [grad for grad in grads if grad is not None]
            if not given:
                return (None,) * num_arguments
            if len(given) < num_values:
                grads = tuple(
                    given[0].new_zeros(shape) if grad is None else grad
                    for grad, shape in zip(grads, ctx.shapes, strict=True)
                )
            tensors, kept = saved[:num_tensors], saved[num_tensors:]
            by_inputs = Backward.apply(needed[0], *grads, *tensors, *ctx.plain, *kept)
            return *(None,) * num_before, *by_inputs, *(None,) * num_after

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
            check_constants([tangent is not None for tangent in tangents])
            check_one_forward_mode()
            saved = ctx.saved_tensors
            arguments, num_kept = (*saved[:num_tensors], *ctx.plain), len(saved) - num_tensors
            of_values = _push_forward(of_inputs(arguments), arguments[inputs], tangents[inputs])
            return of_values[0] if num_values + num_kept == 1 else (*of_values, *(None,) * num_kept)

    return Forward


def _pull_back(
    function: Callable[..., tuple[Tensor, ...]], grads: Sequence[Tensor], inputs: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Give the gradients of ``function``, one per input, for those of its values."""

    def gradients(*inputs: Tensor) -> tuple[Tensor, ...]:
        pulled: tuple[Tensor, ...] = torch.func.vjp(function, *inputs)[1](tuple(grads))
        return pulled

    return without_autocast(gradients, *inputs)


def _second_order(
    function: Callable[..., tuple[Tensor, ...]],
    grads: Sequence[Tensor],
    inputs: Sequence[Tensor],
    upstream: Sequence[Tensor | None],
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Pull ``upstream``, one per input, back through the gradients: to grads and to inputs."""

    def gradients(grads: tuple[Tensor, ...], *inputs: Tensor) -> tuple[Tensor, ...]:
        return _pull_back(function, grads, inputs)

    def second(*inputs: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        pull = torch.func.vjp(gradients, tuple(grads), *inputs)[1]
        of_grads, *of_inputs = pull(_zeros_for_none(upstream, inputs))
        return of_grads, tuple(of_inputs)

    return without_autocast(second, *inputs)


def _push_forward(
    function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """Give the tangents of the values: what is pulled back is linear in the gradients of the values."""
    values = without_autocast(function, *inputs)
    return _second_order(function, [torch.zeros_like(value) for value in values], inputs, tangents)[0]


def _zeros_for_none(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(
        torch.zeros_like(shape) if tensor is None else tensor
        for tensor, shape in zip(tensors, like, strict=True)
    )


def register_autograd(op: str, function: type[Function]) -> None:
    """Have a call of the raw operator itself, as exported programs make them, differentiate too."""
    below = raw(op)

    def kernel(*arguments: Any) -> Any:
        if not _differentiates(arguments):
            return below(*arguments)
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                f"{op}: an exported program cannot be differentiated by torch.func; torch.autograd can"
            )
        return function.apply(*arguments)

    _library.impl(op, kernel, "Autograd")


def refuse_autograd(op: str) -> None:
    """Have a call of a raw backward that is to be differentiated raise."""
    below = raw(op)

    def kernel(*arguments: Any) -> Any:
        if _differentiates(arguments):
            raise RuntimeError(f"{op}: an exported gradient cannot be differentiated; export its value")
        return below(*arguments)

    _library.impl(op, kernel, "Autograd")


def _differentiates(arguments: Sequence[Any]) -> bool:
    if forward_ad._current_level >= 0:
        return True
    if torch.is_grad_enabled():
        for argument in arguments:
            if isinstance(argument, Tensor) and argument.requires_grad:
                return True
    return False
