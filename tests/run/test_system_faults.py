"""Tests of whole runs with failing system calls and under system limits: a sample of ``make soak``.

Sample: every 1st to 149th call, and three or four values of each limit; `tests.support.failing_calls` and
`tests.support.ulimits` inject all.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cases import sample
from tests.support.failing_calls import EndedRun, Fault, Runs, Scenario, problem_of, started_runs, sweep
from tests.support.faulty import forked
from tests.support.readonly_disk import abort_at_calls, reason_to_skip

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is needed to compile the library of failing calls"),
]

EVERY_CHANGE = "write,fsync,close,rename,reserve,unlink,open,mkdir"
EVERY_CALL = f"{EVERY_CHANGE},read,stat,list"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with started_runs(tmp_path_factory.mktemp("runs")) as found:
        yield found


@pytest.fixture(scope="module")
def scenario(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Scenario]:
    """Provide a kind of run, made once."""
    scenarios: dict[str, Scenario] = {}

    def of_kind(kind: str) -> Scenario:
        if kind not in scenarios:
            scenarios[kind] = Scenario(runs, tmp_path_factory.mktemp("scene") / kind.replace(" ", "-"), kind)
        return scenarios[kind]

    return of_kind


@pytest.mark.parametrize(
    ("kind", "where", "calls", "code", "always", "every"),
    [
        ("new", "output", EVERY_CHANGE, errno.EIO, False, 89),
        ("new", "output", EVERY_CHANGE, errno.EROFS, True, 109),
        ("new", "output", EVERY_CALL, errno.EIO, True, 149),
        ("new", "output", "read", errno.EIO, False, 37),
        ("new", "shards", "read", errno.EIO, True, 29),
        ("new", "shards", "list", errno.EIO, True, 1),
        ("resumed", "output", "read", errno.EIO, False, 29),
        ("resumed", "output", "stat", errno.EIO, True, 31),
        ("finished", "output", "read", errno.EIO, True, 19),
    ],
)
def test_calls_that_fail_lose_nothing(
    scenario: Callable[[str], Scenario], kind: str, where: str, calls: str, code: int, always: bool, every: int
) -> None:
    codes, wrong = sweep(scenario(kind), where, calls, code, always, every)
    assert wrong == []
    assert codes.total() > 0


def test_reads_and_writes_can_be_short(scenario: Callable[[str], Scenario]) -> None:
    """All calls at once: each transfers half of its bytes."""
    for folder in (scenario("new").output, scenario("new").shards):
        code, wrong = scenario("new").run_and_rerun(Fault(folder, "read,write", 0, code=0, always=True))
        assert (code, wrong) == (0, "")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused(scenario: Callable[[str], Scenario], code: int) -> None:
    exit_code, wrong = scenario("new").run_and_rerun(Fault(scenario("new").output, "flock", 0, code, always=True))
    assert (exit_code, wrong) == (75, "")


def test_inputs_need_no_locks(scenario: Callable[[str], Scenario]) -> None:
    fault = Fault(scenario("new").shards, "flock", 0, errno.ENOLCK, always=True)
    assert scenario("new").run_and_rerun(fault) == (0, "")
    assert scenario("new").run(fault).n_calls == 0


@pytest.mark.parametrize("limit", sample([12, 14, 17, 20, 24, 32], 3))
def test_a_low_limit_of_open_files_ends_a_run_with_a_message(scenario: Callable[[str], Scenario], limit: int) -> None:
    code, wrong = scenario("new").run_and_rerun(RLIMIT_NOFILE=limit)
    assert wrong == ""
    assert code in (0, 71)


@pytest.mark.parametrize("limit", sample([0, 1, 100, 3000, 10_000, 40_000], 4))
def test_a_limit_of_file_sizes_ends_a_run_with_a_message(scenario: Callable[[str], Scenario], limit: int) -> None:
    code, wrong = scenario("new").run_and_rerun(RLIMIT_FSIZE=limit)
    assert wrong == ""
    assert code in (0, 73, 74)


def test_a_disk_that_turns_read_only_loses_nothing(tmp_path: Path) -> None:
    """The disk is a real one; it turns read-only at a sample of moments."""
    if why := reason_to_skip():
        pytest.skip(why)
    code, codes = forked(lambda: abort_at_calls(tmp_path, every=58))
    assert code == 0
    assert sum(codes.values()) >= 4
    assert set(codes) <= {"73", "74"}


def test_checks_of_failing_runs_detect_faults() -> None:
    """The faults are an exit code and a text with which no run is allowed to end."""
    last_line = "12:00:00 ERROR Nothing was started. Run the same command again."
    assert problem_of(EndedRun(0, 0, "Done")) == ""
    assert problem_of(EndedRun(74, 0, last_line)) == ""
    assert "without a last line" in problem_of(EndedRun(74, 0, "12:00:00 INFO device\n12:00:00 ERROR ReadFailed: x"))
    assert "exit code 70" in problem_of(EndedRun(70, 0, last_line))
    assert "exit code -9" in problem_of(EndedRun(-9, 0, last_line))
    assert "traceback" in problem_of(EndedRun(74, 0, f"Traceback (most recent call last):\nOSError: x\n{last_line}"))


def test_checks_of_failing_runs_detect_lost_results(
    scenario: Callable[[str], Scenario], monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed = scenario("resumed")

    def run_that_loses(fault: Fault | None = None, **limits: int) -> EndedRun:
        shutil.rmtree(resumed.output, ignore_errors=True)
        return EndedRun(74, 0, "12:00:00 ERROR Nothing was started.")

    monkeypatch.setattr(resumed, "run", run_that_loses)
    _, wrong = resumed.run_and_rerun()
    assert wrong.startswith("lost: ")
