"""Tests of hints: rows that other settings would suit are recognized, and others are not."""

from __future__ import annotations

import numpy as np

from shardpress.scan import hints

RNG_SEED = 0


def hints_of(sample: np.ndarray, n_bad: int = 0) -> tuple[str, ...]:
    return hints.hints_of(sample, len(sample), n_bad)


def table(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(500, 60)) * 10.0 ** rng.integers(-3, 4, 60)


def test_rows_of_which_most_are_bad_are_not_judged() -> None:
    rows = np.random.default_rng(RNG_SEED).normal(size=(500, 7))
    (hint,) = hints_of(rows, n_bad=500)
    assert "--n-features 6" in hint
    assert hints_of(np.random.default_rng(RNG_SEED).normal(size=(500, 40))) == ()
    (hint,) = hints_of(rows, n_bad=501)
    assert "--" not in hint
    assert hints_of(np.full((50, 200), np.nan)) == ()
    assert hints_of(np.empty((0, 5))) == ()


def test_sentinels_are_named_with_the_number_of_columns() -> None:
    rng = np.random.default_rng(RNG_SEED)
    rows = 10 * table(rng)[:, :45] / np.abs(table(rng)).max()
    rows[rng.random(rows.shape) < 0.1] = -999
    (hint,) = hints_of(rows)
    assert "--missing-value -999 --impute median" in hint
    near = rng.normal(-999, 5, (500, 45)).round()  # -999 is an ordinary value here
    assert hints_of(near) == ()
