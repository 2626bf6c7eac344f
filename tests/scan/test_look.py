"""Tests of the look at some rows, which chooses their preparation, and of a hint about another setting."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.sparse import csr_matrix

from shardpress.hdf5.columns import NO_COLUMNS
from shardpress.hdf5.shard import array_shard
from shardpress.scan.hints import hints_of
from shardpress.scan.look import follow, form_of
from shardpress.settings.config import Config
from tests.support.cases import case

RNG_SEED = 0
NONE = ("none", "none")
OF_COUNTS = ("total", "log1p")
OF_SPECTRA = ("median", "none")
OF_TAILS = ("none", "log1p")
OF_BITS = ("range", (), "linear")


def chosen(rows: np.ndarray, fitted: np.ndarray | None = None, **settings: object) -> tuple[str, str]:
    """Return the row scaling and the transformation that are chosen."""
    columns = replace(NO_COLUMNS, row_shape=rows.shape[1:])
    shard = replace(array_shard(rows.reshape(len(rows), -1)), columns=columns)
    scaling = follow(Config.of(**settings), (shard,), fitted).scaling
    return scaling.row_scale, scaling.transform


def counts(rng: np.random.Generator) -> np.ndarray:
    abundances = rng.gamma(0.5, size=200) * 3
    return rng.poisson(rng.gamma(0.3, abundances, (500, 200))).astype(np.float32)


def cells(rng: np.random.Generator) -> np.ndarray:
    """Return a few cells of very many genes, most of which are 0 or 1 in all of these cells."""
    abundances = np.exp(rng.normal(0, 2.2, 20_000))
    totals = rng.lognormal(8, 0.4, (52, 1))
    return rng.poisson(rng.gamma(2, totals * abundances / abundances.sum() / 2))


def categories(rng: np.random.Generator, n_integers: int, sizes: tuple[int, ...]) -> np.ndarray:
    """Return columns of integers, and an indicator for each category of some variables."""
    integers = rng.lognormal(3, 2, (1000, n_integers)).round()
    indicators = [rng.integers(size, size=1000)[:, None] == np.arange(size) for size in sizes]
    return np.concatenate([integers, *indicators], axis=1)


def spectra(rng: np.random.Generator, n_sections: int = 1) -> np.ndarray:
    """Return spectra with some sections of 300 channels. Each row is bright or faint in all sections."""
    channels = np.linspace(0, 6, 300)
    shapes = 3 + np.sin(channels + rng.uniform(0, 6, (500, n_sections, 1))) + 0.02 * rng.normal(size=(500, 1, 300))
    return (shapes * rng.lognormal(0, 1, (500, 1, 1))).reshape(500, -1)


def sensors(rng: np.random.Generator) -> np.ndarray:
    """Return 300 hours of 4 sensors, which are smooth, positive, and have levels of their own."""
    hours = np.linspace(0, 6, 300)
    series = 3 + np.sin(hours + rng.uniform(0, 6, (500, 4, 1))) + 0.02 * rng.normal(size=(500, 4, 300))
    return (series * rng.lognormal(0, 1, (500, 4, 1))).reshape(500, -1)


def tails(rng: np.random.Generator) -> np.ndarray:
    return np.exp(2 * rng.normal(size=(1000, 50)))


def bits(rng: np.random.Generator, share: float) -> np.ndarray:
    return rng.random((500, 1024)) < share


def network_for(rows: np.ndarray, **settings: object) -> tuple[object, ...]:
    """Return the scaling, the hidden layers and the activation that are chosen."""
    config = follow(Config.of(**settings), (array_shard(rows),))
    return config.scaling.scale, config.network.hidden, config.network.code_activation


def test_counts_spectra_and_heavy_tails_are_prepared() -> None:
    rng = np.random.default_rng(RNG_SEED)
    of_kinds = rng.poisson(rng.gamma(0.3, 100 / np.arange(1, 201), (500, 200)))
    for rows in (counts(rng), of_kinds, cells(rng)):
        assert chosen(rows) == OF_COUNTS
    assert chosen(spectra(rng)) == OF_SPECTRA
    with_gaps = tails(rng)
    with_gaps[::5, 3] = np.nan
    assert chosen(with_gaps) == OF_TAILS
    assert chosen(with_gaps, impute="median") == OF_TAILS
    assert chosen(spectra(rng), row_scale="norm") == ("norm", "none"), "given settings win"


def test_prepared_and_other_rows_stay_as_they_are() -> None:
    rng = np.random.default_rng(RNG_SEED)
    of_cells = counts(rng) + 1e-9
    of_stars = spectra(rng)
    pixels = np.clip(rng.normal(0, 200, (500, 196)).round(), 0, 255)
    pixels[:, :20] = 0
    damaged = rng.normal(size=(1000, 50))
    damaged[3] *= 1e6
    unsuitable = {
        "logarithms": np.log1p(1e4 * of_cells / of_cells.sum(axis=1, keepdims=True)),
        "equally bright spectra": of_stars / np.median(of_stars, axis=1, keepdims=True),
        "no tails": np.log1p(tails(rng)),
        "tails below 1": tails(rng) / 1e6,  # a logarithm of 1 + x would change nothing
        "pixels": pixels,
        "integers and indicators": categories(rng, 6, (9, 16, 7, 42, 5)),
        "rare categories": categories(rng, 20, (700,)),
        "flags": np.concatenate([rng.poisson(0.3, (500, 30)), bits(rng, 0.05)[:, :40]], axis=1),
        "uniform bytes": rng.integers(0, 256, (500, 80)) * (rng.random((500, 80)) < 0.4),
        "packed bits": np.packbits(bits(rng, 0.5), axis=1),
        "sensors": sensors(rng),
        "huge numbers": np.full((500, 3), 2**53),
        "damaged row": damaged,
        "no values": np.full((500, 3), np.nan),
        "few rows": of_cells[:5],
    }
    for name, rows in unsuitable.items():
        with case(name):
            assert chosen(rows) == NONE
    large_with_gaps = np.where(rng.random((500, 3)) < 0.1, np.nan, 2.0**52)
    assert chosen(large_with_gaps, impute="median") == NONE, "no memory is allocated for each number up to the largest"


def test_packed_bits_are_named() -> None:
    rows = np.packbits(bits(np.random.default_rng(RNG_SEED), 0.02), axis=1)
    assert chosen(rows) == NONE
    form = form_of(Config(), (array_shard(rows),), None)
    assert form is not None
    assert "unpackbits" in form.words


def test_bits_of_all_dtypes_get_linear_features_without_a_hidden_layer() -> None:
    rng = np.random.default_rng(RNG_SEED)
    rows = bits(rng, 0.02).astype(np.float64)
    constant = np.hstack([rows, np.full((500, 30), 7.0)])
    gaps = np.where(rng.random(rows.shape) < 0.1, np.nan, rows)
    for same in (rows, constant, 1 - 2 * rows, rows > 0, csr_matrix(rows)):
        assert network_for(same) == OF_BITS
    assert network_for(gaps, impute="median") == OF_BITS
    marked = np.where(np.isnan(gaps), -1, gaps).astype(np.int8)
    assert network_for(marked, impute="median", missing_value=-1) == OF_BITS
    third = rows.copy()
    third[7, 3] = 3
    for other in (third, rows * np.linspace(1, 20, 1024)):
        assert network_for(other) == ("auto", None, None)
    assert network_for(rows, target="y") == ("range", None, "linear"), "a target needs the layer"
    assert network_for(rows, scale="std", hidden=(8,), code_activation="relu") == ("std", (8,), "relu")


def test_only_selected_rows_are_judged_unless_most_are_bad() -> None:
    rng = np.random.default_rng(RNG_SEED)
    rows = np.concatenate([counts(rng), rng.normal(size=(400, 200))])
    are_counts = np.arange(900) < 500
    assert chosen(rows) == NONE
    assert chosen(rows, are_counts) == OF_COUNTS
    rows[:260, 7] = np.nan
    assert chosen(rows, are_counts) == NONE
    assert chosen(rows, are_counts, impute="median") == OF_COUNTS


def test_sections_of_a_spectrum_may_have_a_shape() -> None:
    rng = np.random.default_rng(RNG_SEED)
    assert chosen(spectra(rng, 4).reshape(500, 4, 300)) == OF_SPECTRA
    assert chosen(sensors(rng).reshape(500, 4, 300)) == NONE
    assert chosen(counts(rng).reshape(500, 10, 20))[0] == "none", "these may be images"


def test_sentinels_are_named_unless_they_are_ordinary_values() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 45))
    rows[rng.random(rows.shape) < 0.1] = -999
    (hint,) = hints_of(rows, 500, 0)
    assert "--missing-value -999 --impute median" in hint
    assert hints_of(rng.normal(-999, 5, (500, 45)).round(), 500, 0) == ()
