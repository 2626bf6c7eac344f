"""Tests of encoding: the features of each row are in their place, and every file is complete."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from msgspec.structs import replace

from shardpress.cluster.executor import compute
from shardpress.cluster.threads import threads
from shardpress.encoding import encode as module
from shardpress.encoding.bad_data import BadData
from shardpress.encoding.encode import EncodeTask, encode_parts
from shardpress.encoding.partfile import row_shapes
from shardpress.encoding.parts import PartRows, PartSize, plan_parts
from shardpress.encoding.storage import PLAIN, Storage
from shardpress.encoding.worker import IN_MEMORY, EncodeSettings, serving
from shardpress.hdf5.limits import LONGEST_TEXT
from shardpress.hdf5.shard import Block, Shard
from shardpress.model.encoder import Model
from shardpress.model.scaler import Scaler
from shardpress.output.disk import Disk
from shardpress.result.records import Part, in_order, with_digests
from shardpress.run.contents import with_content
from shardpress.run.request import facts_of
from shardpress.shards import digests
from shardpress.shards.open import open_shards
from shardpress_kernels.network import Network
from tests.support.cases import each
from tests.support.damage import damage
from tests.support.helpers import names, numbered, refused, write_shard
from tests.support.logged import mentions


class Double:
    """Encoder without a device: the two features are twice the first two columns."""

    def encode_checked(self, rows: np.ndarray, out: np.ndarray) -> None:
        out[:] = 2 * rows[:, :2]

    def errors(self, rows: np.ndarray, features: np.ndarray) -> np.ndarray:
        raise AssertionError("errors of rows are computed, but not requested")

    def ignores_positions(self, dtype: np.dtype) -> bool:
        return True


def model_of(n_inputs: int, n_features: int = 2) -> Model:
    rng = np.random.default_rng(0)
    shapes = {"W": (n_inputs, n_features), "b_hidden": (n_features,), "b_output": (n_inputs,)}
    parameters = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return Model(Scaler(np.full(n_inputs, -5.0), np.full(n_inputs, 200.0)), Network((n_inputs, 2)), parameters)


def settings_of(folder: Path, block_rows: int, part_rows: int, **more: Any) -> EncodeSettings:
    (folder / "parts").mkdir(exist_ok=True)
    rows = (min(block_rows, part_rows), part_rows)
    return EncodeSettings(str(folder), IN_MEMORY, *rows, 2, **more)


def encode(
    shards: Sequence[Shard],
    folder: Path,
    block_rows: int,
    part_rows: int,
    bad_data: BadData | None = None,
    text_bytes: int = 2**20,
) -> list[Part]:
    """Encode all rows in threads, and return the facts of all parts."""
    settings = settings_of(folder, block_rows, part_rows, bad_data=bad_data or BadData(), text_bytes=text_bytes)
    by_id = {str(i): shard for i, shard in enumerate(shards)}
    pieces = plan_parts(by_id, [], PartSize(settings.part_rows, 100, settings.block_rows))
    model = model_of(shards[0].n_inputs)
    with serving(settings, model, Double(), Disk()), threads(2) as pool:
        parts = compute([(encode_parts, EncodeTask(part, settings)) for part in pieces], pool, 2)
    return [part for parts_of_task in parts for part in parts_of_task]


def concatenate(folder: Path, parts: Sequence[Part], name: str) -> np.ndarray:
    """Return a dataset over all parts."""
    found = []
    for part in parts:
        with h5py.File(folder / part.entry.file) as file:
            found.append(file[name][:])
    return np.concatenate(found)


# -- bad data ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=[2**20, 50], ids=["whole", "divided"])
def text_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return a limit for the strings in a part, which divides no part or most of them."""
    monkeypatch.setattr(module, "TILE_ROWS", 4)
    n_bytes: int = request.param
    return n_bytes


# Values of extras, and the value that replaces lost ones.
EXTRAS = {
    "number": (np.arange(1, 31), np.iinfo(np.int64).min),
    "big": (np.arange(1, 31).astype(">f8"), np.nan),
    "kind": (np.zeros(30, "i1"), -1),
    "code": (np.array([b"a%d" % i for i in range(30)], "S40"), b""),
    "text": (np.array([b"no. %d" % i for i in range(30)], dtype=object), b""),
}


@pytest.mark.process
def test_lost_values_of_an_extra_are_filled_and_marked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text_bytes: int
) -> None:
    """The chunks of the dataset determine which values are lost; the parts do not matter."""
    lacking = write_shard(tmp_path / "0.h5", numbered(3))
    path = write_shard(tmp_path / "1.h5", numbered(30))
    with h5py.File(path, "a") as file:
        file["__categories/kind"] = [b"a"]
        for name, (values, _) in EXTRAS.items():
            dtype = h5py.string_dtype() if values.dtype == object else values.dtype
            file.create_dataset(name, data=values, chunks=(7,), compression="gzip", dtype=dtype)
    lost = {name: range(7 * chunk, 7 * chunk + 7) for chunk, name in enumerate(("text", "code", "kind", "big"))}
    lost["big"] = range(21, 30)  # two adjacent chunks
    for name, rows in lost.items():
        for chunk in range(rows.start // 7, -(-rows.stop // 7)):
            damage(path, name, chunk=chunk)
    shards = open_shards([lacking, path])
    for part_rows in (4, 12, 100):
        parts = encode(shards, tmp_path, 4, part_rows, BadData("skip"), text_bytes)
        assert concatenate(tmp_path, parts, "valid").all()
        for name, (values, nothing) in EXTRAS.items():
            is_known = ~np.isin(np.arange(-3, 30), [-3, -2, -1, *lost.get(name, ())])
            expected = np.concatenate([values[:3], values])
            expected[~is_known] = nothing
            np.testing.assert_array_equal(concatenate(tmp_path, parts, name), expected)
            np.testing.assert_array_equal(concatenate(tmp_path, parts, f"{name}_present"), is_known)
        for _, used in in_order(parts, "01"):
            found = {name: [row for ends in used.lost.get(name, []) for row in range(*ends)] for name in lost}
            own = range(used.start, used.stop) if used.shard == "1" else ()
            assert found == {name: [row for row in rows if row in own] for name, rows in lost.items()}
            assert {bad.dataset for bad in used.bad} == set(used.lost)
    for name in lost:
        assert mentions(caplog.text, name, EXTRAS[name][1] or "empty", f"file={path}")
    with refused(65, path, "rows="):
        encode(shards, tmp_path, 4, 100)


# -- long strings ------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_strings_divide_parts_and_are_cut_off_at_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each part ends after the tile whose strings exceed the limit. No string is split inside a character."""
    monkeypatch.setattr(module, "TILE_ROWS", 4)
    texts = ["short", *["x" * 100] * 8, "é" * LONGEST_TEXT, "a" + "é" * LONGEST_TEXT, *["x"] * 9]
    path = write_shard(tmp_path / "x.h5", numbered(20), extras={"text": np.array(texts, object)})
    with h5py.File(path, "a") as file:
        file["fixed"] = np.array([text.encode() for text in texts], f"S{2 * LONGEST_TEXT}")
    shards = open_shards([path])
    parts = encode(shards, tmp_path, 4, 20, text_bytes=1000)
    assert [part.n_rows for part in parts] == [8, 4, 8]
    np.testing.assert_array_equal(concatenate(tmp_path, parts, "features"), 2 * numbered(20)[:, :2])
    expected = [text.encode()[:LONGEST_TEXT].decode(errors="ignore").encode() for text in texts]
    for name in ("text", "fixed"):
        assert concatenate(tmp_path, parts, name).tolist() == expected
        assert mentions(caplog.text, f"file={path} row=9", name, "1 more value", LONGEST_TEXT)


# -- digests -----------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_digests_of_parts_are_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text_bytes: int
) -> None:
    """A file that has other times is recognized by digests that are computed without encoding it."""
    monkeypatch.setattr(digests, "UNIT_ROWS", 4)
    write_shard(tmp_path / "0.h5", numbered(30), extras={name: values for name, (values, _) in EXTRAS.items()})
    write_shard(tmp_path / "1.h5", numbered(9), extras={"label": np.zeros(9, "i1")})
    with h5py.File(tmp_path / "1.h5", "a") as file:
        file["__categories/label"] = [b"a"]
        file["text"] = np.array(["größe"] * 9, object)
        file.create_dataset("array", (9,), np.dtype(("f4", (2, 2))))[...] = np.ones((9, 2, 2))
    shards = open_shards([str(tmp_path)])
    names = {extra.name for extra in shards[0].extras}
    assert names > {"number_present", "text", "label", "array"}
    facts = [replace(facts_of(shard), id=str(i)) for i, shard in enumerate(shards)]
    read_again = [with_content(fact, shard, names) for fact, shard in zip(facts, shards, strict=True)]
    for part_rows in (4, 12, 100):
        parts = encode(shards, tmp_path, 4, part_rows, text_bytes=text_bytes)
        for found, expected in zip(with_digests(facts, parts), read_again, strict=True):
            assert None not in (found.rows, found.extras)
            assert (found.rows, found.extras) == (expected.rows, expected.extras)


# -- parts over several shards -----------------------------------------------------------------------------------


def various_shards(folder: Path) -> tuple[Shard, ...]:
    """Write small shards with rows and extras of many kinds. Shard 3 is damaged, and so is an extra of shard 4."""
    state = h5py.enum_dtype({"on": 1, "off": 0}, "i2")
    paths = []
    for i, (n_rows, dtype) in enumerate([(5, "f4"), (1, "f8"), (9, "i2"), (6, "f4"), (12, "f8"), (3, "u1")]):
        rows = (numbered(n_rows, 3, first=5 * i) % 250).astype(dtype)
        if dtype == "f8":
            rows[0, 1] = np.nan
        paths.append(write_shard(folder / f"{i}.h5", rows, chunks=(1, 3), fletcher32=True))
        texts = {"short": [f"ß{k}" for k in range(n_rows)], "long": ["x" * (100 * k + i) for k in range(n_rows)]}
        with h5py.File(paths[-1], "a") as file:
            for name, values in texts.items():
                file.create_dataset(name, data=values, dtype=h5py.string_dtype())
            file.create_dataset("big", data=np.arange(n_rows), dtype=">i4")
            file.create_dataset("column", data=np.ones((n_rows, 1)))
            file.create_dataset("fixed", data=[b"\xc3\x9f"] * n_rows, dtype=h5py.string_dtype("utf-8", 5))
            file.create_dataset("state", data=np.arange(n_rows) % 2, dtype=state)
            file.create_dataset("pair", (n_rows,), np.dtype(("f4", (2,))))[...] = np.ones((n_rows, 2))
            file.create_dataset("label", data=np.arange(n_rows) % 2, dtype="i1")
            file["__categories/label"] = [b"common", b"of shard %d" % i]
            if i != 1:
                word = np.array([b"word %d" % k for k in range(n_rows)], "S40")
                file.create_dataset("word", data=word, chunks=(3,), compression="gzip")
    damage(paths[3])
    damage(paths[4], "word", chunk=1)
    return open_shards(paths)


def encoded(pieces: Sequence[PartRows], settings: EncodeSettings) -> tuple[Part, dict[str, Any]]:
    """Return the record of a part, and the values in its file."""
    model = model_of(pieces[0].source.shard.n_inputs)
    with serving(settings, model, Double(), Disk()):
        (part,) = encode_parts(EncodeTask(pieces, settings, {"3": "broken"}))
    with h5py.File(Path(settings.directory) / part.file) as file:
        return part, {name: (item.dtype, item[:]) for name, item in file.items()}


@pytest.mark.process
@each("storage", [PLAIN, Storage("float16", "gzip")])
def test_a_part_of_several_shards_equals_parts_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: Storage
) -> None:
    monkeypatch.setattr(digests, "UNIT_ROWS", 4)
    shards = various_shards(tmp_path)
    both = {"big", "column", "fixed", "short", "long", "state", "pair", "label", "word", "word_present"}
    assert set(names(shards[0])) == both
    settings = settings_of(tmp_path, 4, 100, bad_data=BadData("skip"), has_range=True, storage=storage)
    pieces = [PartRows(str(i), Block(shard, 0, shard.n_rows)) for i, shard in enumerate(shards)]
    pieces[2] = PartRows("2", Block(shards[2], 4, 9))
    part, values = encoded(pieces, settings)
    for name, (shape, dtype) in row_shapes(2, shards[0].extras, np.dtype(storage.dtype)).items():
        stored, array = values[name]
        assert (array.shape[1:], stored) == (shape, dtype), "as the index declares it"
        assert h5py.check_enum_dtype(stored) == h5py.check_enum_dtype(dtype)
        assert h5py.check_string_dtype(stored) == h5py.check_string_dtype(dtype)
    assert [(each.first, int(each.shard), each.start) for each in part.ranges] == [
        (0, 0, 0), (5, 1, 0), (6, 2, 4), (11, 3, 0), (17, 4, 0), (29, 5, 0)
    ]  # fmt: skip
    for piece, used in zip(pieces, part.ranges, strict=True):
        own_part, own_values = encoded([piece], settings)
        assert [replace(used, first=0)] == own_part.ranges
        assert own_values.keys() == values.keys()
        for name, (dtype, own) in own_values.items():
            joint_dtype, joint = values[name]
            assert (joint_dtype, joint_dtype.metadata) == (dtype, dtype.metadata), name
            np.testing.assert_array_equal(joint[used.first : used.first + used.n_rows], own)
    bad = np.isnan(values["features"][1]).any(axis=1)
    assert np.flatnonzero(bad).tolist() == [5, *range(11, 17), 17]
    assert np.array_equal(~bad, values["valid"][1])
    assert [each.is_unreadable for each in part.ranges] == [i == 3 for i in range(6)]
    assert [each.lost for each in part.ranges] == [{"word": [[3, 6]]} if i == 4 else {} for i in range(6)]
    assert [each.extras is None for each in part.ranges] == [i in (3, 4) for i in range(6)]
