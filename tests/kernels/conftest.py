"""Fixtures of the kernel tests."""

import numpy as np
import pytest

from shardpress_kernels import backend


@pytest.fixture(params=["ops", "theano"])
def path(request, monkeypatch):
    """Run each test with the Ops of `shardpress_kernels.ops`, and with Theano's own operations."""
    if request.param == "theano":
        monkeypatch.setattr(backend, "uses_ops", lambda: False)


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
