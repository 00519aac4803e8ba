"""What makes correlation fast must change nothing else."""

import gc

import numpy as np
import pytest

from tracer.analysis.branches import among
from tracer.analysis.uncollected import uncollected


@pytest.mark.parametrize("values", [0, 1, 7, 100])
@pytest.mark.parametrize("known", [0, 1, 7, 100])
def test_among_is_isin(values, known):
    random = np.random.default_rng(values * 1000 + known)
    some, others = (random.integers(0, 40, size).astype(np.uint64) for size in (values, known))
    some[::3] += np.uint64(1 << 63)
    assert among(some, others).tolist() == np.isin(some, others).tolist()
    assert among(others, some).tolist() == np.isin(others, some).tolist()


@uncollected()
def fails():
    assert not gc.isenabled()
    raise ValueError("x")


def test_the_collector_is_as_before_also_after_an_error():
    assert gc.isenabled()
    with pytest.raises(ValueError, match="x"):
        fails()
    assert gc.isenabled()


def test_a_disabled_collector_stays_so():
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
