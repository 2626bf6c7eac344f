"""Set-up for a CUDA card: pygpu, and a directory of the environment with CUDA's libraries.

Steps that are complete are skipped, so that a repeated set-up completes an interrupted one.

libgpuarray opens libcuda.so, libnvrtc.so and libcublas.so by these names; with install_pygpu.sh it looks first in
``lib/shardpress-gpu`` of the environment. That directory contains unpacked wheels of PyPI and links. The wheels are not
installed as packages of the environment, because another package may require other versions. libcuda.so and libnvrtc.so
are libraries of this project that forward calls to NVIDIA's driver and NVRTC: they work around faults of libgpuarray
0.7.6, which ``kernels/native/libcuda.c`` and ``libnvrtc.c`` describe.
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
from pipeline.gpu.fitting import choose_packages

__all__ = ["SetupOptions", "build_forwarders", "main", "set_up"]

_SCRIPT = "install_pygpu.sh"
# The child opens each library directly, as libgpuarray does; the libraries that it needs are found from its directory.
_OPENED = ("libnvrtc.so", "libcublas.so")
_LOAD = "load"  # tasks of the child
_PIP = "pip"
_REQUIREMENTS = "requirements.txt"  # the requirements that the unpacked wheels meet; written last
_ROOT = Path(__file__).resolve().parents[2]
_SOURCES = _ROOT / "kernels" / "native"
_DRIVER = "libcuda.so.1"  # the same name in all versions


@dataclass(frozen=True)
class SetupOptions:
    """Options of set-up.

    Attributes
    ----------
    cuda : tuple of int, optional
        Version of CUDA to install for; by default that of this machine's driver.
    source : Path, optional
        Directory with all wheels and Debian packages, for installation without a network.
    mirror : str, optional
        Address of a Debian mirror; by default the package source of this machine.
    """

    cuda: Version | None = None
    source: Path | None = None
    mirror: str | None = None


def set_up(options: SetupOptions) -> Iterator[str]:
    """Install into this environment step by step, and yield a line about each step.

    Raises
    ------
    DeviceError
        If a package cannot be installed.
    NotPermitted
        If the environment cannot be written.
    """
    environment = Path(sys.prefix)
    if not os.access(environment / "lib", os.W_OK):
        raise NotPermitted(f"{environment / 'lib'} cannot be written. Use a virtual environment that you own.")
    packages = choose_packages(find_driver(), options.cuda)  # before any step, since it raises an error if none fits
    yield f"environment  {environment}"
    yield f"CUDA         {packages.why}"
    _install_pygpu(environment, options)
    yield f"pygpu        {version('pygpu')}, with libgpuarray"
    folder = environment / "lib" / "shardpress-gpu"
    if not _is_complete(folder, packages.requirements):
        yield f"installing   {' and '.join(packages.requirements)} (several hundred megabytes)"
        _unpack(folder, packages.requirements, options.source)
    yield f"libraries    {_installed_in(folder)}, in {folder}"
    yield from _warnings()


def _installed_in(folder: Path) -> str:
    """Return names and versions of the packages in a directory."""
    versions = {each.metadata["Name"]: each.version for each in distributions(path=[str(folder)])}
    return " and ".join(f"{name} {number}" for name, number in sorted(versions.items()))


def _install_pygpu(environment: Path, options: SetupOptions) -> None:
    """Install pygpu with install_pygpu.sh, which users can also run directly."""
    arguments: list[str | Path] = []
    if options.source is not None:
        arguments += ["--from", options.source]
    if options.mirror is not None:
        arguments += ["--mirror", options.mirror]
    done = subprocess.run([_script(), *arguments, environment], stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise DeviceError("pygpu could not be installed; the lines above give the reason.")


def _script() -> Path:
    """Return the script of the checkout, or the one that a wheel has installed next to `shardpress`."""
    for folder in (_ROOT / "scripts", Path(sysconfig.get_path("scripts"))):
        if (folder / _SCRIPT).exists():
            return folder / _SCRIPT
    return Path(_SCRIPT)


def _warnings() -> Iterator[str]:
    """Yield a warning for each directory whose libraries processes of this environment find before ours."""
    for folder in filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")):
        if any(Path(folder, f"lib{name}.so").exists() for name in ("cuda", "nvrtc", "cublas")):
            yield f"warning      libraries in {folder} are used instead of these: remove it from LD_LIBRARY_PATH"


# -- the directory of libraries ----------------------------------------------------------------------------------------


def _is_complete(folder: Path, requirements: Sequence[str]) -> bool:
    """Return whether a directory contains libraries that meet these requirements and can be loaded."""
    installed = folder / _REQUIREMENTS
    if not installed.exists() or installed.read_text().split() != list(requirements):
        return False
    _link_all(folder)
    paths = [str(folder / name) for name in _OPENED]
    child = ChildProcess(__name__, _LOAD, *paths, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    child.answer()
    return child.returncode == 0


def _unpack(folder: Path, requirements: Sequence[str], source: Path | None) -> None:
    """Replace a directory with one whose wheels meet the requirements.

    The last step is a rename: after an interruption, the directory is either the complete earlier one or missing.
    """
    new = folder.with_name(f"{folder.name}.new")
    old = folder.with_name(f"{folder.name}.old")
    if find_spec("pip") is None:
        raise DeviceError(f"pip is not installed here. Run {sys.executable} -m ensurepip, then the same command again.")
    shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    _install_wheels(new, requirements, source)
    (new / _REQUIREMENTS).write_text("\n".join(requirements) + "\n")
    if not _is_complete(new, requirements):
        raise DeviceError(f"{new}: {' or '.join(_OPENED)} was installed, but cannot be loaded. Run shardpress doctor.")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _install_wheels(folder: Path, requirements: Sequence[str], source: Path | None) -> None:
    command = ["--disable-pip-version-check", "install", "--no-deps", "--target", str(folder)]
    if not sys.stderr.isatty():  # a terminal shows the progress of hundreds of megabytes
        command.append("--quiet")
    if source is not None:
        command += ["--no-index", "--find-links", str(source)]
    pip = ChildProcess(__name__, _PIP, *command, *requirements, stdin=None)  # it may ask for a password
    pip.answer()
    if pip.returncode:
        raise DeviceError(f"pip could not install {' and '.join(requirements)}; its messages above give the reason.")


def _link_all(folder: Path) -> None:
    """Link the libraries by their names with a version, and by the names that libgpuarray opens.

    NVRTC and cuBLAS look for other libraries (builtins, cublasLt) in the directory that they were opened from.
    """
    for path in sorted(folder.glob("nvidia/*/lib/lib*.so.*")):
        _link(folder / path.name, Path(os.path.relpath(path, folder)))
        if path.name.startswith("libcublas.so."):
            _link(folder / "libcublas.so", Path(path.name))
    build_forwarders(folder)


def _link(name: Path, target: Path) -> None:
    """Create a link, which may replace a link but not a file."""
    if name.is_symlink():
        name.unlink()
    if not name.exists():
        name.symlink_to(target)


def build_forwarders(folder: Path) -> None:
    """Build ``libcuda.so`` in a directory, and ``libnvrtc.so`` if there is an NVRTC.

    The driver can be missing: the library looks for it when it is loaded.

    Raises
    ------
    DeviceError
        If there is no compiler, or it fails.
    """
    libraries = [_DRIVER, *sorted(path.name for path in folder.glob("libnvrtc.so.*"))]
    for library in libraries:
        _build_forwarder(folder, library)


def _build_forwarder(folder: Path, library: str) -> None:
    """Build a library that forwards calls to another one."""
    name = library.partition(".so.")[0]
    target = folder / f"{name}.so"
    with TemporaryDirectory(dir=folder) as scratch:
        # The linker records the name of the library that is needed, for which an empty one is enough.
        empty = Path(scratch, library)
        new = Path(scratch, target.name)
        _compile(scratch, "/dev/null", f"-Wl,-soname,{library}", "-o", str(empty))
        needs = ["-Wl,--no-as-needed", str(empty), "-Wl,--as-needed", "-ldl", "-Wl,--enable-new-dtags,-rpath,$ORIGIN"]
        _compile(scratch, str(_SOURCES / f"{name}.c"), f'-DREAL="{library}"', "-x", "none", *needs, "-o", str(new))
        os.replace(new, target)  # also replaces a link of that name


def _compile(folder: str, source: str, *options: str) -> None:
    # Theano needs a C++ compiler, and all of them compile C.
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
