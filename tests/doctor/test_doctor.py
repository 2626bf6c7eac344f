"""What is wrong comes first, with what to do, however little works: each test breaks something."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.doctor import child, devices, machine
from pipeline.doctor.check import Check, page, verdict
from pipeline.model import Model
from tests.support.interpreters import environment

COMMAND = Path(sys.executable).parent / "shardpress"


def doctor(folder: Path, *flags: str, **variables: str | Path | None) -> tuple[int, dict[str, Any]]:
    """The exit code, and what is said by name; nothing else stands on standard output."""
    env = environment(**{"PYTHONPATH": None, **variables})
    command = [COMMAND, "doctor", "--json", *flags]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=300)
    answer = json.loads(done.stdout)
    return done.returncode, {each["name"]: each for each in answer["checks"]} | {"libraries": answer["libraries"]}


def test_what_is_to_be_mended_comes_first_with_what_to_do() -> None:
    checks = [Check("a", "ok", "fine"), Check("b", "absent", "none"), Check("c", "warn", "hm", "do this")]
    assert page(checks, {"libhdf5": ["/lib/libhdf5.so"]}).splitlines() == [
        "Nothing has to be mended; 1 doubt.",
        "",
        "WARN c           hm",
        "     -> do this",
        "ok   a           fine",
        "-    b           none",
        "",
        "Libraries that were loaded:",
        "     /lib/libhdf5.so",
    ]
    failed = page([*checks, Check("d", "fail", "x " * 100, "mend it")], {}).splitlines()
    assert failed[:3] == ["1 thing to mend before a run.", "", f"FAIL d           {('x ' * 52).strip()}"]
    assert all(len(line) <= 120 for line in failed)
    assert verdict(checks[:2]) == "All is well."


@pytest.mark.process
@pytest.mark.compiler
def test_where_all_is_well_each_device_has_computed_and_the_libraries_files_are_named(tmp_path: Path) -> None:
    code, found = doctor(tmp_path, "--output", "deep/below/features")
    assert code == 0
    assert {found[name]["status"] for name in ("python", "packages", "compiler", "output", "cpu", "cache")} == {"ok"}
    assert "features are NumPy's but for " in found["cpu"]["found"]
    assert all(Path(path).exists() for paths in found["libraries"].values() for path in paths)
    assert {"openblas", "libhdf5"} <= set(found["libraries"])
    assert list(tmp_path.iterdir()) == [], "it leaves nothing"


@pytest.mark.process
@pytest.mark.compiler
def test_without_a_compiler_that_is_what_to_mend(tmp_path: Path) -> None:
    code, found = doctor(tmp_path, PATH="/nonexistent")
    assert code == 1
    assert found["compiler"]["status"] == found["device"]["status"] == "fail"
    assert "apt-get install g++" in found["compiler"]["fix"]
    assert "no C++ compiler: g++ was not found" in found["device"]["found"]


@pytest.mark.process
@pytest.mark.compiler
def test_a_device_that_was_asked_for_and_is_not_there_is_told_and_the_others_are_tried(tmp_path: Path) -> None:
    code, found = doctor(tmp_path, THEANO_FLAGS="device=cuda103")
    assert code == 1
    assert "device=cuda103 cannot be used: " in found["device"]["found"]
    assert found["cpu"]["status"] == "ok"


@pytest.mark.process
def test_packages_that_break_everything_are_named_with_what_to_type(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    (broken / "numpy-2.4.6.dist-info").mkdir(parents=True)
    (broken / "numpy.py").write_text("raise ImportError('half installed')")
    code, found = doctor(tmp_path, PYTHONPATH=broken)
    assert code == 1
    assert found["packages"]["found"] == "numpy 2.4.6 is installed, expected <2,>=1.26.4"
    assert found["packages"]["fix"].endswith("-m pip install 'numpy<2,>=1.26.4'")
    assert "half installed" in found["device"]["found"]
    assert found["compiler"]["status"] == "ok", "the others are looked at"


@pytest.mark.process
@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("import time; time.sleep(100)", "no answer within 0 s"),
        ("import os; os.abort()", "the process that tried it ended with -6: it said nothing"),
        ("raise SystemExit('libcuda.so.1: version mismatch')", "ended with 1: libcuda.so.1: version mismatch"),
    ],
)
def test_a_device_that_hangs_or_crashes_costs_nothing_but_an_answer(
    monkeypatch: pytest.MonkeyPatch, program: str, says: str
) -> None:
    monkeypatch.setattr(devices, "_PROGRAM", program)
    assert says in devices._asked(None, 0.3 if "sleep" in program else 60)["failed"]


@pytest.mark.process
@pytest.mark.compiler
def test_features_that_are_not_numpys_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Model.encode
    monkeypatch.setattr(Model, "encode", lambda model, rows: encode(model, rows) + 1e-3 * np.eye(len(rows), 8))
    assert child._tried()["failed"] == "its features differ from NumPy's by 0.001, expected 0.0001 at most"


@pytest.mark.process
def test_a_compiler_library_that_the_driver_does_not_follow_is_found(tmp_path: Path) -> None:
    """By libraries that are asked as the real ones are."""
    code = "int cuDriverGetVersion(int *v) { *v = 12080; return 0; }\n"
    code += "int nvrtcVersion(int *a, int *b) { *a = 12; *b = 9; return 0; }\n"
    path = str(tmp_path / "both.so")
    subprocess.run(["g++", "-x", "c", "-shared", "-fPIC", "-o", path, "-"], input=code, text=True, check=True)
    versions = child._cuda({"libcuda.": [path], "libnvrtc.": [path]})
    assert versions == {"driver": [12, 8], "nvrtc": [12, 9]}
    (check,) = devices._of_cuda(versions)
    assert (check.status, check.fix) == ("fail", "a newer driver, or pip install 'nvidia-cuda-nvrtc-cu12<=12.8.999'")
    assert next(devices._of_cuda({**versions, "nvrtc": [12, 8]})).status == "ok"
    assert child._cuda({"libcuda.": ["/nowhere.so"]}) == {}
    assert list(devices._of_cuda({})) == []


def test_a_place_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(dir: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", refuse)
    found = machine._place("output", str(tmp_path / "new/features"))
    assert (found.status, found.fix) == ("fail", "--output elsewhere")
    assert found.found == f"{tmp_path}: cannot be written, synced or locked: Read-only file system"


def test_what_cannot_be_looked_at_does_not_hide_the_rest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken() -> Check:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    monkeypatch.setattr(machine, "_compiler", broken)
    found = {each.name: each for each in machine.looked_at(str(tmp_path))}
    assert "cannot be looked at: UnicodeDecodeError" in found["broken"].found
    assert {"python", "packages", "memory", "output"} <= set(found)
