import pytest

from lineavae.nn import Capacity, KLAnnealing


def test_annealing_is_linear_and_stays_at_its_end() -> None:
    annealing = KLAnnealing(100)
    assert [annealing(epoch) for epoch in (0, 25, 99, 100, 101, 1000)] == [0, 0.25, 0.99, 1, 1, 1]
    assert KLAnnealing(10, start=1, end=4)(5) == 2.5
    assert KLAnnealing(0)(0) == 1


def test_capacity() -> None:
    capacity = Capacity(50, end=25)
    assert [capacity(epoch) for epoch in (0, 10, 50, 60)] == [0, 5, 25, 25]


def test_errors() -> None:
    with pytest.raises(ValueError, match="KLAnnealing: num_epochs must be finite and >= 0, got -1"):
        KLAnnealing(-1)
    with pytest.raises(TypeError, match="Capacity: end must be a number, got str"):
        Capacity(1, end="25")
    with pytest.raises(ValueError, match="KLAnnealing: epoch must be finite and >= 0, got -1"):
        KLAnnealing(10)(-1)
