"""Tests of `shardpress doctor`: faults come first, with advice. Most tests break a part of the environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shardpress.setup import device_checks as devices
from shardpress.setup import machine
from shardpress.setup.diagnosis import Check, exit_code, page
from tests.support.cases import each
from tests.support.interpreters import REPOSITORY, environment


def doctor(folder: Path, *command: str | Path, **variables: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the checks by name. Standard output must contain only JSON."""
    result = subprocess.run(
        [sys.executable, *command, "--json"],
        cwd=folder,
        env=environment(PYTHONPATH=None, **variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    answer = json.loads(result.stdout)
    return result.returncode, {each["name"]: each for each in answer["checks"]}


def test_page_lists_fixes_first() -> None:
    checks = [Check("a", "pass", "fine"), Check("b", "warn", "hm", "do"), Check("c", "fail", "x " * 100, "fix it")]
    lines = [line.strip() for line in page(checks).splitlines()]
    assert lines[3:5] == ["1. c: fix it", "2. b: do"]


def test_exit_code_separates_settings_from_the_machine() -> None:
    checks = [Check("a", "warn", "hm", is_setting=True), Check("b", "pass", "fine"), Check("c", "absent", "none")]
    assert exit_code(checks) == 0
    assert exit_code([*checks, Check("d", "fail", "bad")]) == 1
    assert exit_code([*checks, Check("d", "fail", "bad"), Check("e", "fail", "odd", is_setting=True)]) == 78


@pytest.mark.process
@pytest.mark.compiler
def test_doctor_runs_in_a_python_without_packages(tmp_path: Path) -> None:
    code, found = doctor(tmp_path, "-S", REPOSITORY / "scripts/doctor.py")
    assert (code, found["cpu"]["status"]) == (78, "fail")
    assert "Theano" in found["cpu"]["found"]
    assert "make setup" in found["cpu"]["fix"]
    assert found["compiler"]["status"] == found["output"]["status"] == "pass"
    assert found["packages"]["status"] == "warn", "the requirements are unknown"


@pytest.mark.process
@pytest.mark.compiler
def test_each_fault_of_the_environment_is_reported(tmp_path: Path) -> None:
    code, found = doctor(tmp_path, "-m", "shardpress", "doctor", PATH="/nonexistent")
    assert code == 1
    assert found["compiler"]["status"] == found["cpu"]["status"] == "fail"
    assert "install g++ and python3-dev" in found["compiler"]["fix"]
    code, found = doctor(tmp_path, "-m", "shardpress", "doctor", THEANO_FLAGS="devise=x,device=cuda")
    assert code == 78
    assert "'devise'" in found["cpu"]["found"]
    assert "cuda" not in found


@pytest.mark.parametrize("difference", [1e-3, float("nan")])
def test_features_different_from_numpy_are_a_fault(monkeypatch: pytest.MonkeyPatch, difference: float) -> None:
    answer = {"name": "Card", "difference": difference}
    monkeypatch.setattr(devices, "collect_reports", lambda *_: answer)
    check = devices._check_device("cuda")
    assert check.status == "fail"
    assert f"{difference:.1g}, expected at most 0.0001" in check.found


@each(
    "flags, file, device",
    [
        ("floatX=float32,device=cuda0, device = cuda1", "device = cuda2", "cuda1"),
        ("", "device=opencl0:0", "opencl0:0"),
        ("", "no such [file", "cpu"),
    ],
)
def test_requested_device_is_known_without_theano(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, file: str, device: str
) -> None:
    (tmp_path / "rc").write_text(f"[global]\n{file}\n")
    monkeypatch.setenv("THEANO_FLAGS", flags)
    monkeypatch.setenv("THEANORC", f"/nowhere:{tmp_path / 'rc'}")
    assert devices._chosen_device() == device


@pytest.mark.process
def test_compiler_must_build_a_program_that_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "odd-g++"
    program.write_text("#!/bin/sh\necho nothing >$5\n")
    program.chmod(0o755)
    monkeypatch.setenv("THEANO_FLAGS", f"cxx={program}")
    check = machine._compiler()
    assert check.status == "fail"
    assert str(program) in check.found
    assert check.fix
