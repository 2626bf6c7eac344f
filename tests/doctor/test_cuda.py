"""Tests of the CUDA checks: each fault has advice. Small libraries answer like a driver, NVRTC and cuBLAS."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shardpress.doctor import cuda
from shardpress.doctor.check import Check
from shardpress.doctor.cuda import cuda_checks
from tests.support.cuda.stub import variables as card_variables
from tests.support.interpreters import environment

pytestmark = [pytest.mark.process, pytest.mark.compiler]

# The numbers come from environment variables, so that one file replaces every library of every machine.
_SOURCE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int number(const char *name, int fallback) { return getenv(name) ? atoi(getenv(name)) : fallback; }
static char ptx[99];

int cuDriverGetVersion(int *v) { *v = number("FAKE_CUDA", 12080); return 0; }
int cuInit(unsigned f) { return number("FAKE_INIT", 0); }
int cuGetErrorName(int code, const char **s) { *s = code == 222 ? "CUDA_ERROR_UNSUPPORTED_PTX_VERSION" : 0; return 0; }
int cuDeviceGetCount(int *n) { *n = number("FAKE_CARDS", 1); return 0; }
int cuDeviceGetName(char *s, int n, int d) { snprintf(s, n, "Card %d", d); return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? number("FAKE_MAJOR", 9) : 0; return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) {
    if (d == 1 && getenv("FAKE_SECOND_HANGS")) pause();
    *c = ptx;
    return number("FAKE_OPENS", 0);
}
int cuCtxPushCurrent_v2(void *c) { return c != ptx; }
int cuMemGetInfo_v2(size_t *f, size_t *t) { *f = 3000000000; *t = 4000000000; return 0; }
int cuModuleLoadData(void **m, const char *data) { return strstr(data, ".version") ? number("FAKE_LOAD", 0) : 218; }

int nvrtcCreateProgram(void **p, const char *s, const char *n, int k, void *h, void *i) { *p = ptx; return 0; }
int nvrtcCompileProgram(void *p, int n, const char **options) {
    strcpy(ptx, "//\n.version 8.7\n.target sm_52\n");
    return !strcmp(options[1], "compute_10") ? 5 : 0;
}
const char *nvrtcGetErrorString(int code) { return code == 5 ? "NVRTC_ERROR_INVALID_OPTION" : "?"; }
int nvrtcGetPTXSize(void *p, size_t *n) { *n = strlen(ptx) + 1; return 0; }
int nvrtcGetPTX(void *p, char *out) { strcpy(out, ptx); return 0; }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "all.so"
    subprocess.run(["g++", "-x", "c", "-shared", "-fPIC", "-o", path, "-"], input=_SOURCE, text=True, check=True)
    return path


@pytest.fixture(autouse=True)
def folder(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the libraries of a machine with a card."""
    for name in ("libgpuarray.so.3", "libcuda.so", "libcuda.so.1", "libnvrtc.so", "libcublas.so"):
        shutil.copy(library, tmp_path / name)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def found_of(is_wanted: bool = True) -> dict[str, Check]:
    checks = {each.name: each for each in cuda_checks(is_wanted)}
    assert all(bool(each.fix) == (each.status in ("fail", "warn")) for each in checks.values())
    return checks


def test_passing_checks_name_versions_and_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CARDS", "2")
    found = found_of()
    assert {each.status for each in found.values()} == {"pass"}
    assert found["driver"].found.startswith(f"{folder / 'libcuda.so.1'} ")
    assert "CUDA 12.8" in found["driver"].found
    assert f"{folder / 'libnvrtc.so'}, " in found["libraries"].found
    for part in ("Card 1", "9.0", "3.0 of 4.0 GB"):
        assert part in found["card1"].found
    assert list(found) == ["driver", "libraries", "card0", "card1"]


def test_missing_driver_is_the_only_finding_unless_requested(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_text("this is no library")
    (found,) = found_of(is_wanted=False).values()
    assert found == Check("driver", "absent", found.found)
    assert "libcuda.so.1" in found.found
    checks = found_of(is_wanted=True)
    assert {each.status for each in checks.values()} == {"fail"}
    assert "apt-get install nvidia-driver" in checks["driver"].fix


def test_faults_of_cuda_are_warnings_unless_it_is_requested(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_OPENS", "46")
    (folder / "libcublas.so").write_text("this is no library")
    for is_wanted, status in ((True, "fail"), (False, "warn")):
        found = found_of(is_wanted)
        assert {name for name, each in found.items() if each.status == status} == {"libraries", "card0"}


@pytest.mark.parametrize(
    ("variables", "name", "phrase", "fix"),
    [
        ({"FAKE_INIT": "803"}, "driver", "cuInit: error (803)", "/proc/driver/nvidia/version"),
        ({"FAKE_CARDS": "0", "CUDA_VISIBLE_DEVICES": "7"}, "driver", "no card", "CUDA_VISIBLE_DEVICES is '7'"),
        ({"FAKE_LOAD": "222"}, "card0", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION (222)", "NVRTC"),
        ({"FAKE_LOAD": "223"}, "card0", "error (223)", "unset CUDA_DISABLE_PTX_JIT"),
        ({"FAKE_MAJOR": "10"}, "card0", "compute_10: NVRTC_ERROR_INVALID_OPTION", "NVRTC"),
        ({"FAKE_OPENS": "46"}, "card0", "error (46)", "nvidia-smi"),
    ],
)
def test_each_fault_of_a_driver_or_card_has_a_fix(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], name: str, phrase: str, fix: str
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    found = found_of()
    assert [each.name for each in found.values() if each.status == "fail"] == [name]
    assert phrase in found[name].found
    assert fix in found[name].fix


def test_hanging_card_keeps_earlier_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_SECONDS", 5.0)
    monkeypatch.setenv("FAKE_SECOND_HANGS", "1")
    monkeypatch.setenv("FAKE_CARDS", "2")
    found = found_of()
    (hanging,) = (each for each in found.values() if each.status == "fail")
    assert hanging.name == "card1"
    assert "5 s" in hanging.found
    assert found["card0"].status == "pass"


@pytest.mark.usefixtures("pygpu")
def test_an_emulated_card_passes_every_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH")
    flags = {"THEANO_FLAGS": "device=cuda", "PYTHONPATH": None, "CUDA_DISABLE_PTX_JIT": None}
    env = environment(**flags, **card_variables(capability="8.6", memory=3000))
    command = [sys.executable, "-m", "shardpress", "doctor", "--json", "--output", tmp_path]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=600)
    answer = json.loads(result.stdout)
    found = {each["name"]: each for each in answer["checks"]}
    assert {name for name, each in found.items() if each["status"] == "fail"} == set(), found
    assert result.returncode == 0
    assert "capability 8.6, " in found["card0"]["found"]
    assert "3.1 GB" in found["card0"]["found"]
    assert "NumPy" in found["cuda"]["found"]
    assert all(name in found["libraries"]["found"] for name in ("libcuda.so", "libnvrtc.so", "libcublas.so"))
