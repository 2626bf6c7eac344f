"""Tests of the driver calls of a training step: it does not wait, and transfers only the necessary data.

Sample: one of Theano's two linkers; with TEST_CASES=all both.
"""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

import pytest

from tests.support import device_child as child
from tests.support.cases import ALL_CASES
from tests.support.cuda.stub import variables
from tests.support.interpreters import run_python
from tests.support.steps_child import N_EACH, STEPS_PER_CALL

pytestmark = pytest.mark.process

NOISE = N_EACH * child.BATCH * child.N_INPUTS  # bytes of a piece
PIECE = {"streamed": NOISE, "uploaded": 8 * N_EACH * child.BATCH}  # bytes: rows with one byte per entry, or row numbers
NUMBERS = 4 * N_EACH * child.BATCH  # bytes of the targets, and of the numbers of features that the decoder gets
N_OF_HEAD = 4  # products of a head, see test_devices.py
SCALARS = 20  # bytes for each step: its rate, its length, the rule's count and the factor of the head's errors
WAITING = ("Synchronize", "DtoH", "download")


def uploads(calls: list[str]) -> list[int]:
    """Return the size of each upload in bytes."""
    return [int(call.split()[1]) for call in calls if call.startswith("upload ")]


@pytest.mark.parametrize("more_flags", ["", ",linker=vm"] if ALL_CASES else [""])
def test_steps_do_not_wait_and_have_their_minibatches_uploaded(pygpu: None, tmp_path: Path, more_flags: str) -> None:
    log = tmp_path / "log"
    code = f"from tests.support import steps_child\nsteps_child.main({str(log)!r})"
    run_python(code, THEANO_FLAGS=f"device=cuda{more_flags}", **variables(True, log=log))
    marked = re.split(r"^(\w+ piece|\w+ steps)\n", log.read_text(), flags=re.MULTILINE)
    sections = [(name, calls.splitlines()) for name, calls in zip(marked[1::2], marked[2::2], strict=True)]
    for place, n_bytes in PIECE.items():
        pieces = [calls for name, calls in sections if name == f"{place} piece"]
        with_cost, first, *others, _ = (calls for name, calls in sections if name == f"{place} steps")
        assert len(pieces) == len(STEPS_PER_CALL)
        assert any("DtoH" in call for call in with_cost), "the log shows waits, so the test works"
        assert first
        for n, calls in zip(list(chain.from_iterable(STEPS_PER_CALL))[2:], others, strict=True):
            assert [call for call in calls if any(word in call for word in WAITING)] == []
            assert not any(call.startswith("cuMemAlloc") for call in calls), "no memory is allocated"
            n_products = len([call for call in calls if call.startswith("cublasSgemm")])
            assert n_products == n * (6 * child.NETWORKS["leaky"].n_layers - 1 + N_OF_HEAD)
            assert sum(uploads(calls)) <= n * SCALARS
        for i, calls in enumerate(pieces):
            assert sorted(uploads(calls)) == sorted([n_bytes, NOISE, NUMBERS, NUMBERS])
            assert [call for call in calls if any(word in call for word in WAITING)] == []
            assert i < 2 or not any(call.startswith("cuMemAlloc") for call in calls), "memory for two pieces is enough"
