"""Read values directly from the file, without libhdf5 and its global lock.

Each read opens the file, and checks before and after the read that it is still the vetted file. Chunks are decompressed
one at a time, and those that hold many rows are cached. Values are converted piece by piece. The child process
decompresses chunks with rare filters or types that NumPy lacks, and reads other values that are not plain, such as
strings.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice, product
from math import prod
from typing import NamedTuple

import numpy as np

from shardpress.base.errors import DataError, printable
from shardpress.base.formats import digest
from shardpress.hdf5.child.ask import MemoryExceeded, ask
from shardpress.hdf5.chunkcache import CHUNKS
from shardpress.hdf5.files import Identity, opened, read_into, with_retries
from shardpress.hdf5.filters.codecs import decode_chunk
from shardpress.hdf5.layout import Layout, bytes_of, grid_of

_PIECE = 2**20  # bytes
_LINE = 2**17  # bytes to read from one line at a time
_TILE = 64  # rows to transpose at a time
_MOST_CHUNKS = 1024  # chunks to decode at a time
_MOST_TEXTS = 1024  # strings that the child reads at a time
_FEWER = 32  # factor by which they are fewer if their strings exceed the memory of the child


class _Request(NamedTuple):
    """Request for values from `start` along the first or last axis of a dataset."""

    layout: Layout
    start: int
    axis: int
    where: str
    file: tuple[str, Identity]  # key for the chunk cache


class Values(NamedTuple):
    """Values from `start` along the first (0) or last (-1) axis of a dataset, and the memory that receives them."""

    layout: Layout
    start: int
    # (n, ...), C order, for n values, which are converted to its dtype. The other axes are those of the dataset, or
    # have the same total size. Reusing an array is faster than allocating a new one.
    out: np.ndarray
    axis: int = 0


def read_values(path: str, identity: Identity, values: Sequence[Values]) -> None:
    """Read values of one or several datasets of a file, which is opened once.

    `identity` is that of the vetted file.

    Raises
    ------
    DataError
        If the values are damaged, or the file is no longer the vetted file.
    ReadFailed, NotPermitted, SystemLimit
        If the storage, the permissions or a system limit prevent the read.
    """
    requests = [_request(path, identity, some_values) for some_values in values]

    def read() -> None:
        with opened(path, identity) as (descriptor, _):
            for request, (layout, _, out, axis) in zip(requests, values, strict=True):
                others = layout.shape[1:] if axis == 0 else layout.shape[:-1]
                is_decoded = bool(layout.chunks) and not layout.dtype.hasobject
                reader = _READERS["chunked" if is_decoded else layout.kind]
                # With the requested axis first.
                reader(descriptor, request, out.reshape(len(out), *others, *layout.dtype.shape))

    with_retries(read, requests[0].where)


def _request(path: str, identity: Identity, values: Values) -> _Request:
    layout, start, out, axis = values
    where = f"file={printable(path)} dataset={printable(layout.name)} rows={start}:{start + len(out)}"
    return _Request(layout, start, axis, where, (path, identity))


def file_digest(path: str, identity: Identity) -> str:
    """Return the hexadecimal BLAKE3 digest of a file. Raise the same errors as `read_values`."""

    def pieces() -> Iterator[memoryview]:
        with opened(path, identity) as (descriptor, _):
            yield from _stored_bytes(descriptor, 0, identity.size)

    return with_retries(lambda: digest(pieces()), f"file={printable(path)}")


def _stored_bytes(descriptor: int, offset: int, n_bytes: int) -> Iterator[memoryview]:
    """Yield bytes of a file in pieces, which share a buffer."""
    buffer = memoryview(bytearray(min(_PIECE, n_bytes)))
    for start in range(0, n_bytes, _PIECE):
        piece = buffer[: n_bytes - start]
        read_into(descriptor, piece, offset + start)
        yield piece


# -- contiguous --------------------------------------------------------------------------------------------------


def _read_contiguous(descriptor: int, request: _Request, out: np.ndarray) -> None:
    if not out.size:
        return
    layout = request.layout
    if request.axis:
        _read_lines(descriptor, layout, request.start, out.reshape(len(out), -1))
        return
    row_bytes = prod(layout.shape[1:]) * layout.dtype.itemsize
    offset = layout.offset + request.start * row_bytes
    if out.dtype == layout.dtype:
        read_into(descriptor, bytes_of(out).data, offset)
    else:
        _read_converted(descriptor, layout, offset, row_bytes, out)


def _read_converted(descriptor: int, layout: Layout, offset: int, row_bytes: int, out: np.ndarray) -> None:
    """Read rows from an offset, and convert them to the dtype of `out` piece by piece."""
    n_rows = max(1, _PIECE // row_bytes)
    piece = np.empty((n_rows, *layout.shape[1:]), dtype=layout.dtype)
    for first in range(0, len(out), n_rows):
        part = piece[: len(out) - first]
        read_into(descriptor, bytes_of(part).data, offset + first * row_bytes)
        out[first : first + len(part)] = part


def _read_lines(descriptor: int, layout: Layout, start: int, out: np.ndarray) -> None:
    """Read rows along the last axis: a piece of each line (a contiguous run of values), several lines at a time."""
    itemsize = layout.dtype.itemsize
    n_lines = out.shape[1]
    n_rows = min(len(out), max(1, _LINE // itemsize))
    at_once = min(n_lines, max(1, _PIECE // (n_rows * itemsize)))
    piece = np.empty((at_once, n_rows), dtype=layout.dtype)
    for row in range(0, len(out), n_rows):
        for line in range(0, n_lines, at_once):
            part = piece[: n_lines - line, : len(out) - row]
            _read_pieces_of_lines(descriptor, layout, line, start + row, part)
            _transpose(part, out[row : row + n_rows, line : line + at_once])


def _read_pieces_of_lines(descriptor: int, layout: Layout, first_line: int, start: int, out: np.ndarray) -> None:
    """Read values from `start` in each of several successive lines. Each line fills one row of `out`."""
    itemsize = layout.dtype.itemsize
    line_length = layout.shape[-1]
    for line, into in enumerate(out, first_line):
        read_into(descriptor, bytes_of(into).data, layout.offset + (line * line_length + start) * itemsize)


def _transpose(lines: np.ndarray, out: np.ndarray) -> None:
    """Transpose in tiles that fit into the CPU cache, which is several times faster."""
    for row in range(0, len(out), _TILE):
        out[row : row + _TILE] = lines[:, row : row + _TILE].T


# -- inline ------------------------------------------------------------------------------------------------------


def _read_inline(descriptor: int, request: _Request, out: np.ndarray) -> None:
    layout = request.layout
    values = np.frombuffer(layout.data, dtype=layout.dtype).reshape(layout.shape)
    out[...] = np.moveaxis(values, request.axis, 0)[request.start : request.start + len(out)]


# -- chunked -----------------------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """A part of one chunk."""

    cell: tuple[int, ...]  # position of the chunk in the chunk grid
    source: tuple[slice, ...]  # of the part in the chunk
    target: tuple[slice, ...]  # of the part in the values to read


def _read_chunked(descriptor: int, request: _Request, out: np.ndarray) -> None:
    layout = request.layout
    values = np.moveaxis(out, 0, request.axis)  # a view with the axis order of the dataset
    is_kept = bool(layout.filters) and CHUNKS.holds(layout, request.axis)
    at_once = 1
    if layout.kind == "asked" and not is_kept:  # the child takes longer for two requests than for one
        at_once = max(1, min(_MOST_CHUNKS, _PIECE // layout.chunk_bytes))
    parts = _parts(layout, request.start, request.start + len(out), request.axis)
    while batch := list(islice(parts, at_once)):
        for part, chunk in zip(batch, _chunks(descriptor, request, batch, is_kept), strict=True):
            values[part.target] = np.frombuffer(chunk, dtype=layout.dtype).reshape(layout.chunks)[part.source]


def _chunks(descriptor: int, request: _Request, parts: list[_Part], is_kept: bool) -> list[memoryview]:
    """Return the decoded chunks of some parts. Use the cache if later reads will need the rest of the only chunk."""
    layout = request.layout
    cells = [part.cell for part in parts]
    decode = partial(_decoded_by_child if layout.kind == "asked" else _decoded, descriptor, request, cells)
    if is_kept and not _is_whole(layout, parts[0], request.axis):
        return [CHUNKS.get((request.file, layout.name, cells[0]), layout.chunk_bytes, lambda: decode()[0])]
    return decode()


def _decoded(descriptor: int, request: _Request, cells: list[tuple[int, ...]]) -> list[memoryview]:
    """Read and decode the chunks at some positions in the chunk grid."""
    layout = request.layout
    grid = grid_of(layout.shape, layout.chunks)
    assert layout.index is not None
    chunks = []
    for cell in cells:
        offset, size, mask = layout.index[:, np.ravel_multi_index(cell, grid)].tolist()
        data = np.empty(size, dtype=np.uint8).data
        read_into(descriptor, data, offset)
        try:
            chunks.append(decode_chunk(data, layout.filters, mask, layout.chunk_bytes))
        except ValueError as error:
            where = _where(request, [cell])
            raise DataError(f"{where}: cannot be read: {error}. The file is damaged: copy it again.") from error
    return chunks


def _decoded_by_child(descriptor: int, request: _Request, cells: list[tuple[int, ...]]) -> list[memoryview]:
    layout = request.layout
    where = _where(request, cells)
    try:
        arrays = ask("chunks", descriptor, [layout.name, cells], list[np.ndarray], where)
    except DataError:
        if len(cells) == 1:
            raise
        # The child may have crashed. Name the chunk that is the cause.
        return [chunk for cell in cells for chunk in _decoded_by_child(descriptor, request, [cell])]
    return [array.data for array in arrays]


def _where(request: _Request, cells: list[tuple[int, ...]]) -> str:
    """Return the beginning of messages, which names the chunk if there is only one."""
    if len(cells) > 1:
        return request.where
    first = [i * n for i, n in zip(cells[0], request.layout.chunks, strict=True)]
    return f"{request.where} chunk={first}"


def _is_whole(layout: Layout, part: _Part, axis: int) -> bool:
    """Return whether a part contains all rows of its chunk."""
    chunk_rows = layout.chunks[axis]
    n_in_chunk = min(chunk_rows, layout.shape[axis] - part.cell[axis] * chunk_rows)
    return part.source[axis].stop - part.source[axis].start >= n_in_chunk


def _parts(layout: Layout, start: int, stop: int, axis: int = 0) -> Iterator[_Part]:
    """Yield the parts of chunks that hold the values from `start` to `stop` along an axis."""
    ranges = [(0, n) for n in layout.shape]
    ranges[axis] = (start, stop)
    axes = [_steps(low, high, size) for (low, high), size in zip(ranges, layout.chunks, strict=True)]
    for chosen in product(*axes):
        cell, source, target = zip(*chosen, strict=True)
        yield _Part(cell, source, target)


def _steps(low: int, high: int, size: int) -> list[tuple[int, slice, slice]]:
    """Return index, slice of the chunk and slice of the range for each chunk along an axis that overlaps a range."""
    steps: list[tuple[int, slice, slice]] = []
    if low >= high:
        return steps
    for i in range(low // size, -(-high // size)):
        start = i * size
        first = max(low, start)
        last = min(high, start + size)
        steps.append((i, slice(first - start, last - start), slice(first - low, last - low)))
    return steps


# -- read by the child -------------------------------------------------------------------------------------------


def _read_by_child(descriptor: int, request: _Request, out: np.ndarray) -> None:
    """Read values that only libhdf5 can read. Repeat the request until the child has returned all values."""
    first = 0
    layout = request.layout
    stop = request.start + len(out)
    n_texts = _MOST_TEXTS
    while first < len(out):
        arguments = [layout.name, request.start + first, stop, request.axis, n_texts]
        try:
            n, (*lengths, data) = ask("values", descriptor, arguments, tuple[int, list[np.ndarray]], request.where)
        except MemoryExceeded:
            if n_texts == 1 or not layout.dtype.hasobject:
                raise
            n_texts //= _FEWER
            continue
        values = _texts(data, lengths[0]) if lengths else data.view(layout.dtype)
        out[first : first + n] = values.reshape(n, *out.shape[1:])
        first += n


def _texts(data: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Split concatenated bytes into strings of the given lengths."""
    ends = np.cumsum(lengths)
    starts = ends - lengths
    values = np.empty(len(ends), dtype=object)
    values[:] = [data[start:end].tobytes() for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    return values


_READERS: dict[str, Callable[[int, _Request, np.ndarray], None]] = {
    "contiguous": _read_contiguous,
    "inline": _read_inline,
    "chunked": _read_chunked,
    "asked": _read_by_child,
}
