"""A training goes on behind its last good checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.formats import pack, unpack
from pipeline.output.lock import locked
from pipeline.output.records import Record
from tests.support.nights import DAMAGE, STEPS, Stopping
from tests.support.soak_protocol import (
    leftovers,
    records,
)
from tests.support.standin import Night, features_of

N_CHECKPOINTS = 4  # two epochs of two steps


def checkpoints(output: Path) -> list[Path]:
    found = [record for record in records(output) if record["key"].startswith("checkpoint")]
    return [output / record["entry"]["file"] for record in sorted(found, key=lambda record: record["key"])]


def test_s15_a_training_goes_on_behind_its_last_checkpoint(
    night: Night, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    for n_steps in range(1, N_CHECKPOINTS + 1):
        output = out.with_name(str(n_steps))
        assert night.run(output, *STEPS, disk=Stopping("commits/checkpoint", n_steps)) == 74
        assert len(checkpoints(output)) == min(n_steps, 3), n_steps
        caplog.clear()
        assert night.run(output, *STEPS) == 0, n_steps
        assert f"training: going on behind step {n_steps} of an earlier run" in caplog.text, n_steps
        assert features_of(output) == expected(), n_steps
        assert leftovers(output) == [], n_steps


def test_s15_behind_a_damaged_checkpoint_the_one_before_it_is_taken(
    night: Night, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    for how in DAMAGE:
        output = out.with_name(how)
        assert night.run(output, *STEPS, disk=Stopping("commits/checkpoint", 3)) == 74, how
        damaged = checkpoints(output)[-1]
        DAMAGE[how](damaged)
        caplog.clear()
        assert night.run(output, *STEPS) == 0, how
        assert f"file={damaged}: " in caplog.text, how
        assert "training: going on behind step 2 of an earlier run" in caplog.text, how
        assert features_of(output) == expected(), how


def test_s15_without_a_good_checkpoint_training_starts_anew(
    night: Night, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    for how in DAMAGE:
        output = out.with_name(how)
        assert night.run(output, *STEPS, disk=Stopping("commits/checkpoint", 3)) == 74, how
        for path in checkpoints(output):
            DAMAGE[how](path)
        caplog.clear()
        assert night.run(output, *STEPS) == 0, how
        assert "going on behind" not in caplog.text, how
        assert features_of(output) == expected(), how
        assert leftovers(output) == [], how


@pytest.mark.parametrize("flags", [["--n-features", "1"], ["--seed", "1"], ["--optimizer", "momentum"]], ids=" ".join)
def test_s15_a_checkpoint_of_other_settings_is_not_taken(
    night: Night, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture, flags: list[str]
) -> None:
    assert night.run(out, *STEPS, disk=Stopping("commits/checkpoint", 3)) == 74
    caplog.clear()
    assert night.run(out, *STEPS, *flags, "--overwrite") == 0
    assert "going on behind" not in caplog.text
    assert features_of(out) == expected(*flags)


def forged(data: bytes, kind: str) -> bytes:
    """A checkpoint's file with something about it changed."""
    arrays, about = unpack(data)
    if kind == "no archive":
        return b"nothing"
    if kind == "no progress":
        return pack(arrays, {**about, "progress": {}})
    if kind == "no number of steps":
        return pack(arrays, {"progress": about["progress"]})
    changes = {
        "of another width": {"parameters/W": np.zeros((4, 3), np.float32)},
        "not finite": {"best/W": np.full((4, 2), np.nan, np.float32)},
        "of another dtype": {"state/W_velocity": np.zeros((4, 2))},
        "more arrays": {"state/more": np.zeros(2, np.float32)},
    }
    return pack({**arrays, **changes[kind]}, about)


@pytest.mark.parametrize(
    "kind",
    [
        *("no archive", "no progress", "no number of steps"),
        *("of another width", "not finite", "of another dtype", "more arrays"),
    ],
)
def test_s15_a_checkpoint_that_makes_no_sense_is_not_taken(
    night: Night, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    assert night.run(out, *STEPS, disk=Stopping("commits/checkpoint", 3)) == 74
    with locked(out) as ledger:
        *_, last = ledger.records("checkpoint")
        data = ledger.load(last)
        ledger.drop(last)
        entry = ledger.write("stages/checkpoint", ".npz", forged(data, kind))
        ledger.commit(Record(last.key, last.fingerprint, entry))
    caplog.clear()
    assert night.run(out, *STEPS) == 0
    assert "the one before it is taken" in caplog.text
    assert "training: going on behind step 2 of an earlier run" in caplog.text
    assert features_of(out) == expected()
