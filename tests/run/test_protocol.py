"""Tests of the commit protocol in whole runs: on failing disks, killed, after power cuts, and rerun.

Sample: a call of each kind fails permanently in a first run, or a kill follows it. The other faults occur at every 4th
to 56th call. With TEST_CASES=all, each fault occurs at each call.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest

from tests.support.protocol import (
    KINDS,
    Scenario,
    cut_power,
    fail_every_call,
    fail_every_read,
    fail_every_write,
    kill_at_every_call,
    watch_readers,
)
from tests.support.standin import install


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Scenario]]:
    """Return a function that gives each kind of run, with its undisturbed results."""
    scenarios: dict[str, Scenario] = {}

    def of_kind(kind: str) -> Scenario:
        if kind not in scenarios:
            scenarios[kind] = Scenario(tmp_path_factory.mktemp("trial") / kind, kind)
        return scenarios[kind]

    with pytest.MonkeyPatch.context() as monkeypatch:
        install(monkeypatch)
        yield of_kind


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
    "no space once": (errno.ENOSPC, False, False, every(56)),
    "storage error once": (errno.EIO, False, False, every(56, first=14)),
    "permanent storage error": (errno.EIO, True, False, every(56, first=28)),
    "error after the effect": (errno.EIO, False, True, every(56, first=42)),
    "too many open files": (errno.EMFILE, False, False, every(38, first=1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAILURES)
def test_some_calls_can_fail(scenario: Callable[[str], Scenario], kind: str) -> None:
    codes = fail_every_call(scenario("new"), *FAILURES[kind])
    assert codes.total() > 2
    assert set(codes) <= ({0, 71} if kind == "too many open files" else {0, 73, 74})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "code", "is_permanent", "codes"),
    [
        ("new", errno.EIO, False, {0}),
        ("new", errno.EIO, True, {74}),
        ("append", errno.ESTALE, False, {0}),
        ("append", errno.EIO, True, {74}),
    ],
)
def test_some_reads_can_fail(
    scenario: Callable[[str], Scenario], kind: str, code: int, is_permanent: bool, codes: set[int]
) -> None:
    found = fail_every_read(scenario(kind), code, is_permanent, every(17))
    assert set(found) == codes
    assert found.total() > 2


@pytest.mark.slow
@pytest.mark.parametrize(("code", "first"), [(0, 0), (errno.ENOSPC, 1)], ids=["once", "then no space"])
def test_every_write_can_be_short(scenario: Callable[[str], Scenario], code: int, first: int) -> None:
    """Every second write is short in one of the two ways."""
    assert fail_every_write(scenario("new"), code, every(4, first=2 * first)).total() > 5


@pytest.mark.process
def test_a_run_can_be_killed_after_every_call(scenario: Callable[[str], Scenario]) -> None:
    assert kill_at_every_call(scenario("new"), after=True, selection=calls_to_kill(scenario("new"))) > 8
    assert kill_at_every_call(scenario("new"), after=False, selection=every(56)) > 3


@pytest.mark.slow
def test_power_can_be_cut_after_some_calls(scenario: Callable[[str], Scenario]) -> None:
    kinds = cut_power(scenario("new"), n_random=1, selection=every(9))
    assert kinds.total() > 15
    assert set(kinds) == {"lost", "empty", "zeros", "mixed"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all_readers_see_one_run_after_every_change(scenario: Callable[[str], Scenario], kind: str) -> None:
    """The earlier run, or none, until the commit; the new one from then on."""
    assert len(watch_readers(scenario(kind))) == 2


@pytest.mark.process
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("new", "append")])
def test_other_kinds_of_runs_can_be_disturbed(scenario: Callable[[str], Scenario], kind: str) -> None:
    """Most kinds differ from a first run only in what their results replace, so the end of the run is disturbed."""
    n_calls = len(scenario(kind).calls)
    assert fail_every_call(scenario(kind), errno.ENOSPC, True, selection=every(40)).total() > 1
    assert fail_every_call(scenario(kind), errno.EIO, False, selection=every(17, first=n_calls // 2)).total() > 1
    assert kill_at_every_call(scenario(kind), after=True, selection=every(11, first=n_calls // 2)) > 1
    assert cut_power(scenario(kind), n_random=1, selection=every(40)).total() > 1


@pytest.mark.process
def test_appending_can_be_disturbed(scenario: Callable[[str], Scenario]) -> None:
    """Appends differ from other runs in the order of their changes."""
    assert kill_at_every_call(scenario("append"), after=True, selection=every(5)) > 10
    assert fail_every_call(scenario("append"), errno.ENOSPC, True, selection=every(12, first=3)).total() > 4
    assert fail_every_call(scenario("append"), errno.EIO, False, selection=every(12, first=9)).total() > 4
    assert cut_power(scenario("append"), n_random=1, selection=every(10)).total() > 4
