"""Tests of the package: its import loads few modules, and cleans the environment of libhdf5 before loading libhdf5."""

import os
import subprocess
import sys

import pytest

import pipeline
from tests.support.interpreters import REPOSITORY

IMPORTS = """
import os, sys
import pipeline
loaded = [name for name in ("typing", "importlib.metadata", "numpy", "h5py", "dask") if name in sys.modules]
cleaned = {name: value for name, value in os.environ.items() if name.startswith("HDF5_")}
from pipeline import load_model, open_features
import pipeline.features, pipeline.model
assert (open_features, load_model) == (pipeline.features.open_features, pipeline.model.load_model)
print(loaded, cleaned, [name for name in ("dask", "kernels.backend") if name in sys.modules])
"""


@pytest.mark.process
def test_public_names_are_imported_on_demand():
    environment = {**os.environ, "HDF5_DRIVER": "core", "HDF5_PLUGIN_PATH": "/elsewhere"}
    # The option -S ignores .pth files, which would load more modules.
    command = [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{IMPORTS}"]
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[] {'HDF5_PLUGIN_PRELOAD': '::'} []"


def test_other_attributes_of_the_package_do_not_exist():
    with pytest.raises(AttributeError, match="module 'pipeline' has no attribute 'nonsense'"):
        pipeline.nonsense  # noqa: B018
