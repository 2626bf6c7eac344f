"""Tests of filters that are decoded in this process: damaged chunks are refused within bounds."""

import struct
from itertools import product

import h5py
import numpy as np
import pytest
import zstandard

from shardpress.hdf5.filters.codecs import FLETCHER32, decode_chunk
from tests.support.cases import case
from tests.support.filtered import WAYS

BLOSC = 32001
ZSTD = 32015


def first_chunk(name):
    """Return the stored bytes, the filters and the decoded size of a chunk."""
    rows = (np.arange(140).reshape(35, 4) % 97).astype("<i4")
    with h5py.File.in_memory() as file:
        item = file.create_dataset("X", data=rows, chunks=rows.shape, **WAYS[name].options).id
        mask, data = item.read_direct_chunk((0, 0))
        properties = item.get_create_plist()
        filters = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    assert not mask
    return data, [(code, values) for code, _, values, _ in filters], rows.nbytes


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if not way.is_by_child])
def test_damaged_chunk_is_an_error_or_has_the_expected_size(name):
    data, filters, n_bytes = first_chunk(name)
    rng = np.random.default_rng(5)
    assert len(decode_chunk(memoryview(data), filters, 0, n_bytes)) == n_bytes
    n_errors = 0
    for i in range(600):
        changed = bytearray(data)
        for place in rng.integers(0, min(len(data), 24) if i % 2 else len(data), rng.integers(1, 4)):
            changed[place] = rng.choice([0, 1, 2, 0x7F, 0x80, 0xFF, rng.integers(256)])
        changed = changed[: rng.integers(len(data) + 1)] if i % 5 == 0 else changed
        try:
            assert len(decode_chunk(memoryview(changed), filters, 0, n_bytes)) == n_bytes
        except ValueError:
            n_errors += 1
    assert n_errors > 100


def test_zstd_frame_is_decompressed_up_to_a_chunk():
    """Whatever size it claims, or none."""
    frame = bytearray(zstandard.ZstdCompressor().compress(bytes(2**20)))
    assert frame[4] >> 6 == 2  # the size of the content has 4 bytes
    frames = [zstandard.ZstdCompressor(write_content_size=False).compress(bytes(2**20))]
    for claimed in (2**20, 2**40, 2**62):
        head = bytes([frame[4] & 0x3F | 0xC0]) + claimed.to_bytes(8, "little")
        frames.append(bytes(frame[:4] + head + frame[9:]))
    for data in frames:
        with pytest.raises(ValueError, match=r"bytes|zstd"):
            decode_chunk(memoryview(data), [(ZSTD, ())], 0, 1000)
    for data in frames[:2]:
        assert len(decode_chunk(memoryview(data), [(ZSTD, ())], 0, 2**20)) == 2**20


def test_blosc_chunk_with_too_many_blocks_is_refused():
    """All blocks may refer to the same bytes: a chunk of 80 KB, compressed again, would take minutes."""
    block = zstandard.ZstdCompressor().compress(b"abcd")

    def decode(n):
        body = struct.pack("<i", 16 + 4 * n) * n + struct.pack("<i", len(block)) + block
        head = struct.pack("<4B3I", 2, 1, 0x90, 1, 4 * n, 4, 16 + len(body))
        return decode_chunk(memoryview(head + body), [(BLOSC, ())], 0, 4 * n)

    assert decode(2**16) == b"abcd" * 2**16
    with pytest.raises(ValueError, match="blosc"):
        decode(2**16 + 1)


# -- HDF5's own filters --------------------------------------------------------------------------------------------


def test_checksums_of_hdf5_and_of_old_files_are_accepted():
    for n, fill in product([1, 2, 3, 719, 16384, 16385, 50001], [0, 255, None]):
        values = np.frombuffer(np.random.default_rng(n).bytes(n), np.uint8) if fill is None else np.full(n, fill, "u1")
        with case(n=n, fill=fill), h5py.File.in_memory() as file:
            dataset = file.create_dataset("X", data=values, chunks=(n,), fletcher32=True)
            _, stored = dataset.id.read_direct_chunk((0,))
            right = stored[-4:]
            swapped = bytes([right[1], right[0], right[3], right[2]])
            for checksum in (right, swapped):
                data = memoryview(stored[:-4] + checksum)
                assert bytes(decode_chunk(data, [(FLETCHER32, ())], 0, n)) == values.tobytes()
