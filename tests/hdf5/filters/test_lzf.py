"""Tests of LZF: streams are decoded as the format defines, and no stream causes access outside the buffers."""

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


@pytest.mark.parametrize("is_damaged", [False, True])
def test_streams_are_decoded_or_refused_in_their_buffer(is_damaged):
    for seed in range(200):
        with case(seed=seed):
            rng = np.random.default_rng(seed)
            data = bytearray(random_stream(rng, int(rng.integers(1, 60))))
            if is_damaged:
                for place in rng.integers(0, len(data), int(rng.integers(1, 6))):
                    data[place] = rng.integers(256)
                del data[rng.integers(1, len(data) + 1) :]
            expected = decompress_slowly(data)
            n_expected = len(expected or b"")
            for n_bytes in (0, 1, 100, n_expected, n_expected + 1, n_expected + 300, 10_000):
                if expected is not None and len(expected) <= n_bytes:
                    assert undo(bytes(data), n_bytes) == expected
                else:
                    with pytest.raises(ValueError, match=f"expected {n_bytes} bytes"):
                        undo(bytes(data), n_bytes)
