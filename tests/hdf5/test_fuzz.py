"""Tests with damaged files: each is read or refused with a message, within bounds.

The checksums of most damaged files are corrected, so that the damage reaches the parser, as in a forged file.
"""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardpress.base.errors import ShardpressError
from shardpress.hdf5.categories import ATTRIBUTE, FORMAT, attribute_value
from shardpress.hdf5.child import ask as ask_module
from shardpress.hdf5.child.ask import ask
from shardpress.hdf5.shard import Block
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from tests.support import hostile
from tests.support.cases import ALL_CASES, case
from tests.support.filtered import WAYS
from tests.support.helpers import blocks

pytestmark = pytest.mark.process

N_FILES = 1000 if ALL_CASES else 70
N_SHARES = 20 if ALL_CASES else 1  # each is a test, so that all cores read files
FILES = Path(__file__).parents[1] / "files"  # files that other software wrote
NO_HDF5 = ["README.md", "make_files.py"]
SECONDS = 2.0  # processor time for one answer of the child
ROWS = np.arange(60, dtype="<i4").reshape(30, 2)
MATLAB = b"MATLAB_class"
SOURCE = "secret.h5"  # holds the rows that master files name


# -- undamaged files -------------------------------------------------------------------------------------------------


def plain(file: h5py.File, **options: Any) -> None:
    file.create_dataset("X", data=ROWS, **options)
    file["y"] = np.arange(30)
    file["short"] = np.zeros(4, ">f4")
    file["valid"] = np.ones(30, bool)
    file["X"].attrs["columns"] = ["a", "b"]


def labelled(file: h5py.File, **options: Any) -> None:
    """Write every kind of dataset that may be next to the rows or may be requested by name."""
    plain(file, **options)
    file["text"] = file["obs/_index"] = np.array([f"row {i}" for i in range(30)], object)
    file.create_dataset("unwritten", (30,), "i4")
    file["unwritten"].attrs["NAME"] = np.bytes_("This is a netCDF dimension but not a netCDF variable.        30")
    file["__categories/y"] = np.array(["no", "yes"], object)
    file["code"] = np.zeros(30, "i1")
    file["__categories/code"] = [0.5]
    file["obs/whole/values"] = np.arange(30)
    file["obs/whole/mask"] = np.zeros(30, bool)
    file["obs/kind/codes"] = np.arange(30, dtype="i1") % 3 - 1
    file["obs/kind/categories"] = np.array(["T cell", "B cell"], object)


def coded(file: h5py.File) -> None:
    """Write codes whose categories are in attributes, as in a part."""
    file["X"] = ROWS
    file.attrs["format"] = FORMAT
    for name, categories in (("kind", ["no", "ß"]), ("clone", list(map(str, range(20_000))))):
        file[name] = np.arange(30, dtype="i1") % 3 - 1
        file[name].attrs[ATTRIBUTE] = attribute_value(categories)


def deep(file: h5py.File) -> None:
    file["a/b/c/rows"] = ROWS.astype(">f8").reshape(5, 3, 4)
    file["a/soft"] = h5py.SoftLink("/a/b")
    file["a/b/c/records"] = np.zeros(5, [("a", "i4"), ("b", "S3"), ("c", "f8", 2)])
    file["a/b/c/kinds"] = np.array([0, 1, 0, 1, 1], h5py.enum_dtype({"no": 0, "yes": 1}, "i1"))
    for i in range(12):
        file["a/b/c/rows"].attrs[f"attribute {i}"] = "x" * i


def linked(file: h5py.File, source: Path) -> None:
    file["X"] = ROWS[:6]
    hostile.add_references(file, source)


def master(file: h5py.File, source: Path) -> None:
    """Write a virtual dataset, or links in a group, over rows of another file."""
    layout = h5py.VirtualLayout((12, 2), "<i4")
    for i, path in enumerate(("X", "group/X")):
        layout[6 * i : 6 * i + 6] = h5py.VirtualSource(source, path, (6, 2))
    file.create_virtual_dataset("X", layout)
    file["y"] = np.arange(12)
    file["text"] = np.array([f"row {i}" for i in range(12)], object)


def links(file: h5py.File, source: Path) -> None:
    for i, path in enumerate(("X", "group/X")):
        file[f"entry/data/data_{i}"] = h5py.ExternalLink(source, path)
    file["entry/data/y"] = np.arange(12)


def by_columns(file: h5py.File, **options: Any) -> None:
    file.create_dataset("X", data=np.ascontiguousarray(ROWS.T), **options)
    file["y"] = np.arange(30)
    file["X"].attrs[MATLAB.decode()] = np.bytes_(b"int32")


def records(file: h5py.File) -> None:
    file["X"] = ROWS.view([("a", "<i4"), ("b", "<i4")]).reshape(-1)


def records_with_texts(file: h5py.File, **options: Any) -> None:
    fields = [("a", "<i4"), ("text", h5py.string_dtype()), ("b", "<f8"), ("values", h5py.vlen_dtype("f4")), ("s", "S3")]
    rows = np.zeros(30, fields)
    rows["text"] = [f"row {i}" for i in range(30)]
    rows["values"] = [np.zeros(i % 3, "f4") for i in range(30)]
    file.create_dataset("X", data=rows, **options)


def frame(file: h5py.File, **options: Any) -> None:
    """Write a table as pandas does, with categories and lists of names in pickles."""
    blocks = [("values_block_0", "<f8", (2,)), ("values_block_1", "i1", (1,))]
    fields = [("index", "<i8"), *blocks, ("s", "S3"), ("label", "<i2")]
    table = file.create_dataset("df/table", data=np.zeros(30, fields), **options)
    file["df"].attrs["pandas_type"] = np.bytes_("frame_table")
    file["df"].attrs["non_index_axes"] = np.bytes_("(lp0\n(I1\n(lp1\nVb\np2\naVa\np3\naVlabel\np4\natp5\na.")
    table.attrs["index_kind"] = np.bytes_("integer")
    table.attrs["values_block_0_kind"] = np.bytes_("(lp0\nVa\np1\naVb\np2\na.")
    table.attrs["values_block_1_meta"] = np.bytes_("category")
    categories = np.array([(0, b"no"), (1, b"yes")], [("index", "<i8"), ("values", "S3")])
    file["df/meta/values_block_1/meta/table"] = categories


def frame_of_blocks(file: h5py.File) -> None:
    for i, (names, dtype) in enumerate([(["a", "b"], "f8"), (["label"], "i8"), (["c"], "f4")]):
        file[f"df/block{i}_items"] = np.array(names, "S5")
        file[f"df/block{i}_values"] = np.ones((30, len(names)), dtype)
    file["df/axis0"] = np.array(["c", "label", "a", "b"], "S5")
    file["df/axis1"] = np.arange(30)


def columns(file: h5py.File, group: str = "", **options: Any) -> None:
    for i, name in enumerate(("a", "b", "c", "label")):
        file.create_dataset(f"{group}{name}", data=np.arange(30, dtype="f8" if i % 2 else "i4"), **options)
    file[f"{group}text"] = np.array([f"row {i}" for i in range(30)], object)


def samples(file: h5py.File, name: str = "s{}", **options: Any) -> None:
    for i in range(12):
        sample = file.create_dataset(name.format(i), data=ROWS[:6] + i, **options)
        sample.attrs["kind"] = f"kind {i % 2}"
        sample.parent.attrs["y"] = i


def crowded(file: h5py.File) -> None:
    """Write more names and chunks than one node of an index holds."""
    file.create_dataset("X", data=np.tile(ROWS, (4, 1)), chunks=(1, 1), maxshape=(None, None))
    for i in range(80):
        file[f"a dataset of number {i}"] = np.arange(120, dtype="u1")


COMPRESSED = {"compression": "gzip", "shuffle": True}
LAYOUTS: list[dict[str, Any]] = [
    {},
    {"chunks": (7, 1), **COMPRESSED},
    {"chunks": (7, 2), "compression": "lzf"},
    {"chunks": (7, 2), "fletcher32": True},
    {"chunks": (7, 2), "maxshape": (None, 2), **COMPRESSED},
    {"chunks": (7, 2), "maxshape": (None, None)},
    {"chunks": (30, 2), "shuffle": True},
    *({"chunks": (7, 2), **WAYS[name].options} for name in ("bitshuffle-lz4", "blosc", "blosc2", "bzip2", "lz4")),
    *({"chunks": (7, 2), **WAYS[name].options} for name in ("scaleoffset", "zstd-shuffle")),
]


IN_PARTS = (
    *(records_with_texts, partial(records_with_texts, chunks=(7,), **COMPRESSED)),
    *(frame, partial(frame, chunks=(7,), **COMPRESSED), frame_of_blocks),
    *(columns, partial(columns, group="g/", chunks=(7,), **COMPRESSED)),
    *(samples, partial(samples, name="g/s{}/data"), partial(samples, chunks=(4, 1), **COMPRESSED)),
)
"""Writers of rows in tables, and in many datasets."""


@pytest.fixture
def corpus(tmp_path: Path) -> list[tuple[bytes, list[tuple[int, int]]]]:
    """Return small valid files of all layouts, filters and versions, each with its checksums."""
    writers: list[Callable[[h5py.File], object]] = [
        *(partial(write, **options) for options in LAYOUTS for write in (plain, labelled)),
        *(by_columns, partial(by_columns, chunks=(1, 7), **COMPRESSED)),
        *(coded, deep, records, crowded),
        *(partial(write, source=tmp_path / SOURCE) for write in (linked, master, links)),
        *IN_PARTS,
    ]
    contents = [path.read_bytes() for path in sorted(FILES.iterdir()) if path.name not in NO_HDF5]
    for i, write in enumerate(writers):
        for libver in ("earliest", "v108", "latest"):
            path = tmp_path / "corpus.h5"
            with h5py.File(path, "w", libver=(libver, "latest"), userblock_size=512 if i % 4 == 3 else 0) as file:
                write(file)
            contents.append(path.read_bytes())
    return [(content, checksums_of(content)) for content in contents]


# -- damage ----------------------------------------------------------------------------------------------------------

WITH_CHECKSUM = rb"\x89HDF\r\n\x1a\n[\x02\x03]|OHDR\x02|OCHK|BT(HD|IN|LF)|FRHP|FHIB|FS(HD|SE)|EA(HD|IB|SB|DB)|FA(HD|DB)"
SIGNATURES = re.compile(rb"\x89HDF|OHDR|TREE|SNOD|HEAP|GCOL|FHDB|" + WITH_CHECKSUM)
MOST_BYTES = 4096  # of a structure
WORDS = [0, 1, 2**31 - 1, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1]
HDF5 = ctypes.CDLL(h5py.h5p.__file__)  # h5py does not provide this function
HDF5.H5_checksum_metadata.restype = ctypes.c_uint32


def checksum(data: bytes) -> bytes:
    return int(HDF5.H5_checksum_metadata(data, ctypes.c_size_t(len(data)), 0)).to_bytes(4, "little")


def checksums_of(content: bytes) -> list[tuple[int, int]]:
    """Return start and end of each structure of a valid file that is followed by its checksum."""
    found = []
    for match in re.finditer(WITH_CHECKSUM, content):
        start = match.start()
        stops = range(start + 8, min(start + MOST_BYTES, len(content) - 4) + 1)
        stop = next((stop for stop in stops if checksum(content[start:stop]) == content[stop : stop + 4]), None)
        if stop is not None:
            found.append((start, stop))
    return found


def damaged(original: bytes, checksums: list[tuple[int, int]], other: bytes, rng: np.random.Generator) -> bytes:
    """Return a file after one or several changes, usually with corrected checksums."""
    content = bytearray(original)
    for _ in range(rng.integers(1, 5)):
        damage = DAMAGES[rng.integers(len(DAMAGES))]
        damage(content, _place(content, rng), other, rng)
    if rng.random() < 0.8:
        for start, stop in checksums:
            if stop + 4 <= len(content):
                content[stop : stop + 4] = checksum(bytes(content[start:stop]))
    return bytes(content)


def _place(content: bytearray, rng: np.random.Generator) -> int:
    """Return a random position, usually close to the signature of a structure."""
    places: dict[bytes, list[int]] = {}
    for match in SIGNATURES.finditer(content):
        places.setdefault(match[0], []).append(match.start())
    if not places or rng.random() < 0.2:
        return int(rng.integers(len(content)))
    # Choose the kind first; otherwise the many object headers would dominate.
    alike = places[sorted(places)[rng.integers(len(places))]]
    distance = rng.integers(4, 400 if rng.random() < 0.5 else 40)
    return int(min(len(content) - 1, alike[rng.integers(len(alike))] + distance))


def _flip_bit(content: bytearray, place: int, other: bytes, rng: np.random.Generator) -> None:
    content[place] ^= 1 << int(rng.integers(8))


def _change_number(content: bytearray, place: int, other: bytes, rng: np.random.Generator) -> None:
    width = min(int(rng.choice([1, 2, 4, 8])), len(content) - place)
    old = int.from_bytes(content[place : place + width], "little")
    choices = [old + 1, old - 1, 2 * old, old // 2, *WORDS, int(rng.integers(len(content)))]
    new = choices[rng.integers(len(choices))] % 256**width
    content[place : place + width] = new.to_bytes(width, "little")


def _truncate(content: bytearray, place: int, other: bytes, rng: np.random.Generator) -> None:
    n_bytes = len(content)
    if rng.random() < 0.3:
        del content[max(place, 1) :]
        if rng.random() < 0.7:  # pad the file to its original size
            content.extend(bytes(n_bytes - len(content)))


def _splice(content: bytearray, place: int, other: bytes, rng: np.random.Generator) -> None:
    source = place if rng.random() < 0.5 else int(rng.integers(len(other)))
    piece = other[source : source + int(rng.integers(1, 600))][: len(content) - place]
    content[place : place + len(piece)] = piece


DAMAGES = [_flip_bit, _flip_bit, _change_number, _change_number, _change_number, _truncate, _splice]


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", range(N_SHARES))
def test_damaged_files_are_read_or_refused_in_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: list[tuple[bytes, list[tuple[int, int]]]], share: int
) -> None:
    monkeypatch.setattr(ask_module, "LIMITS", replace(ask_module.LIMITS, seconds=SECONDS))
    path = tmp_path / "x.h5"
    outcomes: Counter[str] = Counter()
    hostile.secret(tmp_path)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    at_start = peak()
    for i in range(share * N_FILES, (share + 1) * N_FILES):
        rng = np.random.default_rng((1, i))
        content, checksums = corpus[rng.integers(len(corpus))]
        other, _ = corpus[rng.integers(len(corpus))]
        path.unlink(missing_ok=True)
        path.write_bytes(damaged(content, checksums, other, rng))
        with case(i):
            outcomes[read_or_refuse(path, i)] += 1
    refusals = {"DataError", "MemoryExceeded", "Refusal", "UnusableFiles", "NoInput", "NotPermitted"}
    assert {"accepted", "UnusableFiles"} <= set(outcomes) <= {"accepted", *refusals}
    assert 0.1 < outcomes["accepted"] / N_FILES < 0.7
    assert peak() - at_start < 2**27


def read_or_refuse(path: Path, number: int) -> str:
    """Read all rows and extras, and compare the rows with those of HDF5. Return the class of a refusal."""
    content = path.read_bytes()
    # MATLAB files require an orientation, and other files allow it.
    orientation = "columns" if MATLAB in content or number % 8 == 0 else None
    extras = ["obs/kind", "obs/whole"] if b"T cell" in content else []
    try:
        shards = open_shards([str(path)], None, None, orientation, extras)
        for block in blocks(shards, max(1, -(-shards[0].n_rows // 3))):
            rows = read(block)
            read_extras(block)
            assert not hdf5_differs(block, rows)
    except ShardpressError as error:
        refusal = error
    else:
        return "accepted"
    assert str(refusal).isprintable()
    return type(refusal).__name__


def hdf5_differs(block: Block, rows: np.ndarray) -> bool:
    """Return whether HDF5 reads different rows from the same file.

    HDF5 may refuse the file. If the index is damaged, HDF5 may list a chunk but not find it when reading, and return
    zeros. HDF5 2.0 reads beyond the end of a scale-offset chunk that is too short (HDFGroup/hdf5#6585), so two of its
    own answers may differ.
    """
    shard = block.shard
    codes = [code for code, _parameters in shard.fields[0].layout.filters]
    if shard.form != "dense" or h5py.h5z.FILTER_SCALEOFFSET in codes:
        return False
    along = [shard.dataset, block.start, block.stop, -1 if shard.is_transposed else 0, 1]
    with open(shard.path, "rb") as file:
        try:
            n, arrays = ask("values", file.fileno(), along, tuple[int, list[np.ndarray]], "")
        except ShardpressError:
            return False
    by_hdf5 = arrays[0].view(shard.fields[0].layout.dtype).reshape(n, -1).astype(shard.dtype)
    same = by_hdf5.view(np.uint8) == rows[: len(by_hdf5)].view(np.uint8)
    return bool((by_hdf5.view(np.uint8)[~same] != 0).any())


def peak() -> int:
    """Return the largest memory of this process so far in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])  # type: ignore[index]
