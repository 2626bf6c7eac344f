"""Run pip of this environment, with the user's own settings for it."""

from __future__ import annotations

import os
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

from shardpress.base.childprocess import ChildProcess
from shardpress.base.errors import DeviceError


def pip_install(packages: str, *arguments: str, source: Path | None = None, python_path: Path | None = None) -> None:
    """Run ``pip install`` in a child process, which writes its messages to this process's output.

    Parameters
    ----------
    packages : str
        Names of the packages, for messages.
    source : Path, optional
        Directory with all packages. The default is the index in pip's settings.
    python_path : Path, optional
        Directory from which pip, and the programs that it starts, import modules first.
    """
    if find_spec("pip") is None:
        raise DeviceError(f"pip is not installed here. Run {sys.executable} -m ensurepip, then the same command again.")
    command = ["--disable-pip-version-check", "install", *arguments]
    if not sys.stderr.isatty():  # show the progress of the download only on a terminal
        command.append("--quiet")
    if source is not None:
        command += ["--no-index", "--find-links", str(source)]
    pip = ChildProcess(__name__, str(python_path or ""), *command, stdin=None)  # pip may ask for a password
    pip.answer()
    if pip.returncode:
        raise DeviceError(f"pip could not install {packages}; its messages above give the reason.")


def main() -> None:
    """Run pip in this process, which is the child. The first argument is the directory of modules."""
    python_path, *sys.argv[1:] = sys.argv[1:]
    if python_path:
        os.environ["PYTHONPATH"] = python_path
    runpy.run_module("pip", run_name="__main__", alter_sys=True)
