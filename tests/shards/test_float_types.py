"""Tests of floating-point types that NumPy does not have: HDF5 converts types of up to 64 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from h5py import h5t

from shardpress.hdf5.shard import Block
from shardpress.shards.rows import read
from shardpress.shards.vet import Selection, vet
from tests.support.cases import case
from tests.support.helpers import refused

pytestmark = pytest.mark.process

ROWS = np.random.default_rng(0).integers(-8, 9, (20, 4)).astype(np.float32) / 4  # exact with 4 bits of mantissa


def float_type(size: int, n_exponent: int, n_mantissa: int) -> Any:
    """Return a floating-point type of `size` bytes, with sign bit, exponent and mantissa in this order."""
    kind = h5t.IEEE_F32LE.copy() if size <= 4 else h5t.IEEE_F64LE.copy()
    if size > 8:
        kind.set_size(size)
        kind.set_precision(8 * size)
    n_bits = 1 + n_exponent + n_mantissa
    kind.set_fields(n_bits - 1, n_mantissa, n_exponent, 0, n_mantissa)
    kind.set_ebias(2 ** (n_exponent - 1) - 1)
    kind.set_size(size)
    kind.set_precision(n_bits)
    return kind


BFLOAT16 = float_type(2, 8, 7)


def write(path: Path, dtype: Any, rows: np.ndarray | None = ROWS, chunks: tuple[int, int] | None = None) -> Path:
    with h5py.File(path, "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        if chunks:
            properties.set_chunk(chunks)
        dataset = h5py.h5d.create(file.id, b"X", dtype, h5py.h5s.create_simple(ROWS.shape), properties)
        if rows is not None:
            dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, rows, h5t.NATIVE_FLOAT)
    return path


def test_float_types_of_up_to_64_bits_are_read(tmp_path: Path) -> None:
    types = {
        "bfloat16": BFLOAT16,
        "8 bits": float_type(1, 4, 3),
        "24 bits": float_type(3, 8, 15),
        "24 of 32 bits": float_type(4, 8, 15),
        "48 bits": float_type(6, 7, 40),
    }
    for name, dtype in types.items():
        for chunks in (None, (7, 4)):
            with case(name, chunks):
                path = write(tmp_path / f"{name} {chunks is None}.h5", dtype, chunks=chunks)
                shard = vet(path, Selection(None))
                found = read(Block(shard, 0, len(ROWS)))
                tolerance = 2.0**-4 if name == "8 bits" else 0.0
                np.testing.assert_allclose(found, ROWS, rtol=tolerance, atol=0)


def test_unwritten_values_of_any_float_type_are_refused(tmp_path: Path) -> None:
    for number, chunks in enumerate((None, (5, 4))):
        with case(chunks), refused(65, "dataset=X", "never written"):
            vet(write(tmp_path / f"{number}.h5", BFLOAT16, rows=None, chunks=chunks), Selection(None))


def test_wider_float_types_are_refused(tmp_path: Path) -> None:
    for name, dtype in [
        ("long", h5t.NATIVE_LDOUBLE.copy()),
        ("quad", float_type(16, 15, 112)),
        ("wide", float_type(20, 19, 140)),
    ]:
        with case(name), refused(65, "dataset=X", "64 bits"):
            vet(write(tmp_path / f"{name}.h5", dtype, rows=None), Selection(None))
