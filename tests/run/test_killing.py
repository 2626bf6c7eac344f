"""Tests of killed real runs: a few of the rounds of ``make soak``, and tests that the checks detect faults."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import h5py
import pytest

from tests.support.killing import CheckFailed, EndedRun, Victim, features_of, rounds

pytestmark = pytest.mark.process

PHASES = ("start", "scan", "training", "encoding", "finishing")


@pytest.mark.process
def test_a_run_killed_in_any_phase_resumes_with_the_same_bits(victim: Victim) -> None:
    """One of the runs is killed again: the seed chooses the one that is killed in training, while it encodes."""
    found = list(rounds(victim, len(PHASES), seed=9))
    assert [kills[0].is_rerun for kills, _ in found] == [False] * len(PHASES)
    assert all(kill.is_rerun for kills, _ in found for kill in kills[1:])


# -- the checks themselves ---------------------------------------------------------------------------------------


@pytest.fixture
def output(victim: Victim, tmp_path: Path) -> Path:
    """Return a copy of a finished output, to be damaged."""
    return Path(shutil.copytree(victim.undisturbed, tmp_path / "out"))


def killed(phase: str) -> EndedRun:
    return EndedRun(-signal.SIGKILL, [], {phase: 0.0}, 0.0)


def test_the_checks_accept_an_undamaged_run(victim: Victim, output: Path) -> None:
    victim.check(output)
    kill = victim.inspect(killed("finishing"), output)
    assert (kill.n_parts, kill.n_checkpoints, kill.n_half, kill.is_complete) == (20, 0, 0, True)


@pytest.mark.parametrize("name", ["parts/*.h5", "work/scan-*.npz"])
def test_the_checks_detect_a_truncated_file(victim: Victim, output: Path, name: str) -> None:
    path = next(output.glob(name)).resolve()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckFailed, match="damaged results.*" + path.name):
        victim.inspect(killed("encoding"), output)


def test_the_checks_detect_a_truncated_index(victim: Victim, output: Path) -> None:
    path = output / "index.h5"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckFailed, match="incomplete"):
        victim.inspect(killed("finishing"), output)


def test_the_checks_detect_a_changed_bit_despite_valid_digests(victim: Victim, output: Path) -> None:
    with h5py.File(next(output.glob("parts/*.h5")), "r+") as part:
        part["features"][0, 0] *= 1 + 2**-23
    assert features_of(output) != victim.features


def test_the_checks_detect_leftover_files(victim: Victim, output: Path) -> None:
    (output / "parts" / "part-000001-000000000000-x.h5.writing").touch()
    with pytest.raises(CheckFailed, match="unreferenced files"):
        victim.check(output)


def test_the_checks_detect_a_run_that_was_not_killed(victim: Victim, output: Path) -> None:
    with pytest.raises(CheckFailed, match="exit code 70, expected to be killed"):
        victim.inspect(EndedRun(70, ["a fault"], {"scan": 0.0}, 0.0), output)
