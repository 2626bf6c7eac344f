"""Tests of digests: the values of rows and extras determine them, and how these are stored or read does not."""

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardpress.hdf5.shard import Block, Shard
from shardpress.result.records import _total
from shardpress.run.contents import with_content
from shardpress.run.request import facts_of
from shardpress.shards.column_order import ColumnCheck, ColumnRule
from shardpress.shards.conversion import AS_STORED, Conversion
from shardpress.shards.digests import UNIT_ROWS, Digest, ExtrasDigest
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read_extras
from tests.support import named_columns
from tests.support.cases import each
from tests.support.helpers import numbered, scanned, some_rows, write_shard

pytestmark = pytest.mark.process

UNIT = UNIT_ROWS
N_ROWS = 2 * UNIT + 3  # of extras
TEXTS = np.resize(np.array(["ab", "c", "", "ä", "abc", "b", "x"], dtype=object), N_ROWS)
EXTRAS = {
    "numbers": np.arange(N_ROWS) % 3,
    "floats": np.linspace(0, 1, N_ROWS, dtype="f4"),
    "codes": np.resize(np.array([b"ab", b"c", b"", b"x", b"abc"], "S3000"), N_ROWS),  # several pieces
    "texts": TEXTS,
}


def digest_of(shard: Shard, block_rows: int = UNIT, seed: int = 0, conversion: Conversion = AS_STORED) -> str:
    """Return the digest of the rows of a shard, which are read block by block in a random order."""
    blocks = list(Block(shard, 0, shard.n_rows).cut(block_rows))
    random.Random(seed).shuffle(blocks)
    digest = Digest()
    for block in blocks:
        own = Digest()
        conversion.read(block, None, own)
        digest.add(own.value)
    return str(digest)


def opened(path: Path, rows: np.ndarray, **options: Any) -> Shard:
    (shard,) = open_shards([write_shard(path, rows, **options)])
    return shard


# -- rows --------------------------------------------------------------------------------------------------------------


@each("n_rows", [0, 1, UNIT - 1, UNIT, UNIT + 1, 5 * UNIT + 3])
def test_block_size_threads_and_order_do_not_matter(tmp_path: Path, n_rows: int) -> None:
    write_shard(tmp_path / "first.h5", numbered(1))
    write_shard(tmp_path / "rows.h5", numbered(n_rows))
    shards = open_shards([str(tmp_path / name) for name in ("first.h5", "rows.h5")])
    found = {digest_of(shards[1], n * UNIT, seed) for n in (1, 2, 10) for seed in range(3)}
    for n, n_threads in ((1, 3), (2, 1), (10, 2)):
        found.add(scanned(shards, n * UNIT, n_threads).digests[1] or "")
    found.add(with_content(facts_of(shards[1]), shards[1], ()).rows or "")
    assert len(found) == 1


def test_different_rows_have_different_digests(tmp_path: Path) -> None:
    rows = numbered(3 * UNIT + 3, 3)
    changed = rows.copy()
    changed[5, 1] += 1
    units = np.split(rows, range(UNIT, len(rows), UNIT))
    others = {
        "same": rows,
        "a value": changed,
        "exchanged rows": rows[[1, 0, *range(2, len(rows))]],
        "exchanged units": np.concatenate([units[1], units[0], *units[2:]]),
        "exchanged columns": rows[:, [1, 0, 2]],
        "a row less": rows[:-1],
        "a unit twice": np.concatenate([units[0], *units]),
        "zeros": np.zeros_like(rows),
        "another shape": rows.reshape(3, -1),
        "another byte order": rows.astype(">i8"),
        "zeros of another dtype": np.zeros(rows.shape),
    }
    shards = [opened(tmp_path / f"{name}.h5", each) for name, each in others.items()]
    assert len({(facts_of(shard).kind, digest_of(shard)) for shard in shards}) == len(others)


def test_columns_are_digested_in_the_order_of_the_model(tmp_path: Path) -> None:
    rows = some_rows()
    names = [f"gene {i}" for i in range(rows.shape[1])]
    order = np.random.default_rng(0).permutation(len(names))
    permuted = rows[:, order]
    named_columns.attribute(tmp_path / "0.h5", rows, names)
    named_columns.attribute(tmp_path / "1.h5", permuted, [names[i] for i in order])
    check = ColumnCheck(ColumnRule("name"))
    shards = open_shards([str(tmp_path / f"{i}.h5") for i in range(2)], check=check)
    assert {digest_of(shard) for shard in shards} == {digest_of(shards[0])}
    assert digest_of(opened(tmp_path / "2.h5", permuted)) != digest_of(shards[0])


# -- extras ------------------------------------------------------------------------------------------------------------


def extras_of(shard: Shard, part_rows: int = 3 * UNIT) -> str:
    """Return the digest of the extras, which are read part by part."""
    found = []
    for part in Block(shard, 0, shard.n_rows).cut(part_rows):
        digest = ExtrasDigest(part.start)
        for name, values in read_extras(part).items():
            digest.add(name, [values])
        found.append(str(digest))
    return _total(found) or ""


def with_extras(path: Path, extras: Mapping[str, Any], **options: Any) -> Shard:
    """Write a shard with extras in reverse order."""
    write_shard(path, numbered(N_ROWS))
    with h5py.File(path, "a") as file:
        for name, values in reversed(extras.items()):
            dtype = h5py.string_dtype() if values.dtype == object else values.dtype
            file.create_dataset(name, data=values, dtype=dtype, **options)
    (shard,) = open_shards([str(path)])
    assert {extra.name for extra in shard.extras} == set(extras)
    return shard


def test_parts_pieces_and_storage_of_extras_do_not_matter(tmp_path: Path) -> None:
    shard = with_extras(tmp_path / "x.h5", EXTRAS)
    found = {extras_of(shard, n * UNIT) for n in (1, 2, 3)}
    found.add(with_content(facts_of(shard), shard, EXTRAS.keys()).extras or "")
    packed = with_extras(tmp_path / "1.h5", dict(reversed(EXTRAS.items())), chunks=True, compression="gzip")
    found.add(extras_of(packed))
    assert len(found) == 1


def changed_extras() -> Iterator[dict[str, np.ndarray]]:
    """Yield extras that differ from `EXTRAS` and from each other."""
    for name, values in EXTRAS.items():
        yield EXTRAS | {name: values[[1, 0, *range(2, N_ROWS)]]}  # exchanged rows
        yield EXTRAS | {name: np.concatenate([values[UNIT : 2 * UNIT], values[:UNIT], values[2 * UNIT :]])}
        without = {other: EXTRAS[other] for other in EXTRAS if other != name}
        yield without
        yield without | {f"{name} 2": values}
    yield EXTRAS | {"more": EXTRAS["numbers"]}
    yield EXTRAS | {"more": EXTRAS["numbers"] + 1}
    for texts in (["a", "bc"], ["", "abc"], ["abc", ""]):
        yield EXTRAS | {"texts": np.array([*texts, *TEXTS[2:]], dtype=object)}


def test_different_extras_have_different_digests(tmp_path: Path) -> None:
    found = [extras_of(with_extras(tmp_path / "x.h5", extras)) for extras in (EXTRAS, *changed_extras())]
    assert len(set(found)) == len(found)
