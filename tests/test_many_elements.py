"""More elements than 32 bits count: an index that wraps around would read rows from the beginning."""

import math

import numpy as np
import pytest
import torch

from lineavae.ops import (
    bernoulli_log_likelihood,
    collapse_statistics,
    gaussian_kl,
    gaussian_log_likelihood,
)

ROWS, COLUMNS = 2**23 + 8, 256

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def zeros():
    """Zeros, which nobody writes and so take no memory, but for three ones at the end."""
    array = np.zeros((ROWS, COLUMNS), np.float16)
    array[-1, -3:] = 1
    return torch.from_numpy(array)


def assert_all_but_the_last(value, everywhere, last):
    assert torch.equal(value[:-1], value.new_tensor(everywhere).expand(ROWS - 1))
    torch.testing.assert_close(value[-1].item(), last, rtol=1e-6, atol=0)


def test_gaussian_kl(zeros):
    assert_all_but_the_last(gaussian_kl(zeros, zeros), 0, 3 * (math.e - 1) / 2)


def test_gaussian_log_likelihood(zeros):
    x = torch.from_numpy(np.zeros((ROWS, COLUMNS), np.float16))
    value = gaussian_log_likelihood(x, zeros, torch.zeros((), dtype=torch.float16))
    alone = gaussian_log_likelihood(x[:1], x[:1], torch.zeros((), dtype=torch.float16)).item()
    assert_all_but_the_last(value, alone, alone - 1.5)


def test_bernoulli_log_likelihood(zeros):
    value = bernoulli_log_likelihood(zeros, zeros)
    alone = bernoulli_log_likelihood(zeros[:1], zeros[:1]).item()
    softplus = math.log1p(math.exp(-1)) - math.log(2)
    assert_all_but_the_last(value, alone, alone - 3 * softplus)


def test_collapse_statistics(zeros):
    found = collapse_statistics(zeros, zeros, [0.01])
    expected = torch.full((COLUMNS,), ROWS)
    expected[-3:] -= 1
    assert torch.equal(found.counts.squeeze(), expected)
    assert torch.equal(found.histogram.sum(-1).squeeze(), torch.full((COLUMNS,), ROWS))
