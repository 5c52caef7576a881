"""reparameterized_kl: what its noise is, what backward makes of it, and the KL beside it."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lineavae import reference
from lineavae.ops import gaussian_kl, reparameterized_kl

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SEEDS = [0, 1, -1, 2**32, 0x1234_5678_9ABC_DEF0, 2**63 - 1, -(2**63)]

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_width = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def noise(shape, seed, num_draws=1, dtype=torch.float32, device="cpu"):
    """The noise itself: samples of the prior."""
    zeros = torch.zeros(shape, dtype=dtype, device=device)
    return reparameterized_kl(zeros, zeros, num_draws=num_draws, seed=seed, event_dim=1)[0]


# --- the noise is the function of seed and index that it is said to be ---


def exact_words(seed: int, counter: int) -> list[int]:
    """Philox4x32-10, in Python's integers."""
    key = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    x = [counter & 0xFFFFFFFF, counter >> 32, 0, 0]
    for _ in range(10):
        even, odd = x[0] * 0xD2511F53, x[2] * 0xCD9E8D57
        x = [
            odd >> 32 ^ x[1] ^ key[0],
            odd & 0xFFFFFFFF,
            even >> 32 ^ x[3] ^ key[1],
            even & 0xFFFFFFFF,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return x


def exact_normal(seed: int, index: int) -> mpmath.mpf:
    words = exact_words(seed, index // 4)
    radius_word, angle_word = words[:2] if index % 4 < 2 else words[2:]
    radius = mpmath.sqrt(-2 * mpmath.log(mpmath.mpf(radius_word | 1) / 2**32))
    angle = 2 * mpmath.pi * angle_word / 2**32
    return radius * (mpmath.cos(angle) if index % 2 == 0 else mpmath.sin(angle))


def test_philox_gives_the_published_words():
    # Random123, kat_vectors: counter and key zero
    published = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert exact_words(0, 0) == published
    words = reference.philox(torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.int64))
    assert [int(word) for word in words] == published


def test_philox_of_the_reference_at_any_counter_and_seed():
    for seed in SEEDS:
        for counter in (0, 5, 2**32 - 1, 2**32, 2**60 + 12345):
            words = reference.philox(torch.tensor(counter), torch.tensor(seed))
            assert [int(word) for word in words] == exact_words(seed, counter)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 6e-7), (torch.float64, 2e-15)], ids=str)
def test_noise_against_mpmath(dtype, tolerance, seed, device):
    shape = (9, 23)
    actual = noise(shape, seed, num_draws=2, dtype=dtype, device=device).flatten().tolist()
    with mpmath.workdps(40):
        for index, value in enumerate(actual):
            assert abs(value / exact_normal(seed, index) - 1) < tolerance


def test_noise_of_the_reference_against_mpmath():
    actual = reference.standard_normal(torch.tensor(SEEDS[4]), (3, 67), torch.float64).flatten().tolist()
    with mpmath.workdps(40):
        for index, value in enumerate(actual):
            assert abs(value - exact_normal(SEEDS[4], index)) < 1e-14


def test_float32_noise_is_that_of_float64_to_rounding(device):
    single = noise((512, 512), 3, device=device).double()
    double = noise((512, 512), 3, dtype=torch.float64, device=device)
    torch.testing.assert_close(single, double, rtol=6e-7, atol=0)


# CPU, emulator and GPU alike: 4 to a counter or not, long rows and short ones
CHECKSUMS = {
    (64, 128): {torch.float32: -5791343570133079, torch.float64: -8669572088656290045},
    (300, 7): {torch.float32: -482194068399813, torch.float64: 2177026634352904902},
    (2, 2500): {torch.float32: -2428284910492975, torch.float64: 5437302382954068477},
}


@each_width
@pytest.mark.parametrize("shape", CHECKSUMS)
def test_noise_has_the_same_bits_wherever_it_is_made(shape, dtype, device):
    bits = noise(shape, 2**40 + 5, num_draws=3, dtype=dtype, device=device)
    bits = bits.view(torch.int32 if dtype == torch.float32 else torch.int64).cpu().flatten().to(torch.int64)
    positions = torch.arange(1, bits.numel() + 1)
    assert int((bits * positions).sum()) == CHECKSUMS[shape][dtype]


def test_shape_does_not_matter_only_the_flat_index(device):
    flat = noise((1, 4200), 7, device=device).flatten()
    for shape in ((4200, 1), (60, 70), (2, 3, 7, 100), (4200,)):
        assert torch.equal(noise(shape, 7, device=device).flatten(), flat)
    for num_draws in (2, 3, 7):
        assert torch.equal(
            noise((600 // num_draws, 7), 7, num_draws, device=device).flatten(),
            flat[: 600 // num_draws * num_draws * 7],
        )


# --- it is standard normal, and independent ---

DRAWS = 1 << 20


@pytest.fixture(scope="module")
def draws():
    return noise((1024, 1024), 11).flatten().double()


def test_moments(draws):
    # E x^n and its standard error, from the moments of the normal distribution: 1, 3, 15, 105
    for power, expected, second in ((1, 0, 1), (2, 1, 3), (3, 0, 15), (4, 3, 105)):
        error = math.sqrt((second - expected**2) / DRAWS)
        assert abs(draws.pow(power).mean().item() - expected) < 4 * error


def test_distribution_by_kolmogorov_and_smirnov(draws):
    assert stats.kstest(draws.numpy(), "norm").pvalue > 1e-3
    # each of the four elements of a counter
    for i in range(4):
        assert stats.kstest(draws[i::4].numpy(), "norm").pvalue > 1e-3


def test_tails(draws):
    for bound in (3.0, 4.0):
        expected = 2 * stats.norm.sf(bound) * DRAWS
        assert abs((draws.abs() > bound).sum().item() - expected) < 4 * math.sqrt(expected)
    assert draws.unique().numel() > 0.97 * DRAWS  # of 24 bits, so some coincide


def correlation(x, y):
    return torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1].item()


@pytest.mark.parametrize("transform", [lambda x: x, lambda x: x * x, lambda x: x.sign()])
def test_neighbours_are_independent(draws, transform):
    # 4 draws come from one counter, 1024 make a row
    for lag in (1, 2, 3, 4, 64, 1024):
        x, y = transform(draws[:-lag]), transform(draws[lag:])
        assert abs(correlation(x, y)) < 4 / math.sqrt(DRAWS)


@pytest.mark.parametrize("transform", [lambda x: x, lambda x: x * x])
def test_samples_and_seeds_are_independent(draws, transform):
    first, second = noise((512, 512), 11, num_draws=2)
    assert torch.equal(first.flatten().double(), draws[: 512 * 512])
    others = [second, *(noise((512, 512), seed)[0] for seed in (12, 11 + 2**32, 11 - 2**63, -12))]
    for other in others:
        assert abs(correlation(transform(first), transform(other))) < 4 / 512


# --- where seeds come from ---


def test_manual_seed_governs_the_noise(device):
    mean, logvar = torch.randn(2, 5, 3, device=device)
    torch.manual_seed(1)
    first, second = (reparameterized_kl(mean, logvar)[0] for _ in range(2))
    torch.manual_seed(1)
    again = reparameterized_kl(mean, logvar)[0]
    assert torch.equal(again, first)
    assert not (first == second).any()


def test_a_number_is_the_seed_that_a_tensor_holds(device):
    for seed in SEEDS:
        of_tensor = noise((5, 3), torch.tensor(seed, device=device), device=device)
        assert torch.equal(noise((5, 3), seed, device=device), of_tensor)


def test_vmap_randomness(device):
    mean, logvar = torch.randn(2, 4, 5, 3, device=device)

    def sample(mean, logvar):
        return reparameterized_kl(mean, logvar)[0]

    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(sample)(mean, logvar)
    scale = (logvar / 2).exp()
    same = torch.func.vmap(sample, randomness="same")(mean, logvar)[:, 0]
    different = torch.func.vmap(sample, randomness="different")(mean, logvar)[:, 0]
    epsilon_same, epsilon_different = (same - mean) / scale, (different - mean) / scale
    torch.testing.assert_close(epsilon_same, epsilon_same[:1].expand(4, 5, 3), rtol=1e-4, atol=1e-5)
    for i in range(4):
        for j in range(i):
            assert not torch.isclose(epsilon_different[i], epsilon_different[j], atol=1e-4).any()


@pytest.mark.parametrize("weighted", [False, True])
def test_a_model_in_an_ensemble_is_the_same_as_alone(weighted, device):
    generator = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, 2, 3, 5, 7, generator=generator).to(device)
    seeds = torch.arange(6, device=device).reshape(2, 3)
    weight = torch.rand(2, 3, 7, generator=generator).to(device)

    def step(mean, logvar, seed, weight):
        options = {"kl_weight": weight} if weighted else {}
        z, kl = reparameterized_kl(mean, logvar, num_draws=2, seed=seed, **options)
        return z.square().sum() + kl.sum(), (z, kl)

    gradient = torch.func.grad(step, argnums=(0, 1), has_aux=True)
    (mean_grad, logvar_grad), (z, kl) = torch.func.vmap(torch.func.vmap(gradient))(
        mean, logvar, seeds, weight
    )
    for i in range(2):
        for j in range(3):
            (g, h), alone = gradient(mean[i, j], logvar[i, j], seeds[i, j], weight[i, j])
            for actual, expected in (
                (z[i, j], alone[0]),
                (kl[i, j], alone[1]),
                (mean_grad[i, j], g),
                (logvar_grad[i, j], h),
            ):
                assert torch.equal(actual, expected)


def test_models_may_share_posterior_seed_or_weights(device):
    mean, logvar = torch.randn(2, 4, 7, device=device)
    models = torch.randn(3, 4, 7, device=device)
    seeds = torch.arange(3, device=device)
    weights = torch.rand(3, 7, device=device)

    def call(mean, seed, weight):
        return reparameterized_kl(mean, logvar, seed=seed, kl_weight=weight)

    for in_dims in ((0, None, None), (None, 0, None), (None, None, 0), (0, 0, None), (None, 0, 0)):
        arguments = [
            batched if dim == 0 else single
            for dim, batched, single in zip(
                in_dims, (models, seeds, weights), (mean, seeds[1], weights[1]), strict=True
            )
        ]
        z, kl = torch.func.vmap(call, in_dims)(*arguments)
        for i in range(3):
            alone = call(*(a[i] if dim == 0 else a for a, dim in zip(arguments, in_dims, strict=True)))
            assert torch.equal(z[i], alone[0])
            assert torch.equal(kl[i], alone[1])


# --- the backward makes the same noise ---


@each_dtype
@pytest.mark.parametrize("shape", [(5, 8), (5, 7), (3, 1500)])
def test_backward_makes_the_noise_of_the_forward(shape, dtype, device):
    mean, logvar = (torch.zeros(shape, dtype=dtype, device=device).requires_grad_() for _ in range(2))
    z, _ = reparameterized_kl(mean, logvar, seed=5)
    z.sum().backward()
    # at the prior ∂z/∂m = 1 and ∂z/∂ log v = ε / 2 exactly
    assert torch.equal(mean.grad, torch.ones_like(mean))
    assert torch.equal(logvar.grad, (z[0] / 2).to(dtype))


@pytest.mark.parametrize("logvar", [-60.0, -30.0, 30.0, 60.0])
def test_gradient_at_tiny_and_huge_variances(logvar, device):
    # z - m has lost the noise here
    mean = torch.full((4, 33), 100.0, device=device)
    logvar = torch.full((4, 33), logvar, device=device).requires_grad_()
    z, _ = reparameterized_kl(mean, logvar, seed=5)
    z.sum().backward()
    epsilon = noise((4, 33), 5, dtype=torch.float64, device=device)[0]
    expected = 0.5 * (0.5 * logvar.detach().double()).exp() * epsilon
    torch.testing.assert_close(logvar.grad.double(), expected, rtol=2e-6, atol=0)


def test_finite_differences_with_a_fixed_seed(device):
    mean, logvar = torch.randn(2, 3, 5, dtype=torch.float64, device=device)
    direction = torch.randn(2, 3, 5, dtype=torch.float64, device=device)

    def loss(mean, logvar):
        z, kl = reparameterized_kl(mean, logvar, num_draws=4, seed=3)
        return z.pow(3).sum() + (kl * kl).sum()

    step = 1e-6
    difference = (
        loss(mean + step * direction[0], logvar + step * direction[1])
        - loss(mean - step * direction[0], logvar - step * direction[1])
    ) / (2 * step)
    gradient = torch.func.grad(loss, (0, 1))(mean, logvar)
    slope = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
    torch.testing.assert_close(slope, difference, rtol=1e-7, atol=0)


@pytest.mark.parametrize("output", [0, 1])
def test_gradient_of_one_result_alone(output, device):
    mean, logvar = torch.randn(2, 5, 7, dtype=torch.float64, device=device)

    def loss(function, seed):
        return lambda m, t: function(m, t, num_draws=2, seed=seed)[output].square().sum()

    actual = torch.func.grad(loss(reparameterized_kl, 3), (0, 1))(mean, logvar)
    seed = torch.tensor(3, device=device)
    expected = torch.func.grad(loss(reference.reparameterized_kl, seed), (0, 1))(mean, logvar)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_results_may_be_written_to(device):
    mean = torch.randn(5, 7, device=device).requires_grad_()
    z, kl = reparameterized_kl(mean, torch.zeros_like(mean), seed=0)
    z *= 2
    kl += 1
    (z.sum() + kl.sum()).backward()
    torch.testing.assert_close(mean.grad, 2 + mean.detach())


# --- values ---


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    num_draws=st.integers(1, 4),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_equals_torch_distributions(shape, num_draws, seed):
    generator = torch.Generator().manual_seed(seed % 1000)
    mean, logvar = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    z, kl = reparameterized_kl(mean, logvar, num_draws=num_draws, seed=seed, event_dim=1)
    posterior = torch.distributions.Normal(mean, (logvar / 2).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = torch.distributions.kl_divergence(posterior, prior).sum(-1)
    torch.testing.assert_close(kl, expected, rtol=1e-12, atol=1e-14)
    epsilon = noise(shape, seed, num_draws, torch.float64)
    torch.testing.assert_close(z, posterior.loc + posterior.scale * epsilon, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(
        posterior.log_prob(z), prior.log_prob(epsilon) - logvar / 2, rtol=1e-9, atol=1e-9
    )


def test_samples_estimate_the_kl():
    mean, logvar = torch.tensor([0.7, -1.0]), torch.tensor([-1.5, 0.4])
    z, kl = reparameterized_kl(mean, logvar, num_draws=1 << 18, seed=2)
    posterior = torch.distributions.Normal(mean, (logvar / 2).exp())
    prior = torch.distributions.Normal(0.0, 1.0)
    estimates = (posterior.log_prob(z) - prior.log_prob(z)).sum(-1).double()
    assert abs(estimates.mean() - kl) < 4 * estimates.std() / math.sqrt(len(estimates))


def small_and_large(dtype):
    magnitudes = torch.logspace(-12, math.log10(80), 500, dtype=torch.float64)
    return torch.cat([magnitudes, -magnitudes, torch.zeros(1)]).to(dtype)


@each_dtype
@pytest.mark.parametrize("mean", [0.0, 1e-6, 0.3, -4.0])
def test_kl_and_its_gradient_keep_their_digits_near_the_prior_and_far(mean, dtype, device):
    logvar = small_and_large(dtype).to(device)[:, None].requires_grad_()
    means = torch.full_like(logvar, mean).requires_grad_()
    _, kl = reparameterized_kl(means, logvar, seed=0)
    kl.double().sum().backward()
    exact_mean, exact_logvar = means.detach().double(), logvar.detach().double()
    exact_mean.requires_grad_(), exact_logvar.requires_grad_()
    expected = gaussian_kl(exact_mean, exact_logvar)
    expected.sum().backward()
    tolerance = 1e-14 if dtype == torch.float64 else 6e-7
    torch.testing.assert_close(kl.double(), expected, rtol=tolerance, atol=0)
    finite = exact_logvar.grad.abs() <= torch.finfo(dtype).max
    rounding = 0 if dtype.itemsize > 2 else torch.finfo(dtype).eps
    torch.testing.assert_close(
        logvar.grad.double()[finite],
        exact_logvar.grad[finite],
        rtol=tolerance + rounding,
        atol=torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps,
    )


@each_dtype
def test_exactly_zero_kl_at_the_prior(dtype, device):
    mean, logvar = (torch.zeros(3, 37, dtype=dtype, device=device, requires_grad=True) for _ in range(2))
    _, kl = reparameterized_kl(mean, logvar)
    kl.sum().backward()
    assert not kl.any()
    assert not mean.grad.any()
    assert not logvar.grad.any()


@each_dtype
def test_finite_wherever_float32_is(dtype, device):
    logvar = torch.linspace(-80, 80, 3201, dtype=torch.float64).to(dtype).to(device)[:, None]
    z, kl = reparameterized_kl(torch.zeros_like(logvar), logvar, num_draws=2, seed=1)
    assert z.isfinite().all()
    assert kl.isfinite().all()
    epsilon = noise(logvar.shape, 1, 2, torch.float64, device)
    torch.testing.assert_close(z.double(), (logvar.double() / 2).exp() * epsilon, rtol=2e-6, atol=0)


@each_dtype
def test_not_a_number_stays_one(dtype, device):
    for broken in range(2):
        arguments = [torch.zeros(4, 37, dtype=dtype, device=device) for _ in range(2)]
        arguments[broken][1, 5] = math.nan
        mean, logvar = (argument.requires_grad_() for argument in arguments)
        z, kl = reparameterized_kl(mean, logvar, num_draws=2)
        (z.sum() + kl.sum()).backward()
        expected = arguments[broken].detach().isnan()
        assert torch.equal(z.isnan(), expected.expand(2, 4, 37))
        assert torch.equal(kl.isnan(), expected.any(-1))
        assert torch.equal(arguments[broken].grad.isnan(), expected)


@each_dtype
def test_infinities(dtype, device):
    infinities = torch.tensor([math.inf, -math.inf], dtype=dtype, device=device)[:, None]
    zeros = torch.zeros_like(infinities)
    assert (reparameterized_kl(zeros, infinities)[1] == math.inf).all()
    z, kl = reparameterized_kl(infinities, zeros)
    assert (kl == math.inf).all()
    assert torch.equal(z[0].to(dtype), infinities)


# --- denormal numbers ---


def test_denormal_numbers_are_as_good_as_zero(device):
    tiny = torch.full((64, 65), 1e-40, device=device).requires_grad_()
    z, kl = reparameterized_kl(tiny, tiny, seed=4)
    (1e-39 * z.sum() + kl.sum()).backward()
    assert torch.equal(z, noise((64, 65), 4, device=device))
    assert (kl.abs() < 1e-37).all()
    assert (tiny.grad.abs() < 1e-37).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_other_operators_still_know_denormal_numbers(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        mean = torch.randn(512, 128).requires_grad_()
        z, kl = reparameterized_kl(mean, mean)
        (z.sum() + kl.sum()).backward()
        denormal = torch.full((512, 128), 1e-40)
        assert (denormal * 0.5 > 0).all()
    finally:
        torch.set_num_threads(before)


# --- torch.compile and CUDA graphs ---


def training_step(mean, logvar, seed=None, kl_weight=1.0):
    z, kl = reparameterized_kl(mean, logvar, seed=seed, kl_weight=kl_weight)
    return z, z.square().sum() + kl.sum()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("given_seed", [False, True])
def test_twenty_compiled_steps_with_fresh_seeds(backend, given_seed, device):
    torch._dynamo.reset()
    step = torch.compile(training_step, fullgraph=True, backend=backend)
    mean, logvar = (torch.zeros(6, 5, device=device).requires_grad_() for _ in range(2))
    samples = []
    with torch._dynamo.config.patch(error_on_recompile=True):
        for i in range(20):
            seed = torch.tensor(i, device=device) if given_seed else None
            weight = torch.tensor(i / 20, device=device)
            z, loss = step(mean, logvar, seed, weight)
            gradient = torch.autograd.grad(loss, logvar)[0]
            # at the prior ∂ loss / ∂ log v = ε²
            torch.testing.assert_close(gradient, z[0].square(), rtol=1e-6, atol=1e-6)
            if given_seed:
                assert torch.equal(z, noise((6, 5), i, device=device))
            samples.append(z.detach())
    assert torch.stack(samples).unique().numel() == 20 * 6 * 5


def test_a_replayed_cuda_graph_makes_fresh_noise(device):
    if device != "cuda":
        pytest.skip("CUDA graphs need CUDA")
    mean, logvar = (torch.zeros(6, 5, device=device).requires_grad_() for _ in range(2))

    def run():
        z, loss = training_step(mean, logvar)
        return z, torch.autograd.grad(loss, logvar)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        z, gradient = run()
    samples = []
    for _ in range(3):
        graph.replay()
        torch.testing.assert_close(gradient, z[0].square())
        samples.append(z.clone())
    assert torch.stack(samples).unique().numel() == 3 * 6 * 5


# --- messages ---


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_draws": 0}, ValueError, "num_draws must be at least 1, got 0"),
        ({"num_draws": 1.5}, TypeError, "num_draws must be an int, got float"),
        ({"num_draws": True}, TypeError, "num_draws must be an int, got bool"),
        ({"seed": 1.5}, TypeError, "seed must be an int, got float"),
        ({"seed": 2**63}, ValueError, "seed must be below 2**63, got 9223372036854775808"),
        ({"seed": -(2**63) - 1}, ValueError, "seed must be at least -9223372036854775808"),
        ({"seed": torch.tensor(1.0)}, TypeError, "seed must be int64, got torch.float32"),
        ({"seed": torch.tensor(1, dtype=torch.int32)}, TypeError, "seed must be int64, got torch.int32"),
        ({"seed": torch.tensor([1])}, ValueError, "seed must have shape (), got (1,)"),
        ({"seed": torch.tensor(1, device="meta")}, ValueError, "seed must be on device cpu, got meta"),
    ],
)
def test_says_what_is_wrong_with_a_seed_or_num_draws(options, error, message):
    mean = torch.zeros(4, 3)
    with pytest.raises(error) as caught:
        reparameterized_kl(mean, mean, **options)
    assert str(caught.value).startswith(f"reparameterized_kl: {message}")
