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


@pytest.fixture
def compiled(monkeypatch):
    """Return the list of calls of ``theano.function`` so far."""
    theano = backend.load()
    calls = []
    original = theano.function

    def compile_and_count(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(theano, "function", compile_and_count)
    return calls
