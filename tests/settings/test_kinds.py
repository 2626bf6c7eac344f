"""Tests of kinds of settings: sizes with units, limits, percentages."""

from fractions import Fraction

from shardpress.settings.kinds import Bytes, kind_of, n_allowed


def test_bytes_are_read_with_their_units():
    expected = {
        **{"0": 0, "512B": 512, "1k": 1024, "1KiB": 1024, "500MB": 500 * 10**6, "500 MiB": 500 * 2**20},
        **{" 4GiB ": 2**32, "4gb": 4 * 10**9, "1.5G": 3 * 2**29, ".5K": 512},
    }
    assert {text: kind_of(Bytes).parse(text) for text in expected} == expected


def test_a_percentage_is_counted_exactly_and_rounded_down():
    for total in (0, 1, 99, 100, 101, 10**18 + 1):
        for tenths in range(0, 1001, 7):
            assert n_allowed(f"{tenths / 10}%", total) == Fraction(tenths, 1000) * total // 1, (tenths, total)
    assert [n_allowed("25", total) for total in (0, 24, 10**6)] == [25, 25, 25]
