"""Tests of durations and sizes as text."""

from __future__ import annotations

from shardpress.text import duration, exact_duration, size


def test_durations_and_sizes_have_about_three_digits() -> None:
    seconds = {0: "0 s", 119.4: "119 s", 119.6: "2 min", 7169: "119 min", 7171: "2 h 00 min", 11100: "3 h 05 min"}
    assert {each: duration(each) for each in seconds} == seconds
    exact = {9.94: "9.9 s", 59.4: "59 s", 60: "1 min 0 s", 3599: "59 min 59 s", 7260: "2 h 1 min"}
    assert {each: exact_duration(each) for each in exact} == exact
    sizes = {
        0: "0 B",
        999: "999 B",
        1000: "1 kB",
        1234: "1.23 kB",
        999_600: "1000 kB",
        2.5e9: "2.5 GB",
        5e15: "5e+03 TB",
    }
    assert {each: size(each) for each in sizes} == sizes
