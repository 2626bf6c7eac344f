"""Tests of `import shardpress` and the command, also next to files and directories with the names of our packages."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.interpreters import REPOSITORY, environment

COMMAND = Path(sys.executable).parent / "shardpress"

IMPORTS = """
import os, sys
import shardpress
loaded = [name for name in ("typing", "importlib.metadata") if name in sys.modules]
cleaned = {name: value for name, value in os.environ.items() if name.startswith("HDF5_")}
import shardpress.cli
# Libraries that take too long to load only to report a wrong command line. All other large ones import one of these.
loaded += [name for name in ("numpy", "dask", "pyarrow", "tqdm") if name in sys.modules]
from shardpress import load_model, open_features
import shardpress.result.features, shardpress.result.finished
assert (open_features, load_model) == (shardpress.result.features.open_features, shardpress.result.finished.load_model)
print(loaded, cleaned, [name for name in ("dask", "shardpress_kernels.backend") if name in sys.modules])
"""

# Uses modules of the user before and after shardpress, which has modules of the same names.
SCRIPT = """
import pipeline, settings
from shardpress import TiedAutoencoder, open_features
import kernels.network, text
print([module.__file__ for module in (pipeline, settings, kernels.network, text)])
print(sys.modules["shardpress"].__file__)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a working directory with a user's modules, a script that uses them, and a clone of our repository."""
    (tmp_path / "kernels").mkdir()
    for name in ("pipeline.py", "settings.py", "text.py", "kernels/network.py"):
        (tmp_path / name).write_text("THEIRS = True\n")
    (tmp_path / "shardpress").mkdir()
    for name in ("pipeline", "kernels", "scripts", "tests"):
        (tmp_path / "shardpress" / name).symlink_to(REPOSITORY / name)
    (tmp_path / "script.py").write_text(f"import sys\n{SCRIPT}")
    return tmp_path


def start(folder: Path, *command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    env = environment(**{"PYTHONPATH": None, **variables})
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.process
def test_public_names_are_imported_on_demand() -> None:
    variables = {**os.environ, "HDF5_DRIVER": "core", "HDF5_PLUGIN_PATH": "/elsewhere"}
    # The option -S ignores .pth files, which would load more modules.
    command = [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{IMPORTS}"]
    result = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[] {'HDF5_PLUGIN_PRELOAD': '::'} []"


@pytest.mark.process
def test_scripts_import_their_own_modules_and_our_package(folder: Path) -> None:
    done = start(folder, sys.executable, "-W", "error", folder / "script.py")
    theirs = [str(folder / name) for name in ("pipeline.py", "settings.py", "kernels/network.py", "text.py")]
    assert (done.stdout, done.stderr) == (f"{theirs}\n{REPOSITORY}/pipeline/shardpress/__init__.py\n", "")
    done = start(folder, COMMAND, "--version", PYTHONPATH=str(folder))
    assert (done.stdout, done.stderr) == (f"shardpress {version('shardpress')}\n", "")
