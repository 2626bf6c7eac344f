"""Tests of resuming a training run from its last valid checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.formats import pack, unpack
from shardpress.output.files import unique_name
from shardpress.output.journal import Record
from shardpress.output.lock import locked
from tests.support.cases import each
from tests.support.interruptions import DAMAGE, STEPS, FullAfter
from tests.support.logged import resumed_step
from tests.support.protocol import leftovers, records
from tests.support.standin import Workspace, features_of

N_CHECKPOINTS = 4  # two epochs of two steps


def checkpoints(output: Path) -> list[Path]:
    return [output / each["entry"]["file"] for each in records(output) if each["key"].startswith("checkpoint")]


@pytest.mark.slow
def test_training_resumes_after_its_last_checkpoint(
    workspace: Workspace, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    for n_steps in (1, N_CHECKPOINTS):
        output = out.with_name(str(n_steps))
        assert workspace.run(output, *STEPS, disk=FullAfter("checkpoint", n_steps)) == 74
        assert len(checkpoints(output)) == min(n_steps, 3), n_steps
        caplog.clear()
        assert workspace.run(output, *STEPS) == 0, n_steps
        assert resumed_step(caplog.text) == n_steps
        assert features_of(output) == expected(), n_steps
        assert leftovers(output) == [], n_steps


@pytest.mark.slow
@each("kind, n_damaged, step", [("deleted", 1, 2), ("truncated", 3, None), ("emptied", 1, 2), ("flipped", 2, 1)])
def test_training_resumes_after_the_last_intact_checkpoint(
    workspace: Workspace,
    out: Path,
    expected: Callable[..., bytes],
    caplog: pytest.LogCaptureFixture,
    kind: str,
    n_damaged: int,
    step: int | None,
) -> None:
    output = out.with_name(kind)
    assert workspace.run(output, *STEPS, disk=FullAfter("checkpoint", 3)) == 74
    damaged = checkpoints(output)[-n_damaged:]
    for path in damaged:
        DAMAGE[kind](path)
    caplog.clear()
    assert workspace.run(output, *STEPS) == 0
    assert all(f"file={path}: " in caplog.text for path in damaged)
    assert resumed_step(caplog.text) == step
    assert features_of(output) == expected()


def replace_last_checkpoint(output: Path, arrays: Any = (), progress: Any = (), **changes: Any) -> None:
    """Replace the last checkpoint by one with other arrays, another progress or other facts."""
    with locked(output) as journal:
        *_, last = journal.records("checkpoint")
        found, about = unpack(journal.load(last))
        journal.withdraw(last)
        about = {**about, "progress": {**about["progress"], **dict(progress)}, **changes}
        entry = journal.write(unique_name("work/checkpoint", ".npz"), pack({**found, **dict(arrays)}, about))
        journal.add(Record(last.key, last.fingerprint, entry, last.facts))


FORGED: dict[str, dict[str, Any]] = {
    "of another width": {"arrays": {"parameters/W": np.zeros((4, 3), np.float32)}},
    "not finite": {"arrays": {"best/W": np.full((4, 2), np.nan, np.float32)}},
    "epoch below 0": {"progress": {"epoch": -1}},
    "steps after the last": {"progress": {"n_done": 10**18}},
    "step of another record": {"n_steps": 2},
}


@pytest.mark.slow
@each("kind", FORGED)
def test_an_invalid_checkpoint_is_ignored(
    workspace: Workspace, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    output = out.with_name(kind)
    assert workspace.run(output, *STEPS, disk=FullAfter("checkpoint", 3)) == 74
    replace_last_checkpoint(output, **FORGED[kind])
    caplog.clear()
    assert workspace.run(output, *STEPS) == 0
    assert resumed_step(caplog.text) == 2
    assert features_of(output) == expected()
