"""Tests of column names and numbers: they are found in all shards and compared."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.base.errors import ConfigError, ShardpressError
from shardpress.hdf5 import limits
from shardpress.hdf5.columns import Columns
from shardpress.hdf5.shard import Shard
from shardpress.shards.column_order import ColumnCheck, ColumnRule
from shardpress.shards.open import open_shards
from tests.support import named_columns
from tests.support.cases import case, each
from tests.support.helpers import csr, refused, some_rows, whole, write_csr, write_shard

pytestmark = pytest.mark.process

NAMES = ("ACTB", "GAPDH", "größer", "MT-CO1", "TP53", "XIST")
ORDER = (3, 0, 5, 1, 4, 2)
BY_NAME = ColumnRule("name")
ROWS = some_rows(n_rows=9)
WAVELENGTHS = np.array([4000.0, 4100, 4200, 4300, 4400, 5007.25])


def opened(paths: Sequence[Path], rule: ColumnRule | None = None) -> tuple[Shard, ...]:
    return open_shards([str(path) for path in paths], check=ColumnCheck(rule or ColumnRule()))


def rows_of(paths: Sequence[Path], rule: ColumnRule = BY_NAME) -> list[np.ndarray]:
    """Return the rows of each file in the order of the model."""
    check = ColumnCheck(rule)
    shards = open_shards([str(path) for path in paths], check=check)
    return [whole(shard) for shard in shards]


def two(folder: Path, kind: str = "attribute", rows: np.ndarray = ROWS) -> list[Path]:
    """Write two files of one kind. The second one has the same columns in another order."""
    write = named_columns.SOURCES[kind]
    paths = [folder / "0.h5", folder / "1.h5"]
    write(paths[0], rows, NAMES)
    write(paths[1], rows[:, ORDER], [NAMES[place] for place in ORDER])
    return paths


# -- names -------------------------------------------------------------------------------------------------------


@each("kind", named_columns.SOURCES)
def test_names_in_files_are_compared_and_matched(tmp_path: Path, kind: str) -> None:
    paths = two(tmp_path, kind)
    (shard,) = opened(paths[:1])
    assert (shard.columns.names, shard.columns.note) == (NAMES, "")
    with refused(65, f"file={paths[1]}", "column 0 ", "'MT-CO1'", "'ACTB'", f"file={paths[0]}", "name"):
        opened(paths)
    for rows in rows_of(paths):
        assert rows.tobytes() == ROWS.tobytes()


def test_many_rows_are_put_into_the_order_of_a_model(tmp_path: Path) -> None:
    rows = some_rows(n_rows=200_000)  # more than are put into another order at once
    paths = two(tmp_path, rows=rows)
    for match, expected in (("name", rows), ("ignore", rows[:, ORDER])):
        (found,) = rows_of(paths[1:], ColumnRule(match, Columns(NAMES, "somewhere"), "model=m"))
        assert found.tobytes() == expected.tobytes()


def test_repeated_names_match_in_their_order_only(tmp_path: Path) -> None:
    names = ["a", "b", "a", "c", "d", "e"]
    paths = [tmp_path / f"{i}.h5" for i in range(3)]
    for path, own in zip(paths, (names, names, names[::-1]), strict=True):
        named_columns.attribute(path, ROWS, own)
    assert rows_of(paths[:2])[1].tobytes() == ROWS.tobytes()
    with refused(65, str(tmp_path), "several columns", "a"):
        opened(paths, rule=BY_NAME)


def test_missing_names_and_columns_are_refused_by_name(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.h5", ROWS, extras={"wavelength": np.arange(6.0)})
    named_columns.attribute(tmp_path / "1.h5", ROWS, NAMES)
    named_columns.attribute(tmp_path / "2.h5", ROWS[:, :3], [*NAMES[:2], "\x1b[2J" + "a" * 500])
    paths = [tmp_path / f"{i}.h5" for i in range(3)]
    assert [shard.columns.names for shard in opened(paths[:2])] == [NAMES, NAMES]
    with refused(65, f"file={paths[0]}", "--match-columns name"):
        opened(paths[:2], rule=BY_NAME)
    with refused(65, f"file={paths[2]}", "größer", "\\x1b[2Ja"):
        opened(paths[1:], rule=BY_NAME)


def test_first_shard_with_names_decides_unless_it_is_bad(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.h5" for i in range(4)]
    write_shard(paths[0], ROWS, extras={"y": np.arange(5.0)})
    named_columns.attribute(paths[1], ROWS[:, :2], ["x", "y"])
    named_columns.attribute(paths[2], ROWS, NAMES)
    named_columns.attribute(paths[3], ROWS, NAMES[::-1])
    bad: list[str] = []
    shards = open_shards([str(path) for path in paths], "X", lambda path, error: bad.append(str(error)))
    assert [Path(shard.path).name for shard in shards] == ["0.h5", "2.h5"]
    assert {shard.columns.names for shard in shards} == {NAMES}
    assert len({id(shard.columns) for shard in shards}) == 1, "names of many shards are stored once"
    assert f" file={paths[2]}" in bad[1]


# -- the choice of columns ------------------------------------------------------------------------------------------


def mixed(path: Path, names: Sequence[str], rows: np.ndarray = ROWS) -> Path:
    """Write records of two types, with the columns in turn."""
    records = np.zeros(len(rows), [(name, "<i4" if i == 1 else "<f8") for i, name in enumerate(names)])
    for i, name in enumerate(names):
        records[name] = rows[:, i]
    return Path(write_shard(path, records))


@each(
    "names, patterns, extras, chosen",
    [
        ("a b c label cell_id Y", (), (), "a b c"),
        ("a b c x y Index", (), (), "a b c x y"),
        ("a b c d e f", (), ("d",), "a b c e f"),
        ("a b c d e label", ("!d",), (), "a b c e"),
        ("a b c d e label", ("label", "?", "!c"), (), "a b d e label"),
        ("a b c d e f", ("[d-f]",), ("e",), "d f"),
    ],
)
def test_columns_of_a_table_are_chosen_by_name(
    tmp_path: Path, names: str, patterns: tuple[str, ...], extras: tuple[str, ...], chosen: str
) -> None:
    path = mixed(tmp_path / "x.h5", names.split())
    (shard,) = opened([path], ColumnRule(patterns=patterns, extras=frozenset(extras)))
    assert shard.columns.names == tuple(chosen.split())
    places = [names.split().index(name) for name in chosen.split()]
    assert whole(shard).tolist() == ROWS[:, places].tolist()
    assert {extra.name for extra in shard.extras} == {*names.split()}.difference(chosen.split())


def test_columns_of_later_tables_are_found_by_name(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.h5" for i in range(4)]
    mixed(paths[0], ["a", "b", "c", "d", "e", "label"])
    mixed(paths[1], ["label", "e", "d", "c", "b", "a"])
    mixed(paths[2], ["a", "b", "c", "d", "e", "f"])
    mixed(paths[3], ["a", "b", "c", "d", "f", "g"])
    shards = opened(paths[:3])
    for shard, places in zip(shards, ([0, 1, 2, 3, 4], [5, 4, 3, 2, 1], [0, 1, 2, 3, 4]), strict=True):
        assert whole(shard).tolist() == ROWS[:, places].tolist()
    assert {extra.name for extra in shards[0].extras} >= {"label", "f"}
    with refused(65, f"file={paths[3]}", "(e)"):
        opened(paths)


@each("kind", ["attribute", "sparse", "records", "transposed"])
def test_columns_of_a_matrix_are_chosen_by_patterns_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.h5"
    rows = some_rows(n_rows=30_000)  # more than are read at once
    names = ["a", "b", "label", "c1", "c2", "id"]
    orientation = None
    if kind == "records":
        write_shard(path, rows.view([(name, "<f4") for name in names]).reshape(-1))
    elif kind == "transposed":
        write_shard(path, np.ascontiguousarray(rows.T))
        orientation = "columns"
        with h5py.File(path, "r+") as file:
            file["X"].attrs["columns"] = names
    elif kind == "sparse":
        write_csr(path, csr(rows), rows.shape)
        with h5py.File(path, "r+") as file:
            file["X"].attrs["columns"] = names
    else:
        named_columns.attribute(path, rows, names)
    for patterns, places in (((), range(6)), (("c*", "a"), [0, 3, 4]), (("!c1",), [0, 1, 2, 4, 5])):
        check = ColumnCheck(ColumnRule(patterns=patterns))
        (shard,) = open_shards([str(path)], orientation=orientation, check=check)
        assert shard.columns.names == tuple(names[place] for place in places)
        assert whole(shard).tobytes() == np.ascontiguousarray(rows[:, places]).tobytes()
        assert shard.extras == ()


def test_wrong_patterns_are_named(tmp_path: Path) -> None:
    path = mixed(tmp_path / "x.h5", ["a", "b", "c", "d", "e", "label"])
    for patterns, phrase in ((("gene*",), "gene*"), (("!z",), "z matches"), (("?", "!?"), "none of 6")):
        with pytest.raises(ShardpressError, match=re.escape(phrase)):
            opened([path], ColumnRule(patterns=patterns))
    unnamed = tmp_path / "unnamed.h5"
    write_shard(unnamed, ROWS)
    with pytest.raises(ConfigError):
        opened([unnamed], ColumnRule(patterns=("a",)))


# -- numbers -----------------------------------------------------------------------------------------------------


def test_numbers_of_columns_are_compared(tmp_path: Path) -> None:
    """If columns are matched by name, their numbers are compared in their new order."""
    paths = [tmp_path / f"{i}.h5" for i in range(3)]
    in_order = WAVELENGTHS[[*ORDER]].astype("f4")
    for path, order, values in zip(paths, (range(6), ORDER, ORDER), (WAVELENGTHS, in_order, WAVELENGTHS), strict=True):
        write_shard(path, ROWS[:, order], extras={"wavelength": values})
    np.testing.assert_array_equal(opened(paths[::2])[0].columns.values, WAVELENGTHS)
    with refused(65, f"file={paths[1]}", "column 0 ", "4000.0", "4300.0", f" file={paths[0]}"):
        opened(paths)
    assert len(opened(paths, rule=ColumnRule("ignore"))) == 3
    for path, order in zip(paths, (range(6), ORDER, ORDER), strict=True):
        with h5py.File(path, "a") as file:
            file["X"].attrs["columns"] = [NAMES[place] for place in order]
    assert rows_of(paths[:2])[1].tobytes() == ROWS.tobytes()
    with refused(65, f"file={paths[2]}", "wavelength"):
        opened(paths, rule=BY_NAME)


def test_numbers_that_may_not_be_of_columns_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    for name, n_rows in (("mean", 9), ("energy", 6)):  # as many rows as columns
        write_shard(path, some_rows(n_rows=n_rows), extras={name: WAVELENGTHS})
        assert not opened([path])[0].columns.is_known


# -- untrusted files ---------------------------------------------------------------------------------------------


def put(name: str, value: object) -> Callable[[h5py.File], None]:
    return lambda file: file.__setitem__(name, value)


def create(*arguments: object, **options: object) -> Callable[[h5py.File], None]:
    return lambda file: file.create_dataset("var/genes", *arguments, **options)


FORGED = {
    "too large": create((6,), f"S{2**31 - 1}", chunks=(1,)),
    "never written": create((6,), "S20"),
    "of another length": put("var/genes", ["a"] * 7),
    "linked": put("var/genes", h5py.SoftLink("/var/mean")),
    "external": create((6,), "S4", external=[("/etc/passwd", 0, 24)]),
    "too long": put("var/genes", ["a" * (limits.LONGEST_COLUMN_NAME + 1)] * 6),
}


def test_untrusted_column_names_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The rows are still read."""
    for name, change in FORGED.items():
        with case(name):
            caplog.clear()
            named_columns.anndata(tmp_path / "x.h5", ROWS, NAMES)
            with h5py.File(tmp_path / "x.h5", "a") as file:
                del file["var/genes"]
                change(file)
            (shard,) = opened([tmp_path / "x.h5"])
            assert shard.columns.names == ()
            assert any(record.levelno == logging.WARNING and "x.h5" in record.message for record in caplog.records)
            assert whole(shard).tobytes() == ROWS.tobytes()


def test_names_take_bounded_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Many names may refer to one long text in a heap."""
    path = tmp_path / "x.h5"
    n_names = 2**16
    with h5py.File(path, "w") as file:
        file["X"] = np.zeros((2, n_names), "u1")
        names = file.create_dataset("var/_index", (n_names,), h5py.string_dtype())
        names[:] = ["a" * 2**14, *[""] * (n_names - 1)]
        offset = names.id.get_offset()
    with open(path, "r+b") as stream:
        stream.seek(offset)
        reference = stream.read(16)
        stream.seek(offset)
        stream.write(n_names * reference)
    (shard,) = opened([path])
    assert shard.columns.names == ()
    assert "memory" in caplog.text
