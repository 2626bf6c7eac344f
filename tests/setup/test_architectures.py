"""Tests that kernels compile for every card, through the libnvrtc of this project.

Sample: 20 kernels of one network, the oldest and the newest card, and the installed NVRTC. With TEST_CASES=all, all
networks, all cards, and the NVRTC versions in .nvrtc/, which `make soak` installs.
"""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

import pytest

from shardpress.setup.install import _build_forwarders
from tests.support.cases import ALL_CASES, sample
from tests.support.cuda import stub
from tests.support.interpreters import REPOSITORY, run_python

pytestmark = pytest.mark.process

INSTALLED = Path(sysconfig.get_path("purelib"))
WHEELS = sorted(REPOSITORY.glob(".nvrtc/*/")) if ALL_CASES else []
CAPABILITIES = sample(["75", "80", "86", "89", "90", "100", "120"], 2)

# Compile as libgpuarray 0.7.6 does, which truncates the name of an architecture to 10 characters.
COMPILE = """
import ctypes, pathlib
nvrtc = ctypes.CDLL(NVRTC)
for capability in CAPABILITIES:
    name = f"compute_{capability}"[:10].encode()
    for source in SOURCES:
        program = ctypes.c_void_p()
        size = ctypes.c_size_t()
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), pathlib.Path(source).read_bytes(), None, 0, None, None)
        code = nvrtc.nvrtcCompileProgram(program, 2, (ctypes.c_char_p * 2)(b"-arch", name))
        what = "ProgramLog" if code else "PTX"
        nvrtc[f"nvrtcGet{what}Size"](program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        nvrtc[f"nvrtcGet{what}"](program, text)
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
        facts[f"{capability} {source}"] = (code, text.value.decode())
"""


@pytest.fixture(scope="module")
def sources(pygpu: None, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return files with the sources of kernels that libgpuarray compiles for graphs on the emulated card."""
    folder = tmp_path_factory.mktemp("sources")
    networks = [] if ALL_CASES else ["leaky"]
    code = f"from tests.support import graphs_child\ngraphs_child.main({networks})"
    flags = "device=cuda,gpuarray.cache_path="  # without the kernel cache that Theano enables in libgpuarray
    run_python(code, "default", THEANO_FLAGS=flags, **stub.variables(sources=folder, blind=1))
    paths = sorted(map(str, folder.glob("*.cu")))
    assert len(paths) > 50
    return sample(paths, 20)


@pytest.mark.parametrize("wheel", [INSTALLED, *WHEELS], ids=lambda wheel: wheel.name)
def test_kernels_compile_for_old_and_new_cards(sources: list[str], tmp_path: Path, wheel: Path) -> None:
    for path in wheel.glob("nvidia/*/lib/lib*.so.*"):
        (tmp_path / path.name).symlink_to(path.resolve())
    _build_forwarders(tmp_path)
    constants = f"NVRTC = {str(tmp_path / 'libnvrtc.so')!r}\nSOURCES = {sources!r}\nCAPABILITIES = {CAPABILITIES}"
    compiled = run_python(constants + COMPILE).facts
    assert [text for code, text in compiled.values() if code] == []
    for capability in CAPABILITIES:
        texts = [text for name, (_, text) in compiled.items() if name.startswith(f"{capability} ")]
        targets = {target for text in texts for target in re.findall(r"^\.target (\S+)", text, re.M)}
        # The driver compiles code for the last card with two digits further.
        assert targets == {f"sm_{min(int(capability), 90)}"}
        versions = {version for text in texts for version in re.findall(r"^\.version (\S+)", text, re.M)}
        assert versions == {ptx_version(tmp_path / "libnvrtc.so")}, "a driver of the same CUDA version accepts it"


def ptx_version(nvrtc: Path) -> str:
    """Return the PTX version of an NVRTC: 8.0 to 8.8 for CUDA 12.0 to 12.9, and 9.0 for CUDA 13.0."""
    found = re.search(r"libnvrtc-builtins\.so\.(\d+)\.(\d+)", " ".join(map(str, nvrtc.parent.iterdir())))
    assert found is not None
    major, minor = map(int, found.groups())
    return f"{major - 4}.{minor - (major == 12 and minor > 5)}"  # 12.6 kept the version of 12.5
