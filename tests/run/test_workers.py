"""Runs whose tasks go to other processes: the same bits, and nobody else hears or says a word."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.killing import features_of
from tests.support.processes import DEADLINE, Small, ends_well

pytestmark = pytest.mark.process


def listening(pid: int) -> Iterator[tuple[int, str]]:
    """Every address at which a process, or one below it, waits for others."""
    with suppress(psutil.Error):  # it has ended meanwhile
        above = psutil.Process(pid)
        for process in (above, *above.children(recursive=True)):
            with suppress(psutil.Error):
                found = process.net_connections("inet")
                yield from ((process.pid, each.laddr.ip) for each in found if each.status == psutil.CONN_LISTEN)


def test_k10_local_workers_make_the_same_bits_and_listen_on_the_loopback_alone(small: Small, tmp_path: Path) -> None:
    process, heard, end = small.program().start(tmp_path / "out", "--workers", "2"), set(), time.monotonic() + DEADLINE
    while process.poll() is None and time.monotonic() < end:
        heard |= set(listening(process.pid))
        time.sleep(0.02)
    said = ends_well(process)  # also: the last one that could still write to this pipe has gone
    assert features_of(tmp_path / "out") == small.features
    assert {address for _, address in heard} == {"127.0.0.1"}, said
    assert len({pid for pid, _ in heard}) == 5, "the scheduler, two workers, and what starts them anew"
    assert [line for line in said.splitlines() if " INFO " not in line and not line.startswith("Done: ")] == []
