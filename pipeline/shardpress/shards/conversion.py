"""The step between the rows of a shard, as they are stored, and the rows that a model takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from shardpress.hdf5.shard import Block, Shard
from shardpress.model.preparation import PREPARED_DTYPE, Preparation
from shardpress.shards import digests, rows
from shardpress.shards.digests import Digest

_DIGEST_BLOCK = 2**23  # bytes of rows that are read at once only for their digest


@dataclass(frozen=True, eq=False)
class Conversion:
    """Conversion of stored rows, in one of two ways."""

    offset: np.ndarray | None = None  # integers that are subtracted exactly from every row: (n_inputs,), float64
    preparation: Preparation | None = None

    def dtype_of(self, shard: Shard) -> np.dtype:
        """Return the dtype of the rows of a shard."""
        if self.preparation is not None:
            return PREPARED_DTYPE
        if self.offset is not None:
            return np.dtype(np.float64 if shard.dtype.kind == "f" else np.int64)
        return shard.dtype

    def dtype(self, shards: Iterable[Shard]) -> np.dtype:
        """Return the dtype that holds the rows of all shards."""
        # For example, NumPy promotes float32 and int32 to float64, which holds all their values.
        return np.result_type(*dict.fromkeys(map(self.dtype_of, shards)))

    def row_bytes(self, shard: Shard) -> int:
        return shard.n_inputs * self.dtype_of(shard).itemsize

    def read(self, block: Block, memory: np.ndarray | None = None, digest: Digest | None = None) -> np.ndarray:
        """Return the rows of a block: (len(block), n_inputs), in the dtype of its shard's rows, C order.

        `memory`, uint8, is memory for the result; it can be larger. The rows as they are stored, in the order of the
        model's columns, are added to `digest`. The errors are those of `shardpress.shards.rows.read`.
        """
        shard = block.shard
        shape = (len(block), shard.n_inputs)
        dtype = self.dtype_of(shard)
        out = np.empty(shape, dtype) if memory is None else np.ndarray(shape, dtype, memory)
        # Rows of the same size are read into the memory of the result.
        stored = rows.read(block, out.view(shard.dtype) if shard.dtype.itemsize == out.itemsize else None)
        if digest is not None:
            digest.add_rows(stored, block.start)
        if self.preparation is not None:
            self.preparation.check(stored, shard, shard.first_row + block.start)
            if stored.dtype != out.dtype:
                out[...] = stored
            self.preparation.apply_in_place(out)
        elif self.offset is not None and out.dtype.kind == "f":
            np.subtract(stored, self.offset, out=out)
        elif self.offset is not None:
            out[...] = _integer_differences(stored, self.offset)
        return out


AS_STORED = Conversion()
"""Conversion that changes nothing."""


def digest_of_rows(block: Block) -> str:
    """Return the digest of rows, of which the first one begins a unit, with the errors of `Conversion.read`."""
    digest = Digest()
    n_units = max(1, _DIGEST_BLOCK // max(1, block.shard.row_bytes) // digests.UNIT_ROWS)
    for unit_block in block.cut(n_units * digests.UNIT_ROWS):
        AS_STORED.read(unit_block, None, digest)
    return str(digest)


def _integer_differences(raw: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Subtract an offset (n_inputs,) from integers. Clip the differences to the range of int64, and return int64."""
    wide = np.dtype(np.uint64 if raw.dtype == np.uint64 else np.int64)
    raw = raw.astype(wide, copy=False)
    offsets = np.array([int(value) for value in offset], dtype=wide)
    is_below = raw < offsets
    differences = (raw - offsets).view(np.int64)  # modulo 2**64
    # A difference with the wrong sign has wrapped around.
    wraps = is_below != (differences < 0)
    limits = np.iinfo(np.int64)
    differences[wraps & is_below] = limits.min
    differences[wraps & ~is_below] = limits.max
    return differences
