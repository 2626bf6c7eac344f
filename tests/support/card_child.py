"""Test copies and sums on the device of THEANO_FLAGS, in a separate process for test_card.py."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from shardpress_kernels import backend

_ROUNDINGS = 16 * np.finfo(np.float32).eps  # relative to the sum of absolute values, for any order of summation


def wrong_copies(n: int, n_bytes: int) -> list[int]:
    """Copy data to the device, change it there and copy it back. Return the numbers of the wrong copies."""
    theano = backend.load()
    vector = theano.tensor.fvector()
    changed = backend.compile_function([vector], vector + np.float32(1))
    rng = np.random.default_rng(0)
    wrong = []
    for i in range(n):
        sent = rng.random(n_bytes // 4, dtype=np.float32)
        if not np.array_equal(np.asarray(changed(sent)), sent + np.float32(1)):
            wrong.append(i)
    return wrong


def wrong_sums(sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Return the shapes for which a sum over all entries, columns or rows differs from NumPy's."""
    theano = backend.load()
    matrix = theano.tensor.fmatrix()
    axes = (None, 0, 1)
    sums = {axis: backend.compile_function([matrix], matrix.sum(axis=axis)) for axis in axes}
    rng = np.random.default_rng(0)
    wrong = []
    for shape in product(sizes, sizes):
        rows = rng.standard_normal(shape, dtype=np.float32)
        for axis, function in sums.items():
            off = np.abs(np.asarray(function(rows)) - rows.sum(axis=axis, dtype=np.float64))
            if not np.all(off <= _ROUNDINGS * np.abs(rows).sum(axis=axis, dtype=np.float64)):
                wrong.append({"shape": shape, "axis": axis, "off": float(np.max(off))})
    return wrong
