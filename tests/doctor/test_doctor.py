"""Tests of `shardpress doctor`: faults come first, with advice. Most tests break a part of the environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shardpress.doctor import devices, machine
from shardpress.doctor.check import Check, exit_code, page
from tests.support.interpreters import REPOSITORY, environment

COMMAND = [sys.executable, "-m", "shardpress", "doctor", "--json"]


def doctor(folder: Path, *flags: str, **variables: str | Path | None) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the checks by name. Standard output must contain only JSON."""
    env = environment(**{"PYTHONPATH": None, **variables})
    result = subprocess.run(
        [*COMMAND, *flags], cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=300
    )
    answer = json.loads(result.stdout)
    return result.returncode, {each["name"]: each for each in answer["checks"]}


def test_page_lists_fixes_first() -> None:
    checks = [Check("a", "pass", "fine"), Check("b", "warn", "hm", "do"), Check("c", "fail", "x " * 100, "fix it")]
    lines = [line.strip() for line in page(checks).splitlines()]
    assert lines[3:5] == ["1. c: fix it", "2. b: do"]
    assert "PASS a           fine" in lines


def test_exit_code_separates_settings_from_the_machine() -> None:
    checks = [Check("a", "warn", "hm", is_setting=True), Check("b", "pass", "fine"), Check("c", "absent", "none")]
    assert exit_code(checks) == 0
    assert exit_code([*checks, Check("d", "fail", "bad")]) == 1
    assert exit_code([*checks, Check("d", "fail", "bad"), Check("e", "fail", "odd", is_setting=True)]) == 78


@pytest.mark.process
@pytest.mark.compiler
def test_working_machine_passes(tmp_path: Path) -> None:
    code, found = doctor(tmp_path, "--output", "deep/below/features")
    assert code == 0
    assert {found[name]["status"] for name in ("python", "packages", "compiler", "output", "cpu")} == {"pass"}
    assert "NumPy" in found["cpu"]["found"]
    assert found["driver"]["status"] in ("pass", "absent"), "CUDA was not requested"
    assert list(tmp_path.iterdir()) == [], "doctor leaves no files"


@pytest.mark.process
@pytest.mark.compiler
def test_doctor_runs_in_a_python_without_packages(tmp_path: Path) -> None:
    command = [sys.executable, "-S", REPOSITORY / "scripts/doctor.py", "--json"]
    env = environment(PYTHONPATH=None)
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=300)
    found = {each["name"]: each for each in json.loads(result.stdout)["checks"]}
    assert (result.returncode, found["cpu"]["status"]) == (78, "fail")
    assert "Theano" in found["cpu"]["found"]
    assert "make setup" in found["cpu"]["fix"]
    assert found["compiler"]["status"] == found["output"]["status"] == "pass"
    assert found["packages"]["status"] == "warn", "the requirements are unknown"


@pytest.mark.process
@pytest.mark.compiler
def test_each_fault_of_the_environment_is_reported(tmp_path: Path) -> None:
    code, found = doctor(tmp_path, PATH="/nonexistent")
    assert code == 1
    assert found["compiler"]["status"] == found["cpu"]["status"] == "fail"
    assert "install g++ and python3-dev" in found["compiler"]["fix"]
    code, found = doctor(tmp_path, THEANO_FLAGS="device=cuda103")
    assert code == 1
    assert "device=cuda103 " in found["cuda103"]["found"]
    assert found["cpu"]["status"] == "pass"
    code, found = doctor(tmp_path, THEANO_FLAGS="devise=x,device=cuda")
    assert code == 78
    assert "'devise'" in found["cpu"]["found"]
    assert "cuda" not in found


@pytest.mark.process
def test_broken_packages_are_named_with_the_command_to_run(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    (broken / "numpy-2.6.1.dist-info").mkdir(parents=True)
    (broken / "numpy-2.6.1.dist-info/METADATA").write_text("Name: numpy\nVersion: 2.6.1\n")
    (broken / "numpy.py").write_text("raise ImportError('half installed')")
    code, found = doctor(tmp_path, PYTHONPATH=broken)
    assert code == 78
    assert found["packages"]["found"].startswith("numpy 2.6.1 ")
    assert "<2.6,>=1.26.4" in found["packages"]["found"]
    assert found["packages"]["fix"].endswith(" install 'numpy<2.6,>=1.26.4'")
    assert "half installed" in found["cpu"]["found"]
    assert found["compiler"]["status"] == "pass", "the other checks still run"


@pytest.mark.parametrize("difference", [1e-3, float("nan")])
def test_features_different_from_numpy_are_a_fault(monkeypatch: pytest.MonkeyPatch, difference: float) -> None:
    answer = {"name": "Card", "difference": difference}
    monkeypatch.setattr(devices, "collect_reports", lambda *_: answer)
    monkeypatch.setattr(devices, "find_spec", lambda name: name)
    check = devices._check_device("cuda")
    assert check.status == "fail"
    assert f"{difference:.1g}, expected at most 0.0001" in check.found
    answer["difference"] = 1e-5
    assert devices._check_device("cuda").status == "pass"


@pytest.mark.parametrize(
    ("flags", "file", "device"),
    [
        ("floatX=float32,device=cuda0", "device = cuda1", "cuda0"),
        ("device=cpu, device = cuda", "", "cuda"),
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
@pytest.mark.parametrize(
    ("compiler", "phrase"),
    [
        ("echo 'x.cpp:1: fatal error: Python.h' >&2; exit 1", "x.cpp:1: fatal error: Python.h"),
        ("echo nothing >$5", "odd-g++"),
    ],
)
def test_compiler_must_build_a_program_that_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiler: str, phrase: str
) -> None:
    program = tmp_path / "odd-g++"
    program.write_text(f"#!/bin/sh\n{compiler}\n")
    program.chmod(0o755)
    monkeypatch.setenv("THEANO_FLAGS", f"cxx={program}")
    check = machine._compiler()
    assert check.status == "fail"
    assert phrase in check.found
    assert check.fix


def test_unwritable_output_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(dir: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", refuse)
    found = {each.name: each for each in machine.machine_checks(str(tmp_path / "new/features"))}["output"]
    assert found.status == "fail"
    assert "--output" in found.fix
    assert found.found.startswith(f"{tmp_path}: ")
    assert found.found.endswith("Read-only file system")
