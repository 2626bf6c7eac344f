"""Bad data in whole runs: it stops the run with its place, or is left out by leave, and never shifts another row.

Names begin with the row of the fault table that they hold. What a row must be encoded to is told by the encoder of the
fitted model over that row alone, bit for bit.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from kernels.autoencoder import Autoencoder
from pipeline import cli
from pipeline.errors import counted
from pipeline.features import open_features
from pipeline.hdf5.files import FILES
from pipeline.model import Model, load_model
from pipeline.output.disk import Disk
from pipeline.output.records import read_manifest
from tests.support import standin
from tests.support.damage import damage
from tests.support.helpers import write_shard
from tests.support.soak_protocol import records
from tests.support.tolerances import assert_close

SETTINGS = ["--n-features", "2", "--epochs", "2", "--batch-size", "20", "--block-rows", "8", "--threads", "2"]
KEEP = ["--max-bad-rows", "100%", "--max-bad-shards", "100%"]
TOLERANT = pytest.mark.parametrize("mode", ["skip", "quarantine"])


class Silent(standin.Autoencoder):
    """No device warns of the NaN and Inf of rows that are skipped, as NumPy does, which stands in for it."""

    def encode(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        with np.errstate(all="ignore"):
            return super().encode(rows, out)


class Shards:
    """A folder of small shards, and what they hold."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output = folder / "shards", folder / "out"
        self.folder.mkdir()
        self.arrays: list[np.ndarray] = []

    def add(self, rows: Any, **how: Any) -> Path:
        """A shard more, whose labels count on over all shards."""
        first = sum(map(len, self.arrays))
        path = self.folder / f"{len(self.arrays)}.h5"
        write_shard(path, rows, riders={"y": np.arange(first, first + len(rows))}, **how)
        self.arrays.append(np.asarray(rows))
        return path

    def fill(self, *sizes: int, seed: int = 0, dtype: Any = np.float32, **how: Any) -> None:
        """Shards of these sizes with good rows."""
        rng = np.random.default_rng(seed)
        for size in sizes:
            self.add((rng.normal(size=(size, 4)) * 10).astype(dtype), **how)

    def rewrite(self, number: int, rows: np.ndarray, **how: Any) -> None:
        """A shard's rows anew, in the same place."""
        first = sum(map(len, self.arrays[:number]))
        path = self.folder / f"{number}.h5"
        write_shard(path, rows, riders={"y": np.arange(first, first + len(rows))}, **how)
        self.arrays[number] = rows

    def run(self, *flags: str, output: Path | None = None, disk: Disk | None = None) -> int:
        """Exit code of a run over all of them."""
        given = ["--input", str(self.folder), "--output", str(output or self.output), *SETTINGS, *flags]
        return cli.main("", given, disk)


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shards:
    """None yet; runs over them have a stand-in for the device."""
    standin.install(monkeypatch)
    monkeypatch.setattr(sys.modules["kernels.autoencoder"], "Autoencoder", Silent)
    return Shards(tmp_path)


def errors(caplog: pytest.LogCaptureFixture) -> str:
    """What the last run said of its failure."""
    return [record.getMessage() for record in caplog.records if record.msg == "%s: %s"][-1]


def encoded(model: Model, rows: np.ndarray) -> np.ndarray:
    """Features of rows, by the same arithmetic as in a run."""
    autoencoder = Silent(model.n_inputs, model.n_features, *model.scaler.arrays(rows.dtype))
    autoencoder.set_parameters(model.parameters)
    return autoencoder.encode(rows)


def check(output: Path, arrays: Sequence[np.ndarray], bad: Sequence[int], model: Model | None = None) -> None:
    """Hold a finished run against the encoder: every good row's bits at its place, NaN for the bad ones."""
    found = open_features(output)
    features, valid, y = (array.compute() for array in (found.features, found.valid, found.riders["y"]))
    assert np.flatnonzero(~valid).tolist() == sorted(bad)
    assert np.isnan(features[~valid]).all()
    assert y.tolist() == list(range(len(valid)))
    first = 0
    for rows in arrays:
        good = np.flatnonzero(valid[first : first + len(rows)])
        expected = encoded(model or load_model(output), rows[good])
        assert features[first + good].tobytes() == expected.tobytes()
        assert np.isfinite(expected).all()
        first += len(rows)
    assert first == len(valid)
    assert found.manifest["n_bad"] == found.manifest["summary"]["n_bad"] == len(bad)


def quarantined(output: Path) -> list[dict[str, Any]]:
    """The lines of the list of bad data, which the manifest knows."""
    assert "quarantine.jsonl" in [line["file"] for line in read_manifest(output)["files"]]
    return [json.loads(line) for line in (output / "quarantine.jsonl").read_text().splitlines()]


def state(output: Path) -> dict[str, bytes]:
    """Every file of an output directory but those that say who is at work and what was last asked for."""
    apart = (".lock", "run.log", "run.json")
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and path.name not in apart
    }


def results(output: Path) -> dict[str, bytes]:
    """What the manifest names, and itself."""
    manifest = read_manifest(output)
    names = ["manifest.json", *(line["file"] for line in [*manifest["parts"], *manifest["files"]])]
    return {name: (output / name).read_bytes() for name in names}


# -- NaN and Inf ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize(("shard", "row", "column"), [(0, 0, 0), (1, 8, 3), (3, 29, 1)])
def test_v1_v2_a_bad_row_stops_the_run_before_anything_is_trained(
    shards: Shards, caplog: pytest.LogCaptureFixture, value: float, shard: int, row: int, column: int
) -> None:
    shards.fill(20, 17, 0, 30)
    rows = shards.arrays[shard].copy()
    rows[row, column] = value
    shards.rewrite(shard, rows)
    assert shards.run() == 65
    where = f"file={shards.folder}/{shard}.h5 dataset=X: {value} in row {row}, column {column}; 1 of 67 rows in all"
    assert where in errors(caplog)
    assert "--on-bad-data skip" in errors(caplog)
    assert sorted(path.name.split("-")[0] for path in (shards.output / "stages").iterdir()) == ["scan"]
    assert not (shards.output / "manifest.json").exists()


def test_v2_subnormal_numbers_and_minus_zero_are_numbers(shards: Shards) -> None:
    shards.fill(30)
    shards.add(np.array([[1e-45, -0.0, 1e-40, 0], [-1e-45, 0.0, -0.0, 5]], np.float32))
    assert shards.run() == 0
    check(shards.output, shards.arrays, [])


@TOLERANT
@pytest.mark.parametrize("seed", range(4))
def test_v1_v2_skipped_rows_keep_their_places_and_change_no_other(shards: Shards, mode: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shards.fill(*rng.integers(0, 40, 5), 33, seed=seed)
    holes: list[tuple[int, int, list[int], str]] = []
    for number, rows in enumerate(shards.arrays):
        spoilt = rows.copy()
        for row in np.flatnonzero(rng.random(len(rows)) < 0.2):
            columns = np.flatnonzero(rng.random(4) < 0.5).tolist() or [2]
            spoilt[row, columns] = rng.choice([np.nan, np.inf, -np.inf], len(columns))
            holes.append((number, int(row), columns, str(spoilt[row, columns[0]])))
        shards.rewrite(number, spoilt)
    assert shards.run("--on-bad-data", mode, *KEEP) == 0
    firsts = np.cumsum([0, *map(len, shards.arrays)])
    check(shards.output, shards.arrays, [firsts[number] + row for number, row, _, _ in holes])
    good = np.concatenate(shards.arrays)
    good = good[np.isfinite(good).all(axis=1)]
    scaler = load_model(shards.output).scaler
    np.testing.assert_array_equal((scaler.minimum, scaler.maximum), (good.min(axis=0), good.max(axis=0)))
    if mode == "quarantine":
        assert quarantined(shards.output) == [
            {"file": f"{shards.folder}/{n}.h5", "dataset": "X", "row": row, "columns": columns, "reason": reason}
            for n, row, columns, reason in holes
        ]
    else:
        assert not (shards.output / "quarantine.jsonl").exists()


def test_v1_what_stands_in_a_bad_row_decides_nothing(shards: Shards, tmp_path: Path) -> None:
    """Neither the ranges nor the training nor any other row's features know it."""
    shards.fill(60, 40)
    rng, bits = np.random.default_rng(1), set()
    places = rng.choice(40, 7, replace=False)
    for i, value in enumerate((np.nan, np.inf, -77)):
        spoilt = shards.arrays[1].copy()
        spoilt[places, 1] = value
        shards.rewrite(1, spoilt)
        output = tmp_path / str(i)
        assert shards.run("--on-bad-data", "skip", "--missing-value", "-77", *KEEP, output=output) == 0
        bits.add(standin.features_of(output))
    assert len(bits) == 1


# -- columns and ranges --------------------------------------------------------------------------------------------


@TOLERANT
@pytest.mark.parametrize("what", ["column", "rows"])
def test_v3_without_a_usable_row_the_run_says_so(
    shards: Shards, caplog: pytest.LogCaptureFixture, mode: str, what: str
) -> None:
    rows = np.ones((30, 4), np.float32)
    rows[slice(None) if what == "rows" else (slice(None), 2)] = np.nan
    shards.add(rows)
    assert shards.run("--on-bad-data", mode, *KEEP) == 65
    assert "no usable rows: all 30 rows hold NaN or Inf" in errors(caplog)


@TOLERANT
def test_v3_a_shard_of_bad_rows_only_keeps_its_place(shards: Shards, mode: str) -> None:
    shards.fill(20)
    shards.add(np.full((13, 4), np.nan, np.float32))
    shards.fill(20, seed=1)
    assert shards.run("--on-bad-data", mode, *KEEP) == 0
    check(shards.output, shards.arrays, range(20, 33))


@pytest.mark.parametrize(
    ("rows", "phrase"),
    [(np.full((30, 4), 7.25), "all 30 usable rows are the same"), (np.arange(4.0)[None], "1 usable row of 1")],
    ids=["constant", "one row"],
)
def test_rows_that_teach_nothing_are_refused(
    shards: Shards, caplog: pytest.LogCaptureFixture, rows: np.ndarray, phrase: str
) -> None:
    shards.add(rows.astype(np.float32))
    assert shards.run("--batch-size", "1") == 65
    assert phrase in errors(caplog)


def test_rows_fewer_than_features_are_warned_of(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    shards.fill(2)
    assert shards.run("--batch-size", "1", "--n-features", "3") == 0
    assert "2 usable rows of 4 columns, fewer than the 3 features that they become" in caplog.text
    assert "If rows stand as columns there: --orientation columns." in caplog.text
    caplog.clear()
    assert shards.run("--batch-size", "1", "--n-features", "2", "--restart") == 0
    assert "usable rows" not in caplog.text


def test_the_first_error_names_all_that_the_next_run_needs(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    rows = np.random.default_rng(0).normal(size=(100, 4))
    rows[::10, 1] = np.nan
    shards.add(rows)
    for more in ([], ["--on-bad-data", "quarantine"]):
        caplog.clear()
        assert shards.run(*more) == 65
        (advice,) = re.findall(r"leave these rows out with (.*)\.$", errors(caplog), re.MULTILINE)
        assert advice == f"--on-bad-data {more[-1] if more else 'skip'} --max-bad-rows 10"
    assert shards.run(*advice.split()) == 0


@pytest.mark.parametrize("constant", [[1], [0, 2, 3]], ids=str)
def test_v4_a_constant_column_becomes_0_and_is_told_once(
    shards: Shards, caplog: pytest.LogCaptureFixture, constant: list[int]
) -> None:
    caplog.set_level("INFO", "pipeline")
    shards.fill(30, 30)
    for number, rows in enumerate(shards.arrays):
        rows[:, constant] = 7.25
        shards.rewrite(number, rows)
    assert shards.run() == 0
    check(shards.output, shards.arrays, [])
    assert (
        caplog.text.count(f"{counted(len(constant), 'constant column')} set to 0: {', '.join(map(str, constant))}") == 1
    )
    assert not load_model(shards.output).scaler.transform(shards.arrays[0])[:, constant].any()


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        (np.float32, -3e38, 3e38),
        (np.float32, 0, 1e-45),
        (np.float32, -1e-40, 1e-40),
        (np.float64, -8e307, 8e307),
        (np.float64, 0, 5e-324),
        (np.float64, 1e300, 1.0000001e300),
        (np.int64, -(2**63), 2**63 - 1),
        (np.uint64, 0, 2**64 - 1),
    ],
)
def test_v5_i15_the_widest_and_the_narrowest_columns_give_finite_features(
    shards: Shards, dtype: Any, low: float, high: float
) -> None:
    rows = np.random.default_rng(0).integers(0, 100, (60, 4)).astype(dtype)
    rows[:, 1] = np.where(np.arange(60) % 3 > 0, np.array(low, dtype), np.array(high, dtype))
    shards.add(rows)
    assert shards.run() == 0
    check(shards.output, [rows], [])
    scaled = load_model(shards.output).scaler.transform(rows)
    assert scaled.min() >= 0
    assert scaled.max() <= 1


# -- rows outside a given model's range ------------------------------------------------------------------------------


@pytest.fixture
def model(shards: Shards, tmp_path: Path) -> str:
    """The directory of a model of other rows than those that are encoded with it: between -30 and 30."""
    other = tmp_path / "other"
    other.mkdir()
    training = Shards(other)
    training.add(np.random.default_rng(9).uniform(-30, 30, (100, 4)).astype(np.float32))
    assert training.run() == 0
    return str(training.output)


def scattered(rng: np.random.Generator, size: int, dtype: Any = np.float32) -> tuple[np.ndarray, int]:
    """Rows of which some lie outside that range, and how many."""
    rows = rng.uniform(-25, 25, (size, 4))
    rows[rng.random(size) < 0.3, rng.integers(4)] = rng.choice([-1e3, 31, 1e30 if dtype == np.float32 else 120])
    rows = rows.astype(dtype)
    return rows, int((np.abs(rows.astype(np.float64)) > 30).any(axis=1).sum())


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, np.int64])
def test_v6_rows_outside_are_counted_and_clipped_or_not(
    shards: Shards,
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    dtype: Any,
) -> None:
    rng, n_outside = np.random.default_rng(2), 0
    for size in (30, 0, 21, 40):
        rows, n = scattered(rng, size, dtype)
        shards.add(rows)
        n_outside += n
    assert n_outside > 5
    fitted = load_model(model)
    low, high = fitted.scaler.minimum, fitted.scaler.maximum
    n_outside = sum(int(((rows < low) | (rows > high)).any(axis=1).sum()) for rows in shards.arrays)
    edges = (np.ceil(low), np.floor(high)) if np.dtype(dtype).kind == "i" else (low, high)
    expected = {"allow": shards.arrays, "clip": [np.clip(rows, *edges).astype(dtype) for rows in shards.arrays]}
    for out_of_range, arrays in expected.items():
        output = tmp_path / out_of_range
        capsys.readouterr()
        assert shards.run("--model", model, "--out-of-range", out_of_range, output=output) == 0
        assert f" {n_outside} rows outside the model's range." in capsys.readouterr().out
        assert read_manifest(output)["summary"]["n_outside"] == n_outside
        check(output, arrays, [], fitted)
    assert f"{n_outside} of 91 rows lie outside the range of the rows that the model was trained on" in caplog.text
    assert "farthest in column " in caplog.text


def test_v6_a_row_outside_stops_the_run_where_that_is_asked_for(
    shards: Shards, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    shards.add(np.zeros((20, 4), np.float32))
    shards.add(np.ones((30, 4), np.float32))
    rows = shards.arrays[1].copy()
    rows[13, 2] = 31.5
    shards.rewrite(1, rows)
    assert shards.run("--model", model, "--out-of-range", "raise") == 65
    assert f"file={shards.folder}/1.h5 dataset=X rows=" in errors(caplog)
    assert "31.5 in row 13, column 2, expected " in errors(caplog)
    assert shards.run("--model", model, "--out-of-range", "clip") == 0


def test_v6_rows_of_the_training_are_never_outside(shards: Shards, capsys: pytest.CaptureFixture[str]) -> None:
    shards.fill(40)
    assert shards.run("--out-of-range", "raise") == 0
    assert shards.run("--model", str(shards.output), "--out-of-range", "raise", output=shards.output / "../again") == 0
    assert "outside" not in capsys.readouterr().out


@TOLERANT
@pytest.mark.parametrize("out_of_range", ["allow", "clip", "raise"])
def test_v6_bad_rows_are_not_outside(shards: Shards, model: str, mode: str, out_of_range: str) -> None:
    rows = np.random.default_rng(0).uniform(-20, 20, (30, 4)).astype(np.float32)
    rows[[3, 17]] = [[np.inf, 1, 1, 1], [np.nan, 99, 99, 99]]
    shards.add(rows)
    flags = ["--model", model, "--out-of-range", out_of_range, "--on-bad-data", mode, *KEEP]
    assert shards.run(*flags) == 0
    check(shards.output, [rows], [3, 17], load_model(model))
    assert read_manifest(shards.output)["summary"]["n_outside"] == 0


def test_v6_rows_so_far_outside_that_they_overflow_are_bad_rows(
    shards: Shards, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = Shards(tmp_path / "narrow") if (tmp_path / "narrow").mkdir() is None else shards
    training.add(np.random.default_rng(9).uniform(0, 1e-10, (60, 4)).astype(np.float32))
    assert training.run() == 0
    rows = np.random.default_rng(0).uniform(0, 1e-10, (30, 4)).astype(np.float32)
    rows[5] = [3e38, -3e38, 3e38, -3e38]
    shards.add(rows)
    flags = ["--model", str(training.output)]
    assert shards.run(*flags) == 65
    assert "row 5 and 0 more lie so far outside" in errors(caplog)
    assert shards.run(*flags, "--on-bad-data", "quarantine", *KEEP) == 0
    check(shards.output, [rows], [5], load_model(training.output))
    assert [(line["row"], line["reason"]) for line in quarantined(shards.output)] == [(5, "overflows float32")]
    caplog.clear()
    assert shards.run(*flags, "--on-bad-data", "quarantine", "--max-bad-rows", "0") == 65
    assert "1 bad row so far, expected 0 at most" in errors(caplog)


# -- divergence --------------------------------------------------------------------------------------------------


class Bursting(standin.TrainingStep):
    """Takes wild steps when the schedule lets its rate fall below a half, and not on its way up in steps of 0.01."""

    def set_learning_rate(self, learning_rate: float) -> None:
        super().set_learning_rate(1e9 if 0.041 < learning_rate < 0.049 else learning_rate)


@pytest.mark.parametrize(("late", "rate"), [(False, "1e6"), (True, "0.1")], ids=["at once", "late"])
def test_v7_divergence_keeps_the_last_good_weights_and_happens_again_alike(
    shards: Shards, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, late: bool, rate: str
) -> None:
    """At once, and after epochs whose checkpoints the same command goes on from."""
    shards.fill(200)
    flags = ["--optimizer", "momentum", "--epochs", "6", "--learning-rate", rate, "--checkpoint-minutes", "0"]
    if late:
        monkeypatch.setattr(sys.modules["kernels.step"], "TrainingStep", Bursting)
    else:
        flags += ["--schedule", "constant"]
    found = []
    for _ in range(2):
        with np.errstate(all="ignore"):
            assert shards.run(*flags) == 65
        said = errors(caplog)
        assert f"training diverged at epoch {3 if late else 0}, minibatch " in said
        assert all(phrase in said for phrase in ("last finite cost 0", "Lower --learning-rate", "model-last-good.h5"))
        assert not (shards.output / "manifest.json").exists()
        stopped = load_model(shards.output / "model-last-good.h5")
        assert all(np.isfinite(array).all() for array in stopped.parameters.values())
        found.append((said, stopped.fingerprint))
    assert found[0] == found[1]
    assert "going on behind step" in caplog.text
    assert shards.run() == 0, "other settings begin anew"
    assert not (shards.output / "model-last-good.h5").exists()
    check(shards.output, shards.arrays, [])


# -- missing values ----------------------------------------------------------------------------------------------


@TOLERANT
@pytest.mark.parametrize(
    ("dtype", "missing", "spelled"),
    [
        (np.float32, "-9999", -9999),
        (np.float32, "-999.9", -999.9),
        (np.float64, "-9999", -9999),
        (np.float16, "-9999", -10000),
        (np.int16, "-9999", -9999),
        (np.uint8, "255", 255),
        (np.int64, str(2**63 - 1), 2**63 - 1),
    ],
)
def test_v8_rows_with_the_missing_value_are_bad_rows(
    shards: Shards, mode: str, dtype: Any, missing: str, spelled: float
) -> None:
    rows = np.random.default_rng(0).integers(0, 100, (50, 4)).astype(dtype)
    rows[[4, 33], [1, 2]] = np.array(spelled, dtype=dtype)
    rows[20] = np.array(spelled, dtype=dtype)
    shards.add(rows)
    assert shards.run("--on-bad-data", mode, "--missing-value", missing, *KEEP) == 0
    read = rows.astype(np.float32) if dtype == np.float16 else rows
    check(shards.output, [read], [4, 20, 33])
    good = np.delete(read, [4, 20, 33], axis=0)
    np.testing.assert_array_equal(load_model(shards.output).scaler.maximum, good.max(axis=0))
    if mode == "quarantine":
        assert [(line["row"], line["columns"]) for line in quarantined(shards.output)] == [
            (4, [1]),
            (20, [0, 1, 2, 3]),
            (33, [2]),
        ]


def test_v8_without_leave_the_missing_value_stops_the_run(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    rows = np.random.default_rng(0).integers(0, 100, (50, 4)).astype(np.int16)
    rows[7, 3] = -9999
    shards.add(rows)
    assert shards.run("--missing-value", "-9999") == 65
    assert "-9999 in row 7, column 3; 1 of 50 rows in all hold NaN, Inf or -9999" in errors(caplog)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_v8_a_missing_value_that_the_shards_cannot_hold_is_nowhere(shards: Shards, dtype: Any) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (50, 4)).astype(dtype)
    rows[:, 0] = np.array(-9999 % 2**16).astype(dtype)  # what a wrapped -9999 would be
    shards.add(rows)
    assert shards.run("--missing-value", "-9999") == 0
    check(shards.output, [rows], [])


def test_u3_another_missing_value_is_another_run(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    shards.fill(30)
    assert shards.run() == 0
    before = results(shards.output)
    assert shards.run("--missing-value", "7") == 78
    assert "missing_value None -> 7" in errors(caplog)
    assert results(shards.output) == before


# -- limits ------------------------------------------------------------------------------------------------------


@TOLERANT
@pytest.mark.parametrize("with_model", [False, True], ids=["trained", "given"])
@pytest.mark.parametrize("limit", ["7", "7%", "7.9 %"])
def test_v9_as_many_bad_rows_as_allowed_pass_and_not_one_more(
    shards: Shards, model: str, caplog: pytest.LogCaptureFixture, mode: str, limit: str, with_model: bool
) -> None:
    rng = np.random.default_rng(0)
    shards.fill(60, 40)
    flags = ["--on-bad-data", mode, "--max-bad-rows", limit, *(["--model", model] if with_model else [])]
    bad = rng.choice(100, 8, replace=False)
    for n_bad in (7, 8):
        spoilt = np.concatenate([rows.copy() for rows in shards.arrays])
        spoilt[bad[:n_bad], 1] = np.nan
        shards.rewrite(0, spoilt[:60])
        shards.rewrite(1, spoilt[60:])
        caplog.clear()
        if n_bad == 7:
            assert shards.run(*flags) == 0
            check(shards.output, shards.arrays, bad[:7].tolist(), load_model(model) if with_model else None)
        else:
            before = results(shards.output)
            assert shards.run(*flags, "--overwrite") == 65
            written = limit.replace(" ", "")
            assert f"8 of 100 rows in all hold NaN or Inf, expected 7 at most (--max-bad-rows {written})" in errors(
                caplog
            )
            assert results(shards.output) == before


def spoil(shards: Shards, refused: int, unreadable: int) -> None:
    """Ten shards, of which some are refused by the gate and some cannot be read."""
    shards.fill(*[10] * 10, fletcher32=True)
    for i in range(refused):
        (shards.folder / f"{9 - i}.h5").write_bytes(b"no HDF5 at all")
    for i in range(unreadable):
        damage(shards.folder / f"{i}.h5")


@TOLERANT
@pytest.mark.parametrize("limit", ["2", "20%", "29.99%"])
@pytest.mark.parametrize(("refused", "unreadable"), [(2, 0), (3, 0), (0, 2), (0, 3), (1, 1), (2, 1), (1, 2)])
def test_v9_as_many_bad_shards_as_allowed_pass_and_not_one_more(
    shards: Shards, caplog: pytest.LogCaptureFixture, mode: str, limit: str, refused: int, unreadable: int
) -> None:
    spoil(shards, refused, unreadable)
    found = shards.run("--on-bad-data", mode, "--max-bad-shards", limit, "--max-bad-rows", "100%")
    assert found == (0 if refused + unreadable == 2 else 65)
    if found:
        assert "--max-bad-shards" in errors(caplog)
        assert not (shards.output / "manifest.json").exists()
        return
    summary = read_manifest(shards.output)["summary"]
    assert (summary["n_bad_shards"], summary["n_bad"]) == (2, 10 * unreadable)
    check(shards.output, shards.arrays[: 10 - refused], range(10 * unreadable))


def test_v9_a_shard_that_cannot_be_read_counts_with_all_its_rows(
    shards: Shards, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(shards, 0, 1)
    flags = ["--on-bad-data", "skip", "--max-bad-shards", "1", "--max-bad-rows"]
    assert shards.run(*flags, "9") == 65
    assert "10 of 100 rows in all hold NaN or Inf, or lie in one of 1 such shards, expected 9 at most" in errors(caplog)
    assert shards.run(*flags, "10") == 0


# -- shards that cannot be read ------------------------------------------------------------------------------------

STORED = pytest.mark.parametrize("how", [{"compression": "gzip"}, {"fletcher32": True}], ids=["gzip", "fletcher32"])


def with_damage(shards: Shards, how: dict[str, Any]) -> None:
    """Four shards; of the second, a chunk in the middle cannot be read."""
    shards.fill(30, 41, 0, 50, chunks=(6, 4), maxshape=(None, 4), **how)
    damage(shards.folder / "1.h5", chunk=3)


@STORED
def test_i6_a_damaged_chunk_stops_the_run_with_file_dataset_and_rows(
    shards: Shards, caplog: pytest.LogCaptureFixture, how: dict[str, Any]
) -> None:
    with_damage(shards, how)
    assert shards.run() == 65
    assert f"file={shards.folder}/1.h5 dataset=X rows=16:24: the chunk at [18, 0] cannot be read" in errors(caplog)


def good_rows_only(shards: Shards, tmp_path: Path) -> Shards:
    """The same shards without the damaged one."""
    (tmp_path / "good").mkdir()
    good = Shards(tmp_path / "good")
    for i in (0, 2, 3):
        good.add(shards.arrays[i])
    return good


@STORED
@TOLERANT
@pytest.mark.parametrize("rows", [["--block-rows", "4"], ["--block-rows", "64"], ["--memory-budget", "16MiB"]], ids=str)
def test_i6_a_shard_that_cannot_be_read_keeps_its_place_and_decides_nothing(
    shards: Shards, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: dict, mode: str, rows: list[str]
) -> None:
    """The model is that of the other shards, whatever could be read of this one in whatever blocks."""
    with_damage(shards, how)
    settings = ["--validation-fraction", "0.1", "--batch-size", "16"]
    assert shards.run("--on-bad-data", mode, *KEEP, *settings, *rows) == 0
    check(shards.output, shards.arrays, range(30, 71))
    assert f"file={shards.folder}/1.h5 dataset=X rows=" in caplog.text
    good = good_rows_only(shards, tmp_path)
    assert good.run(*settings) == 0
    assert load_model(shards.output).fingerprint == load_model(good.output).fingerprint
    if mode == "quarantine":
        lines = quarantined(shards.output)
        assert {(line["file"], line["dataset"]) for line in lines} == {(f"{shards.folder}/1.h5", "X")}
        assert [i for line in lines for i in range(*line["row"])] == list(range(41))
        assert all("cannot be read" in line["reason"] for line in lines)


@TOLERANT
def test_i6_with_a_given_model_shards_are_looked_at_before_the_first_part_is_written(
    shards: Shards, model: str, mode: str
) -> None:
    with_damage(shards, {"fletcher32": True})
    assert shards.run("--on-bad-data", mode, "--model", model, *KEEP) == 0
    check(shards.output, shards.arrays, range(30, 71), load_model(model))
    assert "scan" in read_manifest(shards.output)["summary"]["seconds"]


@TOLERANT
def test_v5_with_a_given_model_the_rows_need_no_range_of_their_own(
    shards: Shards, model: str, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    """They are scaled by the model's: they may all be bad, or alike, or further apart than any number."""
    caplog.set_level("INFO", "pipeline")
    shards.add(np.array([[1.7e308, 1, 2, np.nan], [-1.7e308, 1, 2, np.nan]]))
    assert shards.run("--on-bad-data", mode, "--model", model, *KEEP) == 0
    check(shards.output, shards.arrays, [0, 1], load_model(model))
    shards.rewrite(0, np.array([[1.7e308, 1, 2, 3], [-1.7e308, 1, 2, 3], [0, 1, 2, 3]]))
    assert shards.run("--on-bad-data", mode, "--model", model, *KEEP, "--overwrite") == 0
    assert read_manifest(shards.output)["n_rows"] == 3
    assert "constant" not in caplog.text


def test_a_given_model_and_good_data_need_no_scan(shards: Shards, model: str) -> None:
    shards.fill(30)
    assert shards.run("--model", model) == 0
    assert "scan" not in read_manifest(shards.output)["summary"]["seconds"]
    assert list((shards.output / "stages").iterdir()) == []


@TOLERANT
def test_i6_a_rider_that_cannot_be_read_stops_nothing(
    shards: Shards, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    """Neither of a shard that cannot be read itself, nor of one that can."""
    with_damage(shards, {"fletcher32": True})
    labels = np.arange(121)
    for number, first, size in ((1, 30, 41), (3, 71, 50)):
        with h5py.File(shards.folder / f"{number}.h5", "a") as file:
            del file["y"]
            file.create_dataset("y", data=labels[first : first + size], chunks=(9,), compression="gzip")
        damage(shards.folder / f"{number}.h5", "y", chunk=2)
        labels[first + 18 : first + 27] = np.iinfo(np.int64).min
    assert shards.run("--on-bad-data", mode, *KEEP) == 0
    found = open_features(shards.output)
    assert found.riders["y"].compute().tolist() == labels.tolist()
    assert np.flatnonzero(~found.valid.compute()).tolist() == list(range(30, 71))
    assert f"values of y, which rides along, cannot be read and become {np.iinfo(np.int64).min}" in caplog.text
    if mode == "quarantine":
        listed = [line for line in quarantined(shards.output) if line["dataset"] == "y"]
        rows = {(Path(line["file"]).name, row) for line in listed for row in range(*line["row"])}
        assert rows == {(name, row) for name in ("1.h5", "3.h5") for row in range(18, 27)}


@TOLERANT
def test_refused_shards_are_left_out_and_named(shards: Shards, caplog: pytest.LogCaptureFixture, mode: str) -> None:
    shards.fill(20, 20, 20, 20)
    (shards.folder / "1.h5").write_bytes(b"<html>")
    write_shard(shards.folder / "2.h5", np.zeros((20, 5), np.float32))  # I13
    assert shards.run("--on-bad-data", mode, "--max-bad-shards", "2") == 0
    names = [f"{shards.folder}/{i}.h5" for i in (1, 2)]
    bad = read_manifest(shards.output)["bad_shards"]
    assert [each["file"] for each in bad] == names
    for each in bad:
        assert f"file={each['file']}" in each["reason"]
        assert f"{each['reason']} This shard is left out." in caplog.text
    assert open_features(shards.output).features.shape == (40, 2)
    assert read_manifest(shards.output)["summary"]["n_bad_shards"] == 2
    if mode == "quarantine":
        assert quarantined(shards.output) == [{**each, "dataset": None, "row": None, "columns": []} for each in bad]


def test_i13_i14_without_leave_a_shard_of_other_columns_stops_the_run(
    shards: Shards, caplog: pytest.LogCaptureFixture
) -> None:
    shards.fill(20)
    shards.add(np.zeros((20, 5), np.float32))
    assert shards.run() == 65
    assert "5 columns, expected 4 as in" in errors(caplog)
    assert not shards.output.exists()


def test_i12_i14_empty_shards_and_mixed_dtypes_are_no_bad_data(shards: Shards, capsys: Any) -> None:
    rng = np.random.default_rng(0)
    for dtype, size in (("u1", 20), ("f4", 0), (">i2", 20), ("f8", 20), ("?", 9), ("f2", 20)):
        shards.add(rng.integers(0, 2, (size, 4)).astype(dtype))
    assert shards.run() == 0
    assert capsys.readouterr().out.startswith("Done: 89 rows x 4 columns")
    read = {"?": "u1", ">i2": "i2", "f2": "f4"}
    arrays = [rows.astype(read.get(rows.dtype.str.lstrip("|<"), rows.dtype)) for rows in shards.arrays]
    check(shards.output, arrays, [])


@pytest.mark.parametrize("call", ["preadv", "open"])
def test_i10_a_failing_disk_is_never_bad_data(
    shards: Shards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    call: str,
) -> None:
    """Whether the shards are vetted just then, scanned, trained on or encoded."""
    shards.fill(30, 30)
    monkeypatch.setattr(FILES, "sleep", lambda seconds: None)
    original, n_left = getattr(FILES, call), [10**9]

    def fail_later(*arguments: Any) -> Any:
        n_left[0] -= 1
        if n_left[0] < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(*arguments)

    monkeypatch.setattr(FILES, call, fail_later)
    flags = ["--on-bad-data", "quarantine", *KEEP]
    assert shards.run(*flags) == 0
    n_calls = 10**9 - n_left[0]
    for n_good in range(0, n_calls, 4):
        output, n_left[0] = tmp_path / str(n_good), n_good
        assert shards.run(*flags, output=output) == 74
        assert os.strerror(errno.EIO) in errors(caplog)
        n_left[0] = 10**9
        assert shards.run(*flags, output=output) == 0
        assert standin.features_of(output) == standin.features_of(shards.output)


# -- going on ----------------------------------------------------------------------------------------------------


class Impatient(Disk):
    """Its user presses Ctrl-C while file number `number` of a folder is made."""

    def __init__(self, folder: str, number: int) -> None:
        self._folder, self._left = folder, number

    def create(self, path: Path) -> int:
        self._left -= path.parent.name == self._folder
        if self._left < 0:
            raise KeyboardInterrupt
        return super().create(path)


def spoilt(shards: Shards) -> list[int]:
    """Shards with bad rows, one that cannot be read, and one that is refused; numbers of the bad rows."""
    shards.fill(30, 41, 50, fletcher32=True)
    rows = shards.arrays[0].copy()
    rows[[3, 17], 2] = np.nan
    shards.rewrite(0, rows)
    damage(shards.folder / "1.h5")
    (shards.folder / "x.h5").write_bytes(b"no HDF5")
    return [3, 17, *range(30, 71)]


@TOLERANT
@pytest.mark.parametrize("threads", ["1", "3"])
def test_a_run_that_is_interrupted_anywhere_goes_on_bit_for_bit(
    shards: Shards, tmp_path: Path, mode: str, threads: str
) -> None:
    bad = spoilt(shards)
    flags = ["--on-bad-data", mode, "--threads", threads, *KEEP]
    assert shards.run(*flags) == 0
    check(shards.output, shards.arrays, bad)
    expected, lines = standin.features_of(shards.output), (mode == "quarantine" and quarantined(shards.output))
    for folder, number in (("commits", 0), ("commits", 2), ("parts", 0), ("parts", 1), ("parts", 5), ("commits", 7)):
        output = tmp_path / f"{folder}-{number}"
        assert shards.run(*flags, output=output, disk=Impatient(folder, number)) == 130
        assert not (output / "manifest.json").exists()
        assert shards.run(*flags, output=output) == 0
        assert standin.features_of(output) == expected
        assert lines == (mode == "quarantine" and quarantined(output))
        assert shards.run(*flags, output=output) == 0


@TOLERANT
def test_a_run_that_bad_rows_stopped_goes_on_by_leave_with_the_same_scan(
    shards: Shards, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    caplog.set_level("INFO", "pipeline")
    shards.fill(30, 30)
    rows = shards.arrays[1].copy()
    rows[20] = np.nan
    shards.rewrite(1, rows)
    assert shards.run() == 65
    (before,) = (shards.output / "stages").glob("scan-*")
    assert shards.run("--on-bad-data", mode, *KEEP) == 0
    assert "scan: an earlier run has finished it" in caplog.text
    assert list((shards.output / "stages").glob("scan-*")) == [before]
    check(shards.output, shards.arrays, [50])


def test_a_rerun_does_not_get_stuck_on_shards_that_cannot_be_read(shards: Shards, capsys: Any) -> None:
    spoilt(shards)
    flags = ["--on-bad-data", "skip", *KEEP]
    assert shards.run(*flags) == 0
    before = state(shards.output)
    capsys.readouterr()
    assert shards.run(*flags) == 0
    said = capsys.readouterr().out
    assert said.startswith("Already complete: 121 rows")
    assert "43 bad rows with NaN features. 2 bad shards." in said
    assert state(shards.output) == before


@pytest.mark.parametrize("with_model", [False, True], ids=["trained", "given"])
@pytest.mark.parametrize("stop", [("stages", 1), ("parts", 5)], ids=str)
def test_a_shard_that_was_mended_meanwhile_is_read_after_all(
    shards: Shards, model: str, stop: tuple[str, int], with_model: bool
) -> None:
    """Though a copy from a backup has the same size and time: nothing of what was made without it is left."""
    shards.fill(30, 41, 50, fletcher32=True)
    path = shards.folder / "1.h5"
    good, status = path.read_bytes(), path.stat()
    damage(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    flags = ["--on-bad-data", "skip", *KEEP, *(["--model", model] if with_model else [])]
    if with_model:
        stop = ("parts", 5)
    assert shards.run(*flags, disk=Impatient(*stop)) == 130
    with open(path, "r+b") as file:
        file.write(good)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert shards.run(*flags) == 0
    check(shards.output, shards.arrays, [], load_model(model) if with_model else None)


DAMAGE = {
    "flipped": lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
    "truncated": lambda data: data[:-10],
    "emptied": lambda data: b"",
    "gone": None,
}


@pytest.mark.parametrize("n_damaged", [1, 2])
@pytest.mark.parametrize("how", DAMAGE)
def test_s15_a_checkpoint_that_is_damaged_gives_way_to_the_one_before(
    shards: Shards, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str, n_damaged: int
) -> None:
    caplog.set_level("INFO", "pipeline")
    shards.fill(100)
    flags = ["--checkpoint-minutes", "0", "--epochs", "4"]
    assert shards.run(*flags, output=tmp_path / "undisturbed") == 0
    assert shards.run(*flags, disk=Impatient("stages", 12)) == 130
    found = [record for record in records(shards.output) if record["key"].startswith("checkpoint")]
    earlier, last = sorted(found, key=lambda record: record["key"])
    for record in (earlier, last)[-n_damaged:]:
        path = shards.output / record["entry"]["file"]
        if DAMAGE[how] is None:
            path.unlink()
        else:
            path.write_bytes(DAMAGE[how](path.read_bytes()))
    assert shards.run(*flags) == 0
    assert caplog.text.count("it is made anew") == n_damaged
    step = int(earlier["key"].split("-")[1])
    assert (f"going on behind step {step} of an earlier run" in caplog.text) == (n_damaged == 1)
    assert standin.features_of(shards.output) == standin.features_of(tmp_path / "undisturbed")


# -- another policy, when all is done --------------------------------------------------------------------------------


@pytest.mark.parametrize("with_model", [False, True], ids=["trained", "given"])
@pytest.mark.parametrize(
    "flags",
    [["--on-bad-data", "raise"], ["--on-bad-data", "skip", "--max-bad-rows", "42"]],
    ids=["raise", "rows"],
)
def test_results_with_more_bad_data_than_now_allowed_are_not_called_complete(
    shards: Shards, model: str, flags: list[str], with_model: bool
) -> None:
    spoilt(shards)
    (shards.folder / "x.h5").unlink()
    flags = [*flags, *(["--model", model] if with_model else [])]
    assert shards.run("--on-bad-data", "skip", *KEEP, *flags[4 if flags[1] == "skip" else 2 :]) == 0
    before = results(shards.output)
    assert shards.run("--max-bad-shards", "100%", *flags) == 65
    assert results(shards.output) == before


def test_results_with_more_bad_shards_than_now_allowed_are_not_called_complete(shards: Shards) -> None:
    spoilt(shards)
    assert shards.run("--on-bad-data", "skip", *KEEP) == 0
    before = results(shards.output)
    assert shards.run("--on-bad-data", "skip", "--max-bad-rows", "100%", "--max-bad-shards", "1") == 65
    assert results(shards.output) == before
    assert shards.run("--on-bad-data", "skip", "--max-bad-rows", "100%", "--max-bad-shards", "2") == 0


def test_a_finished_run_can_be_asked_for_the_list_later(shards: Shards, capsys: Any) -> None:
    bad = spoilt(shards)
    assert shards.run("--on-bad-data", "skip", *KEEP) == 0
    expected = standin.features_of(shards.output)
    assert shards.run("--on-bad-data", "quarantine", *KEEP) == 0
    assert standin.features_of(shards.output) == expected
    lines = quarantined(shards.output)
    assert [line["row"] for line in lines[1:3]] == bad[:2]
    assert lines[0]["file"].endswith("x.h5")
    assert {Path(line["file"]).name for line in lines[3:]} == {"1.h5"}
    before = results(shards.output)
    capsys.readouterr()
    assert shards.run("--on-bad-data", "skip", *KEEP) == 0
    assert capsys.readouterr().out.startswith("Already complete"), "to have the list as well is no harm"
    assert results(shards.output) == before


def test_the_list_is_swept_away_with_the_results_that_it_belongs_to(shards: Shards) -> None:
    spoilt(shards)
    assert shards.run("--on-bad-data", "quarantine", *KEEP) == 0
    assert len(quarantined(shards.output)) > 3
    assert shards.run("--on-bad-data", "skip", *KEEP, "--seed", "1", "--overwrite") == 0
    assert not (shards.output / "quarantine.jsonl").exists()


def test_quarantine_without_bad_data_is_an_empty_list(shards: Shards) -> None:
    shards.fill(30)
    assert shards.run("--on-bad-data", "quarantine") == 0
    assert quarantined(shards.output) == []


def test_s18_names_of_bad_files_forge_no_lines(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    shards.fill(30)
    name = "x\n12:00:00 ERROR forged\x1b[31m.h5"
    (shards.folder / name).write_bytes(b"no HDF5")
    assert shards.run("--on-bad-data", "quarantine", *KEEP) == 0
    assert all(record.getMessage().isprintable() for record in caplog.records)
    (line,) = quarantined(shards.output)
    assert line["file"] == f"{shards.folder}/{name}"
    assert len((shards.output / "quarantine.jsonl").read_text().splitlines()) == 1


# -- on the real kernels -------------------------------------------------------------------------------------------


def test_v1_v2_no_bit_of_a_good_row_depends_on_bad_rows_beside_it(tmp_path: Path) -> None:
    """Though they are multiplied in one product: the features are those beside which good rows stand."""
    shards, rng = Shards(tmp_path), np.random.default_rng(0)
    shards.fill(1100, 50)
    whole = [rows.copy() for rows in shards.arrays]
    for number, rows in enumerate(shards.arrays):
        rows[rng.random(len(rows)) < 0.1, rng.integers(4)] = rng.choice([np.nan, np.inf, -np.inf])
        shards.rewrite(number, rows)
    assert shards.run("--on-bad-data", "skip", *KEEP) == 0
    found, fitted = open_features(shards.output), load_model(shards.output)
    features, valid = found.features.compute(), found.valid.compute()
    np.testing.assert_array_equal(valid, np.isfinite(np.concatenate(shards.arrays)).all(axis=1))
    autoencoder = Autoencoder(4, 2, *fitted.scaler.arrays(np.dtype(np.float32)))
    autoencoder.set_parameters(fitted.parameters)
    expected = np.concatenate([autoencoder.encode(rows) for rows in whole])
    assert features[valid].tobytes() == expected[valid].tobytes()
    assert np.isnan(features[~valid]).all()


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [(np.float32, -3e38, 3e38), (np.float32, 0, 1e-45), (np.float64, -8e307, 8e307)]
)
def test_v4_v5_extreme_and_constant_columns_on_the_real_kernels(
    tmp_path: Path, dtype: Any, low: float, high: float
) -> None:
    rows = np.random.default_rng(0).integers(0, 100, (60, 4)).astype(dtype)
    rows[:, 1] = np.where(np.arange(60) % 3 > 0, low, high)
    rows[:, 2] = high
    shards = Shards(tmp_path)
    shards.add(rows)
    assert shards.run() == 0
    features = open_features(shards.output).features.compute()
    assert_close(features, load_model(shards.output).encode(rows), "cpu", "float32", "features")
