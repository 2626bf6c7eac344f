"""Tests of deadlines: a run trains as many epochs as fit, the same number after an interruption, and reports it.

Sample: two of three numbers of epochs, and interruptions at three of five or six steps; with TEST_CASES=all every one.
"""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shardpress.result import Result
from shardpress.run import deadline
from shardpress.settings.config import Config
from shardpress.settings.deadline import deadline_of, in_words
from shardpress.settings.kinds import hours_of
from shardpress.training.epochs import Limit
from tests.support.cases import case, each, sample
from tests.support.interruptions import STEPS, FullAfter
from tests.support.logged import mentions, resumed_step
from tests.support.standin import Workspace, features_of

NOON = datetime(2026, 3, 4, 12, 0)
MANY_EPOCHS = ["--epochs", "8", "--patience", "0"]
EPOCH = 100.0  # seconds
ENCODING = 40.0  # seconds
SHORT_EPOCHS = ["--batch-size", "5"]
STEPS_PER_EPOCH = 11


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


@each("time", ["25:00", "six", "2026-13-01 06:00"])
def test_an_invalid_time_is_refused(workspace: Workspace, out: Path, time: str) -> None:
    assert workspace.run(out, "--finish-by", time) == 64


class Machine:
    """Durations of an epoch, a step and the encoding, with a clock that only steps and measurements advance."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.epoch = EPOCH
        self.step = 0.0
        self.encodings = [ENCODING]  # successive measurements; the last one is repeated
        self.restart()
        self._monkeypatch = monkeypatch
        real_time = time.time
        call = deadline.DeadlinePolicy.after_step
        self._now = lambda: real_time() + self._passed

        def after_step(policy: deadline.DeadlinePolicy, training: Any) -> Limit | None:
            self.n_steps += 1
            self._passed += self.step
            return call(policy, training)

        clock = SimpleNamespace(time=lambda: self._now(), monotonic=lambda: self._passed)
        monkeypatch.setattr(deadline, "time", clock)
        monkeypatch.setattr(deadline.DeadlinePolicy, "after_step", after_step)
        monkeypatch.setattr(deadline, "_epoch_seconds", lambda training: self.epoch)
        monkeypatch.setattr(deadline, "_encoding_seconds", self._encoding)

    def steps_take(self, seconds: float) -> None:
        """Let each step take this long, and everything else no time."""
        start = time.time()
        self.step = seconds
        self._now = lambda: start + self._passed
        self._monkeypatch.setattr(time, "time", self._now)

    def restart(self) -> None:
        """Reset counts and clock before another run."""
        self.n_measured = 0
        self.n_steps = 0
        self._passed = 0.0

    def _encoding(self, *_arguments: Any) -> float:
        self.n_measured += 1
        return self.encodings[min(self.n_measured, len(self.encodings)) - 1]

    def flags(self, n_epochs: float, *more: str) -> list[str]:
        """Return flags of a deadline that allows about `n_epochs` epochs; the first one takes no time."""
        reserve = deadline.reserved_seconds(ENCODING)
        seconds = reserve + (n_epochs - 1) * self.epoch / 0.9
        return [*MANY_EPOCHS, "--finish-by", f"+{seconds / 3600!r}h", *more]

    def hours(self, n_epochs: float, *more: str) -> list[str]:
        """Return flags that leave time for `n_epochs` epochs before the actual encoding."""
        seconds = deadline.reserved_seconds(ENCODING) + n_epochs * self.epoch
        return [*MANY_EPOCHS, *SHORT_EPOCHS, "--finish-by", f"+{seconds / 3600!r}h", *more]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def training_of(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = Result.open(output).report()["training"]
    return found


@pytest.mark.slow
def test_a_deadline_equals_a_run_of_the_epochs_that_fit(
    workspace: Workspace, tmp_path: Path, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    for n_epochs in sample((2, 3, 7), 2):
        out = tmp_path / f"by{n_epochs}"
        other = tmp_path / f"of{n_epochs}"
        with case(n_epochs):
            assert workspace.run(out, *machine.flags(n_epochs + 0.5)) == 0
            assert workspace.run(other, "--epochs", str(n_epochs), "--patience", "0") == 0
            assert features_of(out) == features_of(other)
            chosen = training_of(out)["deadline"]
            assert (chosen["n_epochs"], chosen["of"]) == (n_epochs, 8)
            costs = [[line["cost"] for line in training_of(each)["history"]] for each in (out, other)]
            assert costs[0] == costs[1]
            words = Result.open(out).facts.summary["gave_up"]
            assert mentions(words, f"{n_epochs} of 8")
            assert mentions(caplog.text, f"deadline: {n_epochs} of 8")
            assert words in (out / "run.log").read_text()


def test_a_late_deadline_keeps_all_epochs(workspace: Workspace, out: Path, machine: Machine) -> None:
    assert workspace.run(out, *machine.flags(100)) == 0
    assert training_of(out)["deadline"]["n_epochs"] == len(training_of(out)["history"]) == 8
    assert Result.open(out).facts.summary["gave_up"] == ""


@pytest.mark.slow
def test_an_interrupted_run_keeps_its_epochs_and_its_deadline(
    workspace: Workspace, tmp_path: Path, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    expected = tmp_path / "expected"
    assert workspace.run(expected, *machine.flags(3.5)) == 0
    ends_by = None
    for n_steps in sample(range(4, 9), 3):  # the first one is in the epoch in which the number is determined
        out = tmp_path / str(n_steps)
        machine.epoch = EPOCH
        flags = machine.flags(3.5)
        with case(n_steps):
            assert workspace.run(out, *flags, *STEPS, disk=FullAfter("checkpoint", n_steps)) == 74
            plan = workspace.plan(out, *flags)
            assert "of 3 epochs" in plan.earlier["training"]
            assert float(plan.stages[2].what.split()[0]) <= 3
            machine.epoch = 1.0  # allows many epochs now
            caplog.clear()
            assert workspace.run(out, *flags, *STEPS) == 0
            assert resumed_step(caplog.text) is not None
            assert "deadline: " not in caplog.text
            assert features_of(out) == features_of(expected)
            ends_by = datetime.fromisoformat(training_of(out)["deadline"]["ends_by"]).timestamp()
            assert ends_by < time.time() + 3600 * hours_of(flags[flags.index("--finish-by") + 1])


def test_hours_count_from_the_first_start(
    workspace: Workspace, out: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    flags = machine.flags(100)
    before = time.time()
    seconds = 3600 * hours_of(flags[flags.index("--finish-by") + 1])
    assert workspace.run(out, *flags, disk=FullAfter("scan", 1)) == 74
    monkeypatch.setattr(time, "time", lambda: now() + seconds / 2)
    plan = workspace.plan(out, *flags)
    assert any(in_words(before + seconds + later) in plan.stages[2].what for later in (0, 60))  # to the minute
    assert workspace.run(out, *flags) == 0
    ends_by = datetime.fromisoformat(training_of(out)["deadline"]["ends_by"]).timestamp()
    assert before - 1 <= ends_by - seconds < before + seconds / 4


def test_a_changed_deadline_replaces_the_earlier_one(workspace: Workspace, out: Path, machine: Machine) -> None:
    assert workspace.run(out, *machine.flags(100), disk=FullAfter("scan", 1)) == 74
    assert workspace.run(out, *machine.flags(200)) == 0
    ends_by = datetime.fromisoformat(training_of(out)["deadline"]["ends_by"]).timestamp()
    assert ends_by > time.time() + 150 * EPOCH


def test_restarting_renews_the_deadline(
    workspace: Workspace, out: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    flags = machine.flags(100)
    assert workspace.run(out, *flags, disk=FullAfter("scan", 1)) == 74
    monkeypatch.setattr(time, "time", lambda: now() + 1000)
    assert workspace.run(out, *flags, "--restart") == 0
    ends_by = datetime.fromisoformat(training_of(out)["deadline"]["ends_by"]).timestamp()
    assert ends_by > now() + 999 + 3600 * hours_of(flags[flags.index("--finish-by") + 1]) - 60


def test_a_deadline_that_has_passed_is_renewed(
    workspace: Workspace, out: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flags = machine.flags(3.5)
    assert workspace.run(out, *flags, *STEPS, disk=FullAfter("checkpoint", 5)) == 74
    now = time.time
    day = 86400
    monkeypatch.setattr(time, "time", lambda: now() + day)
    assert workspace.run(out, *flags, *STEPS) == 0
    assert any(record.levelname == "WARNING" and "deadline: " in record.getMessage() for record in caplog.records)
    assert training_of(out)["deadline"]["n_epochs"] == 3


def test_epochs_slower_than_estimated_become_fewer(
    workspace: Workspace, out: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def slower(training: Any) -> float:
        return EPOCH if training.state.epoch < 2 else 2 * EPOCH

    flags = machine.flags(5.5)
    monkeypatch.setattr(deadline, "_epoch_seconds", slower)
    assert workspace.run(out, *flags) == 0
    assert any(record.levelname == "WARNING" and "deadline: " in record.getMessage() for record in caplog.records)
    assert 2 < len(training_of(out)["history"]) < 5


def test_a_part_of_the_first_epoch_is_trained(
    workspace: Workspace, out: Path, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.steps_take(EPOCH / STEPS_PER_EPOCH)
    assert workspace.run(out, *machine.hours(0.55)) == 0
    facts = training_of(out)
    assert machine.n_steps == 6
    assert facts["deadline"]["last_epoch_part"] == 6 / STEPS_PER_EPOCH
    assert len(facts["history"]) == 1
    assert np.isfinite(facts["history"][0]["cost"])
    assert mentions(Result.open(out).facts.summary["gave_up"], "0.545 of 8")
    assert mentions(caplog.text, "deadline:", 1, "of 8")


def test_progress_never_exceeds_its_total(
    workspace: Workspace, out: Path, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "shardpress")
    machine.steps_take(EPOCH / STEPS_PER_EPOCH)
    for n_epochs in (0.01, 0.55, 1.55):
        caplog.clear()
        machine.restart()
        with case(n_epochs):
            assert workspace.run(out, *machine.hours(n_epochs), "--restart") == 0
            lines = [record.getMessage() for record in caplog.records if " rows" in record.getMessage()]
            counts = [re.search(r"training: (\d+)/(\d+) rows,.* epoch (\d+)/(\d+)", line) for line in lines]
            (found,) = filter(None, counts)
            assert found[1] == found[2] != "0"
            assert int(found[3]) <= int(found[4])


def test_the_same_steps_give_the_same_features(workspace: Workspace, tmp_path: Path, machine: Machine) -> None:
    machine.steps_take(EPOCH / STEPS_PER_EPOCH)
    outputs = [tmp_path / str(number) for number in range(2)]
    for out in outputs:
        machine.restart()
        assert workspace.run(out, *machine.hours(0.55)) == 0
    shorter = tmp_path / "shorter"
    machine.restart()
    assert workspace.run(shorter, *machine.hours(0.35)) == 0
    assert features_of(outputs[0]) == features_of(outputs[1]) != features_of(shorter)


@pytest.mark.slow
def test_a_resumed_run_ends_training_at_the_same_step(workspace: Workspace, tmp_path: Path, machine: Machine) -> None:
    machine.steps_take(EPOCH / STEPS_PER_EPOCH)
    flags = machine.hours(0.55, *STEPS)
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


def test_a_deadline_can_end_training_within_an_epoch(workspace: Workspace, out: Path, machine: Machine) -> None:
    machine.steps_take(15.0)  # so that the 11 steps of an epoch take longer than its assumed duration
    assert workspace.run(out, *machine.hours(1.55)) == 0
    facts = training_of(out)
    assert facts["deadline"]["n_epochs"] == len(facts["history"]) == 1
    assert machine.n_steps == 10
    assert facts["deadline"]["last_epoch_part"] == 10 / STEPS_PER_EPOCH


def test_one_disturbed_measurement_of_the_encoding_is_corrected(
    workspace: Workspace, out: Path, machine: Machine
) -> None:
    machine.steps_take(EPOCH / STEPS_PER_EPOCH)
    machine.encodings = [20 * ENCODING, ENCODING]
    assert workspace.run(out, *machine.hours(4.5)) == 0
    assert training_of(out)["deadline"]["n_epochs"] >= 3
    assert training_of(out)["deadline"]["reserved_seconds"] == deadline.reserved_seconds(ENCODING)


def test_a_training_that_ends_early_measures_the_encoding_again(
    workspace: Workspace, out: Path, machine: Machine
) -> None:
    machine.steps_take(EPOCH / STEPS_PER_EPOCH)
    machine.encodings = [ENCODING + EPOCH / 2, ENCODING + EPOCH / 2, ENCODING]  # a slow start that lasts
    assert workspace.run(out, *machine.hours(0.95)) == 0
    assert machine.n_steps == 10


def test_a_training_without_time_ends_after_one_step(workspace: Workspace, out: Path, machine: Machine) -> None:
    for n_features in ("2", "3"):
        machine.restart()
        assert workspace.run(out / n_features, *MANY_EPOCHS, "--finish-by", "+1e-7h", "--n-features", n_features) == 0
        facts = training_of(out / n_features)
        assert machine.n_steps == 1
        assert (len(facts["history"]), facts["deadline"]["n_epochs"]) == (1, 1)
        assert 0 < facts["deadline"]["last_epoch_part"] < 1


@pytest.mark.process
def test_a_run_that_misses_its_deadline_causes_a_warning(
    workspace: Workspace, out: Path, tmp_path: Path, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out, *MANY_EPOCHS, "--finish-by", "+1e-7h") == 0
    assert any(record.levelname == "WARNING" and "deadline: " in record.getMessage() for record in caplog.records)
    caplog.clear()
    options = ["--model", str(out), "--finish-by", "+1e-7h"]
    assert workspace.run(tmp_path / "more", *options) == 0
    assert any(record.levelname == "WARNING" and "deadline: " in record.getMessage() for record in caplog.records)


def test_a_date_in_the_past_is_refused(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out, "--finish-by", "2020-01-31 06:00") == 78
    assert not out.exists()


def test_results_with_a_deadline_differ_from_results_without(workspace: Workspace, out: Path, machine: Machine) -> None:
    flags = machine.flags(3.5)
    assert workspace.run(out, *flags) == 0
    assert workspace.run(out, *MANY_EPOCHS) == 78
    assert workspace.run(out, *machine.flags(6.5)) == 0  # the deadline differs, but the earlier decision is kept
    assert len(training_of(out)["history"]) == 3
    assert workspace.run(out, *MANY_EPOCHS, "--overwrite") == 0
    assert len(training_of(out)["history"]) == 8
