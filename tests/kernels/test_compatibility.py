"""Tests of the layer that runs Theano on current versions of Python and NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from shardpress_kernels import backend
from tests.support.interpreters import run_python

UNCHANGED = """
import builtins, sys
import numpy as np

before = dict(vars(np))
its_import = builtins.__import__
from shardpress_kernels.backend import load

theano = load()
import theano.gpuarray

changed = {name for name in vars(np) if name not in before or vars(np)[name] is not before[name]}
facts["changed"] = sorted({"bool", "complex", "product"} & changed)
facts["same_import"] = builtins.__import__ is its_import
facts["modules"] = sorted({"imp", "numpy.distutils", "pkg_resources"} & set(sys.modules))
facts["same_numpy"] = np is theano.tensor.basic.np
"""


@pytest.mark.process
@pytest.mark.compiler
def test_importing_theano_changes_neither_numpy_nor_python() -> None:
    ended = run_python(UNCHANGED, warnings="ignore")
    assert ended.facts == {"changed": [], "same_import": True, "modules": [], "same_numpy": False}, ended.stderr


@pytest.mark.compiler
@pytest.mark.filterwarnings("ignore:NumPy will stop allowing conversion:DeprecationWarning")  # NumPy 1.26 warns
def test_conversions_of_theano_behave_as_in_numpy_1() -> None:
    numpy = backend.load().tensor.basic.np
    values = np.arange(3.0)
    assert numpy.array(values, copy=False) is values
    assert numpy.array([1, 2], dtype="int8", copy=False).dtype == "int8"
    assert numpy.array(values) is not values
    assert numpy.asarray(300, dtype="int8").dtype == "int8"
    assert numpy.asarray(values) is values
    assert numpy.complex is complex
    assert numpy.fft is np.fft
