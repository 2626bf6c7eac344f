"""Compile all kernels for every card with several NVRTC versions, through our libnvrtc, and print a table.

    python -m tests.support.architectures FOLDER...          each folder contains an unpacked NVRTC wheel

The exit code is 1 if a kernel does not compile, or if an NVRTC writes PTX newer than its CUDA version supports.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shardpress.gpu.install import _build_forwarders
from tests.support.cuda import stub
from tests.support.interpreters import REPOSITORY, environment

CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
_CUT = 10  # libgpuarray 0.7.6 truncates the name of an architecture to this number of characters


@dataclass(frozen=True)
class Compiled:
    """Results of compiling all kernels for one card with one NVRTC.

    Attributes
    ----------
    nvrtc, capability : str
        CUDA version of NVRTC, and compute capability of the card.
    n : int
        Number of kernels.
    failed : dict of str
        Error messages of NVRTC, by source file.
    versions, targets : list of str
        Distinct PTX versions and targets of all kernels. More than one value is an error.
    """

    nvrtc: str
    capability: str
    n: int
    failed: dict[str, str]
    versions: list[str]
    targets: list[str]


def ptx_of(nvrtc: str) -> str:
    """Return the PTX version of a CUDA version: 8.0 to 8.8 for CUDA 12.0 to 12.9, and 9.0 for CUDA 13.0."""
    major, minor = map(int, nvrtc.split(".")[:2])
    return f"{major - 4}.{minor - (major == 12 and minor > 5)}"  # 12.6 kept the version of 12.5


def collect(folder: Path, *arguments: str) -> list[Path]:
    """Return the sources of all kernels that libgpuarray compiles for the graphs on the emulated card."""
    command = [sys.executable, "-m", "tests.support.graphs_child", *arguments]
    # Disable the kernel cache that Theano enables in libgpuarray.
    env = environment(THEANO_FLAGS="device=cuda,gpuarray.cache_path=", **stub.variables(sources=folder, blind=1))
    result = subprocess.run(command, env=env, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(result.stderr)
    return sorted(folder.glob("*.cu"))


def compile_for(wheel: Path, sources: Sequence[Path], capabilities: Sequence[str]) -> list[Compiled]:
    """Compile sources with the NVRTC of a wheel, in a child process, because a process can load only one NVRTC."""
    command = [sys.executable, "-m", "tests.support.architectures", "--child", str(wheel), *capabilities]
    request = json.dumps([str(path) for path in sources])
    result = subprocess.run(command, input=request, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(result.stderr)
    return [Compiled(**each) for each in json.loads(result.stdout)]


# -- in the child process


def _compile_for(wheel: Path, capabilities: Sequence[str], sources: Sequence[str]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for path in wheel.glob("nvidia/*/lib/lib*.so.*"):
            (folder / path.name).symlink_to(path.resolve())
        _build_forwarders(folder)
        nvrtc = ctypes.CDLL(str(folder / "libnvrtc.so"))
        return [_compile_all(nvrtc, each, sources) for each in capabilities]


def _compile_all(nvrtc: Any, capability: str, sources: Sequence[str]) -> dict[str, Any]:
    failed = {}
    ptx_files = {}
    for source in sources:
        is_compiled, text = _compile(nvrtc, capability, Path(source).read_bytes())
        (ptx_files if is_compiled else failed)[Path(source).name] = text
    found = {
        directive: sorted(
            {each for ptx in ptx_files.values() for each in re.findall(rf"^\.{directive} (\S+)", ptx, re.M)}
        )
        for directive in ("version", "target")
    }
    major = ctypes.c_int()
    minor = ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return {
        **{"nvrtc": f"{major.value}.{minor.value}", "capability": capability, "n": len(sources), "failed": failed},
        **{"versions": found["version"], "targets": found["target"]},
    }


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


# -- the table


def _line(row: Sequence[Compiled]) -> str:
    cells = [f"{each.n - len(each.failed):5}" for each in row]
    return f"{row[0].nvrtc:6} {','.join(row[0].versions):5}" + "".join(cells)


def problems_of(each: Compiled) -> list[str]:
    """Return one line for each kernel that does not compile, and one for PTX of an unexpected version or target."""
    where = f"NVRTC {each.nvrtc}, capability {each.capability}"
    lines = [f"{where}: {name}: {message}" for name, message in each.failed.items()]
    if each.versions != [ptx_of(each.nvrtc)] or len(each.targets) != 1:
        lines.append(f"{where}: PTX {each.versions} for {each.targets}, expected {ptx_of(each.nvrtc)} for one")
    return lines


def main(arguments: Sequence[str]) -> int:
    """Print the table and all errors, and return the exit code."""
    if arguments[:1] == ["--child"]:
        print(json.dumps(_compile_for(Path(arguments[1]), arguments[2:], json.load(sys.stdin))))
        return 0
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:
        sources = collect(Path(scratch))
        compiled = partial(compile_for, sources=sources, capabilities=CAPABILITIES)
        rows = list(pool.map(compiled, sorted(Path(path).resolve() for path in arguments)))
    print(f"{len(sources)} kernels\nNVRTC  PTX  " + "".join(f"{each:>5}" for each in CAPABILITIES))
    print("\n".join(map(_line, rows)))
    lines = [line for row in rows for each in row for line in problems_of(each)]
    print("\n".join(lines))
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
