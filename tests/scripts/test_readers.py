"""Tests of the wheel: its content, and its use to read outputs with other versions of Python, NumPy 2 and no Theano."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from shardpress.result.features import open_features
from shardpress.result.finished import load_model
from tests.support import standin
from tests.support.interpreters import OTHER_PYTHONS, REPOSITORY
from tests.support.interruptions import SIZES

pytestmark = pytest.mark.process

SOURCES = ("pipeline", "kernels", "scripts", "setup.py", "pyproject.toml", "README.md", "MANIFEST.in")
PROGRAM = """
import json, sys
import numpy as np
import shardpress
from shardpress import load_model, open_features
found = open_features(sys.argv[1])
rows = np.load(sys.argv[2])
print(json.dumps({
    "features": found.features.compute().tolist(),
    "valid": found.valid.compute().tolist(),
    "y": found.extras["y"].compute().tolist(),
    "encoded": load_model(sys.argv[1]).encode(rows).tolist(),
    "numpy": np.__version__,
    "modules": sorted(sys.modules),
    "transformed": shardpress.TiedAutoencoder.from_run(sys.argv[1]).transform(rows).tolist(),  # loads scikit-learn
}))
"""
RUN_ONLY = {"theano", "deflate", "tqdm", "sklearn"}  # Dask loads SciPy if it is installed


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build a wheel from a source distribution of this checkout, as pip does."""
    source = tmp_path_factory.mktemp("source")
    out = tmp_path_factory.mktemp("out")
    for name in SOURCES:
        path = REPOSITORY / name
        shutil.copytree(path, source / name, ignore=IGNORED) if path.is_dir() else shutil.copy(path, source)
    program = f"from setuptools import build_meta; print(build_meta.build_sdist({str(out)!r}))"
    subprocess.run([sys.executable, "-c", program], cwd=source, check=True, capture_output=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", out]
    subprocess.run([*pip, *out.glob("*.tar.gz")], cwd=out, check=True)
    (found,) = out.glob("*.whl")
    return found


IGNORED = shutil.ignore_patterns("*.so", "__pycache__")


def test_wheel_contains_all_packages_and_nothing_else(wheel):
    assert re.fullmatch(r"shardpress-[\d.]+-cp311-abi3-linux_\w+\.whl", wheel.name), "one wheel for 3.11 and later"
    roots = [REPOSITORY / name for name in ("pipeline", "kernels")]
    paths = [(path, root) for root in roots for path in root.rglob("*") if path.is_file()]
    our_files = {str(path.relative_to(root)) for path, root in paths if "__pycache__" not in path.parts}
    our_files = {name for name in our_files if not name.endswith((".so", "/lzf.c", "/rowmath.c"))}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    programs = {name for name in names if ".data/scripts/" in name}
    assert [name.rsplit("/", 1)[1] for name in programs] == ["install_pygpu.sh"]
    assert names - programs == our_files | {
        "shardpress/base/rowmath.abi3.so",
        "shardpress/hdf5/filters/lzf.abi3.so",
    }


@pytest.fixture
def other_python(wheel, tmp_path):
    """Return a function that runs another Python with the wheel, next to a file named like one of our packages."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "pipeline.py").write_text("raise SystemExit('theirs')")

    def other_python(version, *command):
        python = REPOSITORY / ".venv-readers" / version / "bin/python"
        if not python.exists():
            pytest.skip(f"no Python {version} with NumPy 2, h5py and Dask; scripts/readers.sh can create one")
        env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
        return subprocess.run([python, *command], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    return other_python


@pytest.mark.parametrize("version", OTHER_PYTHONS)
def test_other_pythons_read_results_and_need_no_theano(tmp_path, monkeypatch, other_python, version):
    standin.install(monkeypatch)
    finished_run = tmp_path / "out"
    assert standin.Workspace(tmp_path, *SIZES).run(finished_run) == 0
    rows = np.random.default_rng(1).normal(size=(9, 4))
    np.save(tmp_path / "rows.npy", rows)
    result = other_python(version, "-W", "error", "-c", PROGRAM, finished_run, tmp_path / "rows.npy")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["numpy"] >= "2"
    assert RUN_ONLY & set(found["modules"]) == set()
    expected = open_features(finished_run)
    np.testing.assert_array_equal(np.array(found["features"], np.float32), expected.features)
    np.testing.assert_array_equal(found["valid"], expected.valid)
    np.testing.assert_array_equal(found["y"], expected.extras["y"])
    np.testing.assert_allclose(found["encoded"], load_model(finished_run).encode(rows), rtol=1e-13)
    np.testing.assert_allclose(found["transformed"], found["encoded"], rtol=1e-5, atol=1e-6)
    for command in (["verify", finished_run], ["report", finished_run, "--text"]):
        ended = other_python(version, "-m", "shardpress", *command)
        assert ended.returncode == 0, ended.stderr
    ended = other_python(version, "-m", "shardpress", "run", "--input", finished_run)
    assert ended.returncode == 69
    assert ended.stderr.endswith(" -I -m shardpress setup-theano\n")
