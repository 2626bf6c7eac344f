"""Tests of the check where values are: inside the file, apart, and no larger than their bytes can become."""

from dataclasses import replace

import numpy as np
import pytest

from shardpress.hdf5.child.find import Refused
from shardpress.hdf5.child.places import check_apart, check_place
from shardpress.hdf5.layout import Layout

I4 = np.dtype("<i4")
SIZE = 1000  # bytes of the file
CHUNKED = Layout("X", (6, 2), I4, "chunked", chunks=(2, 2), filters=((1, (4,)),))


def index(*chunks):
    return np.array(chunks, np.int64).T


@pytest.mark.parametrize(
    ("chunk", "phrase"),
    [
        ((47, 16, 0), " 47:"),
        ((985, 16, 0), " 985:"),
        ((2**63 - 1, 16, 0), " 9223372036854775807:"),
        ((100, 2**63 - 1, 0), "values are at"),
        ((100, 15, 1), "expected about 16"),
    ],
)
def test_chunk_outside_its_place_is_refused(chunk, phrase):
    check_place(replace(CHUNKED, index=index((48, 16, 0), (984, 16, 0), (300, 20, 0))), SIZE)
    layout = replace(CHUNKED, index=index((200, 16, 0), chunk, (300, 20, 0)))
    with pytest.raises(Refused, match=phrase):
        check_place(layout, SIZE)


def test_overlapping_chunks_are_refused():
    layout = replace(CHUNKED, index=index((200, 16, 0), (215, 16, 0), (300, 20, 0)))
    with pytest.raises(Refused, match=" 215"):
        check_apart([layout])
    apart = replace(CHUNKED, index=index((200, 15, 0), (215, 16, 0), (300, 20, 0)))
    check_apart([apart, replace(apart, name="Y")])
    with pytest.raises(Refused, match=" 210"):
        check_apart([apart, Layout("Z", (2,), I4, "contiguous", 210)])


def test_size_that_deflate_cannot_reach_is_refused():
    n = 2**12
    found = np.stack([100 + np.arange(n), np.ones(n), np.zeros(n)]).astype(np.int64)
    layout = replace(CHUNKED, shape=(n, 2**15), chunks=(1, 2**15), index=found)
    with pytest.raises(Refused, match=f"{n} bytes.* {n * 2**17} bytes"):
        check_place(layout, 2**20)
