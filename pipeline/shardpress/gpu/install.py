"""Installation of pygpu and CUDA libraries for a CUDA card.

Completed steps are skipped, so an interrupted installation can be completed by running it again.

libgpuarray opens libcuda.so, libnvrtc.so and libcublas.so by name. A libgpuarray that install_pygpu.sh has built first
searches the directory ``lib/shardpress-gpu`` of the environment. This directory contains unpacked wheels from PyPI, and
links. The wheels are not installed as packages of the environment, because other packages may require other versions.
libcuda.so and libnvrtc.so are built from this project, and forward calls to NVIDIA's driver and to NVRTC. They work
around faults of libgpuarray 0.7.6, which ``kernels/shardpress_kernels/native/libcuda.c`` and ``libnvrtc.c`` describe.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions, version
from pathlib import Path
from tempfile import TemporaryDirectory

from shardpress.childprocess import ChildProcess
from shardpress.errors import DeviceError, NotPermitted
from shardpress.gpu.driver import Version, find_driver
from shardpress.gpu.fitting import choose_packages
from shardpress.pip import pip_install
from shardpress.sourceroots import CHECKOUT, KERNELS

_SCRIPT = "install_pygpu.sh"
# The child opens these libraries directly, as libgpuarray does. Libraries that they need are in the same directory.
_OPENED = ("libnvrtc.so", "libcublas.so")
_REQUIREMENTS = "requirements.txt"  # lists the requirements that the unpacked wheels meet; written last
_SOURCES = Path(KERNELS) / "native"
_DRIVER = "libcuda.so.1"  # all versions of the driver use this name


@dataclass(frozen=True)
class SetupOptions:
    """Options of the installation.

    Attributes
    ----------
    cuda : tuple of int, optional
        CUDA version to install for. The default is the version of the driver on this machine.
    source : Path, optional
        Directory with all wheels and Debian packages, for installation without a network.
    mirror : str, optional
        Address of a Debian mirror. By default, the package sources of this machine are used.
    """

    cuda: Version | None = None
    source: Path | None = None
    mirror: str | None = None


def set_up(options: SetupOptions) -> Iterator[str]:
    """Install the libraries into this environment, and yield a line of text for each step.

    Raises
    ------
    DeviceError
        If a package cannot be installed.
    NotPermitted
        If this process cannot write to the environment.
    """
    environment = Path(sys.prefix)
    if not os.access(environment / "lib", os.W_OK):
        raise NotPermitted(f"{environment / 'lib'} cannot be written. Use a virtual environment that you own.")
    packages = choose_packages(find_driver(), options.cuda)  # before any step, because it may raise an error
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
    """Return the names and versions of the packages in a directory."""
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
    """Return install_pygpu.sh in the checkout, or the copy that was installed next to `shardpress`."""
    for folder in (Path(CHECKOUT) / "scripts", Path(sysconfig.get_path("scripts"))):
        if (folder / _SCRIPT).exists():
            return folder / _SCRIPT
    return Path(_SCRIPT)


def _warnings() -> Iterator[str]:
    """Yield a warning for each LD_LIBRARY_PATH directory with libraries that are found before the installed ones."""
    for folder in filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")):
        if any(Path(folder, f"lib{name}.so").exists() for name in ("cuda", "nvrtc", "cublas")):
            yield f"warning      {folder} in LD_LIBRARY_PATH has libraries that are used instead: remove the directory"


# -- the directory of libraries ----------------------------------------------------------------------------------------


def _is_complete(folder: Path, requirements: Sequence[str]) -> bool:
    """Return whether the libraries in a directory meet the requirements and can be loaded."""
    installed = folder / _REQUIREMENTS
    if not installed.exists() or installed.read_text().split() != list(requirements):
        return False
    _link_all(folder)
    paths = [str(folder / name) for name in _OPENED]
    child = ChildProcess(__name__, *paths, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    child.answer()
    return child.returncode == 0


def _unpack(folder: Path, requirements: Sequence[str], source: Path | None) -> None:
    """Replace a directory with a new one that contains wheels that meet the requirements.

    The new directory is complete before it is renamed. After an interruption, the directory is therefore either
    complete or missing.
    """
    new = folder.with_name(f"{folder.name}.new")
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    pip_install(" and ".join(requirements), "--no-deps", "--target", str(new), *requirements, source=source)
    (new / _REQUIREMENTS).write_text("\n".join(requirements) + "\n")
    if not _is_complete(new, requirements):
        raise DeviceError(f"{new}: {' or '.join(_OPENED)} was installed, but cannot be loaded. Run shardpress doctor.")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _link_all(folder: Path) -> None:
    """Create links to the libraries, and build the forwarding libraries.

    The links have the names with a version, because NVRTC and cuBLAS search the directory from which they were opened
    for other libraries (builtins, cublasLt). ``libcublas.so`` is a link, too, because libgpuarray opens this name.
    """
    for path in sorted(folder.glob("nvidia/*/lib/lib*.so.*")):
        _link(folder / path.name, Path(os.path.relpath(path, folder)))
        if path.name.startswith("libcublas.so."):
            _link(folder / "libcublas.so", Path(path.name))
    build_forwarders(folder)


def _link(name: Path, target: Path) -> None:
    """Create a symbolic link. An existing link is replaced, but an existing file is not."""
    if name.is_symlink():
        name.unlink()
    if not name.exists():
        name.symlink_to(target)


def build_forwarders(folder: Path) -> None:
    """Build ``libcuda.so`` in a directory, and also ``libnvrtc.so`` if the directory contains NVRTC.

    The driver may be missing, because ``libcuda.so`` searches for it only when it is loaded.

    Raises
    ------
    DeviceError
        If no compiler is found, or if the compiler fails.
    """
    libraries = [_DRIVER, *sorted(path.name for path in folder.glob("libnvrtc.so.*"))]
    for library in libraries:
        _build_forwarder(folder, library)


def _build_forwarder(folder: Path, library: str) -> None:
    """Build a library that forwards calls to another library."""
    name = library.partition(".so.")[0]
    target = folder / f"{name}.so"
    with TemporaryDirectory(dir=folder) as scratch:
        # The linker only records the name of the library that is needed, so an empty library is sufficient.
        empty = Path(scratch, library)
        new = Path(scratch, target.name)
        _compile(scratch, "/dev/null", f"-Wl,-soname,{library}", "-o", str(empty))
        needs = ["-Wl,--no-as-needed", str(empty), "-Wl,--as-needed", "-ldl", "-Wl,--enable-new-dtags,-rpath,$ORIGIN"]
        _compile(scratch, str(_SOURCES / f"{name}.c"), f'-DREAL="{library}"', "-x", "none", *needs, "-o", str(new))
        os.replace(new, target)  # also replaces a link with this name


def _compile(folder: str, source: str, *options: str) -> None:
    # Theano needs a C++ compiler anyway, and every C++ compiler also compiles C.
    command = [*shlex.split(os.environ.get("CXX") or "g++"), "-O2", "-fPIC", "-shared", "-x", "c", source, *options]
    try:
        # `cwd` is set because the linker would use a libgcc_s.so.1 in the current directory.
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    except OSError as error:
        raise DeviceError(
            f"{command[0]} cannot be started: {error.strerror}. Install a C++ compiler (Debian: g++)."
        ) from error
    if done.returncode:
        raise DeviceError(f"{shlex.join(command)} failed: {done.stderr.strip()}")


# -- in the child ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Load the libraries that the arguments name."""
    for path in sys.argv[1:]:
        ctypes.CDLL(path)
