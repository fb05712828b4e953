"""Fixtures of the data tests."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch


@pytest.fixture
def generator() -> torch.Generator:
    """A fresh generator."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def unchanged_global_state() -> Iterator[None]:
    """Fails if the test moves the global generators of torch or NumPy."""
    before_torch, before_numpy = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002 (the state under test)
    yield
    assert torch.equal(before_torch, torch.get_rng_state())
    after = np.random.get_state()  # noqa: NPY002
    assert before_numpy[2] == after[2]
    assert np.array_equal(before_numpy[1], after[1])
