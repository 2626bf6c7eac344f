"""Tests of runs under system limits: each succeeds, or ends with the exit code that names the limit."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cases import sample
from tests.support.faulty import forked
from tests.support.protocol import Scenario
from tests.support.standin import install

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenario]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        install(monkeypatch)
        yield Scenario(tmp_path_factory.mktemp("limits") / "new", "new")


def run_under_limit(scenario: Scenario, limit: int, value: int) -> int:
    """Run under a limit and return the exit code. Check that the same command then succeeds without the limit."""
    output = scenario.new_output()

    def run() -> int:
        resource.setrlimit(limit, (value, value))
        return scenario.run(output)

    code, exit_code = forked(run)
    assert code == 0, "the process ended without an exit code of the program"
    scenario.check(output, f"limit {limit}, {value}")
    return int(exit_code)


@pytest.mark.parametrize("n_more", sample(range(4, 12), 4))
def test_a_low_limit_of_open_files_ends_a_run(scenario: Scenario, n_more: int) -> None:
    n_open = len(list(Path("/proc/self/fd").iterdir()))
    assert run_under_limit(scenario, resource.RLIMIT_NOFILE, n_open + n_more) in (0, 71)


@pytest.mark.parametrize("value", sample([0, 1, 100, 3000, 10_000, 40_000], 4))
def test_a_low_limit_of_file_sizes_ends_a_run(scenario: Scenario, value: int) -> None:
    assert run_under_limit(scenario, resource.RLIMIT_FSIZE, value) in (0, 73, 74)
