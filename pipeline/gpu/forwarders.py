"""Libraries of ours in front of NVIDIA's driver and NVRTC, which cure libgpuarray 0.7.6 of its age.

``kernels/native/libcuda.c`` and ``libnvrtc.c`` say what of.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.errors import DeviceError

__all__ = ["build"]

_SOURCES = Path(__file__).resolve().parents[2] / "kernels" / "native"
_DRIVER = "libcuda.so.1"  # the name that every version of it has


def build(folder: Path) -> None:
    """Put ``libcuda.so`` into a folder, and ``libnvrtc.so`` in front of the NVRTC that lies there, if one does.

    The driver need not be there yet: it is looked for when it is opened.

    Raises
    ------
    DeviceError
        When there is no compiler, or it fails.
    """
    reals = [_DRIVER, *sorted(path.name for path in folder.glob("libnvrtc.so.*"))]
    for real in reals:
        _build(folder, real)


def _build(folder: Path, real: str) -> None:
    name = real.partition(".so.")[0]
    target = folder / f"{name}.so"
    with TemporaryDirectory(dir=folder) as scratch:
        # The linker writes down which library is needed: an empty one of its name will do.
        empty, new = Path(scratch, real), Path(scratch, target.name)
        _compile(scratch, "/dev/null", f"-Wl,-soname,{real}", "-o", str(empty))
        needs = ["-Wl,--no-as-needed", str(empty), "-Wl,--as-needed", "-ldl", "-Wl,--enable-new-dtags,-rpath,$ORIGIN"]
        _compile(scratch, str(_SOURCES / f"{name}.c"), f'-DREAL="{real}"', "-x", "none", *needs, "-o", str(new))
        os.replace(new, target)  # a link of that name, too


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
