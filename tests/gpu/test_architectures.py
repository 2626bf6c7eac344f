"""Tests that the kernels of one network compile for every card. `make soak` compiles the kernels of all networks."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from tests.support.architectures import CAPABILITIES, collect, compile_for, ptx_of

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
