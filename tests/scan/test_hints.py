"""Tests of hints: rows that other settings would suit are recognized, and others are not."""

from __future__ import annotations

import numpy as np

from shardpress.scan import hints
from tests.support.cases import each

RNG_SEED = 0
MANY = 10**6  # number of rows of a data set


def hints_of(sample: np.ndarray, n_rows: int = MANY, n_bad: int = 0, are_flat: bool = True) -> tuple[str, ...]:
    return hints.hints_of(sample, n_rows, len(sample), n_bad, are_flat)


def counts(rng: np.random.Generator) -> np.ndarray:
    abundances = rng.gamma(0.5, size=200) * 3
    return rng.poisson(rng.gamma(0.3, abundances, (500, 200))).astype(np.float64)


def spectra(rng: np.random.Generator) -> np.ndarray:
    channels = np.linspace(0, 6, 300)
    shapes = 3 + np.sin(channels + rng.uniform(0, 6, (500, 1))) + 0.02 * rng.normal(size=(500, 300))
    return shapes * rng.lognormal(0, 1, (500, 1))


def pixels(rng: np.random.Generator) -> np.ndarray:
    rows = np.clip(rng.normal(0, 200, (500, 196)).round(), 0, 255)
    rows[:, :20] = 0
    return rows


def table(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(500, 60)) * 10.0 ** rng.integers(-3, 4, 60)


def test_counts_are_recognized() -> None:
    (hint,) = hints_of(counts(np.random.default_rng(RNG_SEED)))
    assert "--row-scale total --transform log1p" in hint


def test_spectra_are_recognized() -> None:
    (hint,) = hints_of(spectra(np.random.default_rng(RNG_SEED)))
    assert "--row-scale median" in hint


def test_prepared_rows_need_no_hint() -> None:
    rng = np.random.default_rng(RNG_SEED)
    of_cells = counts(rng) + 1e-9
    totals = of_cells.sum(axis=1, keepdims=True)
    of_stars = spectra(rng)
    for rows in (np.log1p(1e4 * of_cells / totals), of_stars / np.median(of_stars, axis=1, keepdims=True)):
        assert hints_of(rows) == ()


def test_pixels_and_tables_need_no_hint() -> None:
    rng = np.random.default_rng(RNG_SEED)
    assert hints_of(pixels(rng)) == ()
    assert hints_of(table(rng)) == ()


def bits(rng: np.random.Generator, share: float, n_bits: int = 1024) -> np.ndarray:
    return rng.random((500, n_bits)) < share


@each("share", [0.005, 0.02, 0.08])
def test_packed_bits_are_no_counts(share: float) -> None:
    rows = np.packbits(bits(np.random.default_rng(RNG_SEED), share), axis=1)
    assert np.mean(rows == 0) >= 0.5
    assert hints_of(rows.astype(np.float64)) == ()


def test_bits_and_uniform_bytes_are_no_counts() -> None:
    rng = np.random.default_rng(RNG_SEED)
    uniform = rng.integers(0, 256, (500, 80)) * (rng.random((500, 80)) < 0.4)
    for rows in (bits(rng, 0.02), uniform, np.packbits(bits(rng, 0.5), axis=1)):
        assert hints_of(rows.astype(np.float64)) == ()


def test_large_counts_are_recognized() -> None:
    """Counts of kinds with equal means, of kinds with different means, and in rows of different depths."""
    rng = np.random.default_rng(RNG_SEED)
    equal = rng.poisson(rng.gamma(0.1, 200, (500, 100)))
    different = rng.poisson(rng.gamma(0.3, 100 / np.arange(1, 201), (500, 200)))
    depths = rng.poisson(0.3 * rng.lognormal(0, 2, (500, 1)) * np.ones(100))
    for rows in (equal, different, depths):
        assert rows.max() > 200
        (hint,) = hints_of(rows.astype(np.float64))
        assert "--row-scale total --transform log1p" in hint


def test_the_form_of_rows_of_higher_rank_is_not_judged() -> None:
    rng = np.random.default_rng(RNG_SEED)
    for rows in (counts(rng), spectra(rng), np.exp(2 * rng.normal(size=(1000, 50)))):
        assert len(hints_of(rows)) == 1
        assert hints_of(rows, are_flat=False) == ()


def test_rows_of_which_most_are_bad_are_not_judged() -> None:
    rows = spectra(np.random.default_rng(RNG_SEED))
    assert "--row-scale" in hints_of(rows, n_bad=500)[0]
    (hint,) = hints_of(rows, n_bad=501)
    assert "501 of 1001 rows" in hint
    assert "--" not in hint


def test_sentinels_are_named_with_the_number_of_columns() -> None:
    rng = np.random.default_rng(RNG_SEED)
    rows = 10 * table(rng)[:, :45] / np.abs(table(rng)).max()
    rows[rng.random(rows.shape) < 0.1] = -999
    (hint,) = hints_of(rows)
    assert "-999" in hint
    assert "45 columns" in hint
    assert "--missing-value -999 --impute median" in hint
    near = rng.normal(-999, 5, (500, 45)).round()  # -999 is an ordinary value here
    assert hints_of(near) == ()


def test_heavy_tails_are_recognized() -> None:
    rng = np.random.default_rng(RNG_SEED)
    rows = np.exp(2 * rng.normal(size=(1000, 50)))
    rows[::5, 3] = np.nan
    (hint,) = hints_of(rows)
    assert "--transform log1p" in hint
    assert hints_of(np.log1p(rows)) == ()
    assert hints_of(rows / 1e6) == ()  # a logarithm of 1 + x would change nothing


def test_narrow_tables_are_recognized() -> None:
    (hint,) = hints_of(np.random.default_rng(RNG_SEED).normal(size=(500, 7)))
    assert "--n-features 6" in hint
    assert "--output-layer hidden" in hint
    assert hints_of(np.random.default_rng(RNG_SEED).normal(size=(500, 40))) == ()


def test_fewer_rows_than_columns_are_recognized() -> None:
    rows = np.random.default_rng(RNG_SEED).normal(size=(60, 70))
    (hint,) = hints_of(rows, n_rows=60)
    assert "--validation-fraction 0" in hint
    assert hints_of(rows, n_rows=71) == ()


def test_few_rows_and_missing_values_are_harmless() -> None:
    assert hints_of(np.empty((0, 5))) == ()
    rows = np.full((50, 200), np.nan)
    assert hints_of(rows) == ()
    rows[:, 0] = 1
    assert hints_of(rows) == ()
