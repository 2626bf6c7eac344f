"""Set-up for a CUDA card: pygpu, and a directory of the environment with CUDA's libraries.

Each step does what is missing, so that a repeated set-up completes an interrupted one.

libgpuarray opens libcuda.so, libnvrtc.so and libcublas.so by these names, and install_pygpu.sh has it look first in
``lib/shardpress-gpu`` of the environment. That directory holds unpacked wheels of PyPI and links. The wheels are apart
from the environment's packages, among which another package may want other versions of them. libcuda.so and libnvrtc.so
are libraries of ours in front of NVIDIA's driver and NVRTC: they repair faults of libgpuarray 0.7.6, which
``kernels/native/libcuda.c`` and ``libnvrtc.c`` describe.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.childprocess import ChildProcess
from pipeline.errors import DeviceError, NotPermitted
from pipeline.gpu.driver import Version, find_driver
from pipeline.gpu.fitting import fitting

__all__ = ["Wanted", "build_forwarders", "main", "set_up"]

_SCRIPT = "install_pygpu.sh"
# In the child each is opened by itself, as libgpuarray does: what it needs in turn has to be found from its directory.
_OPENED = ("libnvrtc.so", "libcublas.so")
_LOAD = "load"  # tasks of the child
_PIP = "pip"
_REQUIREMENTS = "requirements.txt"  # what the unpacked wheels meet; written last
_ROOT = Path(__file__).resolve().parents[2]
_SOURCES = _ROOT / "kernels" / "native"
_DRIVER = "libcuda.so.1"  # the name that every version of it has


@dataclass(frozen=True)
class Wanted:
    """Options of set-up.

    Attributes
    ----------
    cuda : tuple of int, optional
        The version of CUDA to install for, instead of that of this machine's driver.
    source : Path, optional
        A directory with all wheels and Debian packages, instead of a network.
    mirror : str, optional
        Address of Debian's packages, instead of this machine's own source.
    """

    cuda: Version | None = None
    source: Path | None = None
    mirror: str | None = None


def set_up(wanted: Wanted) -> Iterator[str]:
    """Install into this environment step by step, and yield a line about each step.

    Raises
    ------
    DeviceError
        If something cannot be installed.
    NotPermitted
        If the environment cannot be written.
    """
    environment = Path(sys.prefix)
    if not os.access(environment / "lib", os.W_OK):
        raise NotPermitted(f"{environment / 'lib'} cannot be written, expected a virtual environment of one's own")
    fits = fitting(find_driver(), wanted.cuda)  # before anything is installed, since it may be that nothing fits
    yield f"environment  {environment}"
    yield f"CUDA         {fits.why}"
    _install_pygpu(environment, wanted)
    yield f"pygpu        {version('pygpu')}, with libgpuarray"
    folder = environment / "lib" / "shardpress-gpu"
    if not _is_whole(folder, fits.requirements):
        yield f"installing   {' and '.join(fits.requirements)}: hundreds of megabytes"
        _unpack(folder, fits.requirements, wanted.source)
    versions = {each.metadata["Name"]: each.version for each in distributions(path=[str(folder)])}
    names = " and ".join(f"{name} {number}" for name, number in sorted(versions.items()))
    yield f"libraries    {names}, in {folder}"
    yield from _warnings()


def _install_pygpu(environment: Path, wanted: Wanted) -> None:
    """Install pygpu by the script, which also works alone."""
    options: list[str | Path] = []
    if wanted.source is not None:
        options += ["--from", wanted.source]
    if wanted.mirror is not None:
        options += ["--mirror", wanted.mirror]
    done = subprocess.run([_script(), *options, environment], stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise DeviceError("pygpu could not be installed: the lines above say why.")


def _script() -> Path:
    """Return the script of the checkout, or the one that a wheel has installed next to `shardpress`."""
    for folder in (_ROOT / "scripts", Path(sysconfig.get_path("scripts"))):
        if (folder / _SCRIPT).exists():
            return folder / _SCRIPT
    return Path(_SCRIPT)


def _warnings() -> Iterator[str]:
    """Yield warnings of libraries that come before ours in processes of this environment."""
    for folder in filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")):
        if any(Path(folder, f"lib{name}.so").exists() for name in ("cuda", "nvrtc", "cublas")):
            yield f"warning      LD_LIBRARY_PATH has libraries in {folder} that come before these: take it out"


# -- the directory of libraries ----------------------------------------------------------------------------------------


def _is_whole(folder: Path, requirements: Sequence[str]) -> bool:
    """Return whether a directory has libraries that meet these requirements and can be loaded."""
    wanted = folder / _REQUIREMENTS
    if not wanted.exists() or wanted.read_text().split() != list(requirements):
        return False
    _link_all(folder)
    paths = [str(folder / name) for name in _OPENED]
    child = ChildProcess(__name__, _LOAD, *paths, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    child.answer()
    return child.returncode == 0


def _unpack(folder: Path, requirements: Sequence[str], source: Path | None) -> None:
    """Replace a directory by one whose wheels meet the requirements.

    The directory appears by one rename: after an interruption there is the complete earlier one, or none.
    """
    if find_spec("pip") is None:
        raise DeviceError(f"there is no pip here: type {sys.executable} -m ensurepip, then the same command again")
    new = folder.with_name(f"{folder.name}.new")
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    command = ["--disable-pip-version-check", "install", "--no-deps", "--target", str(new)]
    if not sys.stderr.isatty():  # a terminal shows the progress of hundreds of megabytes
        command.append("--quiet")
    if source is not None:
        command += ["--no-index", "--find-links", str(source)]
    pip = ChildProcess(__name__, _PIP, *command, *requirements, stdin=None)  # it may ask for a password
    pip.answer()
    if pip.returncode:
        raise DeviceError(f"pip could not install {' and '.join(requirements)}: its words stand above.")
    (new / _REQUIREMENTS).write_text("\n".join(requirements) + "\n")
    if not _is_whole(new, requirements):
        raise DeviceError(f"{new}: {' or '.join(_OPENED)} was installed, but cannot be loaded")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _link_all(folder: Path) -> None:
    """Link the libraries by their names with a version, and by the names that libgpuarray opens.

    NVRTC and cuBLAS look for what they need in turn (builtins, cublasLt) in the directory that they were opened from.
    """
    for path in sorted(folder.glob("nvidia/*/lib/lib*.so.*")):
        _link(folder / path.name, Path(os.path.relpath(path, folder)))
        if path.name.startswith("libcublas.so."):
            _link(folder / "libcublas.so", Path(path.name))
    build_forwarders(folder)


def _link(name: Path, target: Path) -> None:
    """Make a link, which replaces a link but never a file."""
    if name.is_symlink():
        name.unlink()
    if not name.exists():
        name.symlink_to(target)


def build_forwarders(folder: Path) -> None:
    """Build ``libcuda.so`` in a directory, and ``libnvrtc.so`` in front of an NVRTC there.

    The driver need not be installed yet: it is looked for when the library is opened.

    Raises
    ------
    DeviceError
        If there is no compiler, or it fails.
    """
    reals = [_DRIVER, *sorted(path.name for path in folder.glob("libnvrtc.so.*"))]
    for real in reals:
        _build_forwarder(folder, real)


def _build_forwarder(folder: Path, real: str) -> None:
    name = real.partition(".so.")[0]
    target = folder / f"{name}.so"
    with TemporaryDirectory(dir=folder) as scratch:
        # The linker records the name of the library that is needed, for which an empty one is enough.
        empty = Path(scratch, real)
        new = Path(scratch, target.name)
        _compile(scratch, "/dev/null", f"-Wl,-soname,{real}", "-o", str(empty))
        needs = ["-Wl,--no-as-needed", str(empty), "-Wl,--as-needed", "-ldl", "-Wl,--enable-new-dtags,-rpath,$ORIGIN"]
        _compile(scratch, str(_SOURCES / f"{name}.c"), f'-DREAL="{real}"', "-x", "none", *needs, "-o", str(new))
        os.replace(new, target)  # also replaces a link of that name


def _compile(folder: str, source: str, *options: str) -> None:
    # Theano needs a C++ compiler, and every one takes C.
    command = [*shlex.split(os.environ.get("CXX") or "g++"), "-O2", "-fPIC", "-shared", "-x", "c", source, *options]
    try:
        # The linker would take libgcc_s.so.1 from the current directory.
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    except OSError as error:
        raise DeviceError(
            f"{command[0]} cannot be started: {error.strerror}. Install a C++ compiler (Debian: g++)."
        ) from error
    if done.returncode:
        raise DeviceError(f"{shlex.join(command)} failed: {done.stderr.strip()}")


# -- in the child ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Load libraries, or run pip with the arguments that follow."""
    task, *arguments = sys.argv[1:]
    if task == _LOAD:
        for path in arguments:
            ctypes.CDLL(path)
    else:
        sys.argv[1:] = arguments
        runpy.run_module("pip", run_name="__main__", alter_sys=True)
