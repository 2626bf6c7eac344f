"""Read rows of any form as a dense array, and read extras.

Each read opens the file and closes it. Rows that are not dense are read in pieces of a few megabytes, so that a block
takes little more memory than its rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from shardpress.base import signals
from shardpress.base.errors import DataError, printable, quantity
from shardpress.hdf5.chunkcache import CHUNKS
from shardpress.hdf5.fields import Field, read_fields
from shardpress.hdf5.forms.known import FORMS
from shardpress.hdf5.limits import LONGEST_TEXT
from shardpress.hdf5.shard import ArrayShard, Block, Extra, Shard, UnreadableShard, aligned
from shardpress.result.records import BadValues

log = logging.getLogger(__name__)

_PIECE = 2**22  # bytes of a sparse matrix in memory, and of rows whose columns are put into another order at once
_EXTRA_PIECE = 2**22  # bytes of an extra that are read at once
_EXTRA_ROWS = 1024  # rows that a damaged extra without chunks loses together


def keep_chunks(max_bytes: int) -> None:
    """Limit this process's cache of decompressed chunks."""
    CHUNKS.resize(max_bytes)


def read(block: Block, out: np.ndarray | None = None) -> np.ndarray:
    """Return the rows of a block, (len(block), n_inputs), in the shard's `dtype`, with the columns of the model.

    `out` is memory for the result, with this shape and dtype.

    Raises
    ------
    DataError
        If the rows are damaged, or the file has changed.
    ReadFailed, NotPermitted, SystemLimit
        If rows cannot be read because of a system error or a missing permission.
    """
    shard = block.shard
    if out is None:
        out = np.empty((len(block), shard.n_inputs), dtype=shard.dtype)
    if not len(block):  # an empty block needs no file
        return out
    if isinstance(shard, UnreadableShard):
        raise DataError(f"{shard}: its file cannot be used. See the warning about it above.")
    if isinstance(shard, ArrayShard):
        _read_array(shard.rows, _in_dataset(block), out)
        return out
    if shard.n_stored is not None and shard.order is not None:
        _read_chosen(block, shard.n_stored, shard.order, out)
        return out
    FORMS[shard.form].read(_in_dataset(block), out)
    if shard.order is not None:
        _reorder(out, shard.order)
    return out


def _read_chosen(block: Block, n_stored: int, order: np.ndarray, out: np.ndarray) -> None:
    """Read some of the stored columns, a few megabytes of the stored rows at a time."""
    shard = block.shard
    stored = replace(shard, shape=(shard.n_rows, n_stored), n_stored=None, order=None)
    for start, stop in aligned(block.start, block.stop, max(shard.chunk_rows, _PIECE // stored.row_bytes)):
        piece = read(Block(stored, start, stop))
        out[start - block.start : stop - block.start] = np.take(piece, order, axis=1)


def _reorder(stored: np.ndarray, order: np.ndarray) -> None:
    """Put the columns of rows (n_rows, n_inputs) into another order, a few megabytes at a time."""
    n_rows = max(1, _PIECE // max(1, stored[:1].nbytes))
    for start in range(0, len(stored), n_rows):
        piece = stored[start : start + n_rows]
        piece[...] = np.take(piece, order, axis=1)


def _in_dataset(block: Block) -> Block:
    """Return the block with the row numbers of the dataset, which can have rows before those of the shard."""
    first = block.shard.first_row
    return block if not first else replace(block, start=block.start + first, stop=block.stop + first)


def _read_array(rows: Any, block: Block, out: np.ndarray) -> None:
    if isinstance(rows, np.ndarray):
        out[...] = rows[block.start : block.stop]
        return
    # A CSR matrix of SciPy, whose `toarray` returns a copy: a few rows at a time need little memory.
    n_rows = max(1, _PIECE // (block.shard.n_inputs * rows.dtype.itemsize))
    for start in range(0, len(block), n_rows):
        stop = min(start + n_rows, len(block))
        out[start:stop] = rows[block.start + start : block.start + stop].toarray()


# -- extras ------------------------------------------------------------------------------------------------------


def read_extras(
    block: Block,
    reports: list[BadValues] | None = None,
    check: Callable[[], object] = signals.check,
    warns: bool = True,
) -> dict[str, np.ndarray]:
    """Return the extras (len(block),) of a block by name, in their dtypes.

    Parameters
    ----------
    reports : list, optional
        List to which reports of damaged pieces are appended. Their values become the fill value. If None, damaged
        values are an error.
    check : callable
        Called before each piece; an exception that it raises ends the reading.
    warns : bool
        Whether warnings say what becomes of damaged values and of long strings.

    Raises
    ------
    DataError, ReadFailed, NotPermitted, SystemLimit
        Like `read`.
    """
    values: dict[str, np.ndarray] = {}
    masks_first = sorted(block.shard.extras, key=lambda extra: extra.stored is not None)  # masks are not stored
    for extra in masks_first:
        mask = values.get(extra.mask or "")
        values[extra.name] = _read_or_salvage(block, extra, mask, reports, check, warns)
    return {extra.name: values[extra.name] for extra in block.shard.extras}


def text_rows(shard: Shard, n_bytes: int) -> int:
    """Return a number of rows whose strings take `n_bytes` or less on average, because the file contains them all."""
    n_in_files = shard.identity.size + (0 if shard.master is None else shard.master.identity.size)
    return max(1, n_bytes * shard.n_rows // max(1, n_in_files))


def read_in_pieces(block: Block, extra: Extra, check: Callable[[], object] = signals.check) -> Iterator[np.ndarray]:
    """Yield the values of one extra of a block, some megabytes at a time. The errors are those of `read`."""
    for start, stop in aligned(block.start, block.stop, _rows_at_once(block.shard, extra)):
        check()
        yield _read_extra(Block(block.shard, start, stop), extra, warns=False)


def _read_or_salvage(
    block: Block,
    extra: Extra,
    mask: np.ndarray | None,
    reports: list[BadValues] | None,
    check: Callable[[], object],
    warns: bool,
) -> np.ndarray:
    try:
        return _read_extra(block, extra, warns)  # one read is several times faster than reads of pieces
    except DataError:
        if reports is None:
            raise
        return _salvage(block, extra, mask, reports, check, warns)


def _rows_at_once(shard: Shard, extra: Extra) -> int:
    """Return a number of rows that fill whole chunks, so that no chunk is read twice."""
    n_rows = text_rows(shard, _EXTRA_PIECE) if extra.dtype.hasobject else max(1, _EXTRA_PIECE // extra.dtype.itemsize)
    if extra.stored is None:
        return n_rows
    return -(-n_rows // extra.stored.chunk_rows) * extra.stored.chunk_rows


def _salvage(
    block: Block,
    extra: Extra,
    mask: np.ndarray | None,
    reports: list[BadValues],
    check: Callable[[], object],
    warns: bool,
) -> np.ndarray:
    """Return the values of an extra with the fill value in place of damaged ones. Report them, and clear `mask`."""
    field = extra.stored
    assert field is not None  # values that are not stored cannot be damaged
    values = np.full(len(block), extra.resolved_fill, extra.dtype)
    n_lost = 0
    reasons = []
    # Only the values of damaged chunks are lost, independent of the start of the block.
    chunk_rows = field.chunk_rows if field.layout.chunks else _EXTRA_ROWS
    for start, stop in aligned(block.start, block.stop, chunk_rows):
        check()
        place = slice(start - block.start, stop - block.start)
        try:
            values[place] = _read_extra(Block(block.shard, start, stop), extra, warns)
        except DataError as error:
            n_lost += stop - start
            reasons.append(str(error))
            reports.append(BadValues(start, stop, [], str(error), field.layout.name))
            if mask is not None:
                mask[place] = False
    if reasons and warns:
        log.warning(
            "%s: %d values of the extra %s cannot be read and become %s: %s",
            block,
            n_lost,
            printable(extra.name),
            extra.fill_in_words,
            reasons[0],
        )
    return values


def _read_extra(block: Block, extra: Extra, warns: bool) -> np.ndarray:
    """Return (len(block),) values, with further axes if the values are arrays."""
    block = _in_dataset(block)
    field = extra.stored
    if field is None:
        return np.full(len(block), extra.resolved_fill, extra.dtype)
    if extra.is_in_master:
        block = _in_master(block)
    if extra.codes is None:
        values = _read_field(block, field, extra.dtype)
        if values.dtype.hasobject:
            _cut_off(values, block, extra, warns)
        return values
    # Conversion to int64 makes unsigned codes above 2**63 negative, so they are refused.
    stored = _read_field(block, field, field.dtype).astype(np.int64)
    _check_codes(block, field, stored, len(extra.codes))
    codes = np.array([*extra.codes, -1], extra.dtype)  # the last entry maps -1 to -1
    return codes[stored]


def _in_master(block: Block) -> Block:
    """Return the block with the row numbers and the file of the extras in a master file."""
    master = block.shard.master
    if master is None:
        raise DataError(f"{block.shard}: an extra is in a master file, expected a shard that such a file names.")
    shard = replace(block.shard, path=master.path, identity=master.identity)
    return Block(shard, block.start + master.shift, block.stop + master.shift)


def _cut_off(texts: np.ndarray, block: Block, extra: Extra, warns: bool) -> None:
    """Cut off long strings, between two characters of UTF-8."""
    long_rows = [i for i, text in enumerate(texts.tolist()) if len(text) > LONGEST_TEXT]
    for i in long_rows:
        stop = LONGEST_TEXT
        while stop > LONGEST_TEXT - 3 and texts[i][stop] & 0xC0 == 0x80:  # inside a character
            stop -= 1
        texts[i] = texts[i][:stop]
    if long_rows and warns:
        more = f" (and {quantity(len(long_rows) - 1, 'more value')})" if len(long_rows) > 1 else ""
        log.warning(
            "file=%s row=%d: the value of the extra %s%s is cut off after %d bytes",
            printable(block.shard.path),
            block.start + long_rows[0],
            printable(extra.name),
            more,
            LONGEST_TEXT,
        )


def _read_field(block: Block, field: Field, dtype: np.dtype) -> np.ndarray:
    values = np.empty(len(block), dtype)
    read_fields(block.shard.path, block.shard.identity, [field], block.start, values)
    return values


def _check_codes(block: Block, field: Field, stored: np.ndarray, n_categories: int) -> None:
    wrong = np.flatnonzero((stored < -1) | (stored >= n_categories))
    if len(wrong):
        raise DataError(
            f"file={printable(block.shard.path)} dataset={printable(field.layout.name)} "
            f"rows={block.start + int(wrong[0])}: code {stored[wrong[0]]}, expected -1 to {n_categories - 1} for its "
            "categories. Write the dataset again."
        )
