"""Compile all kernels for every card with several NVRTC versions, through our libnvrtc.

    python -m tests.support.architectures FOLDER...          each folder contains an unpacked NVRTC wheel

The exit code is 1 if a kernel does not compile, or if an NVRTC writes PTX newer than its CUDA version supports.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardpress.gpu.install import _build_forwarders
from tests.support.cuda import stub
from tests.support.interpreters import REPOSITORY, environment

CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
_CUT = 10  # libgpuarray 0.7.6 truncates the name of an architecture to this number of characters


@dataclass(frozen=True)
class Compiled:
    """Results of compiling all kernels for one card with one NVRTC."""

    nvrtc: str  # CUDA version
    capability: str  # of the card
    n: int  # number of kernels
    failed: dict[str, str]  # messages of NVRTC, by source file
    versions: list[str]  # distinct PTX versions of all kernels
    targets: list[str]  # distinct targets of all kernels

    @property
    def problems(self) -> list[str]:
        """One line for each kernel that does not compile, and one for PTX of an unexpected version or target."""
        where = f"NVRTC {self.nvrtc}, capability {self.capability}"
        lines = [f"{where}: {name}: {message}" for name, message in self.failed.items()]
        if self.versions != [ptx_of(self.nvrtc)] or len(self.targets) != 1:
            lines.append(f"{where}: PTX {self.versions} for {self.targets}, expected {ptx_of(self.nvrtc)} for one")
        return lines


def ptx_of(nvrtc: str) -> str:
    """Return the PTX version of a CUDA version: 8.0 to 8.8 for CUDA 12.0 to 12.9, and 9.0 for CUDA 13.0."""
    major, minor = map(int, nvrtc.split(".")[:2])
    return f"{major - 4}.{minor - (major == 12 and minor > 5)}"  # 12.6 kept the version of 12.5


def collect(folder: Path, *arguments: str) -> list[Path]:
    """Return the sources of all kernels that libgpuarray compiles for the graphs on the emulated card."""
    command = [sys.executable, "-m", "tests.support.graphs_child", *arguments]
    # Disable the kernel cache that Theano enables in libgpuarray.
    env = environment(THEANO_FLAGS="device=cuda,gpuarray.cache_path=", **stub.variables(sources=folder, blind=1))
    subprocess.run(command, env=env, cwd=REPOSITORY, check=True)
    return sorted(folder.glob("*.cu"))


def compile_for(wheel: Path, sources: Sequence[Path], capabilities: Sequence[str]) -> list[Compiled]:
    """Compile sources with the NVRTC of a wheel, in a child process, because a process can load only one NVRTC."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_compile_for, wheel, sources, capabilities).result()


def _compile_for(wheel: Path, sources: Sequence[Path], capabilities: Sequence[str]) -> list[Compiled]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for path in wheel.glob("nvidia/*/lib/lib*.so.*"):
            (folder / path.name).symlink_to(path.resolve())
        _build_forwarders(folder)
        nvrtc = ctypes.CDLL(str(folder / "libnvrtc.so"))
        return [_compile_all(nvrtc, each, sources) for each in capabilities]


def _compile_all(nvrtc: Any, capability: str, sources: Sequence[Path]) -> Compiled:
    failed = {}
    versions = set[str]()
    targets = set[str]()
    for source in sources:
        is_compiled, text = _compile(nvrtc, capability, source.read_bytes())
        if is_compiled:
            versions.update(re.findall(r"^\.version (\S+)", text, re.M))
            targets.update(re.findall(r"^\.target (\S+)", text, re.M))
        else:
            failed[source.name] = text
    major = ctypes.c_int()
    minor = ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    version = f"{major.value}.{minor.value}"
    return Compiled(version, capability, len(sources), failed, sorted(versions), sorted(targets))


def _compile(nvrtc: Any, capability: str, source: bytes) -> tuple[bool, str]:
    """Compile a source as libgpuarray does, with a truncated card name. Return success, and the PTX or the log."""
    program = ctypes.c_void_p()
    size = ctypes.c_size_t()
    name = f"compute_{capability.replace('.', '')}"[:_CUT].encode()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, None, 0, None, None)
    code = nvrtc.nvrtcCompileProgram(program, 2, (ctypes.c_char_p * 2)(b"-arch", name))
    what = "ProgramLog" if code else "PTX"
    nvrtc[f"nvrtcGet{what}Size"](program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    nvrtc[f"nvrtcGet{what}"](program, text)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return not code, text.value.decode() if not code else f"error {code}: {text.value.decode()}"


def main(wheels: Sequence[str]) -> int:
    """Print the number of compiled kernels for each card, and all errors. Return the exit code."""
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        sources = collect(Path(scratch))
        for wheel in wheels:
            for each in compile_for(Path(wheel).resolve(), sources, CAPABILITIES):
                n_compiled = each.n - len(each.failed)
                print(f"NVRTC {each.nvrtc}, capability {each.capability}: {n_compiled} of {each.n} kernels", flush=True)
                problems += each.problems
    print("\n".join(problems))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
