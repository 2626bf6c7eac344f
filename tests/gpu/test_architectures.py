"""Tests that the kernels of one network compile for every card. `make soak` compiles the kernels of all networks."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from tests.support.architectures import CAPABILITIES, collect, compile_for, problems_of, ptx_of

pytestmark = pytest.mark.process

WHEEL = Path(sysconfig.get_path("purelib"))


@pytest.mark.usefixtures("pygpu")
def test_kernels_compile_for_old_and_new_cards(tmp_path: Path) -> None:
    sources = collect(tmp_path, "leaky")
    assert len(sources) > 50
    oldest, newest = compile_for(WHEEL, sources, [CAPABILITIES[0], CAPABILITIES[-1]])
    assert (oldest.n, oldest.failed, oldest.targets) == (len(sources), {}, ["sm_75"])
    assert (newest.n, newest.failed, newest.targets) == (len(sources), {}, ["sm_90"]), "the driver compiles it further"
    assert oldest.versions == newest.versions == [ptx_of(newest.nvrtc)], "a driver of the same CUDA version accepts it"


def test_failed_compilation_is_reported_for_each_card(tmp_path: Path) -> None:
    (tmp_path / "right.cu").write_text("__global__ void f(int *x) { *x = 1; }")
    (tmp_path / "wrong.cu").write_text("__global__ void f(int *x) { *x = nothing; }")
    (found,) = compile_for(WHEEL, sorted(tmp_path.glob("*.cu")), ["10.0"])
    assert list(found.failed) == ["wrong.cu"]
    (line,) = problems_of(found)
    assert line.startswith(f"NVRTC {found.nvrtc}, capability 10.0: wrong.cu: error 6: ")
    assert '"nothing"' in line


@pytest.mark.parametrize(
    ("cuda", "ptx"),
    [("12.0", "8.0"), ("12.4", "8.4"), ("12.6", "8.5"), ("12.9", "8.8"), ("13.0", "9.0"), ("13.5", "9.5")],
)
def test_ptx_version_of_each_cuda_is_known(cuda: str, ptx: str) -> None:
    assert ptx_of(cuda) == ptx
