"""What is wrong comes first, with what to do, however little works: each test breaks something."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.childprocess import collect_reports
from pipeline.doctor import devices, machine
from pipeline.doctor.check import Check, exit_code, page
from pipeline.model import Model
from tests.support.interpreters import REPOSITORY, environment

COMMAND = Path(sys.executable).parent / "shardpress"


def doctor(folder: Path, *flags: str, **variables: str | Path | None) -> tuple[int, dict[str, Any]]:
    """The exit code, and what is said by name; nothing else stands on standard output."""
    env = environment(**{"PYTHONPATH": None, **variables})
    command = [COMMAND, "doctor", "--json", *flags]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=300)
    answer = json.loads(done.stdout)
    return done.returncode, {each["name"]: each for each in answer["checks"]} | {"libraries": answer["libraries"]}


def test_what_to_do_comes_first_and_then_the_ladder_from_below() -> None:
    checks = [
        Check("a", "pass", "fine /lib/b.so"),
        Check("b", "absent", "none", "get it"),
        Check("c", "warn", "hm", "do"),
    ]
    assert page(checks, {"libhdf5": ["/lib/libhdf5.so", "/lib/b.so"]}).splitlines() == [
        "Nothing has to be mended; 1 doubt.",
        "",
        "What to do, in this order:",
        "   1. c: do",
        "",
        "PASS a           fine /lib/b.so",
        "-    b           none",
        "     -> get it",
        "WARN c           hm",
        "",
        "Other libraries that were loaded:",
        "     /lib/libhdf5.so",
    ]
    failed = page([*checks, Check("d", "fail", "x " * 100, "mend it")], {}).splitlines()
    assert failed[:5] == [
        "1 thing to mend before a run.",
        "",
        "What to do, in this order:",
        "   1. d: mend it",
        "   2. c: do",
    ]
    assert all(len(line) <= 120 for line in failed)
    assert page(checks[:1], {}).splitlines() == ["All is well.", "", "PASS a           fine /lib/b.so"]


def test_the_exit_code_tells_settings_and_packages_from_the_machine() -> None:
    checks = [Check("a", "warn", "hm", is_setting=True), Check("b", "pass", "fine"), Check("c", "absent", "none")]
    assert exit_code(checks) == 0
    assert exit_code([*checks, Check("d", "fail", "bad")]) == 1
    assert exit_code([*checks, Check("d", "fail", "bad"), Check("e", "fail", "odd", is_setting=True)]) == 78


@pytest.mark.process
@pytest.mark.compiler
def test_where_all_is_well_each_device_has_computed_and_the_libraries_files_are_named(tmp_path: Path) -> None:
    code, found = doctor(tmp_path, "--output", "deep/below/features")
    assert code == 0
    assert {found[name]["status"] for name in ("python", "packages", "compiler", "output", "cpu", "cache", "blas")} == {
        "pass"
    }
    assert "features are NumPy's but for " in found["cpu"]["found"]
    assert re.fullmatch(r"[\d,]+ GFLOP/s in float32: /.*/libscipy_openblas.*", found["blas"]["found"])
    assert found["driver"]["status"] in ("pass", "absent"), "nothing of CUDA is asked for"
    assert all(Path(path).exists() for paths in found["libraries"].values() for path in paths)
    assert {"blas", "hdf5"} <= set(found["libraries"])
    assert list(tmp_path.iterdir()) == [], "it leaves nothing"


@pytest.mark.process
@pytest.mark.compiler
def test_a_python_without_packages_can_ask_too(tmp_path: Path) -> None:
    command = [sys.executable, "-S", REPOSITORY / "scripts/doctor.py", "--json"]
    env = environment(PYTHONPATH=None)
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=300)
    found = {each["name"]: each for each in json.loads(done.stdout)["checks"]}
    assert (done.returncode, found["cpu"]["status"]) == (78, "fail")
    assert found["cpu"]["found"] == "there is no Theano in this Python, so nothing is computed here"
    assert "shardpress needs 3.11 with what make setup installs" in found["cpu"]["fix"]
    assert found["compiler"]["status"] == found["output"]["status"] == "pass"


@pytest.mark.process
@pytest.mark.compiler
def test_without_a_compiler_that_is_what_to_mend(tmp_path: Path) -> None:
    code, found = doctor(tmp_path, PATH="/nonexistent")
    assert code == 1
    assert found["compiler"]["status"] == found["cpu"]["status"] == "fail"
    assert "apt-get install g++" in found["compiler"]["fix"]
    assert "no C++ compiler: g++ was not found" in found["cpu"]["found"]


@pytest.mark.process
@pytest.mark.compiler
def test_a_device_that_was_asked_for_and_is_not_there_is_told_and_the_others_are_tried(tmp_path: Path) -> None:
    code, found = doctor(tmp_path, THEANO_FLAGS="device=cuda103")
    assert code == 1
    assert "device=cuda103 cannot be used: " in found["cuda103"]["found"]
    assert found["cpu"]["status"] == "pass"


@pytest.mark.process
@pytest.mark.compiler
def test_settings_that_theano_does_not_understand_are_told_once_and_apart(tmp_path: Path) -> None:
    code, found = doctor(tmp_path, THEANO_FLAGS="devise=cuda")
    assert code == 78
    assert "Theano has no flag 'devise'. Did you mean device?" in found["cpu"]["found"]
    assert "opencl0:0" not in found


@pytest.mark.process
def test_packages_that_break_everything_are_named_with_what_to_type(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    (broken / "numpy-2.4.6.dist-info").mkdir(parents=True)
    (broken / "numpy.py").write_text("raise ImportError('half installed')")
    code, found = doctor(tmp_path, PYTHONPATH=broken)
    assert code == 78
    assert found["packages"]["found"] == "numpy 2.4.6 is installed, expected <2,>=1.26.4"
    assert found["packages"]["fix"].endswith("-m pip install 'numpy<2,>=1.26.4'")
    assert "half installed" in found["cpu"]["found"]
    assert found["compiler"]["status"] == "pass", "the others are looked at"


@pytest.mark.process
@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("time.sleep(100)", {"failed": "no answer within 2 s"}),
        ("os.abort()", {"failed": "the process that tried it ended with -6: it said nothing"}),
        ("sys.exit('odd version')", {"failed": "the process that tried it ended with 1: odd version"}),
        ("tell(done=True); os.abort()", {}),
    ],
)
def test_a_device_that_hangs_or_crashes_costs_nothing_but_an_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, found: dict[str, Any]
) -> None:
    """What it has told before counts."""
    source = "import json, os, sys, time\ndef tell(**found): print(json.dumps(found), flush=True)\ndef main():\n"
    (tmp_path / "odd_device.py").write_text(f"{source}    print('1', 'noise'); tell(name='Card'); {program}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert collect_reports("odd_device", 2 if "sleep" in program else 60) == {"name": "Card", **found}


@pytest.mark.process
@pytest.mark.compiler
def test_features_that_are_not_numpys_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Model.encode
    monkeypatch.setattr(Model, "encode", lambda model, rows: encode(model, rows) + 1e-3 * np.eye(len(rows), 8))
    failed = [found["failed"] for found in devices._probe() if "failed" in found]
    assert failed == ["its features differ from NumPy's by 0.001, expected 0.0001 at most"]


CARDS = {"card0": {"place": "0000:01:00.0"}, "card1": {"place": "0000:02:00.0"}}


@pytest.mark.parametrize(
    ("chosen", "place", "others"),
    [
        ("cpu", None, ["cuda0", "cuda1", "opencl0:0"]),
        ("cuda", "0000:02:00.0", ["cuda0", "opencl0:0"]),
        ("cuda1", None, ["cuda0", "opencl0:0"]),
        ("opencl0:0", "", ["cuda0", "cuda1"]),
    ],
)
def test_each_device_is_tried_once(
    monkeypatch: pytest.MonkeyPatch, chosen: str, place: str | None, others: list[str]
) -> None:
    monkeypatch.setattr(devices, "find_spec", lambda name: name)
    monkeypatch.setattr(devices, "_can_be_loaded", lambda library: True)
    assert list(devices._other_devices(CARDS, chosen, place)) == others


@pytest.mark.parametrize(
    ("flags", "file", "device"),
    [
        ("", "", "cpu"),
        ("floatX=float32,device=cuda0", "device = cuda1", "cuda0"),
        ("init_gpu_device=cuda0", "device = cuda1", "cuda1"),
        ("device=cpu, device = cuda", "", "cuda"),
        ("", "device=opencl0:0", "opencl0:0"),
        ("", "no such [file", "cpu"),
    ],
)
def test_the_device_of_the_settings_is_known_without_theano(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, file: str, device: str
) -> None:
    (tmp_path / "rc").write_text(f"[global]\n{file}\n")
    monkeypatch.setenv("THEANO_FLAGS", flags)
    monkeypatch.setenv("THEANORC", f"/nowhere:{tmp_path / 'rc'}")
    assert devices.chosen_device() == device


def test_a_card_says_how_fast_it_is_and_a_processor_what_it_multiplies_with() -> None:
    found = {"name": "Card", "seconds": 2.0, "difference": 1e-7, "flops": 5e13}
    card = {**found, "bytes_per_second": {"there": 1.2e10, "back": 6e9}}
    ((check, _),) = devices._checks_of(card, "cuda0", "cpu")
    proof = "Card: compiled anew in 2.0 s; features are NumPy's but for 1e-07"
    assert check.found == f"{proof}; 50,000 GFLOP/s; 12.0 GB/s there and 6.0 back; THEANO_FLAGS=device=cuda0 takes it"
    (blas, _), (check, _) = devices._checks_of({**found, "blas": ""}, "cpu", "cpu")
    assert (blas.status, blas.found) == ("warn", "none is linked, so NumPy's own is called: 50,000 GFLOP/s in float32")
    assert check.found == f"{proof}; a run takes it"


@pytest.mark.process
@pytest.mark.parametrize(
    ("compiler", "says"),
    [
        ("echo 'x.cpp:1: fatal error: Python.h' >&2; exit 1", "cannot compile: x.cpp:1: fatal error: Python.h"),
        ("for last; do :; done; printf '#!/bin/sh\\necho 3.9.2\\n' >$5; chmod +x $5", "has headers of Python 3.9.2"),
        ("echo nothing >$5", "cannot be started in "),
    ],
)
def test_a_compiler_has_to_compile_for_this_python_and_what_it_makes_to_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiler: str, says: str
) -> None:
    program = tmp_path / "odd-g++"
    program.write_text(f"#!/bin/sh\n{compiler}\n")
    program.chmod(0o755)
    monkeypatch.setenv("THEANO_FLAGS", f"cxx={program}")
    check = machine._compiler()
    assert check.status == "fail"
    assert says in check.found
    assert check.fix


def test_a_place_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(dir: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", refuse)
    found = {each.name: each for each in machine.machine_checks(str(tmp_path / "new/features"))}["output"]
    assert (found.status, found.fix) == ("fail", "--output elsewhere")
    assert found.found == f"{tmp_path}: cannot be written, synced or locked: Read-only file system"


@pytest.mark.process
def test_what_cannot_be_looked_at_does_not_hide_the_rest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_arguments: object) -> Check:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    monkeypatch.setattr(machine, "_filters", broken)
    monkeypatch.setattr(machine, "_folder", broken)
    found = {each.name: each for each in (*machine.python_checks(), *machine.machine_checks(str(tmp_path)))}
    for name in ("broken", "output", "temporary"):
        assert "cannot be looked at: UnicodeDecodeError" in found[name].found
    assert {"python", "packages", "compiler", "memory", "open files"} <= set(found)
