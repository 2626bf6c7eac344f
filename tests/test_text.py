"""Tests of durations and sizes as text."""

from __future__ import annotations

import pytest

from shardpress.text import duration, exact_duration, size


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (119.4, "119 s"), (119.6, "2 min"), (7169, "119 min"), (7171, "2 h 00 min"), (11100, "3 h 05 min")],
)
def test_duration_in_seconds_minutes_or_hours(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(9.94, "9.9 s"), (59.4, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (7260, "2 h 1 min")],
)
def test_exact_duration_keeps_the_seconds_of_minutes(seconds: float, words: str) -> None:
    assert exact_duration(seconds) == words


@pytest.mark.parametrize(
    ("n_bytes", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1234, "1.23 kB"),
        (999_600, "1000 kB"),
        (2.5e9, "2.5 GB"),
        (120e9, "120 GB"),
        (5e15, "5e+03 TB"),
    ],
)
def test_sizes_have_three_digits(n_bytes: float, words: str) -> None:
    assert size(n_bytes) == words
