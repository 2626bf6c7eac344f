"""Tests of registered filters that are decoded in this process: damaged chunks are refused within bounds."""

import struct
from contextlib import suppress

import h5py
import numpy as np
import pytest
import zstandard

from shardpress.hdf5.filters import codecs
from shardpress.hdf5.filters.codecs import decode_chunk
from tests.support.filtered import WAYS

REGISTERED = [name for name, way in WAYS.items() if not way.is_by_child]


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


@pytest.mark.parametrize("name", REGISTERED)
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


@pytest.mark.parametrize("size", [0, 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63])
def test_claimed_size_allocates_no_memory(size, monkeypatch):
    data, filters, n_bytes = first_chunk("lz4")
    real = bytearray

    def bounded(size):
        assert not isinstance(size, int) or size <= n_bytes + 4
        return real(size)

    monkeypatch.setattr(codecs, "bytearray", bounded, raising=False)
    with pytest.raises(ValueError, match=r"bytes|lz4"):
        decode_chunk(memoryview(size.to_bytes(8, "big") + data[8:]), filters, 0, n_bytes)
    with suppress(ValueError):  # with a single block, a larger block size is valid
        decode_chunk(memoryview(data[:8] + (size % 2**32).to_bytes(4, "big") + data[12:]), filters, 0, n_bytes)


@pytest.mark.parametrize("claimed", [2**20, 2**40, 2**62])
def test_frame_that_claims_more_than_a_chunk_is_not_decompressed(claimed):
    frame = bytearray(zstandard.ZstdCompressor().compress(bytes(2**20)))
    assert frame[4] >> 6 == 2  # the size of the content has 4 bytes
    head = bytes([frame[4] & 0x3F | 0xC0]) + claimed.to_bytes(8, "little")
    with pytest.raises(ValueError, match=f"{claimed} bytes"):
        decode_chunk(memoryview(frame[:4] + head + frame[9:]), [(32015, ())], 0, 100)


def test_frame_without_a_size_is_decompressed_up_to_a_chunk():
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(2**20))
    assert len(decode_chunk(memoryview(frame), [(32015, ())], 0, 2**20)) == 2**20
    with pytest.raises(ValueError, match="zstd"):
        decode_chunk(memoryview(frame), [(32015, ())], 0, 1000)


def test_blosc_chunk_with_too_many_blocks_is_refused():
    """All blocks may refer to the same bytes: a chunk of 80 KB, compressed again, would take minutes."""
    block = zstandard.ZstdCompressor().compress(b"abcd")

    def decode(n):
        body = struct.pack("<i", 16 + 4 * n) * n + struct.pack("<i", len(block)) + block
        head = struct.pack("<4B3I", 2, 1, 0x90, 1, 4 * n, 4, 16 + len(body))
        return decode_chunk(memoryview(head + body), [(32001, ())], 0, 4 * n)

    most = codecs._MOST_BLOCKS
    assert decode(most) == b"abcd" * most
    with pytest.raises(ValueError, match=f"{4 * most + 4} bytes"):
        decode(most + 1)
