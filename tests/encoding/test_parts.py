"""Tests of the division into parts: each row is in exactly one part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shardpress.encoding.parts import PartRows, PartSize, plan_parts, without_overlaps
from shardpress.hdf5.shard import Shard
from shardpress.result.records import Entry, Part, Range
from tests.support.cases import each


def shards_of(*sizes: int) -> dict[str, Shard]:
    return {str(i): Shard(f"{i}.h5", "X", (size, 2), "float32") for i, size in enumerate(sizes)}


def part(number: int, *places: tuple[int, int, int]) -> Part:
    """Return a part with ranges, which are given by their shards, first rows and ends. Some of its rows are dead."""
    ranges = []
    n_rows = 1
    for shard, start, stop in places:
        ranges.append(Range(n_rows, str(shard), start, stop))
        n_rows += stop - start + 1
    return Part(Entry(f"parts/part-{number:032x}.h5", 7, "b"), n_rows, ranges)


def places(parts: Sequence[Sequence[PartRows]]) -> list[list[tuple[int, int, int]]]:
    return [[(int(shard), source.start, source.stop) for shard, source in pieces] for pieces in parts]


def random_parts(rng: np.random.Generator, sizes: Sequence[int]) -> list[Part]:
    """Return parts with random ranges. Some of them overlap, or extend past the end of their shard."""
    found = []
    for i in range(int(rng.integers(0, 4))):
        ranges = []
        for _ in range(int(rng.integers(1, 4))):
            shard = int(rng.integers(0, len(sizes)))
            start = int(rng.integers(0, sizes[shard] + 1))
            ranges.append((shard, start, start + int(rng.integers(1, 8))))
        found.append(part(i, *ranges))
    return found


def random_plan(seed: int) -> tuple[dict[str, Shard], list[Part], PartSize, list[list[PartRows]]]:
    """Return random shards, the usable ones of random existing parts, and the planned parts."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 30, rng.integers(1, 8)).tolist()
    shards = shards_of(*sizes)
    kept = without_overlaps(random_parts(rng, sizes), shards)
    step = int(rng.integers(1, 6))
    size = PartSize(step * int(rng.integers(1, 5)), int(rng.integers(1, 4)), step)
    return shards, kept, size, plan_parts(shards, kept, size)


@each("seed", range(300))
def test_every_row_is_in_one_place_and_parts_are_in_order(seed: int) -> None:
    """A part is full if the next one begins with rows that it could not take."""
    shards, kept, size, planned = random_plan(seed)
    n_times = {number: np.zeros(shard.n_rows, int) for number, shard in shards.items()}
    for used in (used for part in kept for used in part.ranges):
        n_times[used.shard][used.start : used.stop] += 1
    for number, source in (piece for pieces in planned for piece in pieces):
        assert source.shard is shards[number]
        n_times[number][source.start : source.stop] += 1
    assert (np.concatenate(list(n_times.values())) == 1).all()
    every = [place for pieces in places(planned) for place in pieces]
    assert every == sorted(every)
    ends = {(int(used.shard), row) for part in kept for used in part.ranges for row in (used.start, used.stop)}
    for number, *rows in every:
        for row in rows:
            is_step = row % size.step_rows == 0 or row == shards[str(number)].n_rows
            assert is_step or (number, row) in ends
    n_rows = [sum(len(source) for _, source in pieces) for pieces in planned]
    assert all(1 <= len(pieces) <= size.n_shards for pieces in planned)
    assert max(n_rows, default=0) <= size.n_rows
    for pieces, n, (following, *_) in zip(planned, n_rows, planned[1:], strict=False):
        least = min(len(following.source), size.step_rows - following.source.start % size.step_rows)
        assert len(pieces) == size.n_shards or n + least > size.n_rows


def test_only_ranges_that_overlap_or_pass_the_end_are_dropped() -> None:
    shards = shards_of(10, 0, 7)
    existing = [part(0, (0, 4, 6), (2, 0, 7)), part(1, (0, 2, 5), (0, 6, 10)), part(2, (0, 9, 11), (2, 6, 8))]
    kept = without_overlaps(existing, shards)
    assert [part.file for part in kept] == [existing[0].file, existing[1].file]
    assert [each.ranges for each in kept] == [existing[0].ranges[1:], existing[1].ranges]
    assert [each.n_rows for each in kept] == [each.n_rows for each in existing[:2]]
    (missing,) = plan_parts(shards, kept, PartSize(8, 4, 4))
    assert places([missing]) == [[(0, 0, 2), (0, 5, 6)]]
