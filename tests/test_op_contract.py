"""What every operator promises: derivatives, transforms, dtypes, strides, determinism, messages."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lineavae import _ext
from lineavae.ops import (
    _differentiable,
    _dispatch,
    gaussian_kl,
    gaussian_kl_per_dimension,
    linear_vae_elbo_from_moments,
    reparameterized_kl,
)
from op_specs import SPECS, STATISTICS, OpSpec, Sample

HALF = (torch.bfloat16, torch.float16)
FLOAT64_TOLERANCE = 1e-12
BATCH = 3


def each_case(*labels: str, specs: Sequence[OpSpec] = SPECS) -> pytest.MarkDecorator:
    """Parametrise over ``specs`` and those of their cases with these labels, all cases if there are none."""
    pairs = [(spec, case) for spec in specs for case in spec.cases if case in labels or not labels]
    return pytest.mark.parametrize(
        ("spec", "case"), pairs, ids=[f"{spec.name}-{case}" for spec, case in pairs]
    )


def each_spec(specs: Iterable[OpSpec] = SPECS) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("spec", specs, ids=lambda spec: spec.name)


ELBO_SPECS = [spec for spec in SPECS if "elbo" in spec.name]
TWICE_DIFFERENTIABLE_SPECS = [spec for spec in SPECS if spec.second_derivatives]
STATISTICS_SPECS = [spec for spec in SPECS if "_from_" in spec.name]
WEIGHTS = {"kl_weight", "beta", "free_bits"}
WEIGHTED_SPECS = [spec for spec in SPECS if WEIGHTS & inspect.signature(spec.op).parameters.keys()]


def assert_near(actual: Tensor, expected: Tensor, tolerance: float, rounding: float = 0.0) -> None:
    """Assert equality up to ``tolerance`` of the largest entry, plus ``rounding`` of each entry itself."""
    scale = expected.abs().max().item() if expected.numel() else 0.0
    assert math.isfinite(scale)
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=rounding, atol=tolerance * scale, check_device=False
    )


def cotangent(value: Tensor) -> Tensor:
    """An upstream gradient like ``value``, whose entries differ."""
    return (1.5 + torch.arange(value.numel(), device=value.device).sin()).reshape(value.shape).to(value)


def leaves(sample: Sample, names: Iterable[str]) -> Sample:
    """The sample as leaves of the graph, of which those in ``names`` require grad; strides stay."""
    return Sample(
        {name: tensor.detach().requires_grad_(name in names) for name, tensor in sample.tensors.items()},
        sample.options,
    )


def value_and_gradients(
    function: Callable[..., Tensor],
    sample: Sample,
    names: Sequence[str],
    upstream: Callable[[Tensor], Tensor] = cotangent,
) -> tuple[Tensor, dict[str, Tensor]]:
    sample = leaves(sample, names)
    value = sample.call(function)
    gradients = torch.autograd.grad(value, [sample.tensors[name] for name in names], upstream(value.detach()))
    return value.detach(), dict(zip(names, gradients, strict=True))


def assert_equals_reference(spec: OpSpec, sample: Sample, tolerance: float) -> None:
    """Compare value and gradients with the float64 reference of the same, already rounded, inputs."""
    value, gradients = value_and_gradients(spec.op, sample, spec.differentiable)
    expected, expected_gradients = value_and_gradients(
        spec.reference, sample.to(torch.float64), spec.differentiable
    )
    assert_near(value, expected, tolerance)
    for name, gradient in gradients.items():
        dtype = sample.tensors[name].dtype
        assert gradient.dtype == dtype
        rounding = torch.finfo(dtype).eps if dtype in HALF else 0.0
        assert_near(gradient, expected_gradients[name], tolerance, rounding)


def assert_bitwise_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in actual.items():
        assert torch.equal(tensor, expected[name]), name


def positional(function: Callable[..., Tensor], sample: Sample) -> Callable[..., Tensor]:
    """``function`` of the tensors alone, by position, as torch.func wants it."""
    return lambda *tensors: function(**dict(zip(sample.tensors, tensors, strict=True)), **sample.options)


def loss(function: Callable[..., Tensor], sample: Sample) -> Callable[..., Tensor]:
    def weighted_sum(*tensors: Tensor) -> Tensor:
        value = positional(function, sample)(*tensors)
        return (value * cotangent(value)).sum()

    return weighted_sum


def differentiable_positions(spec: OpSpec, sample: Sample) -> tuple[int, ...]:
    return tuple(i for i, name in enumerate(sample.tensors) if name in spec.differentiable)


# --- float64: derivatives ---


@each_case()
def test_float64_equals_the_reference(spec, case, device):
    sample = spec.sample(case, device=device)
    assert sample.call(spec.op).dtype == torch.float64
    assert_equals_reference(spec, sample, FLOAT64_TOLERANCE)


SMALL_CASES = {case for spec in SPECS for case in spec.cases} - {"large"}


@each_case(*SMALL_CASES)
def test_gradcheck(spec, case, device):
    sample = spec.sample(case, device=device)
    tensors = leaves(sample, spec.differentiable).tensors.values()
    assert torch.autograd.gradcheck(positional(spec.op, sample), tuple(tensors))


@each_case(*SMALL_CASES, specs=TWICE_DIFFERENTIABLE_SPECS)
def test_gradgradcheck(spec, case, device):
    sample = spec.sample(case, device=device)
    tensors = leaves(sample, spec.differentiable).tensors.values()
    assert torch.autograd.gradgradcheck(positional(spec.op, sample), tuple(tensors), fast_mode=True)


@each_case("models", specs=TWICE_DIFFERENTIABLE_SPECS)
def test_second_derivative_through_each_gradient_alone(spec, case, device):
    sample = spec.sample(case, device=device)

    def second(function, through):
        tensors = leaves(sample, spec.differentiable).tensors
        value = loss(function, sample)(*tensors.values())
        gradient = torch.autograd.grad(value, tensors[through], create_graph=True)[0]
        inputs = [tensors[name] for name in spec.differentiable]
        return torch.autograd.grad(gradient, inputs, cotangent(gradient), materialize_grads=True)

    for through in spec.differentiable:
        for actual, expected in zip(second(spec.op, through), second(spec.reference, through), strict=True):
            assert_near(actual, expected, FLOAT64_TOLERANCE)


@each_case("plain", specs=TWICE_DIFFERENTIABLE_SPECS)
def test_nested_jacrev_is_the_hessian_of_the_reference(spec, case, device):
    sample = spec.sample(case, device=device)
    tensors = tuple(sample.tensors.values())
    positions = differentiable_positions(spec, sample)
    jacrev = torch.func.jacrev
    actual = jacrev(jacrev(loss(spec.op, sample), positions), positions)(*tensors)

    def reference(*chosen: Tensor) -> Tensor:
        replaced = dict(zip(positions, chosen, strict=True))
        return loss(spec.reference, sample)(*(replaced.get(i, t) for i, t in enumerate(tensors)))

    expected = torch.autograd.functional.hessian(reference, tuple(tensors[i] for i in positions))
    for block, expected_block in zip(chain(*actual), chain(*expected), strict=True):
        assert_near(block, expected_block, FLOAT64_TOLERANCE)


@each_case("plain", "models", specs=TWICE_DIFFERENTIABLE_SPECS)
def test_forward_mode_is_that_of_the_reference(spec, case, device):
    sample = spec.sample(case, device=device)
    positions = differentiable_positions(spec, sample)
    tensors = tuple(sample.tensors.values())

    def of_chosen(function):
        def call(*chosen: Tensor) -> Tensor:
            replaced = dict(zip(positions, chosen, strict=True))
            return positional(function, sample)(*(replaced.get(i, t) for i, t in enumerate(tensors)))

        return call

    chosen = tuple(tensors[i] for i in positions)
    tangents = tuple(map(cotangent, chosen))
    _, actual = torch.func.jvp(of_chosen(spec.op), chosen, tangents)
    value = of_chosen(spec.reference)
    pull = torch.func.vjp(value, *chosen)[1]  # linear: its own pull-back is the push-forward
    expected = torch.func.vjp(pull, torch.zeros_like(value(*chosen)))[1](tangents)[0]
    assert_near(actual, expected, FLOAT64_TOLERANCE)


@each_case("plain", specs=TWICE_DIFFERENTIABLE_SPECS)
def test_hessian_by_forward_over_reverse(spec, case, device):
    sample = spec.sample(case, device=device)
    tensors, positions = tuple(sample.tensors.values()), differentiable_positions(spec, sample)
    actual = torch.func.hessian(loss(spec.op, sample), positions)(*tensors)
    jacrev = torch.func.jacrev
    expected = jacrev(jacrev(loss(spec.op, sample), positions), positions)(*tensors)
    for block, expected_block in zip(chain(*actual), chain(*expected), strict=True):
        assert_near(block, expected_block, FLOAT64_TOLERANCE)


@each_spec([spec for spec in SPECS if not spec.second_derivatives])
def test_second_derivative_raises(spec, device):
    sample = spec.sample("plain", device=device)
    positions = differentiable_positions(spec, sample)
    jacrev = torch.func.jacrev
    for name in spec.differentiable:
        tensors = leaves(sample, spec.differentiable).tensors
        value = loss(spec.op, sample)(*tensors.values())
        gradient = torch.autograd.grad(value, tensors[name], create_graph=True)[0]
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(gradient.sum(), list(tensors.values()))
    with pytest.raises(RuntimeError, match="no second derivative"):
        jacrev(jacrev(loss(spec.op, sample), positions), positions)(*sample.tensors.values())


# --- float64: vmap, in every combination with grad ---

vmap_cases = each_case("plain", "no_samples", "models", "models_share_statistics")


def batchings(sample: Sample) -> set[tuple[bool, ...]]:
    """Which tensors vmap batches: all of them, one alone, or all but one."""
    count = len(sample.tensors)
    alone = [tuple(i == j for i in range(count)) for j in range(count)]
    return {(True,) * count, *alone, *(tuple(not batched for batched in row) for row in alone)}


def batch(sample: Sample, batched: tuple[bool, ...]) -> tuple[list[Tensor], tuple[int | None, ...]]:
    """Stack variations of the tensors in ``batched``, along the first and the last dimension in turn."""
    tensors, in_dims = [], []
    for i, (tensor, stack) in enumerate(zip(sample.tensors.values(), batched, strict=True)):
        dim = -(i % 2) if stack else None
        tensors.append(torch.stack([tensor + 0.1 * j for j in range(BATCH)], dim) if stack else tensor)
        in_dims.append(dim)
    return tensors, tuple(in_dims)


def entries(tensors: list[Tensor], in_dims: tuple[int | None, ...]) -> list[list[Tensor]]:
    """What vmap shows its function: the tensors of each entry of the batch."""
    return [
        [
            tensor if dim is None else tensor.select(dim, j)
            for tensor, dim in zip(tensors, in_dims, strict=True)
        ]
        for j in range(BATCH)
    ]


@vmap_cases
def test_vmap(spec, case, device):
    sample = spec.sample(case, device=device)
    for batched in batchings(sample):
        tensors, in_dims = batch(sample, batched)
        actual = torch.func.vmap(positional(spec.op, sample), in_dims)(*tensors)
        reference = positional(spec.reference, sample)
        assert_near(
            actual, torch.stack([reference(*entry) for entry in entries(tensors, in_dims)]), FLOAT64_TOLERANCE
        )


@vmap_cases
def test_vmap_over_one_entry(spec, case, device):
    sample = spec.sample(case, device=device)
    for batched in batchings(sample):
        tensors, in_dims = batch(sample, batched)
        one = [t if dim is None else t.narrow(dim, 0, 1) for t, dim in zip(tensors, in_dims, strict=True)]
        actual = torch.func.vmap(positional(spec.op, sample), in_dims)(*one)
        expected = positional(spec.reference, sample)(*entries(tensors, in_dims)[0])
        assert_near(actual, expected.unsqueeze(0), FLOAT64_TOLERANCE)


@vmap_cases
def test_vmap_of_grad(spec, case, device):
    sample = spec.sample(case, device=device)
    positions = differentiable_positions(spec, sample)
    gradient = torch.func.grad(loss(spec.op, sample), positions)
    for batched in batchings(sample):
        tensors, in_dims = batch(sample, batched)
        actual = torch.func.vmap(gradient, in_dims)(*tensors)
        for j, entry in enumerate(entries(tensors, in_dims)):
            inputs = [entry[i].detach().clone().requires_grad_() for i in positions]
            replaced = dict(zip(positions, inputs, strict=True))
            value = loss(spec.reference, sample)(*(replaced.get(i, t) for i, t in enumerate(entry)))
            for block, expected in zip(actual, torch.autograd.grad(value, inputs), strict=True):
                assert_near(block[j], expected, FLOAT64_TOLERANCE)


@vmap_cases
def test_grad_of_vmap(spec, case, device):
    sample = spec.sample(case, device=device)
    positions = differentiable_positions(spec, sample)
    for batched in batchings(sample):
        tensors, in_dims = batch(sample, batched)

        def total(*tensors: Tensor, in_dims: tuple[int | None, ...] = in_dims) -> Tensor:
            value = torch.func.vmap(positional(spec.op, sample), in_dims)(*tensors)
            return (value * cotangent(value)).sum()

        actual = torch.func.grad(total, positions)(*tensors)
        inputs = [t.detach().requires_grad_(i in positions) for i, t in enumerate(tensors)]
        reference = positional(spec.reference, sample)
        value = torch.stack([reference(*entry) for entry in entries(inputs, in_dims)])
        expected = torch.autograd.grad(value, [inputs[i] for i in positions], cotangent(value))
        for block, expected_block in zip(actual, expected, strict=True):
            assert_near(block, expected_block, FLOAT64_TOLERANCE)


# --- float32, half precision, autocast ---


@each_case()
def test_float32_equals_the_float64_reference(spec, case, device):
    sample = spec.sample(case, torch.float32, device)
    assert sample.call(spec.op).dtype == torch.float32
    assert_equals_reference(spec, sample, spec.tolerance)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@each_case()
def test_half_gives_float32_results_and_half_gradients(spec, case, dtype, device):
    sample = spec.sample(case, dtype, device)
    assert sample.call(spec.op).dtype == torch.float32
    assert_equals_reference(spec, sample, spec.tolerance)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@each_case("plain", "models_share_statistics")
def test_autocast_changes_no_bit_of_float32(spec, case, dtype, device):
    sample = spec.sample(case, torch.float32, device)
    expected, expected_gradients = value_and_gradients(spec.op, sample, spec.differentiable)
    with torch.autocast(device, dtype):
        value, gradients = value_and_gradients(spec.op, sample, spec.differentiable)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    assert_bitwise_equal(gradients, expected_gradients)


@each_case("plain", specs=TWICE_DIFFERENTIABLE_SPECS)
def test_second_derivatives_under_autocast_are_those_of_float32(spec, case, device):
    sample = spec.sample(case, torch.float32, device)
    tensors = tuple(sample.tensors.values())
    positions = differentiable_positions(spec, sample)

    def hessian() -> Iterable[Tensor]:
        jacrev = torch.func.jacrev
        return chain(*jacrev(jacrev(loss(spec.op, sample), positions), positions)(*tensors))

    expected = hessian()
    with torch.autocast(device, torch.bfloat16):
        actual = hessian()
    for block, expected_block in zip(actual, expected, strict=True):
        assert block.dtype == torch.float32
        assert torch.equal(block, expected_block)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@each_case("plain")
def test_autocast_mixes_half_and_float32(spec, case, dtype, device):
    sample = spec.sample(case, torch.float32, device)
    for half in sample.tensors:
        mixed = Sample(
            {name: t.to(dtype) if name == half else t for name, t in sample.tensors.items()}, sample.options
        )
        with torch.autocast(device, dtype):
            assert mixed.call(spec.op).dtype == torch.float32
            assert_equals_reference(spec, mixed, spec.tolerance)


# --- the raw operators and torch.compile ---


class RawCalls(TorchDispatchMode):
    """Records every call of a raw operator of lineavae."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch._ops.OpOverload, tuple[object, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "lineavae":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


# of bfloat16 the linear ops make float32 before their raw operators see it
@each_case("one_row", "no_samples", "models_share_statistics")
def test_opcheck_of_the_raw_operators(spec, case, device):
    sample = spec.sample(case, torch.bfloat16, device)
    with torch.autograd.set_multithreading_enabled(False), RawCalls() as recorded:
        value_and_gradients(spec.op, sample, spec.differentiable)
    assert {func.name() for func, _ in recorded.calls} == {f"lineavae::{name}" for name in spec.raw}
    for func, args in recorded.calls:
        torch.library.opcheck(func, tuple(arg.detach() if isinstance(arg, Tensor) else arg for arg in args))


# which say what the others must be
LEADING = {"mean", "logits", "x_hat", "weight"}


@each_case("plain")
def test_a_raw_operator_names_the_argument_that_does_not_fit(spec, case, device):
    with torch.autograd.set_multithreading_enabled(False), RawCalls() as recorded:
        value_and_gradients(spec.op, spec.sample(case, device=device), spec.differentiable)
    for func, args in recorded.calls:
        tensors = [arg.detach() if isinstance(arg, Tensor) else arg for arg in args]
        for i, argument in enumerate(func._schema.arguments):
            if isinstance(tensors[i], Tensor):
                dtypes = [] if argument.name in LEADING else [tensors[i].to(torch.complex64)]
                for wrong in (tensors[i].unsqueeze(0), *dtypes):
                    with pytest.raises(RuntimeError, match=f": {argument.name} must (have|be) .*, got"):
                        func(*tensors[:i], wrong, *tensors[i + 1 :])


def assert_compiles(spec: OpSpec, cases: Sequence[str], backend: str, device: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(spec.op, fullgraph=True, backend=backend)
    for case in cases:
        sample = spec.sample(case, torch.float32, device)
        assert_near(sample.call(compiled), sample.call(spec.op), spec.tolerance)
        value, gradients = value_and_gradients(compiled, sample, spec.differentiable)
        expected, expected_gradients = value_and_gradients(spec.op, sample, spec.differentiable)
        assert_near(value, expected, spec.tolerance)
        for name, gradient in gradients.items():
            assert_near(gradient, expected_gradients[name], spec.tolerance)


# the second case has other sizes and makes them dynamic
@each_spec()
def test_compiles_to_one_graph(spec, device):
    assert_compiles(spec, ("plain", "large"), "aot_eager", device)


@pytest.mark.slow
@each_spec()
def test_compiles_with_inductor(spec, device):
    assert_compiles(spec, ("plain",), "inductor", device)


def rows_of(spec: OpSpec, sample: Sample, count: int) -> Sample:
    """The sample with ``count`` of its rows, which the first tensor has before its last dimension."""
    batched = next(iter(sample.tensors.values()))
    if "_from_" in spec.name:
        return sample
    num_rows = batched.shape[-2]
    return sample.map(
        lambda tensor: tensor[:count] if tensor.ndim == 2 and tensor.shape[0] == num_rows else tensor
    )


@each_case("plain")
def test_compiles_to_one_graph_of_any_size(spec, case, device):
    sample = spec.sample(case, torch.float32, device)
    compiled = torch.compile(spec.op, fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (5, 4, 3):
        part = rows_of(spec, sample, count)
        actual, gradients = value_and_gradients(compiled, part, spec.differentiable)
        expected, expected_gradients = value_and_gradients(spec.op, part, spec.differentiable)
        assert_near(actual, expected, spec.tolerance)
        for name, gradient in gradients.items():
            assert_near(gradient, expected_gradients[name], spec.tolerance)


class Exported(torch.nn.Module):
    """An op of some tensors and options, as a module of one path."""

    def __init__(self, spec: OpSpec, sample: Sample) -> None:
        super().__init__()
        self.function = positional(spec.op, sample)

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


@each_case("plain")
def test_an_exported_program_has_the_gradients(spec, case, device):
    sample = spec.sample(case, torch.float32, device)
    program = torch.export.export(Exported(spec, sample), tuple(sample.tensors.values())).module()

    def call(*args: Tensor, **tensors: Tensor) -> Tensor:
        return program(*(tensors[name] for name in sample.tensors))

    actual, gradients = value_and_gradients(call, sample, spec.differentiable)
    expected, expected_gradients = value_and_gradients(spec.op, sample, spec.differentiable)
    assert_near(actual, expected, spec.tolerance)
    for name, gradient in gradients.items():
        assert_near(gradient, expected_gradients[name], spec.tolerance)


@each_spec([spec for spec in SPECS if spec not in STATISTICS_SPECS])
def test_jacobian_by_the_batches_of_autograd(spec, device):
    sample = spec.sample("plain", device=device)
    tensors = tuple(sample.tensors.values())
    jacobian = torch.autograd.functional.jacobian
    function = positional(spec.op, sample)
    for actual, expected in zip(
        jacobian(function, tensors, vectorize=True), jacobian(function, tensors), strict=True
    ):
        assert_near(actual, expected, FLOAT64_TOLERANCE)


# --- layouts and upstream gradients ---


def strided(tensor: Tensor) -> Tensor:
    """The same values, transposed if they can be, with NaNs in between that no kernel may read."""
    tensor = tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor
    return torch.stack([tensor, torch.full_like(tensor, torch.nan)], -1)[..., 0]


def expanded(tensor: Tensor) -> Tensor:
    """One value everywhere, every stride zero."""
    return tensor.flatten()[0].expand(tensor.shape)


@pytest.mark.parametrize("layout", [strided, expanded])
@each_case("plain", "models")
def test_any_layout_of_the_inputs(spec, case, layout, device):
    sample = spec.sample(case, device=device).map(layout)
    assert_equals_reference(spec, sample, FLOAT64_TOLERANCE)


@pytest.mark.parametrize("layout", [strided, expanded])
@each_case("plain", "models", "one_sample")
def test_any_layout_of_the_upstream_gradient(spec, case, layout, device):
    sample = spec.sample(case, device=device)

    def upstream(value: Tensor) -> Tensor:
        return layout(cotangent(value))

    _, gradients = value_and_gradients(spec.op, sample, spec.differentiable, upstream)
    _, expected = value_and_gradients(spec.reference, sample, spec.differentiable, upstream)
    for name, gradient in gradients.items():
        assert_near(gradient, expected[name], FLOAT64_TOLERANCE)


@each_case("plain", "models", "models_share_statistics")
def test_one_input_without_gradient(spec, case, device):
    sample = spec.sample(case, torch.float32, device)
    _, expected = value_and_gradients(spec.op, sample, spec.differentiable)
    for excluded in spec.differentiable:
        for names in ([excluded], [name for name in spec.differentiable if name != excluded]):
            inputs = leaves(sample, names)
            value = inputs.call(spec.op)
            value.backward(cotangent(value))
            for name, tensor in inputs.tensors.items():
                assert (tensor.grad is not None) == (name in names)
            assert_bitwise_equal({name: inputs.tensors[name].grad for name in names}, expected)


# --- determinism ---


@each_case("large", "models")
def test_repeats_bitwise(spec, case, device):
    sample = spec.sample(case, torch.float32, device)
    value, gradients = value_and_gradients(spec.op, sample, spec.differentiable)
    for _ in range(5):
        again, gradients_again = value_and_gradients(spec.op, sample, spec.differentiable)
        assert torch.equal(again, value)
        assert_bitwise_equal(gradients_again, gradients)


@pytest.fixture
def set_num_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF], ids=str)
@each_spec([spec for spec in SPECS if spec.any_threads])
def test_threads_change_no_bit(spec, dtype, set_num_threads):
    sample = spec.sample("large", dtype)
    set_num_threads(1)
    value, gradients = value_and_gradients(spec.op, sample, spec.differentiable)
    set_num_threads(2)
    value_of_two, gradients_of_two = value_and_gradients(spec.op, sample, spec.differentiable)
    assert torch.equal(value_of_two, value)
    assert_bitwise_equal(gradients_of_two, gradients)


@pytest.fixture
def fast_products():
    """Matrix products of float32 may round their factors to TF32 or bfloat16, where the device can."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@each_spec()
def test_only_matrix_products_obey_their_precision(spec, device, fast_products):
    sample = spec.sample("large", torch.float32, device)
    assert_equals_reference(spec, sample, spec.tolerance if spec.any_threads else 1e-2)


# --- CUDA: devices, graphs, memory ---


on_cuda = pytest.mark.parametrize("device", ["cuda"], indirect=True)


@on_cuda
@each_spec()
def test_runs_on_the_device_of_its_arguments(spec, device):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    with torch.cuda.device(0):
        assert_equals_reference(spec, spec.sample("large", torch.float32, "cuda:1"), spec.tolerance)
        assert torch.cuda.current_device() == 0


@on_cuda
@each_spec()
def test_a_cuda_graph_replays_value_and_gradients(spec, device):
    sample = leaves(spec.sample("plain", torch.float32, device), spec.differentiable)

    def run():
        return value_and_gradients(spec.op, sample, spec.differentiable)

    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        value, gradients = run()
    with torch.no_grad():
        for tensor in sample.tensors.values():
            tensor.mul_(0.75)
    graph.replay()
    expected, expected_gradients = run()
    assert_near(value, expected, spec.tolerance)
    for name, gradient in gradients.items():
        assert_near(gradient, expected_gradients[name], spec.tolerance)


FIRST_CALL = """
import torch
from lineavae.ops import gaussian_kl
mean, logvar = (torch.ones(3, 4, device="cuda") for _ in range(2))
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    kl = gaussian_kl(mean, logvar)
graph.replay()
print(torch.equal(kl, gaussian_kl(mean, logvar)))
"""


@on_cuda
def test_the_first_call_of_a_process_may_be_captured(device):
    assert subprocess.check_output([sys.executable, "-c", FIRST_CALL], text=True) == "True\n"


class NoWaiting(TorchDispatchMode):
    """Refuses what has the host wait for a device."""

    WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.name() not in self.WAITING, f"{func.name()} waits for the device"
        return func(*args, **(kwargs or {}))


@each_spec()
def test_the_host_never_waits(spec, device, monkeypatch):
    of_mean = sys.modules["lineavae.ops.gaussian_log_likelihood"]
    monkeypatch.setattr(of_mean, "_is_of_loss", lambda grad: False)  # it looks at gradients on the CPU alone
    sample = spec.sample("plain", torch.float32, device)
    with NoWaiting():
        value_and_gradients(spec.op, sample, spec.differentiable)


def test_out_of_memory_is_told_in_words_of_torch(device):
    if torch.__version__ < (2, 13):
        pytest.skip("torch's stable ABI passes on no words before 2.13")
    vast = torch.zeros(1, 1, device=device).expand(1 << 22, 1 << 20)
    error, words = (
        (torch.OutOfMemoryError, "CUDA out of memory")
        if device == "cuda"
        else (RuntimeError, "allocate memory")
    )
    with pytest.raises(error, match=words):
        gaussian_kl_per_dimension(vast, vast)


def test_out_of_memory_on_cuda_keeps_its_type(monkeypatch):
    def exhausted(*_):
        raise RuntimeError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1.00 GiB."
        )

    monkeypatch.setattr(torch.ops.lineavae.gaussian_kl, "default", exhausted)
    with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 2.00 GiB"):
        _differentiable.raw("gaussian_kl")(torch.zeros(2, 3), torch.zeros(2, 3), None)


# --- what has no derivative raises ---


@each_case("plain", specs=[spec for spec in SPECS if not spec.second_derivatives])
def test_forward_mode_raises(spec, case, device):
    sample = spec.sample(case, device=device)
    tensors = tuple(sample.tensors.values())
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.jvp(positional(spec.op, sample), tensors, tuple(map(torch.ones_like, tensors)))


@each_case("plain", specs=TWICE_DIFFERENTIABLE_SPECS)
def test_forward_mode_nested_in_itself_raises(spec, case, device):
    sample = spec.sample(case, device=device)
    tensors, position = tuple(sample.tensors.values()), differentiable_positions(spec, sample)[0]
    with pytest.raises(NotImplementedError, match="cannot be nested"):
        torch.func.jacfwd(torch.func.jacfwd(loss(spec.op, sample), position), position)(*tensors)


def assert_refuses(
    spec: OpSpec, sample: Sample, error: type[Exception], *words: str, **replaced: object
) -> None:
    """Assert that the call with some arguments replaced raises, naming the operator and saying ``words``."""
    with pytest.raises(error) as caught:
        spec.op(**(sample.tensors | sample.options | replaced))
    assert str(caught.value).startswith(f"{spec.op.__name__}: ")
    for word in words:
        assert word in str(caught.value)


@each_spec(STATISTICS_SPECS)
def test_statistics_must_not_require_grad(spec, device):
    sample = spec.sample("plain", device=device)
    for name in sample.tensors.keys() & set(STATISTICS):
        differentiable = sample.tensors[name].requires_grad_()
        assert_refuses(spec, sample, ValueError, f"{name} must not require grad", **{name: differentiable})
        differentiable.requires_grad_(False)
        with pytest.raises(ValueError, match=f"{name} must not require grad"):
            torch.func.grad(
                lambda tensor, name=name: Sample(sample.tensors | {name: tensor}, {}).call(spec.op)
            )(sample.tensors[name])


# --- error messages ---


@each_spec()
def test_names_the_argument_that_is_no_floating_tensor(spec, device):
    sample = spec.sample("plain", device=device)
    for name, tensor in sample.tensors.items():
        plain = tensor.tolist()
        expected = f"{name} must be a torch.Tensor, got {type(plain).__name__}"
        assert_refuses(spec, sample, TypeError, expected, **{name: plain})
        for dtype in (torch.int64, torch.bool, torch.complex64):
            assert_refuses(
                spec, sample, TypeError, f"{name} must be", f"got {dtype}", **{name: tensor.to(dtype)}
            )


@each_spec()
def test_names_the_argument_of_another_dtype_or_device(spec, device):
    sample = spec.sample("plain", torch.float32, device)
    for name, tensor in sample.tensors.items():
        for dtype in (torch.float64, *HALF):
            assert_refuses(spec, sample, TypeError, name, "dtype", str(dtype), **{name: tensor.to(dtype)})
        assert_refuses(spec, sample, ValueError, name, "device", "meta", **{name: tensor.to("meta")})


@each_spec()
def test_names_the_argument_of_a_wrong_shape(spec, device):
    sample = spec.sample("plain", device=device)
    first, *others = (name for name, tensor in sample.tensors.items() if tensor.ndim)
    # the first argument and weight say what D and K are, so that others are wrong then
    for name in others:
        tensor = sample.tensors[name]
        if name == "factor" and tensor.ndim == 2:
            tensor = tensor.mT
        elif name == "weight":
            tensor = torch.cat([tensor, tensor], -2)
        else:
            tensor = torch.cat([tensor, tensor], -1)
        assert_refuses(
            spec, sample, ValueError, f"{name} must have", f"got {tuple(tensor.shape)}", **{name: tensor}
        )
    for name in {first, *others} - {"log_sigma2"}:  # which may be one number
        assert_refuses(
            spec, sample, ValueError, f"{name} must have", "()", **{name: sample.tensors[name].sum()}
        )


@each_spec(ELBO_SPECS)
def test_names_models_that_do_not_broadcast(spec, device):
    sample = spec.sample("models", device=device)
    data = [name for name in sample.tensors if name in STATISTICS]
    for names in (data, *([name] for name in spec.differentiable if name not in data)):
        replaced = {name: sample.tensors[name][:2] for name in names}
        shapes = [f"{name} (2,)" for name in names]
        assert_refuses(spec, sample, ValueError, "must broadcast", *shapes, **replaced)
    beta = torch.ones(2, device=device)
    assert_refuses(spec, sample, ValueError, "must broadcast", "beta (2,)", beta=beta)


@each_spec(ELBO_SPECS)
def test_names_a_beta_that_is_no_weight(spec, device):
    sample = spec.sample("plain", device=device)
    for beta in (-0.5, math.nan, math.inf):
        assert_refuses(spec, sample, ValueError, f"beta must be finite and >= 0, got {beta}", beta=beta)
    for beta in ("1", None, True, 1j, [1.0]):
        expected = f"beta must be a number, got {type(beta).__name__}"
        assert_refuses(spec, sample, TypeError, expected, beta=beta)
    beta = torch.ones((), requires_grad=True)
    assert_refuses(spec, sample, ValueError, "beta must not require grad", beta=beta)
    assert_refuses(spec, sample, ValueError, "beta must be on device", beta=torch.ones(1, device="meta"))


@each_spec(STATISTICS_SPECS)
def test_names_num_features_below_the_features_given(spec, device):
    sample = spec.sample("plain", device=device)
    features = sample.tensors["mu"].shape[-1]
    assert_refuses(
        spec, sample, ValueError, f"num_features must be at least {features}", num_features=features - 1
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@each_case("plain", "models")
def test_check_finite_names_argument_and_index(spec, case, value, device):
    sample = spec.sample(case, torch.float32, device)
    assert torch.equal(sample.call(spec.op), spec.op(**sample.tensors, **sample.options, check_finite=True))
    for name, tensor in sample.tensors.items():
        index = tuple(size - 1 for size in tensor.shape)
        broken = tensor.clone()
        broken[index] = value
        expected = f"{name} must be finite, got {value} at index {index}"
        assert_refuses(spec, sample, FloatingPointError, expected, check_finite=True, **{name: broken})


HUGE = 10**15  # elements: beyond any address space


@pytest.mark.parametrize(
    ("call", "words"),
    [
        pytest.param(
            lambda zero: gaussian_kl_per_dimension(zero.expand(HUGE, 1), zero.expand(HUGE, 1)),
            f"you tried to allocate {4 * HUGE} bytes",
            id="contiguous input",
        ),
        pytest.param(
            lambda zero: gaussian_kl(zero[:, :0].expand(HUGE, 0), zero[:, :0].expand(HUGE, 0)),
            f"you tried to allocate {4 * HUGE} bytes",
            id="output",
        ),
        pytest.param(
            lambda zero: linear_vae_elbo_from_moments(  # K = 10⁷ latents, so that WᵀW is too large
                sample_mean=zero[0],
                covariance=zero,
                weight=zero.expand(1, 10**7),
                encoder=zero.expand(10**7, 1),
                mu=zero[0],
                log_d=zero[0].expand(10**7),
                log_sigma2=zero[0, 0],
            ),
            f"you tried to allocate {4 * 10**14} bytes",
            id="matrix product",
        ),
        pytest.param(
            lambda zero: reparameterized_kl(zero, zero, num_draws=2**62),
            f"Storage size calculation overflowed with sizes=[{2**62}, 1, 1]",
            id="size",
        ),
    ],
)
def test_what_fails_in_torch_fails_in_its_words(call, words, capfd):
    with pytest.raises(RuntimeError) as error:
        call(torch.zeros(1, 1))
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 13):
        assert words in str(error.value)
    else:  # torch does not hand them out
        assert "for the reason that it wrote to stderr" in str(error.value)
        assert words in capfd.readouterr().err


@each_case("plain", "models", "event", specs=WEIGHTED_SPECS)
def test_check_finite_names_a_weight_and_index(spec, case, device):
    sample = spec.sample(case, torch.float32, device)
    (name,) = WEIGHTS & inspect.signature(spec.op).parameters.keys()
    weight = torch.as_tensor(sample.options.get(name, 1.0), device=device)
    index = tuple(size - 1 for size in weight.shape)
    for value, error, rule in (
        (math.nan, FloatingPointError, "finite"),
        (math.inf, FloatingPointError, "finite"),
        (-0.5, ValueError, ">= 0"),
    ):
        broken = weight.clone()
        broken[index] = value
        expected = f"{name} must be {rule}, got {value} at index {index}"
        assert_refuses(spec, sample, error, expected, check_finite=True, **{name: broken})


# --- where no kernel serves a device ---


@pytest.fixture
def no_kernels(monkeypatch):
    monkeypatch.setattr(_ext, "has_kernel", lambda op, device_type: False)
    _dispatch._warn_reference.cache_clear()
    yield
    _dispatch._warn_reference.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF], ids=str)
@each_case("plain", "models")
def test_the_reference_stands_in_and_says_so_once(spec, case, dtype, device, no_kernels):
    sample = spec.sample(case, dtype, device)
    with pytest.warns(RuntimeWarning, match=f"{spec.native} has no native kernel for {device}"):
        value = sample.call(spec.op)
    # warnings are errors: a second one would end the test here
    with torch.autocast(device, torch.bfloat16):
        assert torch.equal(sample.call(spec.op), value)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_equals_reference(spec, sample, FLOAT64_TOLERANCE if dtype == torch.float64 else spec.tolerance)


@each_case("plain")
def test_shapes_alone_need_no_kernel(spec, case):
    """On the meta device the reference gives them, without a warning."""
    expected = spec.sample(case, torch.float32).call(spec.op)
    value = spec.sample(case, torch.float32, "meta").call(spec.op)
    assert (value.is_meta, value.shape, value.dtype) == (True, expected.shape, expected.dtype)


@pytest.mark.slow
@each_case("plain")
def test_the_reference_compiles_too(spec, case, device, no_kernels):
    with pytest.warns(RuntimeWarning, match=f"{spec.native} has no native kernel for {device}"):
        assert_compiles(spec, (case,), "aot_eager", device)
