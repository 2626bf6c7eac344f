"""Tests of the layer that runs Theano on current versions of Python and NumPy."""

from __future__ import annotations

import pytest

from tests.support.interpreters import run_python

UNCHANGED = """
import builtins, sys
import numpy as np

before = dict(vars(np))
its_import = builtins.__import__
from shardpress_kernels.backend import load

theano = load()
facts["scipy"] = [name for name in sys.modules if name.partition(".")[0] == "scipy"]
import theano.gpuarray

changed = {name for name in vars(np) if name not in before or vars(np)[name] is not before[name]}
facts["changed"] = sorted({"bool", "complex", "product"} & changed)
facts["same_import"] = builtins.__import__ is its_import
facts["modules"] = sorted({"imp", "numpy.distutils", "pkg_resources"} & set(sys.modules))
facts["same_numpy"] = np is theano.tensor.basic.np
import scipy.stats
facts["chi"] = scipy.stats.chi2.sf(0, 1)
"""


@pytest.mark.process
@pytest.mark.compiler
def test_importing_theano_changes_neither_numpy_nor_python() -> None:
    """SciPy is not loaded with Theano, but can be imported later."""
    ended = run_python(UNCHANGED, warnings="ignore")
    unchanged = {"changed": [], "same_import": True, "modules": [], "same_numpy": False}
    assert ended.facts == {**unchanged, "scipy": [], "chi": 1.0}, ended.stderr
