"""Tests of `import shardpress`, the command and `python -m shardpress` next to files with the names of our packages."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import pipeline
import shardpress
from tests.support.interpreters import environment
from tests.support.logged import mentions

COMMAND = Path(sys.executable).parent / "shardpress"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a working directory with files of the user that are named like our packages."""
    for name in ("pipeline.py", "kernels.py"):
        (tmp_path / name).write_text("THEIRS = True\nprint('theirs was loaded')\n")
    return tmp_path


def start(folder: Path, *command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    env = environment(PYTHONPATH=variables.pop("PYTHONPATH", None), **variables)
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120)


def test_the_package_exports_the_public_names() -> None:
    assert shardpress.open_features is pipeline.open_features
    assert shardpress.load_model is pipeline.load_model
    assert {"open_features", "load_model"} <= set(dir(shardpress))
    assert shardpress.__version__ == version("shardpress")
    with pytest.raises(AttributeError, match="module 'shardpress' has no attribute 'nonsense'"):
        shardpress.nonsense  # noqa: B018


@pytest.mark.process
def test_files_named_like_our_modules_break_nothing(folder: Path) -> None:
    script = folder / "script.py"
    script.write_text("from shardpress import load_model, open_features\nprint(open_features.__module__)\n")
    starts = {
        "a script": start(folder, sys.executable, script),
        "an import": start(folder, sys.executable, "-c", script.read_text()),
        "a notebook": start(folder, sys.executable, "-c", script.read_text(), PYTHONPATH=str(folder)),
    }
    assert {name: (done.stdout, done.stderr) for name, done in starts.items()} == dict.fromkeys(
        starts, ("pipeline.features\n", "")
    )
    commands = {
        "the command": start(folder, COMMAND, "version"),
        "the command with their PYTHONPATH": start(folder, COMMAND, "version", PYTHONPATH=str(folder)),
        "the module": start(folder, sys.executable, "-m", "shardpress", "version"),
    }
    assert {name: (done.stdout.split()[0], done.stderr) for name, done in commands.items()} == dict.fromkeys(
        commands, ("python", "")
    )


@pytest.mark.process
def test_an_imported_module_named_like_ours_is_reported(folder: Path) -> None:
    result = start(folder, sys.executable, "-c", "import pipeline\nimport shardpress")
    assert result.returncode == 1
    assert mentions(result.stderr, "ImportError", "'pipeline'", f"{folder}/pipeline.py")
    result = start(folder, sys.executable, "-c", "import shardpress\nimport pipeline\npipeline.THEIRS")
    assert mentions(result.stderr, "AttributeError", "'pipeline'", "'THEIRS'", "shardpress")
