"""Tests of column names and numbers: they are found in all shards and compared."""

from __future__ import annotations

import logging
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.columns import Columns
from shardpress.errors import DataError
from shardpress.hdf5 import limits
from shardpress.hdf5.shard import Block, Shard
from shardpress.shards import conversion as module
from shardpress.shards.columns import ColumnCheck, ColumnRule
from shardpress.shards.conversion import Conversion
from shardpress.shards.open import open_shards
from tests.support import named_columns
from tests.support.cases import case
from tests.support.helpers import refused, some_rows, whole

NAMES = ("ACTB", "GAPDH", "größer", "MT-CO1", "TP53", "XIST")
ORDER = (3, 0, 5, 1, 4, 2)
BY_NAME = ColumnRule("name")
ROWS = some_rows(n_rows=9)
SHUFFLED = [NAMES[place] for place in ORDER]


def opened(paths: list[Path], dataset: str | None = None, rule: ColumnRule | None = None) -> tuple[Shard, ...]:
    return open_shards([str(path) for path in paths], dataset, check=ColumnCheck(rule or ColumnRule()))


def rows_of(paths: list[Path], rule: ColumnRule = BY_NAME) -> list[np.ndarray]:
    """Return the rows of each file in the order of the model."""
    check = ColumnCheck(rule)
    shards = open_shards([str(path) for path in paths], check=check)
    return [whole(shard, Conversion(check.orders)) for shard in shards]


def two(folder: Path, kind: str) -> tuple[list[Path], str | None]:
    """Write two files of one kind. The second one has the same columns in another order."""
    write, dataset = named_columns.SOURCES[kind]
    paths = [folder / "0.h5", folder / "1.h5"]
    write(paths[0], ROWS, NAMES)
    write(paths[1], ROWS[:, ORDER], SHUFFLED)
    return paths, dataset


# -- names -------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_names_are_found_in_files_of_every_kind(tmp_path: Path) -> None:
    for kind in named_columns.SOURCES:
        with case(kind):
            paths, dataset = two(tmp_path, kind)
            (shard,) = opened(paths[:1], dataset)
            assert shard.columns.names == NAMES
            assert shard.columns.note == ""


@pytest.mark.process
def test_another_order_is_refused_with_the_first_column(tmp_path: Path) -> None:
    for kind in named_columns.SOURCES:
        with case(kind):
            paths, dataset = two(tmp_path, kind)
            with refused(65, f"file={paths[1]}", "column 0 ", "'MT-CO1'", "'ACTB'", f"file={paths[0]}", "name"):
                opened(paths, dataset)


@pytest.mark.process
def test_columns_matched_by_name_are_read_as_in_the_first_file(tmp_path: Path) -> None:
    for kind in named_columns.SOURCES:
        with case(kind):
            paths, dataset = two(tmp_path, kind)
            check = ColumnCheck(BY_NAME)
            shards = open_shards([str(path) for path in paths], dataset, check=check)
            for shard in shards:
                block = Block(shard, 2, 5)
                conversion = Conversion(check.orders).of([block])  # as in a task
                assert conversion.orders.keys() == {shard.path} & {shards[1].path}
                assert conversion.read(block).tobytes() == ROWS[2:5].tobytes()
                assert shard.columns.names == NAMES


def test_pieces_of_a_block_are_all_reordered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", 2 * ROWS[:1].nbytes)
    rows = ROWS[:, ORDER].copy()
    module._reorder(rows, np.argsort(ORDER))
    assert rows.tobytes() == ROWS.tobytes()


@pytest.mark.process
def test_columns_are_matched_with_those_of_a_model(tmp_path: Path) -> None:
    paths, _ = two(tmp_path, "anndata")
    of_model = Columns(NAMES, "somewhere")
    with refused(65, f"file={paths[1]}", "column 0 ", "model=m"):
        opened(paths[1:], rule=ColumnRule("order", of_model, "model=m"))
    (rows,) = rows_of(paths[1:], ColumnRule("name", of_model, "model=m"))
    assert rows.tobytes() == ROWS.tobytes()


@pytest.mark.process
def test_missing_and_surplus_columns_are_named(tmp_path: Path) -> None:
    for names, width in ((["ACTB", "GAPDH", "NEW", "MT-CO1", "TP53", "XIST"], 6), ([*NAMES[:2], "NEW"], 3)):
        with case(names):
            named_columns.attribute(tmp_path / "0.h5", ROWS, NAMES)
            named_columns.attribute(tmp_path / "1.h5", ROWS[:, :width], names)
            with refused(65, f"file={tmp_path / '1.h5'}", "größer", "NEW"):
                opened([tmp_path / "0.h5", tmp_path / "1.h5"], rule=BY_NAME)


@pytest.mark.process
def test_repeated_names_match_in_their_order_only(tmp_path: Path) -> None:
    names = ["a", "b", "a", "c", "d", "e"]
    named_columns.attribute(tmp_path / "0.h5", ROWS, names)
    named_columns.attribute(tmp_path / "1.h5", ROWS, names)
    named_columns.attribute(tmp_path / "2.h5", ROWS, names[::-1])
    paths = [tmp_path / f"{i}.h5" for i in range(3)]
    assert rows_of(paths[:2])[1].tobytes() == ROWS.tobytes()
    with refused(65, str(tmp_path), "several columns", "a"):
        opened(paths, rule=BY_NAME)


@pytest.mark.process
def test_files_without_names_cannot_be_matched_by_name(tmp_path: Path) -> None:
    named_columns.attribute(tmp_path / "0.h5", ROWS, NAMES)
    named_columns.with_coordinate(tmp_path / "1.h5", ROWS, np.arange(6.0))
    paths = [tmp_path / "0.h5", tmp_path / "1.h5"]
    assert [shard.columns.names for shard in opened(paths)] == [NAMES, NAMES]
    with refused(65, f"file={paths[1]}", "--match-columns name"):
        opened(paths, rule=BY_NAME)
    with refused(65, "model=m", "--match-columns name"):
        opened(paths[:1], rule=ColumnRule("name", where="model=m"))


@pytest.mark.process
def test_ignored_columns_are_not_compared(tmp_path: Path) -> None:
    paths, _ = two(tmp_path, "anndata")
    assert rows_of(paths, ColumnRule("ignore"))[1].tobytes() == ROWS[:, ORDER].tobytes()


@pytest.mark.process
def test_a_bad_file_does_not_decide_the_order_of_others(tmp_path: Path) -> None:
    named_columns.with_coordinate(tmp_path / "0.h5", ROWS, np.arange(5.0), "y")
    named_columns.attribute(tmp_path / "1.h5", ROWS[:, :2], ["x", "y"])
    named_columns.attribute(tmp_path / "2.h5", ROWS, NAMES)
    bad: list[str] = []
    paths = [str(tmp_path / f"{i}.h5") for i in range(3)]
    shards = open_shards(paths, "X", lambda path, error: bad.append(path.name))
    assert bad == ["1.h5"]
    assert [shard.columns.names for shard in shards] == [NAMES, NAMES]


# -- numbers -----------------------------------------------------------------------------------------------------

WAVELENGTHS = np.array([4000.0, 4100, 4200, 4300, 4400, 5007.25])


@pytest.mark.process
def test_other_coordinates_are_refused(tmp_path: Path) -> None:
    other = WAVELENGTHS.copy()
    other[2] += 1
    for write in (named_columns.with_coordinate, named_columns.with_scale):
        with case(write):
            write(tmp_path / "0.h5", ROWS, WAVELENGTHS)
            write(tmp_path / "1.h5", ROWS, WAVELENGTHS.astype("f4"))
            write(tmp_path / "2.h5", ROWS, other)
            paths = [tmp_path / f"{i}.h5" for i in range(3)]
            np.testing.assert_array_equal(opened(paths[:2])[0].columns.values, WAVELENGTHS)
            with refused(65, f"file={paths[2]}", "column 2 ", "4201.0", "4200.0", f" file={paths[0]}"):
                opened(paths)
            assert len(opened(paths, rule=ColumnRule("ignore"))) == 3


@pytest.mark.process
def test_coordinates_in_either_axis_of_length_one_are_found(tmp_path: Path) -> None:
    for name, values in (
        ("Wavelength", WAVELENGTHS),
        ("energy", WAVELENGTHS[:, None]),
        ("MZ", WAVELENGTHS[None, :]),
        ("freq", np.arange(6)),
    ):
        with case(name):
            named_columns.with_coordinate(tmp_path / "x.h5", ROWS, values, name)
            (shard,) = opened([tmp_path / "x.h5"])
            assert shard.columns.values_from == name
            np.testing.assert_array_equal(shard.columns.values, np.ravel(values))


@pytest.mark.process
def test_statistics_and_values_of_rows_are_no_coordinates(tmp_path: Path) -> None:
    square_rows = some_rows(n_rows=6)
    for name, rows, values in (
        ("mean", ROWS, WAVELENGTHS),
        ("energy", square_rows, WAVELENGTHS),
        ("energy", ROWS, np.arange(9.0)),
    ):
        with case(name, len(rows)):
            named_columns.with_coordinate(tmp_path / "x.h5", rows, values, name)
            (shard,) = opened([tmp_path / "x.h5"])
            assert not shard.columns.is_known


@pytest.mark.process
def test_dimension_scale_decides_between_equal_axes(tmp_path: Path) -> None:
    named_columns.with_scale(tmp_path / "x.h5", some_rows(n_rows=6), WAVELENGTHS)
    np.testing.assert_array_equal(opened([tmp_path / "x.h5"])[0].columns.values, WAVELENGTHS)


@pytest.mark.process
def test_numbers_of_reordered_columns_are_compared(tmp_path: Path) -> None:
    for i, (order, wavelengths) in enumerate(
        ((range(6), WAVELENGTHS), (ORDER, WAVELENGTHS[[*ORDER]]), (ORDER, WAVELENGTHS))
    ):
        path = tmp_path / f"{i}.h5"
        named_columns.with_coordinate(path, ROWS[:, order], wavelengths)
        with h5py.File(path, "a") as file:
            file["X"].attrs["columns"] = [NAMES[place] for place in order]
    paths = [tmp_path / f"{i}.h5" for i in range(3)]
    assert rows_of(paths[:2])[1].tobytes() == ROWS.tobytes()
    with refused(65, f"file={paths[2]}", "wavelength"):
        opened(paths, rule=BY_NAME)


# -- untrusted files ---------------------------------------------------------------------------------------------


def forged(path: Path, change: object) -> Path:
    named_columns.anndata(path, ROWS, NAMES)
    with h5py.File(path, "a") as file:
        change(file)  # type: ignore[operator]
    return path


def too_large(file: h5py.File) -> None:
    del file["var/genes"]
    file["var"].create_dataset("genes", (6,), f"S{2**31 - 1}", chunks=(1,))


def never_written(file: h5py.File) -> None:
    del file["var/genes"]
    file["var"].create_dataset("genes", (6,), "S20")


def of_another_length(file: h5py.File) -> None:
    del file["var/genes"]
    file["var/genes"] = ["a"] * 7


def far_away(file: h5py.File) -> None:
    del file["var"]
    file["var"] = h5py.ExternalLink("elsewhere.h5", "var")


def linked(file: h5py.File) -> None:
    del file["var/genes"]
    file["var/genes"] = h5py.SoftLink("/obs/names")


def external(file: h5py.File) -> None:
    del file["var/genes"]
    file["var"].create_dataset("genes", (6,), "S4", external=[("/etc/passwd", 0, 24)])


def too_long(file: h5py.File) -> None:
    del file["var/genes"]
    file["var/genes"] = ["a" * (limits.LONGEST_COLUMN_NAME + 1)] * 6


FORGED = [too_large, never_written, of_another_length, far_away, linked, external, too_long]


@pytest.mark.process
def test_untrusted_column_names_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No other file is opened, and the rows are still read."""
    named_columns.anndata(tmp_path / "elsewhere.h5", ROWS, NAMES)
    for change in FORGED:
        with case(change.__name__):
            caplog.clear()
            (shard,) = opened([forged(tmp_path / "x.h5", change)])
            assert shard.columns.names == ()
            assert any(record.levelno == logging.WARNING and "x.h5" in record.message for record in caplog.records)
            assert whole(shard).tobytes() == ROWS.tobytes()


@pytest.mark.process
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


@pytest.mark.process
def test_damaged_heap_of_names_affects_only_the_names(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    named_columns.anndata(path, ROWS, NAMES)
    data = path.read_bytes()
    assert data.count(b"GCOL") >= 1
    path.write_bytes(data.replace(b"GCOL", b"XXXX"))
    try:
        (shard,) = opened([path])
    except DataError:
        return  # the attribute that names them is in the same heap
    assert shard.columns.names == ()


@pytest.mark.process
def test_names_are_escaped_and_shortened_for_terminals(tmp_path: Path) -> None:
    named_columns.attribute(tmp_path / "0.h5", ROWS, ["\x1b[2J" + "a" * 500, *NAMES[1:]])
    named_columns.attribute(tmp_path / "1.h5", ROWS, NAMES)
    (shard,) = opened([tmp_path / "0.h5"])
    label = shard.columns.numbered(0)
    assert label.isprintable()
    assert len(label) < 60
    with refused(65, "column 0 ", "\\x1b"):
        opened([tmp_path / "0.h5", tmp_path / "1.h5"])


def _plain(folder: Path) -> Path:
    path = folder / "plain.h5"
    with h5py.File(path, "w") as file:
        file["X"] = ROWS
    return path


# -- plain values ------------------------------------------------------------------------------------------------


def test_columns_survive_being_written_as_json() -> None:
    for columns in (
        Columns(),
        Columns(NAMES, "var"),
        Columns(("a\udcff", "b"), "x"),
        Columns((), "", np.array([np.nan, 0.1]), "mz"),
    ):
        with case(columns):
            n_inputs = max(len(columns.names), 0 if columns.values is None else len(columns.values))
            found = Columns.from_json(columns.to_json(), n_inputs)
            assert (found.names, found.names_from, found.values_from) == (
                columns.names,
                columns.names_from,
                columns.values_from,
            )
            np.testing.assert_array_equal(found.values, columns.values)


def test_damaged_json_of_columns_is_refused() -> None:
    for data in (b"", b"[]", b"{}", b'{"names": [1], "names_from": "", "values_from": ""}', Columns(NAMES).to_json()):
        with case(data), pytest.raises(ValueError, match=r"columns|JSON|Expecting"):
            Columns.from_json(data, 2)


def test_column_numbers_are_labelled_with_useful_names() -> None:
    assert Columns(NAMES).numbered(1) == "1 (GAPDH)"
    assert Columns(("0", "1")).numbered(1) == "1"
    assert Columns().numbered(1) == "1"
    assert Columns((), "", WAVELENGTHS, "wavelength").numbered(5) == "5 (wavelength 5007.25)"
