"""Tests of each CUDA check: it reports the fault with advice."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from shardpress.doctor import cuda
from shardpress.doctor.check import Check
from shardpress.doctor.cuda import cuda_checks, newest_ptx

CARD = {"name": "NVIDIA T4", "place": "0000:01:00.0", "capability": [7, 5], "free": 14 * 10**9, "total": 16 * 10**9}
WORKING: dict[str, Any] = {
    "libgpuarray": {"files": ["/venv/lib/libgpuarray.so.3.0"]},
    "cublas": {"files": ["/venv/libcublas.so.12"], "version": [12, 6, 4]},
    "nvrtc": {"files": ["/venv/libnvrtc.so.12"], "version": [12, 6], "ptx": [8, 5]},
    "driver": {"files": ["/usr/lib/libcuda.so.570"], "version": [12, 8], "n_cards": 1, "jit": True},
    "card0": CARD,
}
MISSING = {"error": "libcuda.so: cannot open shared object file"}


@pytest.fixture(autouse=True)
def hide_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the cards and drivers of this machine."""
    monkeypatch.delenv("CUDA_DISABLE_PTX_JIT", raising=False)
    monkeypatch.setattr(cuda, "_PCI_DEVICES", str(tmp_path))
    monkeypatch.setattr(cuda, "_users", list)


def found_of(is_wanted: bool = True, **changed: Any) -> dict[str, Check]:
    found = deepcopy(WORKING) | changed
    checks = {each.name: each for each in cuda_checks(found, is_wanted) if each.name != "pygpu"}
    assert all(each.fix for each in checks.values() if each.status in ("fail", "warn"))
    return checks


def test_passing_checks_name_versions_and_files() -> None:
    found = found_of()
    assert {each.status for each in found.values()} == {"pass"}
    assert "CUDA 12.8" in found["driver"].found
    assert found["driver"].found.endswith(": /usr/lib/libcuda.so.570")
    assert "PTX 8.5" in found["nvrtc"].found
    assert "8.7" in found["nvrtc"].found
    assert found["nvrtc"].found.endswith(": /venv/libnvrtc.so.12")
    for part in ("NVIDIA T4", "7.5", "0000:01:00.0", "14.0", "16.0 GB"):
        assert part in found["card0"].found
    assert list(found) == ["libgpuarray", "driver", "nvrtc", "cublas", "card0"]


@pytest.mark.parametrize(
    ("version", "ptx"),
    [
        ((11, 8), (7, 8)),
        ((12, 0), (8, 0)),
        ((12, 2), (8, 2)),
        ((12, 4), (8, 4)),
        ((12, 5), (8, 5)),
        ((12, 6), (8, 5)),
        ((12, 8), (8, 7)),
        ((12, 9), (8, 8)),
        ((13, 0), (9, 0)),
        ((13, 5), (9, 5)),
    ],
)
def test_newest_ptx_of_each_version_of_cuda_is_known(version: tuple[int, int], ptx: tuple[int, int]) -> None:
    assert newest_ptx(version) == ptx


@pytest.mark.parametrize("driver", [[12, 4], [13, 0]])
def test_ptx_newer_than_the_driver_is_a_fault(driver: list[int]) -> None:
    newer = {**WORKING["nvrtc"], "ptx": [9, 1]}
    check = found_of(nvrtc=newer, driver={**WORKING["driver"], "version": driver})["nvrtc"]
    assert check.status == "fail"
    assert "NVRTC" in check.fix
    for version, ptx in (([12, 5], [8, 5]), ([12, 6], [8, 5])):  # a newer NVRTC is accepted if its PTX is not newer
        changed = {"driver": {**WORKING["driver"], "version": version}, "nvrtc": {**WORKING["nvrtc"], "ptx": ptx}}
        assert found_of(**changed)["nvrtc"].status == "pass"


def test_missing_driver_is_the_only_finding_unless_requested(tmp_path: Path) -> None:
    missing = {"driver": MISSING, "nvrtc": MISSING, "cublas": MISSING, "card0": None}
    nothing = {name: value for name, value in {**WORKING, **missing}.items() if value}
    checks = cuda_checks(nothing, is_wanted=False)
    found = {each.name: each for each in checks if each.name not in ("pygpu", "libgpuarray")}
    assert found == {"driver": Check("driver", "absent", found["driver"].found)}
    assert "libcuda.so.1" in found["driver"].found
    card = tmp_path / "0000:01:00.0"
    card.mkdir()
    (card / "class").write_text("0x030200\n")
    (card / "vendor").write_text("0x10de\n")
    found = {each.name: each for each in cuda_checks(nothing, is_wanted=True)}
    assert "(0000:01:00.0)" in found["driver"].found
    assert "apt-get install nvidia-driver" in found["driver"].fix
    assert {found[name].status for name in ("driver", "nvrtc", "cublas")} == {"fail"}


def test_faults_of_cuda_are_warnings_unless_it_is_requested() -> None:
    for is_wanted, status in ((True, "fail"), (False, "warn")):
        found = found_of(is_wanted, nvrtc=MISSING, card0={**CARD, "error": "cannot be opened: error 46"})
        assert {name for name, each in found.items() if each.status == status} == {"nvrtc", "card0"}


@pytest.mark.parametrize(
    ("driver", "phrase"),
    [
        ({"error": "cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)"}, "cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
        ({"n_cards": 0}, "no card"),
    ],
)
def test_driver_that_fails_to_start_or_sees_no_card_fails(driver: dict[str, Any], phrase: str) -> None:
    check = found_of(driver={**WORKING["driver"], **driver})["driver"]
    assert check.status == "fail"
    assert phrase in check.found
    assert "--gpus all" in check.fix


def test_disabled_jit_of_the_driver_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    no_card = {**WORKING["driver"], "n_cards": 0, "jit": False}
    check = found_of(driver=no_card)["kernels"]
    assert "libnvidia-ptxjitcompiler.so.1" in check.found
    assert "kernels" not in found_of(driver={**WORKING["driver"], "jit": False}), (
        "a card works, so the driver works as well"
    )
    monkeypatch.setenv("CUDA_DISABLE_PTX_JIT", "1")
    check = found_of()["kernels"]
    assert check.status == "fail"
    assert check.found.startswith("CUDA_DISABLE_PTX_JIT ")


@pytest.mark.parametrize(
    ("answers", "fix"),
    [
        ({"error": "the driver refuses NVRTC's kernel: error 221", "code": 221}, "libnvidia-ptxjitcompiler.so.1"),
        (
            {"error": "the driver refuses NVRTC's kernel: error 222", "code": 222},
            "NVRTC",
        ),
        ({"error": "the driver refuses NVRTC's kernel: error 223", "code": 223}, "unset CUDA_DISABLE_PTX_JIT"),
        ({"error": "NVRTC makes no kernel of compute_10: INVALID"}, "NVRTC"),
        ({"error": "cannot be opened: error 46"}, "nvidia-smi"),
    ],
)
def test_card_that_accepts_no_kernel_comes_with_a_fix(answers: dict[str, Any], fix: str) -> None:
    check = found_of(card0={**CARD, **answers})["card0"]
    assert check.status == "fail"
    assert fix in check.fix


def test_hanging_driver_keeps_earlier_findings() -> None:
    found = found_of(driver={"files": ["/usr/lib/libcuda.so.570"]}, failed="no answer within 60 s")
    assert (found["cuda"].status, found["cuda"].found) == ("fail", "no answer within 60 s")
    assert "PTX 8.5" in found["nvrtc"].found
    assert found["nvrtc"].found.endswith(": /venv/libnvrtc.so.12")


@pytest.mark.process
def test_processes_on_a_card_are_named_by_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    program = tmp_path / "nvidia-smi"
    lines = "4711, python3, 2000 MiB, 00000000:01:00.0\\n4712, other, 1 MiB, 00000000:02:00.0\\nodd\\n"
    program.write_text(f"#!/bin/sh\nprintf '{lines}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    check = {each.name: each for each in cuda_checks(WORKING, is_wanted=True)}["card0"]
    for part in ("16.0 GB", "python3 (4711)", "2000 MiB"):
        assert part in check.found
    assert "4712" not in check.found
    program.write_text("#!/bin/sh\nexit 9\n")
    assert cuda._users() == []
