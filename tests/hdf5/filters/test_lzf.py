"""Tests of LZF: data of h5py's filter is restored, and no stream causes access outside the buffers."""

import h5py
import numpy as np
import pytest

from shardpress.hdf5.filters import lzf
from tests.support.cases import case

GUARD = 64


def decompress_slowly(data):
    """Decompress byte by byte, as the format is defined. Return None for a damaged stream."""
    out = bytearray()
    i = 0
    while i < len(data):
        c = data[i]
        i = i + 1
        if c < 32:
            if i + c + 1 > len(data):
                return None
            out += data[i : i + c + 1]
            i += c + 1
            continue
        n = (c >> 5) + 2
        if n == 9 and i < len(data):
            n = n + data[i]
            i = i + 1
        if i == len(data):
            return None
        distance = ((c & 31) << 8 | data[i]) + 1
        i = i + 1
        if distance > len(out):
            return None
        for _ in range(n):
            out.append(out[-distance])
    return bytes(out)


def undo(data, n_bytes):
    """Decompress into a buffer of `n_bytes` between guard bytes, which must not change."""
    around = np.full(n_bytes + 2 * GUARD, 0xA5, dtype=np.uint8)
    out = around[GUARD : GUARD + n_bytes]
    try:
        return out[: lzf.undo_into(data, out)].tobytes()
    finally:
        assert (around[:GUARD] == 0xA5).all()
        assert (around[GUARD + n_bytes :] == 0xA5).all()


def random_stream(rng, n_pieces):
    """Return a valid stream of literals and of repetitions with small and large distances."""
    data = bytearray()
    n = 0
    for _ in range(n_pieces):
        if n == 0 or rng.random() < 0.4:
            size = int(rng.integers(1, 33))
            data += bytes([size - 1]) + rng.bytes(size)
            n += size
            continue
        size = int(rng.choice([3, 4, 8, 9, 17, 200, 264]))
        distance = int(min(rng.choice([1, 2, 3, 4, 7, 8, 15, 16, 17, 8192]), n)) - 1
        length = bytes([7 << 5 | distance >> 8, size - 9]) if size > 8 else bytes([size - 2 << 5 | distance >> 8])
        data += length + bytes([distance & 255])
        n += size
    return bytes(data)


def test_valid_streams_decompress_as_the_format_defines():
    for seed in range(100):
        with case(seed=seed):
            rng = np.random.default_rng(seed)
            data = random_stream(rng, int(rng.integers(0, 60)))
            expected = decompress_slowly(data)
            for more in (0, 1, 15, 300):
                assert undo(data, len(expected) + more) == expected


def test_streams_written_by_h5py_read_back(tmp_path):
    for seed in range(20):
        with case(seed=seed):
            rng = np.random.default_rng(seed)
            rows = (rng.integers(0, 4, (64, 50)) * rng.integers(0, 2, (64, 1))).astype(rng.choice(["u1", "f4", "f8"]))
            with h5py.File(tmp_path / "x.h5", "w") as file:
                dataset = file.create_dataset("X", data=rows, chunks=rows.shape, compression="lzf")
                mask, data = dataset.id.read_direct_chunk((0, 0))
            assert mask == 0
            assert undo(data, rows.nbytes) == rows.tobytes()


def test_damaged_stream_never_writes_outside_its_buffer():
    for seed in range(300):
        with case(seed=seed):
            rng = np.random.default_rng(seed)
            data = bytearray(random_stream(rng, 30))
            for _ in range(int(rng.integers(1, 6))):
                data[rng.integers(len(data))] = rng.integers(256)
            data = bytes(data[: rng.integers(1, len(data) + 1)])
            expected = decompress_slowly(data)
            for n_bytes in (0, 1, 100, 10_000):
                if expected is not None and len(expected) <= n_bytes:
                    assert undo(data, n_bytes) == expected
                else:
                    with pytest.raises(ValueError, match=f"expected {n_bytes} bytes"):
                        undo(data, n_bytes)


def test_arguments_that_are_no_buffers_are_refused():
    with pytest.raises(TypeError):
        lzf.undo_into("text", bytearray(3))
    with pytest.raises(TypeError):
        lzf.undo_into(b"\0a", b"read-only")
