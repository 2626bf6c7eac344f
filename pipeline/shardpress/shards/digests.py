"""Digests of rows and of extras, by which a shard is recognized wherever its file is.

A digest is a sum of XXH3 digests of units of rows modulo 2**128. Blocks can therefore be read in any order, and parts,
threads and workers only add their sums. It protects against accidents, and not against forgery.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xxhash

from shardpress.base.formats import sum_of_digests

UNIT_ROWS = 1024
"""Rows of a unit. Blocks start at multiples of it, like the tiles of the encoder."""


class Digest:
    """Sum of the digests of units, which a reader adds."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def add_rows(self, rows: np.ndarray, first_row: int) -> None:
        """Add rows (n_rows, n_inputs), C order, of which the first one has the number `first_row` in its shard."""
        for start in range(0, len(rows), UNIT_ROWS):
            unit = rows[start : start + UNIT_ROWS]
            # The number of the unit is the seed, so that exchanged units change the sum. Rows that begin within a unit,
            # as in a scan with small blocks, have other seeds.
            unit_number, n_before = divmod(first_row + start, UNIT_ROWS)
            self.add(xxhash.xxh3_128_intdigest(unit.data, unit_number + (n_before << 40)))

    def add(self, digest: int) -> None:
        """Add the sum of other units."""
        self.value += digest

    def __str__(self) -> str:
        return sum_of_digests([self.value])


class ExtrasDigest:
    """Sum of the digests of units of the extras in consecutive rows, of which the first one begins a unit."""

    def __init__(self, first_row: int) -> None:
        self._first_row = first_row
        self._found: dict[str, int] = {}

    def add(self, name: str, blocks: Iterable[np.ndarray]) -> None:
        """Add all values of an extra, in blocks of any size."""
        digest = Digest()
        row = self._first_row
        unit = _new_unit(name, row)
        for block in blocks:
            n_done = 0
            while n_done < len(block):
                n_rows = min(len(block) - n_done, UNIT_ROWS - row % UNIT_ROWS)
                unit.update(bytes_of(block[n_done : n_done + n_rows]))
                n_done += n_rows
                row += n_rows
                if row % UNIT_ROWS == 0:
                    digest.add(unit.intdigest())
                    unit = _new_unit(name, row)
        if row % UNIT_ROWS:
            digest.add(unit.intdigest())
        self._found[name] = digest.value

    def __str__(self) -> str:
        return sum_of_digests(self._found.values())


def _new_unit(name: str, first_row: int) -> xxhash.xxh3_128:
    # Its number and the name are hashed, too, so that exchanged units change the sum.
    return xxhash.xxh3_128(f"{first_row // UNIT_ROWS} {name} ".encode("utf-8", "surrogateescape"))


def bytes_of(values: np.ndarray) -> bytes | memoryview:
    """Return the bytes of values, which for strings include their lengths."""
    if not values.dtype.hasobject:
        return np.ascontiguousarray(values).view(np.uint8).data if values.size else b""
    parts = []
    for value in values.ravel():
        text = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
        parts += [len(text).to_bytes(8, "little"), text]
    return b"".join(parts)
