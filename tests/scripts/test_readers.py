"""Features and models under a later Python and NumPy 2, where neither Theano nor the rest of a run is installed."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from kernels.network import Network
from pipeline.model import Model, load_model
from pipeline.output.lock import locked
from pipeline.scan.scaler import Scaler
from tests.support.interpreters import REPOSITORY
from tests.support.parts import index_of, part_bytes

pytestmark = pytest.mark.process

PROGRAM = """
import json, sys
import numpy as np
from pipeline import load_model, open_features
found = open_features(sys.argv[1])
rows = np.load(sys.argv[2])
print(json.dumps({
    "features": found.features.compute().tolist(),
    "valid": found.valid.compute().tolist(),
    "y": found.riders["y"].compute().tolist(),
    "encoded": load_model(sys.argv[1]).encode(rows).tolist(),
    "numpy": np.__version__,
    "modules": sorted(sys.modules),
}))
"""
OF_A_RUN = {"theano", "blake3", "deflate", "tqdm", "scipy", "sklearn"}

ROWS = np.linspace(-1, 2, 12).reshape(4, 3)
FEATURES, VALID, Y = np.arange(8, dtype=np.float32).reshape(4, 2), np.array([1, 1, 0, 1], bool), np.array([3, 1, 2, 0])


@pytest.fixture
def output(tmp_path):
    """A finished output directory of two parts, and rows for its model."""
    directory, files = tmp_path / "out", ["parts/part-0.h5", "parts/part-1.h5"]
    W = np.array([[1, -900], [0, 0.5], [-2, 1]], np.float32)
    parameters = {"W": W, "b_hidden": np.zeros(2, np.float32), "b_output": np.zeros(3, np.float32)}
    with locked(directory) as ledger:
        for i, file in enumerate(files):
            rows = slice(2 * i, 2 * i + 2)
            ledger.replace(file, part_bytes(FEATURES[rows], VALID[rows], {"y": Y[rows]}, {}))
        ledger.replace("index.h5", index_of(directory, files, {}))
        ledger.replace("model.h5", Model(Scaler(ROWS.min(0), ROWS.max(0)), Network((3, 2)), parameters).to_hdf5())
        ledger.finish({}, {"parts": [{"file": file, "n_rows": 2} for file in files]})
    np.save(tmp_path / "rows.npy", ROWS)
    return directory


@pytest.mark.parametrize("version", ["3.12", "3.13", "3.14"])
def test_features_open_and_models_encode_without_what_a_run_needs(output, version):
    python = REPOSITORY / ".venv-readers" / version / "bin/python"
    if not python.exists():
        pytest.skip(f"no Python {version} with NumPy 2, h5py and Dask; scripts/readers.sh makes one where it can")
    command = [python, "-W", "error", "-c", PROGRAM, output, output.parent / "rows.npy"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["numpy"] >= "2"
    assert OF_A_RUN & set(found["modules"]) == set()
    for name, expected in (("features", FEATURES), ("valid", VALID), ("y", Y)):
        np.testing.assert_array_equal(found[name], expected)
    np.testing.assert_allclose(found["encoded"], load_model(output).encode(ROWS), rtol=1e-13)


def test_an_environment_that_cannot_be_made_is_not_left_half(tmp_path):
    """Then the tests in it would fail instead of skipping."""
    tools, script = tmp_path / "bin", tmp_path / "scripts/readers.sh"
    tools.mkdir()
    script.parent.mkdir()
    shutil.copy(REPOSITORY / "scripts/readers.sh", script)
    for tool in ("bash", "dirname", "mkdir", "rm", "touch"):
        (tools / tool).symlink_to(shutil.which(tool))
    for version in ("3.12", "3.13", "3.14"):
        python = tools / f"python{version}"
        python.write_text('#!/bin/sh\ntest "$2" != venv || { mkdir -p "$4/bin"; touch "$4/bin/python"; exit 1; }\n')
        python.chmod(0o755)
    subprocess.run([script], env={"PATH": str(tools)}, check=True)
    assert [path.name for path in (tmp_path / ".venv-readers").iterdir()] == [".complete"]
