"""Tests of HDF5's own filters: each is inverted as in HDF5, or refused."""

from itertools import product

import numpy as np
import pytest

from shardpress.hdf5.filters import codecs
from shardpress.hdf5.filters.codecs import _fletcher32
from tests.support.cases import case


def slow_fletcher32(data):
    """Compute the checksum word by word, as H5checksum.c does."""
    low = high = 0
    for i in range(0, len(data), 2):
        low += data[i] << 8 | (data[i + 1] if i + 1 < len(data) else 0)
        high += low
        low = (low & 0xFFFF) + (low >> 16)
        high = (high & 0xFFFF) + (high >> 16)
    return ((high & 0xFFFF) + (high >> 16)) << 16 | (low & 0xFFFF) + (low >> 16)


def test_checksum_equals_that_of_hdf5():
    for n, fill in product([0, 1, 2, 3, 719, 720, 721, 16383, 16384, 16385, 50001], [0, 255, None]):
        with case(n=n, fill=fill):
            data = np.random.default_rng(n).bytes(n) if fill is None else bytes([fill]) * n
            assert _fletcher32(memoryview(data)) == slow_fletcher32(data)


def test_byte_swapped_checksum_of_old_files_is_accepted():
    data = np.arange(7, dtype=np.uint8).tobytes()
    right = _fletcher32(memoryview(data)).to_bytes(4, "little")
    old = bytes([right[1], right[0], right[3], right[2]])
    for stored in (right, old):
        found = codecs.decode_chunk(memoryview(data + stored), [(codecs.FLETCHER32, ())], 0, 7)
        assert bytes(found) == data
    with pytest.raises(ValueError, match="checksum"):
        codecs.decode_chunk(memoryview(data + right[::-1]), [(codecs.FLETCHER32, ())], 0, 7)


def test_shuffle_is_inverted_for_any_remainder():
    for n_bytes, size in product([0, 1, 3, 4, 5, 7, 12, 13], [1, 2, 3, 4, 8]):
        with case(n_bytes=n_bytes, size=size):
            data = np.arange(n_bytes, dtype=np.uint8)
            n = n_bytes // size
            shuffled = np.concatenate([data[: n * size].reshape(n, size).T.ravel(), data[n * size :]])
            assert bytes(codecs.decode_chunk(shuffled.data, [(codecs.SHUFFLE, (size,))], 0, n_bytes)) == data.tobytes()


@pytest.mark.parametrize("parameters", [(), (0,), (4, 4)])
def test_shuffle_without_an_element_size_is_refused(parameters):
    with pytest.raises(ValueError, match="shuffle"):
        codecs.decode_chunk(memoryview(bytes(8)), [(codecs.SHUFFLE, parameters)], 0, 8)
