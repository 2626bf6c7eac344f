"""Tests of files made from a template: they equal the files that HDF5 writes, for any values."""

import io
import tracemalloc

import h5py
import numpy as np
import pytest

from shardpress.encoding import template as module
from shardpress.encoding.template import SOURCE, Template, lay_out
from tests.support.parts import assert_same_datasets, written_by_hdf5

DTYPES = ["u1", "<i2", ">i4", "<f4", ">f8", "?", "S3", "<c8"]


def random_values(rng, shape, dtype):
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return rng.integers(0, 2 if dtype == "?" else 100, n_bytes).astype(np.uint8).view(dtype).reshape(shape)


def test_a_filled_template_equals_the_file_that_hdf5_writes():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        kinds = {f"array {i}": (tuple(rng.integers(0, 5, rng.integers(1, 3))), rng.choice(DTYPES)) for i in range(5)}
        values_by_hdf5 = {"group/texts": np.array([b"a", b"bc"]), "numbers": np.arange(seed)}
        attributes = {"n": seed, "text": "größe" * seed, "nested": {"seed": [seed]}, "is": True, "share": 0.5}
        n_source = int(rng.integers(0, 3)) * 100
        shapes = {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in kinds.items()}
        template = lay_out(shapes, values_by_hdf5, attributes, n_source)
        for _ in range(3):
            values = {name: random_values(rng, *kind) for name, kind in kinds.items()}
            source = rng.bytes(n_source)
            memory = rng.integers(0, 256, template.n_bytes + 100).astype(np.uint8)
            template.fill(memory, {**values, SOURCE: source})
            expected = written_by_hdf5(values, values_by_hdf5, attributes, source)
            assert memory[: template.n_bytes].tobytes() == expected, f"seed {seed}"


def test_pieces_are_contiguous():
    shapes = {"a": ((3, 2), np.dtype("<f4")), "none": ((0, 2), np.dtype("<f4")), "b": ((5,), np.dtype("u1"))}
    template = lay_out(shapes, {}, {}, 64)
    sizes = {"a": 24, "b": 5, SOURCE: 64}
    at = 0
    for start, piece in template.pieces:
        assert start == at
        at += sizes[piece] if isinstance(piece, str) else len(piece)
    assert at == template.n_bytes
    assert [piece for _, piece in template.pieces if isinstance(piece, str)].count(SOURCE) == 1


def test_values_that_are_not_given_are_kept():
    template = Template(8, ((0, b"ab"), (2, "kept"), (4, "given"), (6, b"yz")))
    memory = np.full(10, ord("-"), np.uint8)
    template.fill(memory, {"given": np.array([[1, 2]], np.uint8)})
    assert memory.tobytes() == b"ab--\1\2yz--"


def test_strided_values_are_stored_in_logical_order():
    memory = np.zeros(4, np.uint8)
    Template(4, ((0, "x"),)).fill(memory, {"x": np.arange(4, dtype=np.uint8).reshape(2, 2).T})
    assert memory.tolist() == [0, 2, 1, 3]


@pytest.mark.process
def test_a_template_includes_what_hdf5_writes_itself(tmp_path):
    values_by_hdf5 = {"texts": np.array([b"a", "größe".encode()], object), "deep/numbers": np.arange(3)}
    template = lay_out({"x": ((2,), np.dtype("u1"))}, values_by_hdf5, {"text": "größe", "odd": "\udcff.h5"})
    memory = np.zeros(template.n_bytes, np.uint8)
    template.fill(memory, {"x": np.arange(2, dtype=np.uint8)})
    with h5py.File(io.BytesIO(memory.tobytes())) as file:
        assert_same_datasets({name: file[name][:] for name in ("x", *values_by_hdf5)}, {"x": [0, 1], **values_by_hdf5})
        assert dict(file.attrs) == {"format": "shardpress-features/1", "text": "größe", "odd": "\\udcff.h5"}


def test_holes_of_a_template_take_no_memory():
    """HDF5 stores its metadata after the values far away from the metadata before them."""
    tracemalloc.start()
    try:
        template = lay_out({"features": ((2**38, 1), np.dtype("<f4"))}, {}, {"a": 1})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert template.n_bytes > 2**40
    assert peak < 2**20


def test_an_image_equals_the_written_file():
    rng = np.random.default_rng(0)
    image = module._Image()
    expected = bytearray(400000)
    for _ in range(50):  # some cross the ends of its blocks
        start = int(rng.integers(0, 200000))
        data = rng.bytes(int(rng.integers(0, 10 ** rng.integers(1, 6))))
        image.seek(start)
        assert image.write(memoryview(data)) == len(data)
        expected[start : start + len(data)] = data
        assert image.tell() == start + len(data)
    assert image.between(0, image.size) == bytes(expected[: image.size])
    for _ in range(50):
        start, stop = sorted(map(int, rng.integers(0, image.size, 2)))
        assert image.between(start, stop) == bytes(expected[start:stop]), (start, stop)
    image.seek(-10, 2)
    assert image.read(10) == expected[image.size - 10 : image.size]
