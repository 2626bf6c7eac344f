"""What a step of training asks of a card's driver: nothing is waited for, and nothing crosses the bus that need not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import device_child as child
from tests.support.cuda.stub import variables
from tests.support.interpreters import REPOSITORY, environment

pytestmark = pytest.mark.process

MINIBATCH = {"streamed": child.BATCH * child.N_INPUTS, "uploaded": 8 * child.BATCH}  # bytes: rows, or their numbers
NOISE = child.BATCH * child.N_INPUTS
SCALARS = 64  # bytes: rates and counts of the update rule
WAITING = ("Synchronize", "DtoH", "download")


@pytest.mark.parametrize("place", MINIBATCH)
def test_a_step_waits_for_nothing_and_uploads_its_minibatch_alone(pygpu: None, tmp_path: Path, place: str) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-W", "error", "tests/support/steps_child.py", place, "5", log]
    env = environment(THEANO_FLAGS="device=cuda", **variables(True, log=log))
    done = subprocess.run(command, env=env, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _, with_cost, first, *steps, _ = (each.splitlines() for each in log.read_text().split("step\n"))
    assert any("DtoH" in call for call in with_cost), "so waiting is told apart"
    assert first
    assert len(steps) == 3
    for calls in steps:
        assert [call for call in calls if any(word in call for word in WAITING)] == []
        assert not any(call.startswith("cuMemAlloc") for call in calls), "what it needs is there already"
        n_products = len([call for call in calls if call.startswith("cublasSgemm")])
        assert n_products == 6 * child.NETWORKS["relu"].n_layers - 1
        n_bytes = sum(int(call.split()[1]) for call in calls if call.startswith("upload "))
        assert MINIBATCH[place] + NOISE <= n_bytes <= MINIBATCH[place] + NOISE + SCALARS
