"""Tests of the CUDA checks: each fault has advice. An emulated card answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shardpress.setup.cuda import cuda_checks
from shardpress.setup.diagnosis import Check
from tests.support.cuda.stub import variables as card_variables
from tests.support.interpreters import environment

pytestmark = [pytest.mark.process, pytest.mark.compiler]


def found_of(is_wanted: bool) -> dict[str, Check]:
    checks = {each.name: each for each in cuda_checks(is_wanted)}
    assert all(bool(each.fix) == (each.status in ("fail", "warn")) for each in checks.values())
    return checks


def test_missing_driver_is_the_only_finding_unless_requested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("libcuda.so", "libcuda.so.1", "libnvrtc.so"):
        (tmp_path / name).write_text("this is no library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    (found,) = found_of(is_wanted=False).values()
    assert found == Check("driver", "absent", found.found)
    assert "libcuda.so.1" in found.found
    checks = found_of(is_wanted=True)
    assert {each.status for each in checks.values()} == {"fail"}
    assert "apt-get install nvidia-driver" in checks["driver"].fix


@pytest.mark.usefixtures("pygpu")
@pytest.mark.parametrize(
    ("settings", "name", "phrase", "fix"),
    [
        ({"cards": 0}, "driver", "CUDA_ERROR_NO_DEVICE (100)", "CUDA_VISIBLE_DEVICES is '7'"),
        ({"driver": "11.8"}, "card0", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION (222)", "NVRTC"),
        ({"capability": "12.1"}, "card0", "compute_12: NVRTC_ERROR_INVALID_OPTION", "NVRTC"),
    ],
)
def test_faults_are_failures_with_a_fix_or_warnings_unless_requested(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str | int], name: str, phrase: str, fix: str
) -> None:
    for variable, value in card_variables(**settings).items():
        monkeypatch.setenv(variable, str(value))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7" if name == "driver" else "0")
    for is_wanted, status in ((True, "fail"), (False, "warn")):
        found = found_of(is_wanted)
        assert {each.name: each.status for each in found.values() if each.status != "pass"} == {name: status}
        assert phrase in found[name].found
        assert fix in found[name].fix


@pytest.mark.usefixtures("pygpu")
def test_an_emulated_card_passes_every_check(tmp_path: Path) -> None:
    flags = {"THEANO_FLAGS": "device=cuda", "PYTHONPATH": None, "CUDA_DISABLE_PTX_JIT": None}
    env = environment(**flags, **card_variables(capability="8.6", memory=3000))
    command = [sys.executable, "-m", "shardpress", "doctor", "--json", "--output", tmp_path / "deep/below/features"]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=600)
    answer = json.loads(result.stdout)
    found = {each["name"]: each for each in answer["checks"]}
    assert {name for name, each in found.items() if each["status"] == "fail"} == set(), found
    assert result.returncode == 0
    assert {found[name]["status"] for name in ("python", "packages", "compiler", "output", "cpu")} == {"pass"}
    assert "capability 8.6, " in found["card0"]["found"]
    assert "3.1 GB" in found["card0"]["found"]
    assert all("NumPy" in found[name]["found"] for name in ("cpu", "cuda"))
    assert all(name in found["libraries"]["found"] for name in ("libcuda.so", "libnvrtc.so", "libcublas.so"))
    assert list(tmp_path.iterdir()) == [], "doctor leaves no files"
