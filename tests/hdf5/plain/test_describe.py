"""Tests of the Python reader of plain files: each answer equals the child's, and plain files get one."""

import os
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.errors import ShardpressError
from shardpress.hdf5.child import ask as ask_module
from shardpress.hdf5.child.ask import ask
from shardpress.hdf5.files import FILES
from shardpress.hdf5.limits import MOST_ITEM
from shardpress.hdf5.plain import contents, metadata
from shardpress.hdf5.plain.describe import describe_plain
from shardpress.hdf5.superblock import signature_at
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from shardpress.shards.shard import Block
from shardpress.shards.vet import vet
from tests.support import checksummed, fuzzing, hostile
from tests.support.cases import case
from tests.support.helpers import numbered, refused, write_shard
from tests.support.parts import part_bytes
from tests.support.work import count_work

pytestmark = pytest.mark.process

NUMBERS = [*(order + sign + size for order in "<>" for sign in "ui" for size in "248"), "u1", "i1", "?"]
NUMBERS += [f"{order}f{size}" for order in "<>" for size in (2, 4, 8)]
VERSIONS = ["earliest", "v108", "v110", "latest"]
OLD = ["earliest", "v108"]  # HDF5's default; later versions of the format index chunks in other ways
ROWS = np.arange(60, dtype="<i4").reshape(30, 2)


def answer_of_reader(descriptor, dataset=None):
    size = os.fstat(descriptor).st_size
    return describe_plain(descriptor, size, dataset, base=signature_at(descriptor, size) or 0)


def answers_of_both(path, dataset=None):
    """Return the answers of the reader and of the child: None, or the facts and arrays."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        by_reader = answer_of_reader(descriptor, dataset)
        try:
            by_child = ask("describe", descriptor, [dataset], f"file={path}")
        except ShardpressError:
            by_child = None
    finally:
        os.close(descriptor)
    return [
        answer and (answer[0], [(array.dtype, array.tolist()) for array in answer[1]])
        for answer in (by_reader, by_child)
    ]


def assert_plain(path, dataset=None):
    by_reader, by_child = answers_of_both(path, dataset)
    assert by_reader is not None, "left to the child"
    assert by_reader == by_child


def assert_left_to_the_child(path, dataset=None):
    by_reader, by_child = answers_of_both(path, dataset)
    assert by_reader is None
    assert by_child is not None


# -- equal to the child ------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize("libver", VERSIONS)
@pytest.mark.parametrize("rank", [2, 3, 5])
def test_numbers_of_every_dtype_are_read_as_rows_and_extras(tmp_path, libver, rank):
    for code in NUMBERS:
        with h5py.File(tmp_path / "x.h5", "w", libver=(libver, "latest")) as file:
            file["X"] = np.zeros((3, 2, 1, 4, 2)[:rank], code)
            for i, other in enumerate(NUMBERS if rank == 2 and libver == "earliest" else [code]):
                file[f"extra {i}"] = np.zeros(3, other)
        assert_plain(tmp_path / "x.h5")


@pytest.mark.process
@pytest.mark.parametrize("libver", OLD)
@pytest.mark.parametrize(
    "options",
    [
        {"chunks": (5, 1)},
        {"chunks": (7, 2), "compression": "gzip"},
        {"chunks": (7, 2), "compression": "lzf", "shuffle": True},
        {"chunks": (4, 1), "fletcher32": True, "compression": "gzip", "shuffle": True, "compression_opts": 9},
        {"chunks": (40, 2), "maxshape": (None, 2)},
        {"chunks": (5, 2), "maxshape": (None, None)},
        {"chunks": (5, 2), "maxshape": (99, 2), "fillvalue": 3},
        {"chunks": (1, 1)},
        {"fillvalue": -1, "track_times": True, "track_order": True},
    ],
    ids=str,
)
def test_chunks_of_every_shape_and_filter_are_found(tmp_path, options, libver):
    with h5py.File(tmp_path / "x.h5", "w", libver=(libver, "latest"), track_order=True) as file:
        file.create_dataset("X", data=ROWS, **options)
        file.create_dataset("y", data=np.arange(30), chunks=(7,), compression="gzip")
    assert_plain(tmp_path / "x.h5")
    (shard,) = open_shards([str(tmp_path / "x.h5")])
    np.testing.assert_array_equal(read(Block(shard, 0, 30)), ROWS)
    np.testing.assert_array_equal(read_extras(Block(shard, 3, 30))["y"], np.arange(3, 30))


@pytest.mark.parametrize("n_bytes", [512, 4096])
@pytest.mark.parametrize("libver", VERSIONS)
def test_file_with_a_user_block_is_plain(tmp_path, libver, n_bytes):
    with h5py.File(tmp_path / "x.h5", "w", userblock_size=n_bytes, libver=(libver, "latest")) as file:
        file["X"] = ROWS
        file.create_dataset("y", data=np.arange(30), **({"chunks": (7,)} if libver in OLD else {}))
    assert_plain(tmp_path / "x.h5")


@pytest.mark.parametrize("libver", OLD)
@pytest.mark.parametrize("shape", [(9000, 1), (90, 100), (5000, 2, 1)])
def test_chunk_trees_of_several_levels_in_any_order_are_read(tmp_path, shape, libver):
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "x.h5", "w", libver=(libver, "latest")) as file:
        h5_dataset = file.create_dataset("X", shape, "i4", chunks=(1,) * len(shape), maxshape=(None, *shape[1:]))
        for i in rng.permutation(shape[0]):
            h5_dataset[i] = np.arange(i, i + np.prod(shape[1:])).reshape(shape[1:])
    assert_plain(tmp_path / "x.h5")


@pytest.mark.parametrize("n", [1, 7, 8, 9, 300, 900])
def test_names_in_many_nodes_and_of_any_bytes_are_read(tmp_path, n):
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for i in rng.permutation(n):
            name = f"{i}".zfill(1 + i % 40).encode() + b"\xff ~\xc3\xbc"[: i % 6]
            file.create_dataset(name, data=np.arange(3 + i % 2))
        file["X"] = numbered(3)
    assert_plain(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "a") as file:
        for name in list(file)[::3]:
            if name != "X":
                del file[name]
        file["another"] = np.arange(3)
    assert_plain(tmp_path / "x.h5")


@pytest.mark.parametrize("libver", VERSIONS)
@pytest.mark.parametrize("dataset", ["a/b/X", "/a//b/./X", "ü/rows", "Y", None])
def test_dataset_is_found_by_path_or_as_the_only_candidate(tmp_path, dataset, libver):
    with h5py.File(tmp_path / "x.h5", "w", libver=(libver, "latest")) as file:
        file["Y"] = numbered(4)
        file["same"] = file["Y"]
        file["y"] = np.arange(4)
        file["text"] = "words"
        file["table"] = np.zeros((3, 2), "S4")
        if dataset is not None:
            file["a/b/X"] = numbered(5)
            file["a/b/y"] = np.arange(5)
            file["a/b/none"] = np.arange(4)
            file["ü/rows"] = numbered(6)
    assert_plain(tmp_path / "x.h5", dataset)


@pytest.mark.parametrize("libver", VERSIONS)
def test_datasets_that_are_no_extras_do_not_matter(tmp_path, libver):
    with h5py.File(tmp_path / "x.h5", "w", libver=(libver, "latest")) as file:
        file.create_dataset("X", data=ROWS)
        for name, value in {"scalar": 1, "list": ["a", "b"], "short": range(3), "table": ROWS}.items():
            file[name] = value
        file.create_dataset("unwritten", (4, 4), "f4")
        file.create_group("group")["deeper"] = h5py.SoftLink("nowhere")
        file["names"] = np.zeros(30, h5py.string_dtype("utf-8", 5))  # this dataset is an extra
        for i in range(7):
            file["X"].attrs[f"attribute {i}"] = (i, "text", ["a"] * i, np.zeros(i, "f4"), b"bytes")[i % 5]
            file.attrs[f"attribute {i}"] = np.zeros(i, "i4,f4")
    assert_plain(tmp_path / "x.h5")


@pytest.mark.parametrize("libver", VERSIONS)
@pytest.mark.parametrize(
    "options", [{}, {"maxshape": (None, 2), "chunks": (2, 2)}, {"maxshape": (9, 2), "chunks": (4, 1)}], ids=str
)
def test_datasets_without_rows_are_plain(tmp_path, options, libver):
    with h5py.File(tmp_path / "x.h5", "w", libver=(libver if not options else "v108", "latest")) as file:
        file.create_dataset("X", (0, 2), "f4", **options)
        file["y"] = np.zeros(0)
    assert_plain(tmp_path / "x.h5")


@pytest.mark.parametrize("libver", OLD)
def test_compact_values_are_plain(tmp_path, libver):
    with h5py.File(tmp_path / "x.h5", "w", libver=(libver, "latest")) as file:
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_layout(h5py.h5d.COMPACT)
        for name, shape in ((b"X", (4, 2)), (b"y", (4,))):
            space = h5py.h5s.create_simple(shape)
            h5_dataset = h5py.h5d.create(file.id, name, h5py.h5t.STD_I32LE, space, dcpl=layout)
            h5_dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(np.prod(shape), dtype="<i4").reshape(shape))
    assert_plain(tmp_path / "x.h5")


def test_our_own_output_is_plain(tmp_path):
    extras = {"y": np.arange(500), "name": np.zeros(500, "S5")}
    data = part_bytes(np.zeros((500, 3), np.float32), np.ones(500, bool), extras)
    (tmp_path / "x.h5").write_bytes(data)
    assert_plain(tmp_path / "x.h5")
    assert_plain(tmp_path / "x.h5", "features")


# -- left to the child -------------------------------------------------------------------------------------------


def with_columns(file):
    file["X"].attrs["columns"] = ["a", "b"]


def with_committed_type(file):
    file["type"] = np.dtype("i4")
    file.create_dataset("y", data=np.arange(30), dtype=file["type"])


def with_hidden_candidate(file):
    file["g/rows"] = file["X"]
    del file["X"]


@pytest.mark.parametrize(
    "change",
    [
        with_columns,
        lambda file: file.create_dataset("var/_index", data=["a", "b"]),
        lambda file: file.create_dataset("var", data=[1, 2]),
        lambda file: file.create_dataset("Wavelength", data=[1.0, 2.0]),
        with_committed_type,
        with_hidden_candidate,
        lambda file: file.create_dataset("text", data=["a"] * 30),
        lambda file: file.create_dataset("records", data=np.zeros(30, "i4,f4")),
        lambda file: file.create_dataset("kinds", data=np.zeros(30, "i1"), dtype=h5py.enum_dtype({"a": 0})),
        lambda file: file.create_dataset("nothing", data=h5py.Empty("f4")),
        lambda file: file.create_dataset("external", (30,), "u1", external=[("nowhere", 0, 30)]),
        lambda file: file.__setitem__("soft", h5py.SoftLink("X")),
        lambda file: file.__setitem__("far", h5py.ExternalLink("nowhere", "X")),
        lambda file: file.create_dataset("wide", data=ROWS.T, chunks=(1, 5), maxshape=(2, None)),
        lambda file: [file.create_group(f"g{i}") for i in range(1000)],
    ],
)
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_unusual_structures_are_left_to_the_child(tmp_path, change, libver):
    with h5py.File(tmp_path / "x.h5", "w", libver=(libver, "latest")) as file:
        file["X"] = ROWS
        change(file)
        dataset = "wide" if "wide" in file else None
    assert_left_to_the_child(tmp_path / "x.h5", dataset)


def test_only_the_extra_with_too_long_values_is_left_out(tmp_path):
    path = write_shard(tmp_path / "x.h5", numbered(2), extras={"long": np.zeros(2, f"S{MOST_ITEM + 1}")})
    (shard,) = open_shards([path])
    (long,) = shard.left_out
    assert long.name == "long"
    assert f"{MOST_ITEM + 1}" in long.reason
    assert f"{MOST_ITEM}" in long.reason
    assert_left_to_the_child(tmp_path / "x.h5")


@pytest.mark.parametrize("options", [{"fs_strategy": "page"}, {"libver": "latest"}], ids=str)
def test_files_of_newer_layouts_are_left_to_the_child(tmp_path, options):
    with h5py.File(tmp_path / "x.h5", "w", **options) as file:
        file.create_dataset("X", data=ROWS, chunks=(5, 2), maxshape=(None, 2))
    assert_left_to_the_child(tmp_path / "x.h5")


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_many_attributes_are_read_if_stored_in_the_header(tmp_path, libver):
    with h5py.File(tmp_path / "x.h5", "w", libver=libver) as file:
        file["X"] = ROWS
        file["X"].attrs.update({f"a{i}": i for i in range(99)})
    (assert_plain if libver == "earliest" else assert_left_to_the_child)(tmp_path / "x.h5")


def test_files_to_refuse_are_left_to_the_child(tmp_path):
    path = write_shard(tmp_path / "x.h5", [1, 2, 3])
    for dataset in (None, "X", "nowhere", "X/deeper", "", "/"):
        assert answers_of_both(path, dataset) == [None, None]
    with h5py.File(path, "a") as file:
        file["one"] = file["two"] = ROWS
        file["unwritten"] = np.zeros((9, 0))
        file.create_dataset("zeros", (9, 9), "f4")
        file.create_dataset("some", (9, 9), "f4", chunks=(3, 3))[:3] = 1
        file.create_dataset("three", (9, 9), h5py.h5t.STD_I8BE)
    for dataset in (None, "unwritten", "zeros", "some", "three"):
        assert answers_of_both(path, dataset) == [None, None]


# -- damaged and hostile -----------------------------------------------------------------------------------------


def plain_corpus(folder):
    """Write small plain files of all structures that the reader supports."""

    def usual(file, **options):
        file.create_dataset("X", data=ROWS, **options)
        file["y"] = np.arange(30)
        file["z"] = np.zeros(7, ">f4")
        file["b"] = np.zeros(30, "?")
        file["s"] = np.zeros(30, "S3")

    def with_attributes(file):
        usual(file)
        file.create_group("g").attrs["t"] = file.attrs["t"] = "text"
        file["X"].attrs.update({f"a{i}": ["x" * i] * i if i % 2 else i for i in range(6)})

    def ordered(file):
        file.create_dataset("X", data=ROWS, track_times=True, track_order=True).attrs["a"] = 1
        file.create_dataset("y", data=np.arange(30), track_times=True, fillvalue=3)
        file["also"] = file["y"]
        file.create_group("g", track_order=True)

    def crowded(file):
        file.create_dataset("X", data=np.arange(400.0).reshape(200, 2), chunks=(1, 1))
        for i in np.random.default_rng(0).permutation(40):
            file[f"n{i}"] = np.arange(200 if i % 2 else 3)

    writers = [
        usual,
        lambda file: usual(file, chunks=(7, 1), compression="gzip", shuffle=True),
        lambda file: usual(file, chunks=(2, 1), maxshape=(None, 2), fletcher32=True, compression="lzf"),
        with_attributes,
        ordered,
        crowded,
    ]
    corpus = []
    for write in writers:
        for libver in ("earliest", "v108", "latest"):
            path = folder / f"{len(corpus)}.h5"
            with h5py.File(
                path, "w", libver=(libver, "latest"), userblock_size=1024 if write is crowded else 0
            ) as file:
                write(file)
            if answers_of_both(path)[0] is not None:
                corpus.append(path.read_bytes())
    return corpus


def with_few_bytes_changed(content, rng):
    changed = bytearray(content)
    for _ in range(rng.integers(1, 3)):
        place = fuzzing._place(changed, rng)
        other = [changed[place] ^ 1 << rng.integers(8), rng.choice([0, 1, 2, 3, 8, 0x10, 0x7F, 0x80, 0xFF])]
        changed[place] = int(other[rng.integers(2)])
    fuzzing.correct_checksums(changed)
    return bytes(changed)


def test_reader_answers_damaged_files_as_the_child_or_not_at_all(tmp_path, monkeypatch):
    """All answers were equal in an earlier test with 57,000 such files. This test uses fewer files."""
    monkeypatch.setattr(ask_module, "LIMITS", replace(ask_module.LIMITS, seconds=fuzzing.SECONDS))
    corpus = plain_corpus(tmp_path)
    counts = Counter()
    path = tmp_path / "x.h5"
    for i in range(400):
        rng = np.random.default_rng((7, i))
        content = corpus[rng.integers(len(corpus))]
        path.unlink(missing_ok=True)
        path.write_bytes(with_few_bytes_changed(content, rng) if i % 3 else fuzzing.mutant([content], rng))
        if path.stat().st_size < 100:
            continue
        with open(path, "rb") as file, count_work() as work:
            by_reader = answer_of_reader(file.fileno())
        assert_little(work)
        if by_reader is not None:
            by_reader, by_child = answers_of_both(path)
            assert by_reader == by_child, i
        counts[by_reader is not None] += 1
    assert min(counts[True], counts[False]) > 80


def assert_little(work):
    """Compare with ten times the observed work, which is less than a file may cause."""
    assert (work.n_calls < 2**16, work.n_reads < 2**9, work.n_bytes < metadata.MOST_BYTES) == (True, True, True), work


def assert_given_up_soon(path, dataset=None):
    with open(path, "rb") as file, count_work() as work:
        assert describe_plain(file.fileno(), os.fstat(file.fileno()).st_size, dataset) is None
    assert_little(work)


def test_circular_structures_are_given_up_soon(tmp_path):
    assert_given_up_soon(hostile.endless_chunk_index(tmp_path))
    assert_given_up_soon(hostile.endless_header(tmp_path))
    path = write_shard(tmp_path / "y.h5", numbered(300), chunks=(1, 2))
    content = bytearray(Path(path).read_bytes())
    (top,) = [i for i in range(len(content)) if content[i : i + 6] == b"TREE\1\1"]
    for i in range(5):  # every child of the root is the root
        content[top + 24 + 32 + 40 * i : top + 24 + 40 + 40 * i] = struct.pack("<Q", top)
    Path(path).write_bytes(content)
    assert_given_up_soon(path)


@pytest.mark.parametrize("value", [0, 1, 47, 10**6, 2**31, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1])
def test_any_number_in_the_metadata_causes_bounded_work(tmp_path, value):
    """Memory, reads and loops do not depend on the counts, sizes and positions that a file claims."""
    path = hostile.plain(tmp_path, chunks=(3, 2))
    content = path.read_bytes()
    for place in range(0, 2000, 4):
        path.write_bytes(content[:place] + struct.pack("<Q", value) + content[place + 8 :])
        with open(path, "rb") as file, count_work() as work:
            describe_plain(file.fileno(), path.stat().st_size, None)
        assert_little(work)


def test_metadata_above_the_limit_is_left_to_the_child(tmp_path, monkeypatch):
    path = write_shard(tmp_path / "x.h5", numbered(3000), chunks=(1, 2))
    assert_plain(path)
    monkeypatch.setattr(metadata, "MOST_BYTES", 2**16)
    with open(path, "rb") as file:
        assert describe_plain(file.fileno(), os.path.getsize(path), None) is None


def test_long_shared_names_take_no_memory():
    heap = b"a" * 2**20 + b"\0"
    assert contents._name_at(heap, 2**20 - 9) == b"a" * 9
    with pytest.raises(ValueError, match="not found"):
        contents._name_at(heap, 2**19)


def test_truncated_file_is_given_up_soon(tmp_path):
    for n_bytes in [*range(200), 800, 1072]:
        with case(n_bytes=n_bytes):
            content = hostile.plain(tmp_path).read_bytes()
            (tmp_path / "x.h5").write_bytes(content[:n_bytes])
            assert_given_up_soon(tmp_path / "x.h5")


def test_checksums_equal_those_of_hdf5(tmp_path):
    for n_attributes in range(8):  # more of them would not be in the header
        with h5py.File(tmp_path / "x.h5", "w", libver="latest") as file:
            file.attrs.update({f"{i}": "x" * i for i in range(n_attributes)})
        content = (tmp_path / "x.h5").read_bytes()
        assert content[44:48] == metadata.checksum(content[:44])
        structures = checksummed.structures_of(content)
        assert "OHDR" in {each.name for each in structures}
        for each in structures:
            with case(n_attributes, each):
                data = content[each.start : each.stop]
                assert content[each.place : each.place + 4] == metadata.checksum(data)


# -- the vetting -------------------------------------------------------------------------------------------------


def test_plain_files_need_no_child(tmp_path, monkeypatch):
    for i in range(250):
        write_shard(tmp_path / f"{i}.h5", numbered(3), extras={"y": range(3)})

    def refuse():
        raise AssertionError("a child was started")

    ask_module.retire()
    monkeypatch.setattr(ask_module, "_Child", refuse)
    assert sum(shard.n_rows for shard in open_shards([str(tmp_path)])) == 750
    assert len(ask_module._idle) == 0


@pytest.mark.process
def test_overlap_that_the_reader_misses_is_found_by_vetting(tmp_path):
    """The reader does not check for overlapping values; vetting does."""
    with h5py.File(hostile.plain(tmp_path)) as file:
        offset = file["X"].id.get_offset()
    path = hostile.moved(tmp_path, offset + 8, "y")
    assert_plain(path)
    with refused(65, f"file={path}", f" {offset + 8}"):
        vet(path)


def test_read_failure_in_the_reader_is_a_storage_error(tmp_path, monkeypatch):
    path = write_shard(tmp_path / "x.h5", numbered(3))
    monkeypatch.setattr(FILES, "sleep", lambda seconds: None)
    real = FILES.preadv
    n = []

    def fail_later(*arguments):
        n.append(1)
        if len(n) % 2 == 0:  # the superblock can still be read
            raise OSError(5, "Input/output error")
        return real(*arguments)

    monkeypatch.setattr(FILES, "preadv", fail_later)
    with refused(74, f"file={path}", "Input/output error, 4 times"):
        vet(Path(path))
