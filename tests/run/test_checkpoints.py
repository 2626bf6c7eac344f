"""Test of resuming a training run from its last valid checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.base.formats import pack, unpack
from shardpress.output.folder import unique_name
from shardpress.output.journal import Record
from shardpress.output.lock import locked
from tests.support.cases import each
from tests.support.interruptions import STEPS, FullAfter, flip, undisturbed_features
from tests.support.logged import resumed_step
from tests.support.protocol import records
from tests.support.standin import Workspace, features_of


def flip_last_two(output: Path) -> None:
    files = [each["entry"]["file"] for each in records(output) if each["key"].startswith("checkpoint")]
    for file in files[-2:]:
        flip(output / file)


def replace_last(output: Path, arrays: Any = (), progress: Any = ()) -> None:
    """Replace the last checkpoint by one with other arrays or another progress."""
    with locked(output) as journal:
        *_, last = journal.records("checkpoint")
        found, about = unpack(journal.load(last))
        journal.withdraw(last)
        about = {**about, "progress": {**about["progress"], **dict(progress)}}
        entry = journal.write(unique_name("work/checkpoint", ".npz"), pack({**found, **dict(arrays)}, about))
        journal.add(Record(last.key, last.fingerprint, entry, last.n_epochs, last.of_epochs))


# What happens to the three checkpoints, and the step after which the training resumes.
BAD: dict[str, tuple[Callable[[Path], None], int]] = {
    "flipped": (flip_last_two, 1),
    "not finite": (partial(replace_last, arrays={"best/W": np.full((4, 2), np.nan, np.float32)}), 2),
    "steps after the last": (partial(replace_last, progress={"n_done": 10**18}), 2),
}


@pytest.mark.slow
@each("kind", BAD)
def test_an_invalid_checkpoint_is_ignored(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    output = out.with_name(kind)
    assert workspace.run(output, *STEPS, disk=FullAfter("checkpoint", 3)) == 74
    spoil, step = BAD[kind]
    spoil(output)
    caplog.clear()
    assert workspace.run(output, *STEPS) == 0
    assert resumed_step(caplog.text) == step
    assert features_of(output) == undisturbed_features(workspace)
