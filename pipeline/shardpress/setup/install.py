"""Installation of pygpu and CUDA libraries for a CUDA card, with the standard library only.

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
from importlib.metadata import distributions, version
from pathlib import Path
from tempfile import TemporaryDirectory

from shardpress.base.childprocess import ChildProcess
from shardpress.base.driver import Version, find_driver
from shardpress.base.errors import DeviceError, NotPermitted
from shardpress.base.sourceroots import CHECKOUT, KERNELS
from shardpress.setup.cuda_packages import choose_packages
from shardpress.setup.pip import pip_install

_SCRIPT = "install_pygpu.sh"
# The child opens these libraries directly, as libgpuarray does. Libraries that they need are in the same directory.
_OPENED = ("libnvrtc.so", "libcublas.so")
_REQUIREMENTS = "requirements.txt"  # lists the requirements that the unpacked wheels meet; written last
_SOURCES = Path(KERNELS) / "native"
_DRIVER = "libcuda.so.1"  # all versions of the driver use this name


def set_up(cuda: Version | None, source: Path | None, mirror: str | None) -> Iterator[str]:
    """Install the libraries into this environment, and yield a line of text for each step.

    By default, they fit the driver of this machine, and are downloaded from the package sources of this machine. With
    `source`, all wheels and Debian packages are taken from this directory, and no network is needed.
    """
    environment = Path(sys.prefix)
    if not os.access(environment / "lib", os.W_OK):
        raise NotPermitted(f"{environment / 'lib'} cannot be written. Use a virtual environment that you own.")
    requirements, why = choose_packages(find_driver(), cuda)  # before any step, because it may raise an error
    yield f"environment  {environment}"
    yield f"CUDA         {why}"
    _install_pygpu(environment, source, mirror)
    yield f"pygpu        {version('pygpu')}, with libgpuarray"
    folder = environment / "lib" / "shardpress-gpu"
    if not _is_complete(folder, requirements):
        yield f"installing   {' and '.join(requirements)} (several hundred megabytes)"
        _unpack(folder, requirements, source)
    installed = sorted(f"{package.metadata['Name']} {package.version}" for package in distributions(path=[str(folder)]))
    yield f"libraries    {' and '.join(installed)}, in {folder}"
    yield from _warnings()


def _install_pygpu(environment: Path, source: Path | None, mirror: str | None) -> None:
    """Install pygpu with install_pygpu.sh, which users can also run directly."""
    arguments: list[str | Path] = []
    if source is not None:
        arguments += ["--from", source]
    if mirror is not None:
        arguments += ["--mirror", mirror]
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
    shutil.rmtree(old, ignore_errors=True)  # on NFS, libraries in use cannot be removed


def _link_all(folder: Path) -> None:
    """Create links to the libraries, and build the forwarding libraries.

    The links have the names with a version, because NVRTC and cuBLAS search the directory from which they were opened
    for other libraries (builtins, cublasLt). ``libcublas.so`` is a link, too, because libgpuarray opens this name.
    """
    for path in sorted(folder.glob("nvidia/*/lib/lib*.so.*")):
        links = [folder / path.name]
        if path.name.startswith("libcublas.so."):
            links.append(folder / "libcublas.so")
        for link in links:
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(path, folder))
    _build_forwarders(folder)


def _build_forwarders(folder: Path) -> None:
    """Build ``libcuda.so`` in a directory, and also ``libnvrtc.so`` if the directory contains NVRTC.

    The driver may be missing, because ``libcuda.so`` searches for it only when it is loaded.
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
