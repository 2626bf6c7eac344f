"""Tests of the commit protocol in whole runs: on failing disks, killed, after power cuts, and rerun.

Sample: `tests.support.soak_protocol`, which `make soak` runs, injects every fault at each disk call of every kind of
run. Here a first run has a call of each kind fail permanently, and is killed after a call of each kind; so is a run
that adds a single file. The other faults occur at every 5th to 40th call. As in the soak test, readers run after every
change.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.support.soak_protocol import (
    KINDS,
    Trial,
    cut_power,
    fail_every_call,
    fail_every_write,
    kill_at_every_call,
    several_faults,
    watch_readers,
)
from tests.support.standin import install


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Trial]]:
    """Return a function that gives each kind of run, with its undisturbed results."""
    known: dict[str, Trial] = {}

    def of_kind(kind: str) -> Trial:
        if kind not in known:
            known[kind] = Trial(tmp_path_factory.mktemp("trial") / kind, kind)
        return known[kind]

    with pytest.MonkeyPatch.context() as monkeypatch:
        install(monkeypatch)
        yield of_kind


def some(first: int, stride: int) -> slice:
    return slice(first, None, stride)


@pytest.mark.slow
def test_every_call_can_fail_permanently(trial: Callable[[str], Trial]) -> None:
    codes = fail_every_call(trial("new"), errno.ENOSPC, for_good=True, of=trial("new").calls_of_each_kind())
    assert set(codes) == {73, 74}
    assert codes.total() > 50


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "for_good", "done", "first"),
    [
        (errno.ENOSPC, False, False, 0),
        (errno.EIO, False, False, 1),
        (errno.EIO, True, False, 2),
        (errno.EIO, False, True, 3),
    ],
    ids=["no space once", "storage error once", "storage error for good", "done nevertheless"],
)
def test_some_calls_can_fail(trial: Callable[[str], Trial], code: int, for_good: bool, done: bool, first: int) -> None:
    assert fail_every_call(trial("new"), code, for_good, done, some(6 * first, 24)).total() > 8


@pytest.mark.slow
def test_some_calls_can_find_too_many_open_files(trial: Callable[[str], Trial]) -> None:
    codes = fail_every_call(trial("new"), errno.EMFILE, for_good=False, of=some(1, 19))
    assert set(codes) <= {0, 71}  # the amount of free space is not essential
    assert codes[71] > 8


@pytest.mark.slow
@pytest.mark.parametrize(("code", "first"), [(0, 0), (errno.ENOSPC, 1)], ids=["once", "then no space"])
def test_every_write_can_be_short(trial: Callable[[str], Trial], code: int, first: int) -> None:
    """Each write is short in one of the two ways."""
    assert fail_every_write(trial("new"), code, some(first, 2)).total() > 10


@pytest.mark.process
def test_a_run_can_be_killed_after_every_call(
    trial: Callable[[str], Trial], capsys: pytest.CaptureFixture[str]
) -> None:
    n_killed = kill_at_every_call(trial("new"), after=True, of=trial("new").calls_of_each_kind())
    with capsys.disabled():
        print(f"\n  killed after {n_killed} calls: {dict(Counter(name for name, _ in trial('new').calls))}")
    assert n_killed > 50


@pytest.mark.process
def test_a_run_can_be_killed_before_some_calls(trial: Callable[[str], Trial]) -> None:
    assert kill_at_every_call(trial("new"), after=False, of=some(0, 24)) > 8


@pytest.mark.slow
def test_power_can_be_cut_after_some_calls(trial: Callable[[str], Trial]) -> None:
    kinds = cut_power(trial("new"), n_random=1, of=some(0, 5))
    assert kinds.total() > 40
    assert set(kinds) == {"lost", "empty", "zeros", "mixed"}


AFTERWARDS = "single file afterwards"
# Kinds that differ only in how their results are published.
PUBLISHING = ("single file before", "version 0.1.0", "version 0.1.0, restart", "copy without links", "lost links")
# Kinds whose readers `make check` tests as well.
QUICK = ("new", "overwrite")


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_all_readers_see_one_run_after_every_change(trial: Callable[[str], Trial], kind: str) -> None:
    seen = watch_readers(trial(kind))
    if "restart" in kind:
        assert len(seen) == 3
        assert seen[1] is None
    elif kind == AFTERWARDS:
        assert len(seen) == 1
    else:
        assert len(seen) == 2


@pytest.mark.process
@pytest.mark.parametrize("kind", PUBLISHING)
def test_replacing_results_can_be_disturbed(trial: Callable[[str], Trial], kind: str) -> None:
    n_calls = len(trial(kind).calls)
    assert kill_at_every_call(trial(kind), after=True, of=some(n_calls // 2, 28)) > 2
    assert fail_every_call(trial(kind), errno.EIO, False, of=some(n_calls // 2 + 14, 28)).total() > 2
    assert cut_power(trial(kind), n_random=1, of=some(5, 40)).total() > 3


@pytest.mark.process
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("new", AFTERWARDS, *PUBLISHING)])
def test_other_kinds_of_runs_can_be_disturbed(trial: Callable[[str], Trial], kind: str) -> None:
    n = len(trial(kind).calls) // 36  # with a given model there are fewer
    assert fail_every_call(trial(kind), errno.ENOSPC, True, of=some(0, 36)).total() >= n > 2
    assert fail_every_call(trial(kind), errno.EIO, False, of=some(12, 36)).total() >= n
    assert kill_at_every_call(trial(kind), after=True, of=some(24, 36)) >= n
    # Some random states are equal.
    assert cut_power(trial(kind), n_random=1, of=some(0, 20)).total() > (n if kind == "given model" else 6)


@pytest.mark.process
def test_writing_a_single_file_can_be_disturbed(trial: Callable[[str], Trial]) -> None:
    """A call of each kind is disturbed."""
    calls = trial(AFTERWARDS).calls_of_each_kind()
    assert fail_every_call(trial(AFTERWARDS), errno.ENOSPC, True, of=calls).total() > 30
    assert fail_every_write(trial(AFTERWARDS), of=some(0, 2)).total() > 4
    assert fail_every_write(trial(AFTERWARDS), errno.ENOSPC, of=some(1, 2)).total() > 4
    assert kill_at_every_call(trial(AFTERWARDS), after=True, of=calls) > 30
    assert cut_power(trial(AFTERWARDS), n_random=1, of=some(0, 5)).total() > 10


@pytest.mark.process
def test_disturbances_can_follow_each_other(trial: Callable[[str], Trial]) -> None:
    assert set(several_faults(trial("new"), 8)) == {"fails", "is short", "killed", "power"}
