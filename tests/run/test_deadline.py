"""Tests of deadlines: a run trains as many epochs as fit, the same number after an interruption, and reports it.

Sample: interruptions at two of six steps; with TEST_CASES=all at every one.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shardpress.model.about import TrainingFacts
from shardpress.report.summary import report_of
from shardpress.result.finished import Result
from shardpress.run import deadline
from shardpress.run.estimate import reserved_seconds
from shardpress.settings.kinds import deadline_of
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
    "finish_by, after",
    [
        ("13:30", timedelta(hours=1.5)),
        ("06:00", timedelta(hours=18)),
        ("12:00", timedelta(days=1)),
        ("2026-03-06 12:00", timedelta(days=2)),
        ("+0.5h", timedelta(minutes=30)),
    ],
)
def test_the_deadline_follows_the_time_settings(finish_by: str, after: timedelta) -> None:
    assert deadline_of(finish_by, NOON.timestamp()) == (NOON + after).timestamp()


class Machine:
    """Durations of a step and of the encoding, with a clock that only steps advance."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.step: Callable[[int], float] = lambda epoch: EPOCH / STEPS_PER_EPOCH
        self.encodings = [ENCODING]  # successive measurements; the last one is repeated
        self.restart()
        self.now = time.time()
        call = deadline.DeadlinePolicy.after_step

        def after_step(policy: deadline.DeadlinePolicy, training: Any) -> Limit | None:
            self.n_steps += 1
            seconds = self.step(training.state.epoch)
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

    def restart(self) -> None:
        """Forget the run so far."""
        self.n_steps = 0
        self.plans: list[int] = []
        self._epochs: dict[int, float] = defaultdict(float)

    def _timed_epochs(self, training: Any) -> list[float]:
        return [self._epochs[epoch] for epoch in range(training.state.epoch)]

    def _encoding(self, *_arguments: Any) -> float:
        return self.encodings.pop(0) if len(self.encodings) > 1 else self.encodings[0]

    def flags(self, n_epochs: float, *more: str) -> list[str]:
        """Return flags that leave time for `n_epochs` epochs before the encoding."""
        seconds = RESERVED + n_epochs * EPOCH
        return [*MANY_EPOCHS, *SHORT_EPOCHS, "--finish-by", f"+{seconds / 3600!r}h", *more]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def training_of(output: Path) -> TrainingFacts:
    training = report_of(Result.open(output)).training
    assert training is not None
    return training


def training_after(workspace: Workspace, out: Path, flags: list[str]) -> TrainingFacts:
    """Run with these flags, and return the facts about the training."""
    assert workspace.run(out, *flags) == 0
    return training_of(out)


def test_a_deadline_equals_a_run_of_the_epochs_that_fit(workspace: Workspace, tmp_path: Path, machine: Machine) -> None:
    out = tmp_path / "by"
    other = tmp_path / "of"
    assert workspace.run(out, *machine.flags(3.5)) == 0
    assert workspace.run(other, "--epochs", "3", "--patience", "0", *SHORT_EPOCHS) == 0
    assert features_of(out) == features_of(other)
    chosen = training_of(out).deadline
    assert (chosen.n_epochs, chosen.of) == (3, 8)
    costs = [[epoch.cost for epoch in training_of(each).history] for each in (out, other)]
    assert costs[0] == costs[1]
    assert mentions(report_of(Result.open(out)).summary.gave_up, "3 of 8")
    # The deadline differs, but the earlier decision is kept.
    assert workspace.run(out, *MANY_EPOCHS, *SHORT_EPOCHS) == 78
    assert len(training_after(workspace, out, machine.flags(6.5)).history) == 3


# -- interrupted runs ------------------------------------------------------------------------------------------------


def test_an_interrupted_run_uses_what_is_left_of_its_time(workspace: Workspace, out: Path, machine: Machine) -> None:
    """Hours count from the first start, unless the user starts over."""
    flags = machine.flags(6.5, *STEPS)
    n_steps = 2 * STEPS_PER_EPOCH + 1
    assert workspace.run(out, *flags, disk=FullAfter("checkpoint", n_steps)) == 74
    assert machine.plans == [6]
    assert "of 6 epochs" in workspace.plan(out, *flags).facts["model"]
    machine.now += 2 * EPOCH
    training = training_after(workspace, out, flags)
    assert training.deadline.n_epochs == len(training.history) == 4
    machine.restart()
    assert len(training_after(workspace, out, [*flags, "--restart"]).history) == 6


@pytest.mark.slow
def test_a_resumed_run_ends_training_at_the_same_step(workspace: Workspace, tmp_path: Path, machine: Machine) -> None:
    flags = machine.flags(0.55, *STEPS)
    expected = tmp_path / "expected"
    assert workspace.run(expected, *flags) == 0
    for n_commits in sample(range(1, 7), 2):  # steps; the last one is that at the end
        out = tmp_path / str(n_commits)
        machine.restart()
        with case(n_commits):
            assert workspace.run(out, *flags, disk=FullAfter("checkpoint", n_commits)) == 74
            assert workspace.run(out, *flags) == 0
            assert training_of(out).history[0].cost == training_of(expected).history[0].cost
            assert training_of(out).deadline.last_epoch_part == 6 / STEPS_PER_EPOCH
            assert features_of(out) == features_of(expected)


# -- epochs and measurements of other durations ------------------------------------------------------------------------


# Epochs that fit if all are equal; configured epochs; duration of each epoch, relative to `EPOCH`; first measurement of
# the encoding, relative to the later ones; first number of epochs; steps in the end, if they are exactly known.
SCENARIOS: dict[str, tuple[float, int, Callable[[int], float], float, int, int | None]] = {
    "late": (100, 8, lambda epoch: 1, 1, 8, 8 * STEPS_PER_EPOCH),
    "slower": (7.5, 8, lambda epoch: 1 if epoch < 2 else 2, 1, 7, None),
    "a load that comes and goes": (60, 80, lambda epoch: 1 if epoch // 3 % 2 else 2, 1, 29, None),
    "less than an epoch": (0.55, 8, lambda epoch: 1, 1, 1, 6),
    "within the second epoch": (2.5, 8, lambda epoch: 0.99 if epoch < 1 else 1.98, 1, 2, 19),
    "a disturbed measurement": (0.95, 8, lambda epoch: 1, 2.25, 1, 10),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_training_uses_its_time_and_ends_early_enough(
    workspace: Workspace, out: Path, machine: Machine, name: str
) -> None:
    n_epochs, of, pace, encoding, plan, n_steps = SCENARIOS[name]
    ends_by = machine.now + RESERVED + n_epochs * EPOCH
    machine.step = lambda epoch: EPOCH / STEPS_PER_EPOCH * pace(epoch)
    machine.encodings = [encoding * ENCODING, ENCODING]
    training = training_after(workspace, out, machine.flags(n_epochs, "--epochs", f"{of}"))
    assert machine.plans[0] == plan
    assert n_steps in (None, machine.n_steps)
    n_trained = machine.n_steps / STEPS_PER_EPOCH
    assert len(training.history) == math.ceil(n_trained)
    gave_up = report_of(Result.open(out)).summary.gave_up
    left = ends_by - machine.now - RESERVED
    assert left >= 0
    if n_trained == of:
        assert gave_up == ""
    else:
        assert left < 2 * EPOCH
        assert mentions(gave_up, f"{n_trained:.3g} of {of}")
    turns = np.count_nonzero(np.diff(np.sign(np.diff(machine.plans[:-10]))))
    assert turns <= 3, machine.plans


@pytest.mark.process
def test_a_training_without_time_ends_after_one_step_with_a_warning(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    no_time = ["--finish-by", "+1e-7h"]
    training = training_after(workspace, out, [*MANY_EPOCHS, *no_time])
    assert (len(training.history), training.deadline.n_epochs) == (1, 1)
    assert training.deadline.last_epoch_part == 1 / 3
    assert workspace.run(out.with_name("encoded"), "--model", str(out), *no_time) == 0
    late = [line for line in caplog.records if line.levelname == "WARNING" and "deadline: " in line.getMessage()]
    assert len(late) == 2
