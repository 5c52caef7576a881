"""What holds of every input: a right result, or an error in words that names what is wrong.

Calls are drawn by hypothesis. PROPERTY_EXAMPLES in the environment sets how many of each kind; without it
there are few, and always the same.
"""

import inspect
import math
import os
import re
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from op_specs import Sample
from test_inputs import CONSUMERS, OF_ARRAYS, OF_POSTERIORS
from test_op_contract import FLOAT64_TOLERANCE, HALF, each_spec, value_and_gradients

EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "0"))


def examples(count):
    """So many examples, the same in each run; with PROPERTY_EXAMPLES as many as it says, new ones."""
    return settings(
        max_examples=EXAMPLES or count,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # numbers from a seed do not get simpler
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


DTYPES = (torch.float64, torch.float32, *HALF)
REFUSED_DTYPES = (torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn)
sizes = st.one_of(st.sampled_from([0, 1, 2]), st.integers(0, 40))

# the sizes of a plain sample, which are all different
SYMBOLS = {5: "N", 4: "D", 3: "K"}


def numbers(draw, shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    return torch.randn(shape, generator=generator, dtype=dtype)


def laid_out(draw, tensor):
    """Give it in another form: other strides, gaps of NaN, an odd address, negated or zero by a flag."""
    kind = draw(st.sampled_from(["plain", "transposed", "gaps", "offset", "expanded", "negated", "zero"]))
    if kind == "transposed" and tensor.ndim > 1:
        return tensor.mT.contiguous().mT
    if kind == "gaps":
        return torch.stack([tensor, torch.full_like(tensor, torch.nan)], -1)[..., 0]
    if kind == "offset":
        return torch.cat([tensor.new_full((1,), torch.nan), tensor.flatten()])[1:].view(tensor.shape)
    if kind == "expanded" and tensor.ndim and len(tensor):
        return tensor[:1].expand(tensor.shape)
    if kind == "negated" and tensor.dtype.itemsize >= 4:
        return torch.complex(tensor, tensor).conj().imag  # whose memory holds the values, and a flag the sign
    if kind == "zero":
        return torch._efficientzerotensor(tensor.shape, dtype=tensor.dtype)  # without memory
    return tensor


@st.composite
def samples(draw, spec, dtypes=DTYPES, least=0, shared=True):
    """A call that must work: any sizes, models that broadcast, any dtype, any strides."""
    plain = spec.sample("plain")
    size = {symbol: max(draw(sizes), least) for symbol in "NDK"}
    if "mean" in spec.name or "free_bits" in spec.name:  # the mean of no samples is NaN
        size["N"] = max(size["N"], 1)
    if "elbo" in spec.name or "expected" in spec.name:
        size["D"] = max(size["D"], 1)
    models = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    tensors = {}
    for name, tensor in plain.tensors.items():
        shape = tuple(size[SYMBOLS[s]] if s in SYMBOLS else s for s in tensor.shape)
        own = draw(st.sampled_from([models, models[1:], (1,) * len(models)])) if name in MODELLED else models
        if plain.tensors.keys() <= {"mean", "logvar"} or not shared:
            own = models
        if name == "log_sigma2" and own and "likelihood" in spec.name:
            shape = (1,) * (2 - len(shape)) + shape  # after models come the sizes of x, or 1
        values = 0.7 * numbers(draw, (*own, *shape)) - 0.3 * (name.startswith("log"))
        if name == "covariance":
            values = values @ values.mT
        if "bernoulli" in spec.name and name == "x":
            values = values.sigmoid()
        tensors[name] = values
    options = dict(plain.options)
    for name in options.keys() & {"kl_weight"}:
        options[name] = torch.rand(tensors["mean"].shape[-1], dtype=torch.float64)
    if "event_dim" in options or (models and has_event_dim(spec)):
        options["event_dim"] = 1
    dtype = draw(st.sampled_from(dtypes))
    sample = Sample(tensors, options).to(dtype)
    return Sample(
        {
            name: laid_out(draw, tensor) if name != "covariance" else tensor.mT  # which is symmetric
            for name, tensor in sample.tensors.items()
        },
        sample.options,
    )


# arguments that may have models of their own
MODELLED = {"x", "logits", "x_hat", "weight", "bias", "encoder", "mu", "log_d", "mean", "logvar"}


def has_event_dim(spec):
    return "event_dim" in inspect.signature(spec.op).parameters


def assert_right(spec, sample):
    """Compare value and gradients with the float64 reference, as accurately as inputs determine them."""
    value, gradients = value_and_gradients(spec.op, sample, spec.differentiable)
    dtype = next(iter(sample.tensors.values())).dtype
    tolerance = FLOAT64_TOLERANCE if dtype == torch.float64 else 2 * spec.tolerance
    exact = sample.to(torch.float64)
    expected, expected_gradients = value_and_gradients(spec.reference, exact, spec.differentiable)
    step, generator = 1e-6, torch.Generator().manual_seed(0)
    moved = [
        value_and_gradients(
            spec.reference,
            exact.map(lambda x: x + step * x * (2 * torch.rand(x.shape, generator=generator) - 1)),
            spec.differentiable,
        )
        for _ in range(2)
    ]
    for name, found, right, others in [
        ("value", value, expected, [moved_value for moved_value, _ in moved]),
        *((n, gradients[n], expected_gradients[n], [g[n] for _, g in moved]) for n in spec.differentiable),
    ]:
        if not found.numel():
            continue
        spread = max((other - right).abs().max().item() for other in others) / step
        atol = tolerance * max(right.abs().max().item(), spread)
        right = right.to(found.dtype).double()  # beyond the range, ±inf
        torch.testing.assert_close(
            found.double(),
            right,
            rtol=torch.finfo(found.dtype).eps,
            atol=atol,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@each_spec()
@examples(8)
@given(data=st.data())
def test_values_and_gradients_of_any_call(spec, data):
    assert_right(spec, data.draw(samples(spec)))


def other_tensors(draw, tensor):
    """What somebody may pass in the place of a tensor."""
    kind = draw(st.sampled_from(["dtype", "kind", "shape"]))
    if kind == "dtype":
        return tensor.to(draw(st.sampled_from([*DTYPES, *REFUSED_DTYPES])))
    if kind == "kind":
        tensor = torch.zeros(tensor.shape, dtype=tensor.dtype) + tensor  # of plain memory
        make = draw(
            st.sampled_from(
                [
                    torch.Tensor.tolist,
                    lambda x: x.double().numpy(),
                    torch.Tensor.to_sparse,
                    lambda x: x.to("meta"),
                    lambda x: None,
                    lambda x: torch.nn.Parameter(x.detach()),
                ]
            )
        )
        return make(tensor)
    if not tensor.ndim:
        return tensor.expand(draw(st.lists(st.integers(0, 3), min_size=1, max_size=3)))
    dim = draw(st.integers(0, tensor.ndim - 1))
    change = draw(st.sampled_from(["grow", "cut", "one", "none", "drop", "add", "swap", "flat"]))
    size = tensor.shape[dim]
    if change == "grow":
        return torch.cat([tensor, tensor], dim)
    if change in ("cut", "one", "none"):
        return tensor.narrow(dim, 0, min(size, {"cut": max(size - 1, 0), "one": 1, "none": 0}[change]))
    if change == "drop":
        return tensor.sum(dim)
    if change == "add":
        return tensor.unsqueeze(dim)
    return tensor.movedim(0, -1) if change == "swap" else tensor.flatten()


weights = st.sampled_from(
    [
        *(0, 0.5, 2, -1, math.nan, math.inf, "1", None, True, 1j, [1.0]),
        *(np.float32(0.5), np.int64(2), np.array(0.5), np.ones(3)),
        *(torch.tensor(0.5), torch.ones(3), torch.ones(2, 3), torch.ones(0), torch.tensor(2)),
        *(torch.tensor(True), torch.tensor(1j), torch.ones(3).to_sparse(), torch.ones(3, device="meta")),
    ]
)
integers = st.sampled_from([0, 1, 2, 3, 5, 99, -1, 2**63, True, 1.0, "1", None, np.int64(1), torch.tensor(1)])
OPTIONS = {
    **dict.fromkeys(["kl_weight", "beta", "free_bits"], weights),
    **dict.fromkeys(["event_dim", "num_features"], integers),
    "num_draws": integers.filter(lambda number: number != 2**63),  # more than any memory holds
    "seed": st.one_of(integers, st.sampled_from([-(2**63), 2**63 - 1, torch.tensor(1.0), torch.ones(1)])),
    "check_finite": st.booleans(),
}


@contextmanager
def refusals(message):
    """Let an error pass that is in words."""
    try:
        yield
    except (ValueError, TypeError, FloatingPointError) as error:
        if not re.match(message, str(error)):
            raise AssertionError(f"not in words: {error!r}") from error


@each_spec()
@examples(15)
@given(data=st.data())
def test_what_is_refused_is_named_and_the_rest_is_right(spec, data):
    sample = data.draw(samples(spec, least=1))
    parameters = inspect.signature(spec.op).parameters.keys()
    names = data.draw(
        st.sets(st.sampled_from(sorted({*sample.tensors, *(OPTIONS.keys() & parameters)})), max_size=2)
    )
    tensors, options = dict(sample.tensors), dict(sample.options)
    for name in sorted(names):
        if name in tensors:
            tensors[name] = other_tensors(data.draw, tensors[name])
        else:
            options[name] = data.draw(OPTIONS[name])
    value = None
    with refusals(rf"{spec.op.__name__}: (\w+ must|the leading dimensions over models must) "):
        value = spec.op(**tensors, **options)
    if value is None or options.get("seed", 0) is None:
        return  # the noise is another each time
    tensors = {name: tensor.detach().double() for name, tensor in tensors.items()}
    options = {
        name: option for name, option in options.items() if name != "check_finite" and option is not None
    }
    if "seed" in options:
        options["seed"] = torch.as_tensor(options["seed"])
    options = {
        name: option.double() if isinstance(option, Tensor) and option.is_floating_point() else option
        for name, option in options.items()
    }
    expected = spec.reference(**tensors, **options)
    assert value.shape == expected.shape
    if value.dtype == torch.float64:
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9 * expected.abs().sum().item())


# --- numbers of every size ---

# What docs/numerics.md says an operator takes: magnitudes, and logs, where the products of a matrix must fit.
RANGES = {
    "expected_bernoulli_log_likelihood": (1e3, 69.0),
    "expected_gaussian_log_likelihood": (1e3, 30.0),
    "expected_gaussian_log_likelihood_full": (1e3, 30.0),
    "linear_vae": (1e4, 30.0),
}
ANY = (math.inf, 200.0)


def wild(draw, shape, dtype, largest):
    """Give numbers with uniform logarithms, as far as the dtype goes or to ``largest``; zeros, subnormals."""
    info = torch.finfo(dtype)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    low, high = math.log(info.smallest_normal) - 5, math.log(min(info.max, largest))
    logs = low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)
    kind = torch.randint(0, 9, shape, generator=generator)
    magnitude = torch.where(kind == 8, 0.0, logs.exp())
    magnitude = torch.where(kind == 7, min(info.max, largest), magnitude)
    return torch.where(kind % 2 == 0, magnitude, -magnitude).clamp(-info.max, info.max).to(dtype)


@each_spec()
@examples(15)
@given(data=st.data())
def test_finite_numbers_give_no_nan(spec, data):
    """Whatever their size; and what fits float32 comes out finite.

    (Where models share a tensor, torch adds its gradients, and infinities of both signs are NaN.)
    """
    sample = data.draw(samples(spec, dtypes=(torch.float32, *HALF), least=1, shared=False))
    family = "linear_vae" if spec.name.startswith("linear_vae") else spec.name
    largest, logs = RANGES.get(family, ANY)
    tensors = {}
    for name, tensor in sample.tensors.items():
        if name.startswith("log") and name != "logits":
            uniform = torch.rand(
                tensor.shape, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
            )
            tensors[name] = ((2 * uniform - 1) * logs).to(tensor.dtype)
        else:
            tensors[name] = wild(data.draw, tensor.shape, tensor.dtype, largest)
        if "bernoulli" in spec.name and name == "x":
            tensors[name] = tensors[name].abs().clamp(max=1)
    if "covariance" in tensors:
        covariance = tensors["covariance"].double().clamp(-1e3, 1e3)
        tensors["covariance"] = (covariance @ covariance.mT).to(sample.tensors["covariance"].dtype)
        assume(tensors["covariance"].isfinite().all())
    sample = Sample(tensors, sample.options)
    value, gradients = value_and_gradients(spec.op, sample, spec.differentiable)
    expected, expected_gradients = value_and_gradients(
        spec.reference, sample.to(torch.float64), spec.differentiable
    )
    for name, found, right in [
        ("value", value, expected),
        *((name, gradients[name], expected_gradients[name]) for name in spec.differentiable),
    ]:
        assert not found.isnan().any(), name
        # of a mean, gradients must fit before the incoming one, at least ½, and KLs before they are divided
        room = {"gaussian_log_likelihood_mean": 2, "free_bits_kl": 40}.get(spec.op.__name__, 1)
        fits = right.abs() < torch.finfo(found.dtype).max * (1 - 1e-2) / room
        assert found[fits].isfinite().all(), name


@each_spec()
@examples(8)
@given(data=st.data())
def test_nan_stays_in_its_model_and_comes_out_there(spec, data):
    """It is neither lost nor does it reach what does not depend on it."""
    sample = data.draw(samples(spec, dtypes=(torch.float32, torch.float64), least=1))
    name = data.draw(st.sampled_from(sorted(sample.tensors)))
    clean = sample.call(spec.op)
    tensor = sample.tensors[name].clone().contiguous()
    where = data.draw(st.integers(0, tensor.numel() - 1))
    tensor = torch.zeros_like(tensor) + tensor
    tensor.view(-1)[where] = torch.nan
    broken = Sample(sample.tensors | {name: tensor}, sample.options)
    expected = broken.to(torch.float64).call(spec.reference)
    value = broken.call(spec.op)
    assert torch.equal(value.isnan(), expected.isnan())
    same = ~value.isnan()
    torch.testing.assert_close(value[same], clean[same], rtol=1e-5, atol=1e-5)


# --- whatever else takes arrays ---


@st.composite
def posterior_arrays(draw):
    """Two arrays of one shape, and of any strides and numbers."""
    dtype = draw(st.sampled_from([np.float64, np.float32, np.float16]))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=6))
    numbers = st.floats(width=np.dtype(dtype).itemsize * 8)
    return tuple(strided_array(draw, draw(hnp.arrays(dtype, shape, elements=numbers))) for _ in range(2))


@st.composite
def any_arrays(draw):
    """An array of any dtype, shape, strides and numbers."""
    dtype = draw(st.one_of(hnp.scalar_dtypes(), st.sampled_from(["f8", "f4", "f2", ">f8"]).map(np.dtype)))
    shape = draw(
        st.one_of(st.just((50, 3)), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6))
    )
    return strided_array(draw, draw(hnp.arrays(dtype, shape)))


def strided_array(draw, array):
    kind = draw(st.sampled_from(["plain", "backwards", "fortran", "every other", "read-only", "broadcast"]))
    if kind == "backwards" and array.ndim:
        return array[::-1]
    if kind == "fortran":
        return np.asfortranarray(array)
    if kind == "every other" and array.ndim:
        return np.repeat(array, 2, axis=-1)[..., ::2]
    if kind == "broadcast" and array.ndim and len(array):
        return np.broadcast_to(array[:1], array.shape)
    if kind == "read-only":
        array = array.copy()
        array.flags.writeable = False
    return array


TAKERS = CONSUMERS | {"logit_transform": OF_ARRAYS["logit_transform"]}
CALLED = r"\w+(\.\w+)?: |Found |Expected |Input |could not convert|Complex |X |Unable |dtype='numeric'"


@pytest.mark.parametrize("taker", TAKERS)
@examples(15)
@given(array=any_arrays())
def test_takers_of_any_array(taker, array):
    """They take it, or say what is wrong with it; PPCA in the words of scikit-learn."""
    with warnings.catch_warnings(), refusals(CALLED):
        warnings.simplefilter("ignore")
        TAKERS[taker](array)


@pytest.mark.parametrize("taker", OF_POSTERIORS)
@examples(15)
@given(posterior=posterior_arrays())
def test_takers_of_any_posterior(taker, posterior):
    with warnings.catch_warnings(), refusals(CALLED):
        warnings.simplefilter("ignore")
        OF_POSTERIORS[taker](*(torch.from_numpy(np.array(array)) for array in posterior))
