"""Tests of deadlines: a run trains as many epochs as fit, the same number after an interruption, and reports it.

Sample: two of three numbers of epochs, and interruptions at three of five or six steps; with TEST_CASES=all every one.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shardpress.result import Result
from shardpress.run import deadline
from shardpress.run.estimate import reserved_seconds
from shardpress.settings.config import Config
from shardpress.settings.deadline import deadline_of
from shardpress.training.epochs import Limit
from tests.support.cases import case, each, sample
from tests.support.interruptions import STEPS, FullAfter
from tests.support.logged import mentions
from tests.support.standin import Workspace, features_of

NOON = datetime(2026, 3, 4, 12, 0)
MANY_EPOCHS = ["--epochs", "8", "--patience", "0"]
EPOCH = 100.0  # seconds
ENCODING = 40.0  # seconds
SHORT_EPOCHS = ["--batch-size", "5"]
STEPS_PER_EPOCH = 11
RESERVED = reserved_seconds(ENCODING, 4)


@each(
    "settings, after",
    [
        ({"finish_by": "13:30"}, timedelta(hours=1.5)),
        ({"finish_by": "06:00"}, timedelta(hours=18)),
        ({"finish_by": "12:00"}, timedelta(days=1)),
        ({"finish_by": "2026-03-06 12:00"}, timedelta(days=2)),
        ({"finish_by": "+0.5h"}, timedelta(minutes=30)),
        ({"finish_by": "+8h"}, timedelta(hours=8)),
    ],
)
def test_the_deadline_follows_the_time_settings(settings: dict[str, Any], after: timedelta) -> None:
    assert deadline_of(Config.of(**settings).timing, NOON.timestamp()) == (NOON + after).timestamp()


def test_there_is_no_deadline_by_default() -> None:
    assert deadline_of(Config().timing, NOON.timestamp()) is None


@each("time, code", [("25:00", 64), ("six", 64), ("2026-13-01 06:00", 64), ("2020-01-31 06:00", 78)])
def test_an_invalid_or_past_time_is_refused(workspace: Workspace, out: Path, time: str, code: int) -> None:
    assert workspace.run(out, "--finish-by", time) == code
    assert not out.exists()


class Machine:
    """Durations of a step and of the encoding, with a clock that only steps advance."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps_take(EPOCH / STEPS_PER_EPOCH)
        self.encodings = [ENCODING]  # successive measurements; the last one is repeated
        self.restart()
        self.now = time.time()
        call = deadline.DeadlinePolicy.after_step

        def after_step(policy: deadline.DeadlinePolicy, training: Any) -> Limit | None:
            self.n_steps += 1
            seconds = self._step(training.state.epoch)
            self.now += seconds
            self._epochs[training.state.epoch] += seconds
            limit = call(policy, training)
            if limit is not None:
                self.plans.append(limit.n_epochs)
            return limit

        clock = SimpleNamespace(time=lambda: self.now, monotonic=lambda: self.now)
        monkeypatch.setattr(time, "time", clock.time)
        monkeypatch.setattr(deadline, "time", clock)
        monkeypatch.setattr(deadline.DeadlinePolicy, "after_step", after_step)
        monkeypatch.setattr(deadline, "_timed_epochs", self._timed_epochs)
        monkeypatch.setattr(deadline, "_encoding_seconds", self._encoding)

    def steps_take(self, seconds: float | Callable[[int], float]) -> None:
        """Let each step take this long, which can depend on its epoch."""
        self._step = seconds if callable(seconds) else lambda epoch: seconds

    def restart(self) -> None:
        """Forget the run so far."""
        self.n_measured = 0
        self.n_steps = 0
        self.plans: list[int] = []
        self._epochs: dict[int, float] = defaultdict(float)

    def _timed_epochs(self, training: Any) -> list[float]:
        return [self._epochs[epoch] for epoch in range(training.state.epoch)]

    def _encoding(self, *_arguments: Any) -> float:
        self.n_measured += 1
        return self.encodings[min(self.n_measured, len(self.encodings)) - 1]

    def flags(self, n_epochs: float, *more: str) -> list[str]:
        """Return flags that leave time for `n_epochs` epochs before the encoding."""
        seconds = RESERVED + n_epochs * EPOCH
        return [*MANY_EPOCHS, *SHORT_EPOCHS, "--finish-by", f"+{seconds / 3600!r}h", *more]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def training_of(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = Result.open(output).report()["training"]
    return found


def training_after(workspace: Workspace, out: Path, flags: list[str]) -> dict[str, Any]:
    """Run with these flags, and return the facts about the training."""
    assert workspace.run(out, *flags) == 0
    return training_of(out)


@pytest.mark.slow
def test_a_deadline_equals_a_run_of_the_epochs_that_fit(
    workspace: Workspace, tmp_path: Path, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    for n_epochs in sample((2, 3, 7), 2):
        machine.restart()
        out = tmp_path / f"by{n_epochs}"
        other = tmp_path / f"of{n_epochs}"
        with case(n_epochs):
            assert workspace.run(out, *machine.flags(n_epochs + 0.5)) == 0
            assert workspace.run(other, "--epochs", str(n_epochs), "--patience", "0", *SHORT_EPOCHS) == 0
            assert features_of(out) == features_of(other)
            chosen = training_of(out)["deadline"]
            assert (chosen["n_epochs"], chosen["of"]) == (n_epochs, 8)
            costs = [[line["cost"] for line in training_of(each)["history"]] for each in (out, other)]
            assert costs[0] == costs[1]
            assert mentions(Result.open(out).facts.summary["gave_up"], f"{n_epochs} of 8")
            assert mentions(caplog.text, f"deadline: {n_epochs} of 8")


# -- interrupted runs ------------------------------------------------------------------------------------------------


def test_an_interrupted_run_uses_what_is_left_of_its_time(workspace: Workspace, out: Path, machine: Machine) -> None:
    flags = machine.flags(6.5, *STEPS)
    n_steps = 2 * STEPS_PER_EPOCH + 1
    assert workspace.run(out, *flags, disk=FullAfter("checkpoint", n_steps)) == 74
    assert machine.plans == [6]
    assert "of 6 epochs" in workspace.plan(out, *flags).facts["model"]
    machine.now += 2 * EPOCH
    training = training_after(workspace, out, flags)
    assert training["deadline"]["n_epochs"] == len(training["history"]) == 4


# Epochs in the time before the deadline, flags of the second run, seconds between both, and the time from the start of
# the first run to the deadline of the second one, in epochs.
SECOND_RUNS = {
    "the same": (100, [], 50 * EPOCH, 100 * EPOCH),
    "another deadline": (200, [], 50 * EPOCH, 250 * EPOCH),
    "restarted": (100, ["--restart"], 1000, 100 * EPOCH + 1000),
    "passed": (100, [], 10**6, 100 * EPOCH + 10**6),
}


@pytest.mark.parametrize("kind", SECOND_RUNS)
def test_hours_count_from_the_first_start(workspace: Workspace, out: Path, machine: Machine, kind: str) -> None:
    n_epochs, flags, seconds, expected = SECOND_RUNS[kind]
    start = machine.now
    assert workspace.run(out, *machine.flags(100), disk=FullAfter("scan", 1)) == 74
    machine.now = start + seconds
    training = training_after(workspace, out, machine.flags(n_epochs, *flags))
    ends_by = datetime.fromisoformat(training["deadline"]["ends_by"]).timestamp()
    assert ends_by == pytest.approx(start + RESERVED + expected, abs=1)


@pytest.mark.slow
def test_a_resumed_run_ends_training_at_the_same_step(workspace: Workspace, tmp_path: Path, machine: Machine) -> None:
    flags = machine.flags(0.55, *STEPS)
    expected = tmp_path / "expected"
    assert workspace.run(expected, *flags) == 0
    for n_commits in sample(range(1, 7), 3):  # steps; the last one is that at the end
        out = tmp_path / str(n_commits)
        machine.restart()
        with case(n_commits):
            assert workspace.run(out, *flags, disk=FullAfter("checkpoint", n_commits)) == 74
            assert workspace.run(out, *flags) == 0
            assert training_of(out)["history"][0]["cost"] == training_of(expected)["history"][0]["cost"]
            assert training_of(out)["deadline"]["last_epoch_part"] == 6 / STEPS_PER_EPOCH
            assert features_of(out) == features_of(expected)


def test_results_with_a_deadline_differ_from_results_without(workspace: Workspace, out: Path, machine: Machine) -> None:
    flags = machine.flags(3.5)
    assert workspace.run(out, *flags) == 0
    assert workspace.run(out, *MANY_EPOCHS, *SHORT_EPOCHS) == 78
    # The deadline differs, but the earlier decision is kept.
    assert len(training_after(workspace, out, machine.flags(6.5))["history"]) == 3
    assert len(training_after(workspace, out, [*MANY_EPOCHS, *SHORT_EPOCHS, "--overwrite"])["history"]) == 8


# -- epochs and measurements of other durations ------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """A number of epochs that fit if all epochs are equal, and what differs from that."""

    n_epochs: float
    of: int = 8  # configured epochs
    pace: Callable[[int], float] = lambda epoch: 1  # duration of each epoch, relative to `EPOCH`
    encoding: float = 1  # first measurement of the encoding, relative to the later ones
    plan: int = 8  # first number of epochs
    n_steps: int | None = None  # steps that are taken in the end, if they are exactly known


SCENARIOS = {
    "late": Scenario(100, n_steps=8 * STEPS_PER_EPOCH),
    "slower": Scenario(7.5, pace=lambda epoch: 1 if epoch < 2 else 2, plan=7),
    "a load on four epochs": Scenario(30.5, 40, pace=lambda epoch: 3 if 2 <= epoch < 6 else 1, plan=30),
    "a load that comes and goes": Scenario(60, 80, pace=lambda epoch: 1 if epoch // 3 % 2 else 2, plan=29),
    "less than an epoch": Scenario(0.55, plan=1, n_steps=6),
    "within the second epoch": Scenario(2.5, pace=lambda epoch: 0.99 if epoch < 1 else 1.98, plan=2, n_steps=19),
    "a disturbed measurement": Scenario(4.5, encoding=20, plan=4, n_steps=4 * STEPS_PER_EPOCH),
    "a disturbed measurement at the end": Scenario(0.95, encoding=2.25, plan=1, n_steps=10),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_training_uses_its_time_and_ends_early_enough(
    workspace: Workspace, out: Path, machine: Machine, name: str
) -> None:
    scenario = SCENARIOS[name]
    ends_by = machine.now + RESERVED + scenario.n_epochs * EPOCH
    machine.steps_take(lambda epoch: EPOCH / STEPS_PER_EPOCH * scenario.pace(epoch))
    machine.encodings = [scenario.encoding * ENCODING, ENCODING]
    training = training_after(workspace, out, machine.flags(scenario.n_epochs, "--epochs", f"{scenario.of}"))
    assert machine.plans[0] == scenario.plan
    assert scenario.n_steps in (None, machine.n_steps)
    n_trained = machine.n_steps / STEPS_PER_EPOCH
    assert len(training["history"]) == math.ceil(n_trained)
    gave_up = Result.open(out).facts.summary["gave_up"]
    left = ends_by - machine.now - RESERVED
    assert left >= 0
    if n_trained == scenario.of:
        assert gave_up == ""
    else:
        assert left < 2 * EPOCH
        assert mentions(gave_up, f"{n_trained:.3g} of {scenario.of}")
    turns = np.count_nonzero(np.diff(np.sign(np.diff(machine.plans[:-10]))))
    assert turns <= 3, machine.plans


@pytest.mark.process
def test_a_training_without_time_ends_after_one_step_with_a_warning(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    no_time = ["--finish-by", "+1e-7h"]
    training = training_after(workspace, out, [*MANY_EPOCHS, *no_time])
    assert (len(training["history"]), training["deadline"]["n_epochs"]) == (1, 1)
    assert training["deadline"]["last_epoch_part"] == 1 / 3
    assert workspace.run(out.with_name("encoded"), "--model", str(out), *no_time) == 0
    late = [line for line in caplog.records if line.levelname == "WARNING" and "deadline: " in line.getMessage()]
    assert len(late) == 2
