"""Fixtures of the kernel tests."""

import numpy as np
import pytest

from shardpress_kernels import backend


@pytest.fixture
def without_ops(monkeypatch):
    """Use Theano's own operations instead of the Ops of `shardpress_kernels.ops`."""
    monkeypatch.setattr(backend, "uses_ops", lambda: False)


@pytest.fixture(params=["ops", "theano"])
def path(request):
    """Run each test with our Ops, and with Theano's own operations."""
    if request.param == "theano":
        request.getfixturevalue("without_ops")


@pytest.fixture
def rng():
    return np.random.default_rng(20240229)
