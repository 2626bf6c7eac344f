"""Tests of all CUDA checks together, on an emulated card without a fault, and with one fault at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shardpress.doctor.cuda import cuda_checks
from tests.support.cuda.stub import variables
from tests.support.interpreters import environment

pytestmark = [pytest.mark.process, pytest.mark.compiler]


@pytest.mark.usefixtures("pygpu")
def test_working_card_passes_every_check(tmp_path: Path) -> None:
    flags = {"THEANO_FLAGS": "device=cuda", "PYTHONPATH": None, "CUDA_DISABLE_PTX_JIT": None}
    env = environment(**flags, **variables(capability="8.6", memory=3000))
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


def checks_by_name(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> dict[str, Any]:
    monkeypatch.delenv("CUDA_DISABLE_PTX_JIT", raising=False)
    for name, value in variables(**settings).items():
        monkeypatch.setenv(name, str(value))
    return {each.name: each for each in cuda_checks(is_wanted=True)}


def test_too_new_nvrtc_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    found = checks_by_name(monkeypatch, driver="12.4")
    assert (found["driver"].status, found["card0"].status) == ("pass", "fail")
    assert "CUDA 12.4" in found["driver"].found
    assert "CUDA_ERROR_UNSUPPORTED_PTX_VERSION (222)" in found["card0"].found
    assert "NVRTC" in found["card0"].fix


def test_card_unknown_to_libgpuarray_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    found = checks_by_name(monkeypatch, capability="12.0")
    assert found["card0"].status == "fail"
    assert "compute_12" in found["card0"].found


def test_hidden_cards_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    found = checks_by_name(monkeypatch)
    assert (found["driver"].status, "card0" in found) == ("fail", False)
    assert found["driver"].fix.startswith("CUDA_VISIBLE_DEVICES ")
