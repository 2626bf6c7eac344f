"""Tests of training by replicas: interruptions do not change the model.

`tests/run/test_same_features.py` trains replicas in worker processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shardpress.training import replica
from tests.support.interruptions import STEPS, FullAfter
from tests.support.standin import Workspace, features_of

pytestmark = pytest.mark.process

FLAGS = ["--replicas", "2", "--batch-size", "4", "--epochs", "3"]


@pytest.fixture(autouse=True)
def on_the_standin(replicas_of_few_rows: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(replica, "start_device", lambda: None)
    replica._replicas.clear()
    yield
    replica._replicas.clear()


def test_replicas_resume_with_the_same_features(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out, *FLAGS) == 0
    assert workspace.run(out.with_name("one"), *FLAGS, "--replicas", "1") == 0
    assert features_of(out.with_name("one")) != features_of(out)
    for n in (1, 5, 8, 11):
        again = out.with_name(f"again{n}")
        assert workspace.run(again, *FLAGS, *STEPS, disk=FullAfter("checkpoint", n)) == 74
        assert workspace.run(again, *FLAGS) == 0
        assert features_of(again) == features_of(out)
