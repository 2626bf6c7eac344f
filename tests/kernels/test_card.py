"""Tests of silent errors of a card: copies, and sums over shapes that its kernels divide in different ways.

With TEST_CARD=full, the tests use the machine's card, and sizes that only a card computes fast enough. Otherwise they
use the emulated card.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

from shardpress_kernels.upload import upload_rows
from tests.support.cuda import stub
from tests.support.interpreters import run_python

pytestmark = pytest.mark.process

# Sizes near the size of a warp, the size of a block, and the number of values that a block sums.
SIZES = [1, 2, 3, 31, 32, 33, 63, 64, 65, 255, 256, 257, 511, 512, 513, 1023, 1024, 1025, 4095, 4096, 4097]
SMALL_SIZES = [1, 2, 31, 33, 65, 257]


@pytest.mark.usefixtures("pygpu")
def test_copies_are_unchanged_and_sums_of_every_shape_equal_numpy() -> None:
    is_full = os.environ.get("TEST_CARD") == "full"
    n_copies, n_bytes = (100, 100_000_000) if is_full else (10, 1_000_000)
    sizes = SIZES if is_full else SMALL_SIZES
    code = f"""
    from shardpress_kernels import backend
    from tests.support.card_child import wrong_copies, wrong_sums
    facts["device"] = backend.start(require=True).used
    facts["copies"] = wrong_copies({n_copies}, {n_bytes})
    facts["sums"] = wrong_sums({sizes})
    """
    ended = run_python(code, THEANO_FLAGS="device=cuda", **stub.card(hold="downloads"))
    assert ended.facts == {"device": "cuda", "copies": [], "sums": []}


def test_rows_of_more_than_4_gib_are_refused() -> None:
    # libgpuarray counts bytes in 32 bits, and returns wrong values for larger arrays.
    rows = range(2**32 // 784 + 1)  # stands for rows: only its length is used before the refusal
    with pytest.raises(ValueError, match=r"4294967600 bytes.*4294967296"):
        upload_rows(rows, 784, np.dtype(np.uint8), "rows")
