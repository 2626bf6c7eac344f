"""Tests of bad rows in whole runs: they stop the run with their position, or are left out, and never shift other rows.

The encoder of the fitted model, applied to one row alone, gives the expected features, bit for bit.

Sample: each way to write a limit with one policy for bad data, and two seeds; with TEST_CASES=all every combination and
four seeds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shardpress.result.features import open_features
from shardpress.result.finished import INDEX, load_model
from tests.support import standin
from tests.support.bad_shards import SKIP, Shards, bad_lines, check, errors
from tests.support.cases import case, cross, each, sample
from tests.support.logged import mentions


@pytest.mark.process  # a given model is checked in a child
def test_a_bad_row_stops_the_run_before_training(
    shards: Shards, model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a given model, it stops the encoding."""
    shards.fill(20, 17, 0, 30)
    for value, shard, row, column in ((np.nan, 0, 0, 0), (-np.inf, 3, 29, 1), (-9999.0, 1, 7, 3)):
        good = shards.arrays[shard]
        rows = good.copy()
        rows[row, column] = value
        shards.rewrite(shard, rows)
        output = tmp_path / f"{value}"
        with case(value):
            flags = ("--missing-value", "-9999")
            assert shards.run(*flags, output=output) == 65
            where = (f"file={shards.folder}/{shard}.h5", "dataset=X", value, row, column)
            assert mentions(errors(caplog), *where, "1 of 67")
            assert len(list((output / "work").glob("scan-*"))) == 1
            assert not (output / INDEX).exists()
            assert shards.run(*flags, "--model", model, output=tmp_path / f"given {value}") == 65
            assert mentions(errors(caplog), *where)
        shards.rewrite(shard, good)


@pytest.mark.slow
@each("seed", sample(range(4), 2))
def test_skipped_rows_keep_their_places_and_change_no_other_row(shards: Shards, seed: int) -> None:
    """One shard has only bad rows."""
    shards = shards.another(f"seed-{seed}")
    rng = np.random.default_rng(seed)
    shards.fill(*rng.integers(0, 40, 4), 7, 33, seed=seed)
    bad_entries: list[tuple[int, int, list[int], str]] = []
    for number, rows in enumerate(shards.arrays):
        changed_rows = rows.copy()
        for row in np.flatnonzero(rng.random(len(rows)) < (1 if number == 4 else 0.2)):
            columns = np.flatnonzero(rng.random(4) < 0.5).tolist() or [2]
            changed_rows[row, columns] = rng.choice([np.nan, np.inf, -np.inf], len(columns))
            bad_entries.append((number, int(row), columns, str(changed_rows[row, columns[0]])))
        shards.rewrite(number, changed_rows)
    assert shards.run(*SKIP) == 0
    firsts = np.cumsum([0, *map(len, shards.arrays)])
    check(shards.output, shards.arrays, [firsts[number] + row for number, row, _, _ in bad_entries])
    good = np.concatenate(shards.arrays)
    good = good[np.isfinite(good).all(axis=1)]
    scaler = load_model(shards.output).scaler
    np.testing.assert_array_equal((scaler.minimum, scaler.maximum), (good.min(axis=0), good.max(axis=0)))
    assert bad_lines(shards.output) == [
        {"file": f"{shards.folder}/{n}.h5", "dataset": "X", "row": row, "columns": columns, "reason": reason}
        for n, row, columns, reason in bad_entries
    ]


@pytest.mark.slow
def test_values_of_a_bad_row_affect_nothing(shards: Shards, tmp_path: Path) -> None:
    """They change neither the ranges nor the training nor the features of any other row."""
    shards.fill(60, 40)
    places = np.random.default_rng(1).choice(40, 7, replace=False)
    bits = set()
    for value in (np.nan, np.inf, -77):
        changed_rows = shards.arrays[1].copy()
        changed_rows[places, 1] = value
        shards.rewrite(1, changed_rows)
        output = tmp_path / str(value)
        assert shards.run(*SKIP, "--missing-value", "-77", output=output) == 0
        bits.add(standin.features_of(output))
    assert len(bits) == 1


@pytest.mark.process
def test_rows_with_inf_or_without_values_stay_bad_if_gaps_are_filled(shards: Shards) -> None:
    """Also with the model, as a given one."""
    rows = np.random.default_rng(0).normal(100, 20, (90, 4)).astype(np.float32)
    rows[::5, 2] = -7
    rows[11] = [-7, np.nan, np.nan, -7]
    rows[3, 1] = np.inf
    rows[41, [0, 2]] = [np.nan, -np.inf]
    shards.add(rows)
    assert shards.run(*SKIP, "--missing-value", "-7", "--impute", "mean", "--clip-quantile", "0.01") == 0
    model = load_model(shards.output)
    again = shards.folder.with_name("again")
    assert shards.run(*SKIP, "--missing-value", "-7", "--model", str(shards.output), output=again) == 0
    expected = model.encode(np.where(rows == -7, np.nan, rows))
    expected[[3, 11, 41]] = np.nan
    for output in (shards.output, again):
        np.testing.assert_allclose(open_features(output).features.compute(), expected, atol=1e-5)
        lines = [(line["row"], line["columns"]) for line in bad_lines(output)]
        assert lines == [(3, [1]), (11, [0, 1, 2, 3]), (41, [2])]


# -- columns and ranges --------------------------------------------------------------------------------------------


def test_rows_without_anything_to_learn_are_refused(shards: Shards) -> None:
    bad_column = np.where(np.arange(4) == 2, np.nan, np.ones((30, 4)))
    cases = (bad_column, np.full((30, 4), np.nan), np.full((30, 4), 7.25), np.arange(4.0)[None])
    for number, rows in enumerate(cases):
        these = shards.another(f"{number}")
        these.add(rows.astype(np.float32))
        with case(rows):
            assert these.run(*SKIP, "--batch-size", "1") == 65


# -- limits --------------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize(("limit", "with_model"), cross(["7", "7.9 %"], [False, True]))
def test_the_limit_of_bad_rows_is_exact(
    shards: Shards, model: str, caplog: pytest.LogCaptureFixture, limit: str, with_model: bool
) -> None:
    shards.fill(60, 40)
    flags = ["--on-bad-data", "skip", "--max-bad", limit, *(["--model", model] if with_model else [])]
    bad = np.random.default_rng(0).choice(100, 8, replace=False)

    def spoil(n_bad: int) -> None:
        rows = np.concatenate(shards.arrays)
        rows[bad[:n_bad], 1] = np.nan
        shards.rewrite(0, rows[:60])
        shards.rewrite(1, rows[60:])

    spoil(7)
    assert shards.run(*flags) == 0
    check(shards.output, shards.arrays, bad[:7].tolist(), load_model(model) if with_model else None)
    before = (shards.output / INDEX).read_bytes()
    spoil(8)
    assert shards.run(*flags, "--overwrite") == 65
    assert mentions(errors(caplog), 8, 7)
    assert (shards.output / INDEX).read_bytes() == before
