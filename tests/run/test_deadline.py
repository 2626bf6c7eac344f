"""Tests of deadlines: a run trains as many epochs as fit, the same number after an interruption, and reports it.

Sample: two of three numbers of epochs, and interruptions at three of five or six steps; with TEST_CASES=all every one.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shardpress.result import Result
from shardpress.run import deadline, plan
from shardpress.run.estimate import reserved_seconds
from shardpress.settings.config import Config
from shardpress.settings.deadline import deadline_of, in_words
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


@each("time", ["25:00", "six", "2026-13-01 06:00"])
def test_an_invalid_time_is_refused(workspace: Workspace, out: Path, time: str) -> None:
    assert workspace.run(out, "--finish-by", time) == 64


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
            words = Result.open(out).facts.summary["gave_up"]
            assert mentions(words, f"{n_epochs} of 8")
            assert mentions(caplog.text, f"deadline: {n_epochs} of 8")
            assert words in (out / "run.log").read_text()


def test_a_late_deadline_keeps_all_epochs(workspace: Workspace, out: Path, machine: Machine) -> None:
    assert workspace.run(out, *machine.flags(100)) == 0
    assert training_of(out)["deadline"]["n_epochs"] == len(training_of(out)["history"]) == 8
    assert Result.open(out).facts.summary["gave_up"] == ""


def test_an_interrupted_run_uses_what_is_left_of_its_time(workspace: Workspace, out: Path, machine: Machine) -> None:
    flags = machine.flags(6.5, *STEPS)
    ends_by = machine.now + RESERVED + 6.5 * EPOCH
    n_steps = 2 * STEPS_PER_EPOCH + 1
    assert workspace.run(out, *flags, disk=FullAfter("checkpoint", n_steps)) == 74
    assert machine.plans == [6]
    assert "of 6 epochs" in workspace.plan(out, *flags).facts["model"]
    machine.now += 2 * EPOCH
    assert workspace.run(out, *flags) == 0
    facts = training_of(out)
    assert facts["deadline"]["n_epochs"] == len(facts["history"]) == 4
    assert datetime.fromisoformat(facts["deadline"]["ends_by"]).timestamp() == pytest.approx(ends_by, abs=1)


def test_hours_count_from_the_first_start(workspace: Workspace, out: Path, machine: Machine) -> None:
    flags = machine.flags(100)
    before = machine.now
    seconds = RESERVED + 100 * EPOCH
    assert workspace.run(out, *flags, disk=FullAfter("scan", 1)) == 74
    machine.now += seconds / 2
    assert in_words(before + seconds) in workspace.plan(out, *flags).stages[2].what
    assert workspace.run(out, *flags) == 0
    ends_by = datetime.fromisoformat(training_of(out)["deadline"]["ends_by"]).timestamp()
    assert before - 1 <= ends_by - seconds < before + seconds / 4


def test_a_plan_does_not_count_its_own_time(
    workspace: Workspace, out: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_device = plan.start_device

    def start_slowly(is_required: bool = False) -> Any:
        machine.now += 1e6
        return start_device(is_required)

    monkeypatch.setattr(plan, "start_device", start_slowly)
    training = workspace.plan(out, *machine.flags(100)).stages[2]
    assert training.what.startswith("8 of 8 epochs")


def test_a_changed_deadline_replaces_the_earlier_one(workspace: Workspace, out: Path, machine: Machine) -> None:
    assert workspace.run(out, *machine.flags(100), disk=FullAfter("scan", 1)) == 74
    assert workspace.run(out, *machine.flags(200)) == 0
    ends_by = datetime.fromisoformat(training_of(out)["deadline"]["ends_by"]).timestamp()
    assert ends_by > time.time() + 150 * EPOCH


def test_restarting_renews_the_deadline(workspace: Workspace, out: Path, machine: Machine) -> None:
    flags = machine.flags(100)
    assert workspace.run(out, *flags, disk=FullAfter("scan", 1)) == 74
    machine.now += 1000
    start = machine.now
    assert workspace.run(out, *flags, "--restart") == 0
    ends_by = datetime.fromisoformat(training_of(out)["deadline"]["ends_by"]).timestamp()
    assert ends_by == pytest.approx(start + RESERVED + 100 * EPOCH, abs=1)


def test_a_deadline_that_has_passed_is_renewed(
    workspace: Workspace, out: Path, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    flags = machine.flags(3.5)
    assert workspace.run(out, *flags, *STEPS, disk=FullAfter("checkpoint", 5)) == 74
    machine.now += 86400
    assert workspace.run(out, *flags, *STEPS) == 0
    assert any(record.levelname == "WARNING" and "deadline: " in record.getMessage() for record in caplog.records)
    assert training_of(out)["deadline"]["n_epochs"] == 3


def test_epochs_slower_than_estimated_become_fewer(workspace: Workspace, out: Path, machine: Machine) -> None:
    ends_by = machine.now + RESERVED + 7.5 * EPOCH
    machine.steps_take(lambda epoch: EPOCH / STEPS_PER_EPOCH * (1 if epoch < 2 else 2))
    assert workspace.run(out, *machine.flags(7.5)) == 0
    assert machine.plans[0] == 7
    assert machine.plans == sorted(machine.plans, reverse=True)
    assert 4 <= len(training_of(out)["history"]) <= 5
    assert machine.now + RESERVED <= ends_by


def test_epochs_faster_than_feared_become_more(workspace: Workspace, out: Path, machine: Machine) -> None:
    """A load makes four of the first six epochs three times as long."""
    ends_by = machine.now + RESERVED + 30.5 * EPOCH
    machine.steps_take(lambda epoch: EPOCH / STEPS_PER_EPOCH * (3 if 2 <= epoch < 6 else 1))
    assert workspace.run(out, *machine.flags(30.5), "--epochs", "40") == 0
    assert machine.plans[0] == 30
    assert min(machine.plans) < len(training_of(out)["history"]) == 22
    assert 0 <= ends_by - machine.now - RESERVED < EPOCH


def test_a_load_that_comes_and_goes_hardly_changes_the_plan(workspace: Workspace, out: Path, machine: Machine) -> None:
    machine.steps_take(lambda epoch: EPOCH / STEPS_PER_EPOCH * (1 if epoch // 3 % 2 else 2))
    assert workspace.run(out, *machine.flags(60), "--epochs", "80") == 0
    early = machine.plans[:-10]
    turns = np.count_nonzero(np.diff(np.sign(np.diff(early))))
    assert turns <= 3, machine.plans


def test_a_part_of_the_first_epoch_is_trained(
    workspace: Workspace, out: Path, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out, *machine.flags(0.55)) == 0
    facts = training_of(out)
    assert machine.n_steps == 6
    assert facts["deadline"]["last_epoch_part"] == 6 / STEPS_PER_EPOCH
    assert len(facts["history"]) == 1
    assert np.isfinite(facts["history"][0]["cost"])
    assert mentions(Result.open(out).facts.summary["gave_up"], "0.545 of 8")
    assert mentions(caplog.text, "deadline:", "54.5 % of epoch 1")


def test_progress_never_exceeds_its_total(
    workspace: Workspace, out: Path, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "shardpress")
    for n_epochs in (0.01, 0.55, 1.55):
        caplog.clear()
        machine.restart()
        with case(n_epochs):
            assert workspace.run(out, *machine.flags(n_epochs), "--restart") == 0
            lines = [record.getMessage() for record in caplog.records if " rows" in record.getMessage()]
            counts = [re.search(r"training: (\d+)/(\d+) rows,.* epoch (\d+)/(\d+)", line) for line in lines]
            (found,) = filter(None, counts)
            assert found[1] == found[2] != "0"
            assert int(found[3]) <= int(found[4])


def test_the_same_steps_give_the_same_features(workspace: Workspace, tmp_path: Path, machine: Machine) -> None:
    outputs = [tmp_path / str(number) for number in range(2)]
    for out in outputs:
        machine.restart()
        assert workspace.run(out, *machine.flags(0.55)) == 0
    shorter = tmp_path / "shorter"
    machine.restart()
    assert workspace.run(shorter, *machine.flags(0.35)) == 0
    assert features_of(outputs[0]) == features_of(outputs[1]) != features_of(shorter)


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


def test_a_deadline_can_end_training_within_an_epoch(workspace: Workspace, out: Path, machine: Machine) -> None:
    machine.steps_take(lambda epoch: 9.0 if epoch == 0 else 18.0)
    assert workspace.run(out, *machine.flags(2.5)) == 0
    facts = training_of(out)
    assert facts["deadline"]["n_epochs"] == len(facts["history"]) == 2
    assert machine.n_steps == STEPS_PER_EPOCH + 8
    assert facts["deadline"]["last_epoch_part"] == 8 / STEPS_PER_EPOCH


def test_one_disturbed_measurement_of_the_encoding_is_corrected(
    workspace: Workspace, out: Path, machine: Machine
) -> None:
    machine.encodings = [20 * ENCODING, ENCODING]
    assert workspace.run(out, *machine.flags(4.5)) == 0
    assert training_of(out)["deadline"]["n_epochs"] == 4


def test_a_training_that_ends_early_measures_the_encoding_again(
    workspace: Workspace, out: Path, machine: Machine
) -> None:
    machine.encodings = [ENCODING + EPOCH / 2, ENCODING]
    assert workspace.run(out, *machine.flags(0.95)) == 0
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
    workspace: Workspace, out: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
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
    assert workspace.run(out, *MANY_EPOCHS, *SHORT_EPOCHS) == 78
    assert workspace.run(out, *machine.flags(6.5)) == 0  # the deadline differs, but the earlier decision is kept
    assert len(training_of(out)["history"]) == 3
    assert workspace.run(out, *MANY_EPOCHS, *SHORT_EPOCHS, "--overwrite") == 0
    assert len(training_of(out)["history"]) == 8
