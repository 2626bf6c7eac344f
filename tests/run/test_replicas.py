"""A run that replicas train: the same model whoever trains them, and after any interruption."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster.stats import WorkerStats
from pipeline.cluster.threads import threads
from pipeline.run import deadline, engine
from pipeline.settings import replicas
from pipeline.training import replica
from tests.support.nights import STEPS, Stopping
from tests.support.standin import Night, features_of

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
def few_steps(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many replicas as are asked for, of these few rows, and each of them on the stand-in."""
    monkeypatch.setattr(replicas, "_LEAST_STEPS", 2)
    monkeypatch.setattr(replicas, "_LEAST_ROUNDS", 6)
    monkeypatch.setattr(replicas, "_FEWEST_STEPS", 1)
    monkeypatch.setattr(replica, "start_device", lambda: None)
    monkeypatch.setattr(replica, "_replicas", {})


def test_whoever_trains_the_replicas_makes_the_same_features(
    night: Night, out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out, *FLAGS) == 0
    assert "training: one replica in the first epoch, then 2 that meet 4 times an epoch" in caplog.text
    monkeypatch.setattr(engine, "open_pool", lambda *_: nullcontext(OtherWorkers()))
    assert night.run(out.with_name("others"), *FLAGS) == 0
    assert features_of(out.with_name("others")) == features_of(out)
    assert "52 rows in memory" in caplog.text
    assert "52 rows streamed" in caplog.text, "nobody else needs all of them"
    (worker,) = json.loads((out.with_name("others") / "report.json").read_text())["cluster"]["workers"]
    assert worker["stages"]["training"]["n_tasks"] == 3 * 8
    assert night.run(out.with_name("one"), *FLAGS, "--replicas", "1") == 0
    assert features_of(out.with_name("one")) != features_of(out)


def test_devices_that_wait_while_the_processor_trains_are_told(
    night: Night, out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine, "open_pool", lambda *_: nullcontext(OtherWorkers()))
    for name, told, flags in [
        ("one", True, ["--devices", "cuda0", "--replicas", "1"]),
        ("two", False, ["--devices", "cuda0"]),
        ("cpu", False, ["--devices", "cpu", "--replicas", "1"]),
    ]:
        caplog.clear()
        assert night.run(out.with_name(name), *FLAGS, *flags) == 0
        assert ("while --devices wait" in caplog.text) == told, name


def test_p5_a_run_by_replicas_that_stops_anywhere_goes_on_to_the_same_features(night: Night, out: Path) -> None:
    assert night.run(out, *FLAGS) == 0
    for n in (1, 5, 8, 11):
        again = out.with_name(f"again{n}")
        assert night.run(again, *FLAGS, *STEPS, disk=Stopping("checkpoint", n)) == 74
        assert night.run(again, *FLAGS) == 0
        assert features_of(again) == features_of(out)


def test_more_replicas_than_have_steps_enough_are_fewer_and_that_is_said(
    night: Night, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert night.run(out, *FLAGS, "--replicas", "64") == 0
    assert "replicas: 8, as each of 64 would take too few steps," in caplog.text


def test_how_many_epochs_fit_is_decided_by_the_pace_of_all_replicas(
    night: Night, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first epoch, which one of them trains, says nothing of those that workers share."""
    asked, seconds_of = list[tuple[int, int, float]](), deadline._epoch_seconds

    def epoch_seconds(training: Any) -> float:
        now = training.standing
        now.seconds = 25.0 if now.epoch == 1 else now.seconds  # so far
        asked.append((now.epoch, now.n_done, seconds_of(training)))
        return asked[-1][-1]

    monkeypatch.setattr(deadline, "_epoch_seconds", epoch_seconds)
    monkeypatch.setattr(deadline, "_encoding_seconds", lambda *_: 0.0)
    assert night.run(out, *FLAGS, "--epochs", "4", "--max-hours", "1") == 0
    assert asked[0] == (1, 2, pytest.approx(78, rel=0.3)), "one of three rounds"
    assert [epoch for epoch, _, _ in asked] == [1, 2, 3]
