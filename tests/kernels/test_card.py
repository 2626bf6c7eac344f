"""Tests of silent errors of a card: copies, and sums over shapes that its kernels divide in different ways.

With TEST_CARD=full, the tests use the machine's card, and sizes that only a card computes fast enough. Otherwise they
use the emulated card.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress_kernels.upload import upload_rows
from tests.support.cuda import stub
from tests.support.interpreters import REPOSITORY, environment

pytestmark = pytest.mark.process

# Sizes near the size of a warp, the size of a block, and the number of values that a block sums.
SIZES = [1, 2, 3, 31, 32, 33, 63, 64, 65, 255, 256, 257, 511, 512, 513, 1023, 1024, 1025, 4095, 4096, 4097]
SMALL_SIZES = [1, 2, 31, 33, 65, 257]


@pytest.fixture(scope="module")
def card_facts(tmp_path_factory: pytest.TempPathFactory, pygpu: None) -> dict[str, Any]:
    facts: Path = tmp_path_factory.mktemp("card") / "facts.json"
    copies = (10, 1_000_000)
    sizes = SMALL_SIZES
    if os.environ.get("TEST_CARD") == "full":
        copies = (100, 100_000_000)
        sizes = SIZES
    command = [sys.executable, "-W", "error", "tests/support/card_child.py", *map(str, copies), facts, *map(str, sizes)]
    env = environment(THEANO_FLAGS="device=cuda", **stub.card(hold="downloads"))
    result = subprocess.run(command, env=env, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    results: dict[str, Any] = json.loads(facts.read_text())
    assert results["device"] == "cuda"
    return results


def test_copies_are_unchanged_and_sums_of_every_shape_equal_numpy(card_facts: dict[str, Any]) -> None:
    assert card_facts["copies"] == []
    assert card_facts["sums"] == []


class Pieces:
    """Rows that must not be read."""

    def __len__(self) -> int:
        return 2**32 // 784 + 1

    def __iter__(self) -> Iterator[np.ndarray]:
        raise AssertionError("the rows were read")


def test_rows_of_more_than_4_gib_are_refused() -> None:
    # libgpuarray counts bytes in 32 bits, and returns wrong values for larger arrays.
    with pytest.raises(ValueError, match=r"4294967600 bytes.*4294967296"):
        upload_rows(Pieces(), 784, np.dtype(np.uint8), "rows")
