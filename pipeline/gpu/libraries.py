"""The folder in the environment from which libgpuarray takes CUDA's libraries: wheels of PyPI unpacked, and links.

libgpuarray opens libcuda.so, libnvrtc.so and libcublas.so by these names, and install_pygpu.sh has it look here first.
The first two are ours, see `pipeline.gpu.forwarders`. The wheels lie apart from the environment's packages, among which
another one may want others of them.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from subprocess import DEVNULL

from pipeline.childprocess import ChildProcess
from pipeline.errors import DeviceError
from pipeline.gpu import forwarders

__all__ = ["installed", "is_whole", "main", "place", "unpack"]

# In the child each is opened by itself, as libgpuarray does: what it needs in turn has to be found from where it lies.
_OPENED = ("libnvrtc.so", "libcublas.so")
_LOAD, _PIP = "load", "pip"  # what a child is to do
_WANTED = "requirements.txt"  # which the wheels there meet; written last


def place(environment: Path) -> Path:
    """Where the libraries of an environment lie."""
    return environment / "lib" / "shardpress-gpu"


def installed(folder: Path) -> dict[str, str]:
    """Versions of the packages there, by name."""
    return {each.metadata["Name"]: each.version for each in distributions(path=[str(folder)])}


def is_whole(folder: Path, requirements: Sequence[str]) -> bool:
    """Whether what meets these requirements is there, and can be loaded.

    Raises
    ------
    DeviceError
        When there is no compiler.
    """
    wanted = folder / _WANTED
    if not wanted.exists() or wanted.read_text().split() != list(requirements):
        return False
    _name(folder)
    paths = [str(folder / name) for name in _OPENED]
    child = ChildProcess(__name__, _LOAD, *paths, stdout=DEVNULL, stderr=DEVNULL)
    child.answer()
    return child.returncode == 0


def unpack(folder: Path, requirements: Sequence[str], source: Path | None) -> None:
    """Put into a folder what meets the requirements, in place of what is there.

    The folder appears by one rename: after an interruption it is the earlier one, whole, or none.

    Parameters
    ----------
    source : Path, optional
        A folder with the wheels, in place of PyPI.

    Raises
    ------
    DeviceError
        When pip cannot have them, or what it has unpacked cannot be loaded.
    """
    if find_spec("pip") is None:
        raise DeviceError(f"there is no pip here: type {sys.executable} -m ensurepip, then the same command again")
    new, old = (folder.with_name(f"{folder.name}.{state}") for state in ("new", "old"))
    for path in (new, old):
        shutil.rmtree(path, ignore_errors=True)
    command = ["--disable-pip-version-check", "install", "--no-deps", "--target", str(new)]
    if not sys.stderr.isatty():  # hundreds of megabytes: on a terminal one sees how far they are
        command.append("--quiet")
    if source is not None:
        command += ["--no-index", "--find-links", str(source)]
    pip = ChildProcess(__name__, _PIP, *command, *requirements, stdin=None)  # it may ask for a password
    pip.answer()
    if pip.returncode:
        raise DeviceError(f"pip could not install {' and '.join(requirements)}: its words stand above.")
    (new / _WANTED).write_text("\n".join(requirements) + "\n")
    if not is_whole(new, requirements):
        raise DeviceError(f"{new}: {' or '.join(_OPENED)} was installed, but cannot be loaded")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    """In a child: load libraries, or run pip with the arguments that follow."""
    task, *arguments = sys.argv[1:]
    if task == _LOAD:
        for path in arguments:
            ctypes.CDLL(path)
    else:
        sys.argv[1:] = arguments
        runpy.run_module("pip", run_name="__main__", alter_sys=True)


def _name(folder: Path) -> None:
    """Give the libraries the names that they are looked for by: with a version, and those that libgpuarray opens.

    NVRTC and cuBLAS look for what they need in turn (builtins, cublasLt) in the folder that they were opened from.
    """
    for path in sorted(folder.glob("nvidia/*/lib/lib*.so.*")):
        _link(folder / path.name, Path(os.path.relpath(path, folder)))
        if path.name.startswith("libcublas.so."):
            _link(folder / "libcublas.so", Path(path.name))
    forwarders.build(folder)


def _link(name: Path, target: Path) -> None:
    """Make a link, in place of one that is there, but never of a file."""
    if name.is_symlink():
        name.unlink()
    if not name.exists():
        name.symlink_to(target)
