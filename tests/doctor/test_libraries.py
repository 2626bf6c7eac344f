"""Tests of the queries of CUDA libraries, with small libraries that answer like the real libraries."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shardpress.childprocess import collect_reports
from shardpress.doctor.cuda import cuda_checks

pytestmark = [pytest.mark.process, pytest.mark.compiler]

# The numbers come from environment variables, so that one file replaces every library of every machine.
_SOURCE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int number(const char *name, int fallback) { return getenv(name) ? atoi(getenv(name)) : fallback; }
static char ptx[99], requested[99];

int cuDriverGetVersion(int *v) { *v = number("FAKE_CUDA", 12080); return 0; }
int cuInit(unsigned f) { if (getenv("FAKE_HANGS")) pause(); return number("FAKE_INIT", 0); }
int cuGetErrorName(int code, const char **s) { *s = code == 222 ? "CUDA_ERROR_UNSUPPORTED_PTX_VERSION" : 0; return 0; }
int cuDeviceGetCount(int *n) { *n = number("FAKE_CARDS", 1); return 0; }
int cuDeviceGet(int *d, int i) { *d = i; return 0; }
int cuDeviceGetName(char *s, int n, int d) { snprintf(s, n, "Card %d", d); return 0; }
int cuDeviceGetPCIBusId(char *s, int n, int d) { snprintf(s, n, "0000:0%d:00.0", d); return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? number("FAKE_MAJOR", 9) : 0; return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = ptx; return number("FAKE_OPENS", 0); }
int cuCtxPushCurrent_v2(void *c) { return c != ptx; }
int cuCtxPopCurrent_v2(void **c) { return 0; }
int cuMemGetInfo_v2(size_t *f, size_t *t) { *f = 3000000000; *t = 4000000000; return 0; }
int cuLinkCreate(unsigned n, void *o, void *v, void **s) { *s = ptx; return 0; }
int cuLinkAddData(void *s, int kind, const char *data, size_t n, const char *name, unsigned o, void *a, void *b) {
    return kind != 1 || data[n - 1] || !strstr(data, ".version") ? 218 : number("FAKE_LINK", 0);
}
int cuLinkComplete(void *s, void **b, size_t *n) { *b = ptx; return 0; }

int nvrtcVersion(int *a, int *b) { *a = 12; *b = number("FAKE_NVRTC", 8); return 0; }
int nvrtcCreateProgram(void **p, const char *s, const char *n, int k, void *h, void *i) { *p = ptx; return 0; }
int nvrtcCompileProgram(void *p, int n, const char **options) {
    strcpy(requested, n ? options[1] : "");
    sprintf(ptx, "//\n.version 8.%d\n.target sm_52\n", number("FAKE_PTX", 7));
    return !strcmp(requested, "compute_10") ? 5 : 0;
}
const char *nvrtcGetErrorString(int code) { return code == 5 ? "NVRTC_ERROR_INVALID_OPTION" : "?"; }
int nvrtcGetPTXSize(void *p, size_t *n) { *n = strlen(ptx) + 1; return 0; }
int nvrtcGetPTX(void *p, char *out) { strcpy(out, ptx); return 0; }

int cublasGetProperty(int kind, int *v) { *v = 12 - kind; return 0; }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "all.so"
    subprocess.run(["g++", "-x", "c", "-shared", "-fPIC", "-o", path, "-"], input=_SOURCE, text=True, check=True)
    return path


@pytest.fixture
def folder(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the libraries of a machine with a card."""
    for name in ("libcuda.so", "libnvrtc.so", "libcublas.so", "libnvidia-ptxjitcompiler.so.1"):
        shutil.copy(library, tmp_path / name)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_DISABLE_PTX_JIT", raising=False)
    return tmp_path


def query(seconds: float = 60) -> dict[str, Any]:
    return collect_reports("shardpress.doctor.cuda", seconds)


def test_versions_of_libraries_and_facts_of_cards_are_collected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CARDS", "2")
    found = query()
    assert found["nvrtc"] == {"files": [str(folder / "libnvrtc.so")], "version": [12, 8], "ptx": [8, 7]}
    assert found["cublas"] == {"files": [str(folder / "libcublas.so")], "version": [12, 11, 10]}
    driver = found["driver"]
    assert (driver["version"], driver["n_cards"], driver["jit"]) == ([12, 8], 2, True)
    card = {"capability": [9, 0], "free": 3 * 10**9, "total": 4 * 10**9}
    assert found["card1"] == {"name": "Card 1", "place": "0000:01:00.0", **card}
    assert set(found) == {"libgpuarray", "cublas", "nvrtc", "driver", "card0", "card1"}


def test_findings_before_a_hanging_driver_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_HANGS", "1")
    found = query(5)
    assert "5 s" in found["failed"]
    assert found["nvrtc"]["ptx"] == [8, 7]
    assert found["driver"] == {"files": [str(folder / "libcuda.so")]}


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        (
            {"FAKE_LINK": "222"},
            ("CUDA_ERROR_UNSUPPORTED_PTX_VERSION (222)", 222),
        ),
        ({"FAKE_LINK": "221"}, ("error 221", 221)),
        ({"FAKE_MAJOR": "10"}, ("compute_10: NVRTC_ERROR_INVALID_OPTION", None)),
        ({"FAKE_OPENS": "46"}, ("error 46", None)),
    ],
)
def test_card_that_accepts_no_kernel_is_reported_with_its_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], error: tuple[str, int | None]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    card = query()["card0"]
    words, code = error
    assert card["error"].endswith(words)
    assert card.get("code") == code


def test_driver_that_fails_to_start_reports_its_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_INIT", "803")
    driver = query()["driver"]
    assert (driver["version"], driver["error"]) == ([12, 8], "cuInit: error 803")


def test_driver_with_a_versioned_name_only_is_found(folder: Path) -> None:
    (folder / "libcuda.so").rename(folder / "libcuda.so.1")
    driver = query()["driver"]
    assert driver["found_instead"] == str(folder / "libcuda.so.1")
    assert driver["error"].startswith("libcuda.so: ")
    (check,) = (each for each in cuda_checks({"driver": driver}, is_wanted=True) if each.name == "driver")
    assert check.found.startswith(f"{folder / 'libcuda.so.1'} ")
    assert " libcuda.so" in check.found


def test_both_files_of_a_forwarding_library_are_named(folder: Path, library: Path) -> None:
    """Our library has a name without a version, and the real library has a name with a version."""
    real = folder / "real" / "libcuda.so.570.1"
    real.parent.mkdir()
    shutil.copy(library, real)
    (folder / "libcuda.so").unlink()
    source = "int cuInit(unsigned); int (*kept)(unsigned) = cuInit;"
    command = ["g++", "-shared", "-fPIC", "-o", folder / "libcuda.so", "-x", "c", "-", "-x", "none", real]
    subprocess.run(command, input=source, text=True, check=True)
    found = query()
    assert found["driver"]["files"] == [str(folder / "libcuda.so"), str(real)]
    (check,) = (each for each in cuda_checks(found, is_wanted=True) if each.name == "driver")
    assert f": {folder / 'libcuda.so'}" in check.found
    assert check.found.endswith(str(real))


@pytest.mark.usefixtures("pygpu")
def test_missing_libraries_are_reported_one_by_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If this machine has the libraries, files that cannot be loaded come before them on the search path."""
    for name in ("libcuda.so", "libcuda.so.1", "libnvrtc.so", "libcublas.so"):
        (tmp_path / name).write_bytes(b"not a library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    found = query()
    assert {name for name in ("driver", "nvrtc", "cublas") if "error" in found[name]} == {"driver", "nvrtc", "cublas"}
    assert not any(name.startswith("card") for name in found)
    assert os.path.basename(found["libgpuarray"]["files"][0]).startswith("libgpuarray.")
