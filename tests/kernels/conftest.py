"""Fixtures of the kernels' tests."""

import numpy as np
import pytest

from kernels import backend


@pytest.fixture(params=["ops", "theano"])
def path(request, monkeypatch):
    """Every test here holds for the Ops of `kernels.ops`, and for what Theano makes of the model by itself."""
    if request.param == "theano":
        monkeypatch.setattr(backend, "uses_ops", lambda: False)


@pytest.fixture
def rng():
    return np.random.default_rng(20240229)


@pytest.fixture
def compiled(monkeypatch):
    """The calls of ``theano.function``, as a list that grows."""
    theano, calls = backend.load(), []
    original = theano.function

    def counted(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(theano, "function", counted)
    return calls
