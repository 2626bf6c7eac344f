"""Tests of copies of rows in new parts: every value stays as it is stored."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from msgspec import structs

from shardpress.encoding.copy_rows import CopyTask, copy_rows, groups_of
from shardpress.encoding.partfile import part_file
from shardpress.encoding.parts import PartSize
from shardpress.output.disk import Disk
from shardpress.output.folder import fault_of, write_file
from shardpress.result.records import Entry, Part, Range

COLOURS = h5py.enum_dtype({"red": 0, "blue": 7}, basetype=">i2")


def write_part(folder: Path, number: int, n_rows: int, ranges: list[Range], compression: str) -> Part:
    """Write a part with an extra of each kind. Its name contains its number."""
    rng = np.random.default_rng(number)
    extras = {
        "name": np.array([f"row {number} {i} \N{GREEK SMALL LETTER ALPHA}" for i in range(n_rows)], object),
        "colour": rng.choice([0, 7], n_rows).astype(COLOURS),
        "place": rng.random((n_rows, 2)),
        "features": rng.integers(0, 9, n_rows),  # a name that the file needs itself
    }
    features = rng.random((n_rows, 3)).astype(np.float16)
    errors = rng.random(n_rows).astype(np.float32)
    content = part_file(features, rng.random(n_rows) < 0.5, extras, {}, compression, errors)
    entry = write_file(folder, Disk(), f"parts/part-{number:032x}.h5", content)
    return Part(entry, n_rows, ranges, "float16", 0.1 * number)


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_copied_rows_are_equal(tmp_path: Path, compression: str) -> None:
    (tmp_path / "parts").mkdir()
    first = write_part(tmp_path, 1, 9, [Range(2, "a", 0, 3, n_bad=1), Range(7, "b", 5, 7)], compression)
    second = write_part(tmp_path, 2, 5, [Range(0, "b", 0, 5, rows="1f")], compression)
    pairs = [(first, first.ranges[0]), (second, second.ranges[0]), (first, first.ranges[1])]
    copy = copy_rows(CopyTask(pairs, "part-7", tmp_path, Disk(), {}, compression))
    assert fault_of(tmp_path, copy.entry) is None
    assert copy.file.startswith("parts/part-7-")
    assert (copy.n_rows, copy.dtype, copy.max_error) == (10, "float16", 0.2)
    assert [structs.replace(rows, first=0) for rows in copy.ranges] == [
        structs.replace(rows, first=0) for _, rows in pairs
    ]
    with h5py.File(tmp_path / copy.file) as file:
        for (part, stored), rows in zip(pairs, copy.ranges, strict=True):
            with h5py.File(tmp_path / part.file) as source:
                assert file.keys() == source.keys()
                for name, dataset in source.items():
                    assert file[name].dtype == dataset.dtype
                    assert h5py.check_enum_dtype(file[name].dtype) == h5py.check_enum_dtype(dataset.dtype)
                    expected = dataset[stored.first : stored.first + stored.n_rows]
                    np.testing.assert_array_equal(file[name][rows.first : rows.first + rows.n_rows], expected)


@pytest.mark.parametrize(
    ("size", "most_bytes", "expected"),
    [
        (PartSize(6, 9, 1), 10**6, ["abc", "d"]),
        (PartSize(5, 9, 1), 10**6, ["ab", "cd"]),
        (PartSize(99, 2, 1), 10**6, ["ab", "cd"]),
        (PartSize(99, 9, 1), 450, ["ab", "cd"]),
        (PartSize(1, 9, 1), 1, ["a", "b", "c", "d"]),
    ],
)
def test_groups_have_at_most_the_size_of_a_part(size: PartSize, most_bytes: int, expected: list[str]) -> None:
    """Each of four ranges has two rows of a hundred bytes. A range is not divided."""
    ranges = [Range(2 * i, name, 0, 2) for i, name in enumerate("abcd")]
    part = Part(Entry("parts/part.h5", 800, ""), 8, ranges)
    groups = groups_of([(part, rows) for rows in ranges], size, most_bytes)
    assert ["".join(rows.shard for _, rows in group) for group in groups] == expected
