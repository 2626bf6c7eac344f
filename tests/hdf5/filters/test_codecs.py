"""Tests of filters that usually need plugins: they are decoded without a plugin, or refused with advice."""

import struct
from contextlib import suppress
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import zstandard

from shardpress.hdf5.child import ask
from shardpress.hdf5.filters import codecs
from shardpress.hdf5.filters.codecs import decode_chunk
from shardpress.hdf5.shard import Block
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from tests.support.cases import case
from tests.support.child import plant
from tests.support.helpers import refused

FILES = Path(__file__).parents[2] / "files"
REGISTERED = ["zstd", "zstd-shuffle", "lz4", "lz4-blocks", "bzip2", "bitshuffle", "bitshuffle-lz4", "bitshuffle-zstd"]
REGISTERED += ["blosc-lz4", "blosc-blosclz", "blosc-zlib", "blosc-zstd"]
ROWS = np.arange(240).reshape(60, 4) % 97


def path_of(name):
    return FILES / f"filter-{name}.h5"


@pytest.fixture
def new_child():
    ask.retire()
    yield
    ask.retire()


@pytest.mark.process
@pytest.mark.parametrize("name", [*REGISTERED, "scaleoffset"])
def test_files_filtered_by_other_software_read_back(name):
    (shard,) = open_shards([str(path_of(name))])
    assert shard.layouts[0].kind == ("asked" if name == "scaleoffset" else "chunked")
    for start, stop in ((0, 60), (33, 37), (59, 60)):
        block = Block(shard, start, stop)
        np.testing.assert_array_equal(read(block), ROWS[start:stop])
        np.testing.assert_array_equal(read_extras(block)["y"], np.arange(start, stop))


@pytest.mark.process
@pytest.mark.parametrize("precision", [32, 12])
def test_n_bit_reads_back(precision):
    (shard,) = open_shards([str(path_of(f"nbit-{precision}"))])
    np.testing.assert_array_equal(read(Block(shard, 0, 60)), ROWS)


@pytest.mark.process
@pytest.mark.parametrize(("name", "words"), [("blosc2", "32026 (blosc2)"), ("blosc-snappy", "32001 (blosc)")])
def test_other_filters_are_refused_with_ways_to_convert_the_file(name, words):
    phrases = [f"filter {words}", "h5repack -f GZIP=4", "pip install hdf5plugin"]
    with refused(65, str(path_of(name)), "dataset=X", *phrases, "h5py.File('new.h5', 'w')['X'] = "):
        open_shards([str(path_of(name))])


@pytest.mark.process
def test_only_the_text_with_a_registered_filter_is_left_out(caplog):
    (shard,) = open_shards([str(path_of("text"))])
    np.testing.assert_array_equal(read(Block(shard, 0, 60)), ROWS)
    assert [*read_extras(Block(shard, 0, 60))] == ["y"]
    assert shard.left_out


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("zstd", "zstandard"),
        ("lz4", "lz4"),
        ("bitshuffle-lz4", "lz4 zstandard"),
        ("blosc-lz4", "blosc"),
    ],
)
def test_missing_package_is_named(new_child, monkeypatch, tmp_path, name, advice):
    hidden = "import sys\nsys.modules.update(blosc=None, lz4=None, zstandard=None)\n"
    plant(monkeypatch, tmp_path, f"{hidden}from shardpress.hdf5.child.server import main\n")
    monkeypatch.setattr(codecs, "_MISSING", {code: each.packages for code, each in codecs.FILTERS.items()})
    with refused(65, str(path_of(name)), "dataset=X", f"pip install {advice}"):
        open_shards([str(path_of(name))])


# -- damaged -------------------------------------------------------------------------------------------------------


def first_chunk(name):
    """Return the stored bytes, the filters and the decoded size of the first chunk."""
    (shard,) = open_shards([str(path_of(name))])
    layout = shard.layouts[0]
    offset, size, mask = layout.index[:, 0].tolist()
    assert not mask
    return path_of(name).read_bytes()[offset : offset + size], layout.filters, layout.chunk_bytes


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
@pytest.mark.parametrize("name", ["lz4", "bitshuffle-lz4", "bitshuffle-zstd"])
def test_claimed_size_allocates_no_memory(name, size, monkeypatch):
    data, filters, n_bytes = first_chunk(name)
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


@pytest.mark.parametrize(
    "values", [(), (0, 4), (0, 4, 0, 0, 0), (0, 4, 4, 9, 0), (0, 4, 4, 0, 7), (0, 4, 2**32 - 1, 0, 2)]
)
def test_invalid_bitshuffle_parameters_are_an_error(values):
    with pytest.raises(ValueError, match="bitshuffle"):
        decode_chunk(memoryview(bytes(range(64))), [(32008, values)], 0, 64)


# -- bits ----------------------------------------------------------------------------------------------------------


def bits_sorted(data, n_block, itemsize):
    """Bitshuffle data with a slow version of the published algorithm (Masui et al., 2015)."""
    shuffled = bytearray()
    n = len(data) // itemsize
    for first in range(0, n, n_block):
        block = data[first * itemsize : (first + n_block) * itemsize]
        whole = len(block) // itemsize // 8 * 8 * itemsize
        bits = np.unpackbits(np.frombuffer(block[:whole], np.uint8), bitorder="little")
        shuffled += np.packbits(bits.reshape(-1, 8 * itemsize).T, bitorder="little").tobytes() + block[whole:]
    return bytes(shuffled)


def test_bitshuffle_is_inverted_for_any_remainder(monkeypatch):
    monkeypatch.setattr(codecs, "_PIECE", 4096)
    lengths = [0, 1, 7, 8, 9, 127, 128, 129, 1024, 5000]
    for n, itemsize, n_block in product(lengths, [1, 2, 3, 4, 8, 16], [8, 128]):
        with case(n=n, itemsize=itemsize, n_block=n_block):
            data = np.random.default_rng(n).integers(0, 256, n * itemsize, dtype=np.uint8).tobytes()
            sorted_ = bits_sorted(data, n_block, itemsize)
            parameters = (0, 4, itemsize, n_block, 0)
            assert codecs._from_bitshuffle(memoryview(sorted_), parameters, len(data)) == data
