"""Tests of training by replicas: the model does not depend on the workers, or on interruptions."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from shardpress.cluster.stats import WorkerStats
from shardpress.cluster.threads import threads
from shardpress.result import Result
from shardpress.run import deadline, engine
from shardpress.settings import replicas
from shardpress.training import replica
from tests.support.interruptions import STEPS, FullAfter
from tests.support.logged import mentions
from tests.support.standin import Workspace, features_of

pytestmark = pytest.mark.process

FLAGS = ["--replicas", "2", "--batch-size", "4", "--epochs", "3"]


class OtherWorkers:
    """A pool whose workers make their own replicas: threads that count as a remote worker."""

    is_local = False
    n_local_processes = 1

    def __init__(self) -> None:
        self.stats = WorkerStats()

    @contextmanager
    def executor(self, n_threads: int) -> Iterator[tuple[Executor, int]]:
        with threads(3) as pool:
            pool.stats = self.stats  # type: ignore[attr-defined]
            yield pool, 3

    def facts(self) -> dict[str, Any]:
        return {"kind": "others", "workers": self.stats.summary()}


@pytest.fixture(autouse=True)
def few_steps(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Allow the requested number of replicas for these few rows, each of them on the stand-in."""
    monkeypatch.setattr(replicas, "_MIN_STEPS", 2)
    monkeypatch.setattr(replicas, "_MIN_ROUNDS", 6)
    monkeypatch.setattr(replicas, "_MIN_STEPS_PER_ROUND", 1)
    monkeypatch.setattr(replica, "start_device", lambda: None)
    replica._replicas.clear()
    yield
    replica._replicas.clear()


def test_features_do_not_depend_on_the_processes_of_replicas(
    workspace: Workspace, out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out, *FLAGS) == 0
    assert mentions(caplog.text, "training:", 2, "4 times")
    monkeypatch.setattr(engine, "open_pool", lambda *_: nullcontext(OtherWorkers()))
    assert workspace.run(out.with_name("others"), *FLAGS) == 0
    assert features_of(out.with_name("others")) == features_of(out)
    assert "52 rows in memory" in caplog.text
    assert "52 rows streamed" in caplog.text, "workers do not need all rows in memory"
    (worker,) = Result.open(out.with_name("others")).report()["cluster"]["workers"]
    assert worker["stages"]["training"]["n_tasks"] == 3 * 8
    assert workspace.run(out.with_name("one"), *FLAGS, "--replicas", "1") == 0
    assert features_of(out.with_name("one")) != features_of(out)


def test_devices_that_idle_during_training_cause_a_warning(
    workspace: Workspace, out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine, "open_pool", lambda *_: nullcontext(OtherWorkers()))
    for name, is_warned, flags in [
        ("one", True, ["--devices", "cuda0", "--replicas", "1"]),
        ("two", False, ["--devices", "cuda0"]),
        ("cpu", False, ["--devices", "cpu", "--replicas", "1"]),
    ]:
        caplog.clear()
        assert workspace.run(out.with_name(name), *FLAGS, *flags) == 0
        assert any("--devices" in line for line in caplog.messages) == is_warned, name


def test_replicas_resume_with_the_same_features(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out, *FLAGS) == 0
    for n in (1, 5, 8, 11):
        again = out.with_name(f"again{n}")
        assert workspace.run(again, *FLAGS, *STEPS, disk=FullAfter("checkpoint", n)) == 74
        assert workspace.run(again, *FLAGS) == 0
        assert features_of(again) == features_of(out)


def test_replicas_with_too_few_steps_are_reduced(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out, *FLAGS, "--replicas", "64") == 0
    assert mentions(caplog.text, "replicas: using 8", 64)


def test_the_deadline_uses_the_speed_of_all_replicas(
    workspace: Workspace, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first epoch, which one replica trains, does not show the speed of epochs that workers share."""
    timed_epochs = deadline._timed_epochs
    counts: list[tuple[int, int]] = []

    def counted(training: Any) -> list[float]:
        counts.append((training.state.epoch, len(timed_epochs(training))))
        return timed_epochs(training)

    monkeypatch.setattr(deadline, "_timed_epochs", counted)
    monkeypatch.setattr(deadline, "_encoding_seconds", lambda *_: 0.0)
    assert workspace.run(out, *FLAGS, "--epochs", "4", "--finish-by", "+1h") == 0
    assert set(counts) == {(0, 0), (1, 0), (2, 1), (3, 2)}
