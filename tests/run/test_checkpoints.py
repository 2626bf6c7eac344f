"""Tests of resuming a training run from its last valid checkpoint."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.formats import pack, unpack
from shardpress.output.files import unique_name
from shardpress.output.journal import Record
from shardpress.output.lock import locked
from tests.support.interruptions import DAMAGE, STEPS, FullAfter
from tests.support.logged import resumed_step
from tests.support.soak_protocol import (
    leftovers,
    records,
)
from tests.support.standin import Workspace, features_of

N_CHECKPOINTS = 4  # two epochs of two steps


def checkpoints(output: Path) -> list[Path]:
    return [output / each["entry"]["file"] for each in records(output) if each["key"].startswith("checkpoint")]


@pytest.mark.slow
def test_training_resumes_after_its_last_checkpoint(
    workspace: Workspace, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    for n_steps in range(1, N_CHECKPOINTS + 1):
        output = out.with_name(str(n_steps))
        assert workspace.run(output, *STEPS, disk=FullAfter("checkpoint", n_steps)) == 74
        assert len(checkpoints(output)) == min(n_steps, 3), n_steps
        caplog.clear()
        assert workspace.run(output, *STEPS) == 0, n_steps
        assert resumed_step(caplog.text) == n_steps
        assert features_of(output) == expected(), n_steps
        assert leftovers(output) == [], n_steps


@pytest.mark.slow
@pytest.mark.parametrize(("n_damaged", "step"), [(1, 2), (3, None)])
def test_training_resumes_after_the_last_intact_checkpoint(
    workspace: Workspace,
    out: Path,
    expected: Callable[..., bytes],
    caplog: pytest.LogCaptureFixture,
    n_damaged: int,
    step: int | None,
) -> None:
    for damage in DAMAGE:
        output = out.with_name(damage)
        assert workspace.run(output, *STEPS, disk=FullAfter("checkpoint", 3)) == 74, damage
        damaged = checkpoints(output)[-n_damaged:]
        for path in damaged:
            DAMAGE[damage](path)
        caplog.clear()
        assert workspace.run(output, *STEPS) == 0, damage
        assert all(f"file={path}: " in caplog.text for path in damaged), damage
        assert resumed_step(caplog.text) == step, damage
        assert features_of(output) == expected(), damage
        assert leftovers(output) == [], damage


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--n-features", "1"], ["--seed", "1"], ["--optimizer", "momentum"]], ids=" ".join)
def test_a_checkpoint_of_other_settings_is_ignored(
    workspace: Workspace, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture, flags: list[str]
) -> None:
    assert workspace.run(out, *STEPS, disk=FullAfter("checkpoint", 3)) == 74
    caplog.clear()
    assert workspace.run(out, *STEPS, *flags, "--overwrite") == 0
    assert resumed_step(caplog.text) is None
    assert features_of(out) == expected(*flags)


def forged(data: bytes, kind: str) -> bytes:
    """Return the file of a checkpoint with a change of this kind."""
    arrays, about = unpack(data)
    if kind == "no archive":
        return b"nothing"
    if kind == "too long":
        return data + bytes(2**25)
    if kind == "compressed":
        buffer = io.BytesIO()
        text = np.frombuffer(json.dumps([list(arrays), about]).encode(), dtype=np.uint8)
        np.savez_compressed(buffer, about=text, **arrays)
        return buffer.getvalue()
    if kind == "no number of steps":
        return pack(arrays, {"progress": about["progress"]})
    if kind in PROGRESS:
        return pack(arrays, {**about, "progress": {**about["progress"], **PROGRESS[kind]}})
    if kind in ABOUT:
        return pack(arrays, {**about, **ABOUT[kind]})
    return pack({**arrays, **ARRAYS[kind]}, about)


ARRAYS: dict[str, dict[str, np.ndarray]] = {
    "of another width": {"parameters/W": np.zeros((4, 3), np.float32)},
    "not finite": {"best/W": np.full((4, 2), np.nan, np.float32)},
    "of another dtype": {"state/W_velocity": np.zeros((4, 2))},
    "more arrays": {"state/more": np.zeros(2, np.float32)},
}
PROGRESS: dict[str, dict[str, Any]] = {
    "epoch below 0": {"epoch": -1},
    "epoch after the last": {"epoch": 10**6},
    "steps after the last": {"n_done": 10**18},
    "many epochs": {"n_epochs": 10**9},
    "list for an optimizer": {"optimizer": []},
}
ABOUT: dict[str, dict[str, Any]] = {
    "no progress": {"progress": {}},
    "list for progress": {"progress": []},
    "step below 0": {"n_steps": -1},
    "step after the last": {"n_steps": 10**18},
    "step of another record": {"n_steps": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["no archive", "too long", "compressed", "no number of steps", *ARRAYS, *PROGRESS, *ABOUT]
)
def test_an_invalid_checkpoint_is_ignored(
    workspace: Workspace, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    assert workspace.run(out, *STEPS, disk=FullAfter("checkpoint", 3)) == 74
    with locked(out) as journal:
        *_, last = journal.records("checkpoint")
        data = journal.load(last)
        journal.withdraw(last)
        entry = journal.write(unique_name("work/checkpoint", ".npz"), forged(data, kind))
        journal.add(Record(last.key, last.fingerprint, entry, last.facts))
    caplog.clear()
    assert workspace.run(out, *STEPS) == 0
    assert any(record.levelname == "WARNING" and "checkpoint" in record.getMessage() for record in caplog.records)
    assert resumed_step(caplog.text) == 2
    assert features_of(out) == expected()


def test_a_checkpoint_of_a_forged_step_is_ignored(
    workspace: Workspace, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """The record and the file agree on a step that the training does not have."""
    assert workspace.run(out, *STEPS, disk=FullAfter("checkpoint", 3)) == 74
    with locked(out) as journal:
        *_, last = journal.records("checkpoint")
        arrays, about = unpack(journal.load(last))
        step = 10**12 - 1
        entry = journal.write(unique_name("work/checkpoint", ".npz"), pack(arrays, {**about, "n_steps": step}))
        journal.add(Record(f"checkpoint-{step}", last.fingerprint, entry, last.facts))
    caplog.clear()
    assert workspace.run(out, *STEPS) == 0
    assert resumed_step(caplog.text) == 3
    assert features_of(out) == expected()
