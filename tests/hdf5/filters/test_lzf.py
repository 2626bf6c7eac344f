"""Tests of LZF: streams are decoded as by h5py, and no stream causes access outside the buffers."""

import h5py
import numpy as np
import pytest

from shardpress.hdf5.filters import lzf
from tests.support.cases import case

GUARD = 64


def undo(data, n_bytes):
    """Decompress into a buffer of `n_bytes` between guard bytes, which must not change."""
    around = np.full(n_bytes + 2 * GUARD, 0xA5, dtype=np.uint8)
    out = around[GUARD : GUARD + n_bytes]
    try:
        return out[: lzf.undo_into(data, out)].tobytes()
    finally:
        assert (around[:GUARD] == 0xA5).all()
        assert (around[GUARD + n_bytes :] == 0xA5).all()


def random_stream(rng):
    """Return some values with short and long repetitions, and the stream that h5py writes for them."""
    pieces = [rng.bytes(int(rng.integers(1, 40))) for _ in range(4)]
    chosen = [pieces[rng.integers(4)] * int(rng.choice([1, 2, 40])) for _ in range(20)]
    values = b"".join([*chosen, rng.bytes(9000), *chosen, bytes(1000)])  # the last ones are far from the first ones
    with h5py.File.in_memory() as file:
        dataset = file.create_dataset("X", data=np.frombuffer(values, "u1"), chunks=(len(values),), compression="lzf")
        mask, stream = dataset.id.read_direct_chunk((0,))
    assert not mask
    return values, stream


def test_streams_are_decoded_or_refused_in_their_buffer():
    n_refused = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        values, stream = random_stream(rng)
        n = len(values)
        with case(seed=seed):
            for n_bytes in (n, n + 1, n + 300):
                assert undo(stream, n_bytes) == values
            for n_bytes in (0, 1, n - 1):
                with pytest.raises(ValueError, match=f"expected {n_bytes} bytes"):
                    undo(stream, n_bytes)
            for n_bytes in (0, 100, n, 2 * n):
                damaged = bytearray(stream)
                for place in rng.integers(0, len(damaged), int(rng.integers(1, 6))):
                    damaged[place] = rng.integers(256)
                del damaged[rng.integers(1, len(damaged) + 1) :]
                try:
                    undo(bytes(damaged), n_bytes)
                except ValueError:
                    n_refused += 1
    assert n_refused > 100
