"""What a step of training asks of a card's driver: nothing is waited for, and nothing crosses the bus that need not."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
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


def calls_of(place: str, n_steps: int, log: Path) -> Counter[str]:
    """The driver's calls, and what the stub did, in a training of so many steps."""
    command = [sys.executable, "-W", "error", "tests/support/steps_child.py", place, str(n_steps)]
    env = environment(THEANO_FLAGS="device=cuda", **variables(True, log=log))
    done = subprocess.run(command, env=env, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Counter(log.read_text().splitlines())


@pytest.mark.parametrize("place", MINIBATCH)
def test_a_step_waits_for_nothing_and_uploads_its_minibatch_alone(pygpu: None, tmp_path: Path, place: str) -> None:
    fewer, more = (calls_of(place, n, tmp_path / f"{n}.log") for n in (3, 5))
    of_two_steps = more - fewer
    assert [call for call in of_two_steps if any(word in call for word in WAITING)] == []
    assert not any(call.startswith("cuMemAlloc") for call in of_two_steps), "what it needs is there already"
    n_products = sum(n for call, n in of_two_steps.items() if call.startswith("cublasSgemm"))
    assert n_products == 2 * (6 * child.NETWORKS["relu"].n_layers - 1)
    uploads = {call: n for call, n in of_two_steps.items() if call.startswith("upload ")}
    n_bytes = sum(int(call.split()[1]) * n for call, n in uploads.items())
    assert 2 * (MINIBATCH[place] + NOISE) <= n_bytes <= 2 * (MINIBATCH[place] + NOISE + SCALARS)
