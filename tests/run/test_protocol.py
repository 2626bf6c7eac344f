"""Tests of the commit protocol in whole runs: on failing disks, killed, and rerun.

Sample: a call of each kind fails permanently in a first run, or a kill follows it. The other faults occur at every 8th
to 100th call. With TEST_CASES=all, each fault occurs at each call.
"""

from __future__ import annotations

import errno
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.faulty import FailingDisk, KillingDisk, RecordingDisk, ShortWriteDisk, failing_reads, forked
from tests.support.protocol import KINDS, Scenario, Selection, call_name, invalid_entries, run_seen_by_readers, select
from tests.support.standin import install

ALLOWED_CODES = (0, 71, 73, 74)


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Scenario]]:
    """Return a function that gives each kind of run, with its undisturbed results."""
    folder = tmp_path_factory.mktemp("trial")
    with pytest.MonkeyPatch.context() as monkeypatch:
        install(monkeypatch)
        yield cache(lambda kind: Scenario(folder / kind, kind))


def _survive(scenario: Scenario, disturb: Callable[[Path], int], label: str, allowed: Sequence[int] = (0,)) -> int:
    """Disturb a run, check its exit code and what it leaves, and return the exit code."""
    output = scenario.new_output()
    code = disturb(output)
    assert code in allowed, f"{label}: exit code {code}"
    assert invalid_entries(output) == [], label
    scenario.check(output, label)
    return code


def fail_every_call(
    scenario: Scenario, code: int, is_permanent: bool, takes_effect: bool = False, selection: Selection = slice(None)
) -> Counter[int]:
    """Make each call fail in turn. Return the number of runs by exit code."""
    codes = Counter[int]()
    for number in select(range(len(scenario.calls)), selection):
        disk = FailingDisk(number, code, is_permanent, takes_effect)
        label = f"{call_name(scenario, number)} fails with {code}, permanent: {is_permanent}, {takes_effect=}"
        codes[_survive(scenario, partial(scenario.run, disk=disk), label, ALLOWED_CODES)] += 1
    return codes


def fail_every_read(
    scenario: Scenario, code: int, is_permanent: bool, selection: Selection = slice(None)
) -> Counter[int]:
    """Make each read of an input, an index or a model fail in turn. Return the number of runs by exit code."""
    with failing_reads(-1, code) as n_calls:
        assert scenario.run(scenario.new_output()) == 0
        n_reads = n_calls()
    codes = Counter[int]()
    for number in select(range(n_reads), selection):

        def run(output: Path, number: int = number) -> int:
            with failing_reads(number, code, is_permanent):
                return scenario.run(output)

        label = f"read {number} fails with {errno.errorcode[code]}, permanent: {is_permanent}"
        codes[_survive(scenario, run, label, (0, 74))] += 1
    return codes


def kill_at_every_call(scenario: Scenario, after: bool, selection: Selection = slice(None)) -> int:
    """Kill the run (SIGKILL) right before or right after each call. Return the number of kills."""
    numbers = select(range(len(scenario.calls)), selection)
    for number in numbers:

        def run(output: Path, number: int = number) -> int:
            return forked(lambda: scenario.run(output, KillingDisk(number, after)))[0]

        label = f"killed {'after' if after else 'before'} {call_name(scenario, number)}"
        _survive(scenario, run, label, (-signal.SIGKILL,))
    return len(numbers)


def watch_readers(scenario: Scenario) -> list[str | None]:
    """Run all readers after each change of a run. Return the runs that they see, in order of time."""
    output = scenario.new_output()
    visible = [run_seen_by_readers(output)]
    faults: list[str] = []

    class ObservedDisk(RecordingDisk):
        """Disk that readers look at after each call that changes a name. They cannot see other changes."""

        def between(self, number: int, name: str, arguments: tuple[Any, ...], do: Callable[..., Any]) -> Any:
            result = do(*arguments)
            if name not in ("replace", "remove"):
                return result
            try:
                found = run_seen_by_readers(output)
                if found != visible[-1]:
                    visible.append(found)
            except Exception as error:
                faults.append(f"after call {number}, {name} {Path(str(arguments[-1])).name}: {error!r}")
            return result

    assert scenario.run(output, ObservedDisk()) == 0
    assert faults == [], faults
    return visible


def calls_to_kill(scenario: Scenario) -> list[int]:
    """Return a third of the kinds of calls; all others fail permanently, which leaves the same files as a kill."""
    return scenario.calls_of_each_kind()[::3]


def every(stride: int, first: int = 0) -> slice:
    return slice(first, None, stride)


@pytest.mark.slow
def test_every_call_can_fail_permanently(scenario: Callable[[str], Scenario]) -> None:
    killed = calls_to_kill(scenario("new"))
    calls = [number for number in scenario("new").calls_of_each_kind() if number not in killed]
    codes = fail_every_call(scenario("new"), errno.ENOSPC, is_permanent=True, selection=calls)
    assert set(codes) == {73, 74}
    assert codes.total() > 15


# Error, whether all later calls fail too, whether the failing call takes effect, and the calls.
FAILURES = {
    "no space once": (errno.ENOSPC, False, False, every(90)),
    "storage error once": (errno.EIO, False, False, every(90, first=20)),
    "permanent storage error": (errno.EIO, True, False, every(90, first=40)),
    "error after the effect": (errno.EIO, False, True, every(90, first=60)),
    "too many open files": (errno.EMFILE, False, False, every(90, first=1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAILURES)
def test_some_calls_can_fail(scenario: Callable[[str], Scenario], kind: str) -> None:
    codes = fail_every_call(scenario("new"), *FAILURES[kind])
    assert codes.total() > 1
    assert set(codes) <= ({0, 71} if kind == "too many open files" else {0, 73, 74})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["new", "append"])
def test_some_reads_can_fail(scenario: Callable[[str], Scenario], kind: str) -> None:
    once = fail_every_read(scenario(kind), errno.ESTALE, is_permanent=False, selection=every(80))
    permanent = fail_every_read(scenario(kind), errno.EIO, is_permanent=True, selection=every(80, first=40))
    assert set(once) == {0}
    assert set(permanent) == {74}


@pytest.mark.slow
@pytest.mark.parametrize(("code", "first"), [(0, 0), (errno.ENOSPC, 1)], ids=["once", "then no space"])
def test_every_write_can_be_short(scenario: Callable[[str], Scenario], code: int, first: int) -> None:
    """Every fourth write is short in one of the two ways. If `code` is not 0, later writes fail."""
    new = scenario("new")
    n_writes = [name for name, _ in new.calls].count("write")
    numbers = select(range(n_writes), every(8, first=4 * first))
    allowed = ALLOWED_CODES[1:] if code else (0,)
    for number in numbers:
        run = partial(new.run, disk=ShortWriteDisk(number, code))
        _survive(new, run, f"write {number} is short, then {code}", allowed)
    assert len(numbers) > 2


@pytest.mark.process
def test_a_run_can_be_killed_after_every_call(scenario: Callable[[str], Scenario]) -> None:
    assert kill_at_every_call(scenario("new"), after=True, selection=calls_to_kill(scenario("new"))) > 8
    assert kill_at_every_call(scenario("new"), after=False, selection=every(90)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all_readers_see_one_run_after_every_change(scenario: Callable[[str], Scenario], kind: str) -> None:
    """The earlier run, or none, until the commit; the new one from then on."""
    assert len(watch_readers(scenario(kind))) == 2


@pytest.mark.process
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "new"])
def test_other_kinds_of_runs_can_be_disturbed(scenario: Callable[[str], Scenario], kind: str) -> None:
    """Most kinds differ from a first run only in what their results replace, so the end of the run is disturbed.

    Appends also differ in the order of their changes.
    """
    n_calls = len(scenario(kind).calls)
    first = n_calls // 10 if kind == "append" else n_calls // 2
    assert fail_every_call(scenario(kind), errno.ENOSPC, True, selection=every(100, first=first)).total() > 0
    assert fail_every_call(scenario(kind), errno.EIO, False, selection=every(60, first=first)).total() > 0
    assert kill_at_every_call(scenario(kind), after=True, selection=every(30, first=first)) > 1
