"""Tests of files that share a description, because they are equal where libhdf5 has read them.

Sample: 100 bytes of each kind of file, and with TEST_CASES=all 2,000.
"""

import h5py
import numpy as np
import pytest

from shardpress.base.errors import ShardpressError
from shardpress.hdf5.child.message import packed
from shardpress.hdf5.shard import Block
from shardpress.shards import vet as vet_module
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from shardpress.shards.vet import vet
from tests.hdf5 import test_libraries as libraries
from tests.support.cases import ALL_CASES, case, each

pytestmark = pytest.mark.process

N_BYTES = 2000 if ALL_CASES else 100
KINDS = [
    libraries.h5py_rows,
    libraries.h5py_records,
    libraries.h5py_columns,
    libraries.h5py_samples,
    libraries.vaex,
    libraries.netcdf,
    libraries.netcdf_columns,
    libraries.anndata,
    libraries.pandas_fixed,
    libraries.pandas_table,
]
plugin_path = libraries.plugin_path  # a fixture


@pytest.fixture
def asked(monkeypatch):
    """List the functions that a child is asked for."""
    functions = []
    answer = vet_module.asked

    def noted(function, *arguments):
        functions.append(function)
        return answer(function, *arguments)

    monkeypatch.setattr(vet_module, "asked", noted)
    return functions


def described(path):
    """Return the description of a file, as a message, or the kind of the error."""
    try:
        return b"".join(packed(vet(path).description))
    except ShardpressError as error:
        return type(error)


def dense(file, rng, **options):
    file.create_dataset("X", data=rng.random((40, 8)), **options)
    file["y"] = rng.integers(0, 9, 40)
    file["z"] = rng.random(40)


def columns(file, rng):
    for name in ("width", "height", "weight"):
        file[f"table/{name}"] = rng.random(30)


def records(file, rng):
    file["table"] = np.rec.fromarrays([rng.random(30), rng.integers(0, 9, 30)], names="width,height")


def sparse(file, rng):
    file["X/data"] = rng.random(30)
    file["X/indices"] = rng.integers(0, 5, 30)
    file["X/indptr"] = np.arange(31)
    file["X"].attrs["encoding-type"] = "csr_matrix"
    file["X"].attrs["shape"] = (30, 5)


def chunked(file, rng):
    dense(file, rng, chunks=(16, 8))


@each(
    "write, libver",
    [(write, libver) for write in (dense, chunked, columns, records, sparse) for libver in ("earliest", "latest")],
)
def test_files_of_one_program_are_given_to_libhdf5_once(tmp_path, asked, write, libver):
    asked.clear()
    paths = []
    for seed in range(3):
        paths.append(tmp_path / f"{write.__name__}-{libver}-{seed}.h5")
        with h5py.File(paths[-1], "w", libver=libver) as file:
            write(file, np.random.default_rng(seed))
    vet_module._LIKE.clear()
    shards = open_shards(list(map(str, paths)))
    assert asked == ["describe"]
    for path, shard in zip(paths, shards, strict=True):
        vet_module._LIKE.clear()
        (alone,) = open_shards([str(path)])
        block = Block(alone, 0, alone.n_rows)
        found = Block(shard, 0, shard.n_rows)
        assert read(found).tobytes() == read(block).tobytes()
        assert str(read_extras(found)) == str(read_extras(block))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The chararray class:DeprecationWarning")
@pytest.mark.parametrize("write", KINDS, ids=lambda write: write.__name__)
def test_any_other_byte_that_libhdf5_has_read_makes_the_description_anew(tmp_path, asked, write):
    path = tmp_path / "x.h5"
    write(path, np.random.default_rng(0))
    content = path.read_bytes()
    changed = tmp_path / "changed.h5"
    n_alike = 0
    for position in range(0, len(content), max(1, len(content) // N_BYTES)):
        described(path)
        asked.clear()
        flipped = bytearray(content)
        flipped[position] ^= 0xFF
        changed.write_bytes(flipped)
        answer = described(changed)
        if not asked:
            n_alike += 1
            vet_module._LIKE.clear()
            with case(position=position):
                assert answer == described(changed)
        vet_module._LIKE.clear()
    assert n_alike


def test_a_changed_name_of_a_column_makes_the_description_anew(tmp_path, asked):
    names = []
    for name in ("first", "other"):
        path = tmp_path / f"{name}.h5"
        with h5py.File(path, "w") as file:
            file["X"] = np.zeros((30, 2))
            file["var"] = np.array([(name.encode(),), (b"second",)], [("index", "S6")])
        names.append(vet(path).columns.names)
    assert names == [("first", "second"), ("other", "second")]
    assert asked == ["describe", "describe"]
