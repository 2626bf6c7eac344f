"""Damage small HDF5 files at random. Check that each is read or refused, within bounds and without side effects.

Most damage is followed by a correction of the checksums of the metadata, so that it reaches the parser.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from shardpress.errors import ShardpressError
from shardpress.hdf5.categories import ATTRIBUTE, FORMAT, attribute_value
from shardpress.hdf5.child import ask as ask_module
from shardpress.hdf5.child.ask import ask
from shardpress.hdf5.shard import Block
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from tests.support import hostile
from tests.support.checksummed import Structure, repair, structures_of
from tests.support.filtered import WAYS
from tests.support.helpers import blocks

FILES = Path(__file__).parents[1] / "files"  # files that other software wrote
REFUSED = ["frames-table-mixed.h5", "sparse-csc.h5ad"]
FILTERS = ["bitshuffle-lz4", "blosc", "blosc2", "bzip2", "lz4", "scaleoffset", "zstd-shuffle"]
NO_HDF5 = ["README.md", "make_files.py"]
SECONDS = 2.0  # processor time for one answer of the child
ROWS = np.arange(60, dtype="<i4").reshape(30, 2)
_SIGNATURES = re.compile(rb"\x89HDF|OHDR|TREE|SNOD|HEAP|GCOL|FADB|EADB|BTHD|FRHP")
_MATLAB = b"MATLAB_class"
_WORDS = [0, 1, 2**31 - 1, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1]


@dataclass
class Outcome:
    """Results of a fuzzing run."""

    counts: Counter[str] = field(default_factory=Counter)  # files that were ``accepted``, or refused with each error
    faults: list[str] = field(default_factory=list)  # unexpected errors
    n_opens: int = 0  # of the secret file
    n_bytes: int = 0  # largest growth of the driver's memory


def fuzz(n: int, seed: int = 0) -> Outcome:
    """Vet `n` damaged files, and read all rows and extras of the accepted ones."""
    outcome = Outcome()
    before = ask_module.LIMITS
    ask_module.LIMITS = replace(before, seconds=SECONDS)
    try:
        with tempfile.TemporaryDirectory(prefix="shardpress-fuzz-") as folder:
            path = Path(folder) / "x.h5"
            secret = hostile.secret(Path(folder))
            corpus = [(content, structures_of(content)) for content in make_corpus(Path(folder), secret)]
            at_start = _reset_peak()
            with hostile.opens(secret) as opens:
                for i in range(n):
                    content = mutant(corpus, np.random.default_rng((seed, i)))
                    path.unlink(missing_ok=True)
                    path.write_bytes(content)
                    outcome.counts[_outcome_of(path, content, i, outcome)] += 1
            outcome.n_opens = opens[0]
            outcome.n_bytes = _peak() - at_start
    finally:
        ask_module.LIMITS = before
    return outcome


def _outcome_of(path: Path, content: bytes, i: int, outcome: Outcome) -> str:
    """Return the outcome for a file: ``accepted``, or the class of the error."""
    try:
        shards = open_shards([str(path)], None, None, _orientation(content, i), _named(content))
        for block in blocks(shards, max(1, -(-shards[0].n_rows // 3))):
            rows = read(block)
            read_extras(block)
            if _hdf5_differs(block, rows):
                outcome.faults.append(f"{i}: HDF5 reads other rows")
        return "accepted"
    except ShardpressError as error:
        if not str(error).isprintable():
            outcome.faults.append(f"{i}: not printable: {error!r}")
        return type(error).__name__
    except Exception as error:
        outcome.faults.append(f"{i}: {error!r}")
        return "fault"


def _orientation(content: bytes, i: int) -> str | None:
    """Return the orientation, which MATLAB files require and other files allow."""
    return "columns" if _MATLAB in content or i % 8 == 0 else None


def _named(content: bytes) -> list[str]:
    """Return the extras to request, for a file with datasets outside the group of the rows."""
    return ["obs/kind", "obs/whole"] if b"T cell" in content else []


def _hdf5_differs(block: Block, rows: np.ndarray) -> bool:
    """Return whether HDF5 reads different rows from the same file.

    HDF5 may refuse the file. If the index is damaged, HDF5 may list a chunk but not find it when reading, and return
    zeros.
    """
    shard = block.shard
    layout = block.shard.layouts[0]
    if shard.form not in ("dense", "columns"):
        return False
    along = [shard.dataset, block.start, block.stop, -1 if shard.form == "columns" else 0, 1]
    with open(shard.path, "rb") as file:
        try:
            n, arrays = ask("values", file.fileno(), along, tuple[int, list[np.ndarray]], "")
        except ShardpressError:
            return False
    by_hdf5 = arrays[0].view(layout.dtype).reshape(n, -1).astype(shard.dtype)
    same = by_hdf5.view(np.uint8) == rows[: len(by_hdf5)].view(np.uint8)
    return bool((by_hdf5.view(np.uint8)[~same] != 0).any())


# -- undamaged files -------------------------------------------------------------------------------------------------


def make_corpus(folder: Path, secret: Path) -> list[bytes]:
    """Return small valid files of all layouts, filters and versions. Some of them link to the secret file."""
    text = np.array([f"row {i}" for i in range(30)], object)

    def everything(file: h5py.File, **options: Any) -> None:
        file.create_dataset("X", data=ROWS, **options)
        file["y"] = np.arange(30)
        file["text"] = text
        file["X"].attrs["columns"] = ["a", "b"]
        file["elsewhere"] = h5py.ExternalLink(secret, "/y")

    def plain(file: h5py.File, **options: Any) -> None:
        file.create_dataset("X", data=ROWS, **options)
        file["y"] = np.arange(30)
        file["short"] = np.zeros(4, ">f4")
        file["valid"] = np.ones(30, bool)
        file["X"].attrs["unit"] = "m"

    def deep(file: h5py.File) -> None:
        file["a/b/c/rows"] = ROWS.astype(">f8").reshape(5, 3, 4)
        file["a/soft"] = h5py.SoftLink("/a/b")
        file["a/b/c/records"] = np.zeros(5, [("a", "i4"), ("b", "S3"), ("c", "f8", 2)])
        file["a/b/c/kinds"] = np.array([0, 1, 0, 1, 1], h5py.enum_dtype({"no": 0, "yes": 1}, "i1"))
        for i in range(12):
            file["a/b/c/rows"].attrs[f"attribute {i}"] = "x" * i

    def labelled(file: h5py.File) -> None:
        """Write every kind of dataset that may be next to the rows or may be requested by name."""
        file["X"] = ROWS
        file["y"] = np.zeros((30, 1))
        file["short"] = np.arange(29)
        file.create_dataset("unwritten", (30,), "i4")
        file["unwritten"].attrs["NAME"] = np.bytes_("This is a netCDF dimension but not a netCDF variable.        30")
        file["__categories/y"] = np.array(["no", "yes"], object)
        file["code"] = np.zeros(30, "i1")
        file["__categories/code"] = [0.5]
        file["obs/_index"] = text
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

    def elsewhere(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((6, 2), "<i4")
        layout[:] = h5py.VirtualSource(secret, "X", (6, 2))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("external", (6, 2), "u1", external=[(secret, 0, 12)])
        file["link"] = h5py.ExternalLink(secret, "/X")
        file["X"] = ROWS[:6]

    def compact(file: h5py.File) -> None:
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        created.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((4, 2))
        stored = h5py.h5d.create(file.id, b"X", h5py.h5t.STD_I32LE, space, dcpl=created)
        stored.write(h5py.h5s.ALL, h5py.h5s.ALL, ROWS[:4])

    def master(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((30, 2), "<i4")
        for i in range(2):
            layout[15 * i : 15 * i + 15] = h5py.VirtualSource(f"raw/{i}.h5", "X", (15, 2))
        file.create_virtual_dataset("rows", layout)
        file["rows.txt"] = text
        file["X"] = ROWS

    def links(file: h5py.File) -> None:
        for i in range(2):
            file[f"data/data_{i}"] = h5py.ExternalLink(f"raw/{i}.h5", "/X")
        file["secret"] = h5py.SoftLink(str(secret))
        file["X"] = ROWS

    def by_columns(file: h5py.File, **options: Any) -> None:
        file.create_dataset("X", data=np.ascontiguousarray(ROWS.T), **options)
        file["y"] = np.arange(30)
        file["X"].attrs[_MATLAB.decode()] = np.bytes_(b"int32")

    def crowded(file: h5py.File) -> None:
        """Write more names and chunks than one node of an index holds."""
        file.create_dataset("X", data=np.tile(ROWS, (4, 1)), chunks=(1, 1), maxshape=(None, None))
        for i in range(80):
            file[f"a dataset of number {i}"] = np.arange(120, dtype="u1")

    writers: list[Callable[[h5py.File], object]] = [
        everything,
        lambda file: everything(file, chunks=(7, 1), compression="gzip", shuffle=True),
        lambda file: everything(file, chunks=(7, 2), compression="lzf"),
        lambda file: everything(file, chunks=(7, 2), fletcher32=True),
        lambda file: everything(file, chunks=(7, 2), maxshape=(None, 2), compression="gzip"),
        lambda file: everything(file, chunks=(7, 2), maxshape=(None, None)),
        lambda file: everything(file, chunks=(30, 2), shuffle=True),
        plain,
        lambda file: plain(file, chunks=(7, 1), compression="gzip", shuffle=True, maxshape=(None, 2)),
        deep,
        labelled,
        coded,
        elsewhere,
        compact,
        master,
        links,
        by_columns,
        lambda file: by_columns(file, chunks=(1, 7), compression="gzip", shuffle=True),
        lambda file: by_columns(file, chunks=(2, 7), maxshape=(2, None)),
        crowded,
        *(partial(plain, chunks=(7, 2), **WAYS[name].options) for name in FILTERS),
    ]
    corpus = [path.read_bytes() for path in sorted(FILES.iterdir()) if path.name not in REFUSED + NO_HDF5]
    for i, write in enumerate(writers):
        for libver in ("earliest", "v108", "latest"):
            path = folder / "corpus.h5"
            with h5py.File(path, "w", libver=(libver, "latest"), userblock_size=512 if i % 4 == 3 else 0) as file:
                write(file)
            corpus.append(path.read_bytes())
            path.unlink()
    return corpus


# -- damage ----------------------------------------------------------------------------------------------------------

_Structures = Sequence[Structure]


def mutant(corpus: Sequence[tuple[bytes, _Structures]], rng: np.random.Generator) -> bytes:
    """Return one of the files, damaged once or several times, usually with corrected checksums."""
    original, structures = corpus[rng.integers(len(corpus))]
    other, _ = corpus[rng.integers(len(corpus))]
    content = bytearray(original)
    for _ in range(rng.integers(1, 5)):
        if structures and rng.random() < 0.5:
            _change_field(content, structures, rng)
        else:
            _DAMAGES[rng.integers(len(_DAMAGES))](content, other, rng)
    if rng.random() < 0.8:
        repair(content, structures)
    return bytes(content)


def _change_field(content: bytearray, structures: _Structures, rng: np.random.Generator) -> None:
    """Change a field or a bit after the signature of a structure."""
    # Choose the kind first; otherwise the many object headers would dominate.
    kinds = sorted({each.name for each in structures})
    kind = kinds[rng.integers(len(kinds))]
    alike = [each for each in structures if each.name == kind and each.stop <= len(content)]
    if not alike:  # truncated
        return
    structure = alike[rng.integers(len(alike))]
    place = int(rng.integers(structure.start + 4, structure.stop))
    width = min(int(rng.choice([1, 1, 1, 2, 4, 8])), structure.stop - place)
    old = int.from_bytes(content[place : place + width], "little")
    nearby = [old + 1, old - 1, 2 * old, old // 2, old ^ 1 << int(rng.integers(8 * width))]
    choices = [*nearby, *_WORDS, int(rng.integers(0, len(content)))]
    new = choices[rng.integers(len(choices))] % 256**width
    content[place : place + width] = new.to_bytes(width, "little")


def _place(content: bytearray, rng: np.random.Generator) -> int:
    """Return a random position, usually close to the signature of a structure."""
    signatures = [found.start() for found in _SIGNATURES.finditer(content)]
    if signatures and rng.random() < 0.7:
        return int(min(len(content) - 1, signatures[rng.integers(len(signatures))] + rng.integers(0, 400)))
    return int(rng.integers(max(1, len(content))))


def _flip_bits(content: bytearray, other: bytes, rng: np.random.Generator) -> None:
    for _ in range(rng.integers(1, 9)):
        if content:
            content[_place(content, rng)] ^= 1 << int(rng.integers(8))


def _set_word(content: bytearray, other: bytes, rng: np.random.Generator) -> None:
    width = int(rng.choice([2, 4, 8]))
    place = _place(content, rng)
    value = _WORDS[rng.integers(len(_WORDS))] if rng.random() < 0.5 else int(rng.integers(0, len(content) + 1))
    if place + width <= len(content):
        content[place : place + width] = (value % 256**width).to_bytes(width, "little")


def _truncate(content: bytearray, other: bytes, rng: np.random.Generator) -> None:
    n_bytes = len(content)
    if rng.random() < 0.3:
        del content[int(rng.integers(n_bytes + 1)) :]
        if rng.random() < 0.7:  # pad the file to its original size
            content.extend(bytes(n_bytes - len(content)))


def _splice(content: bytearray, other: bytes, rng: np.random.Generator) -> None:
    n = int(rng.integers(1, 600))
    source = int(rng.integers(max(1, len(other) - n)))
    target = source if rng.random() < 0.5 else _place(content, rng)
    piece = other[source : source + n][: max(0, len(content) - target)]
    content[target : target + len(piece)] = piece


_DAMAGES = [_flip_bits, _flip_bits, _set_word, _set_word, _truncate, _splice]


# -- measuring -------------------------------------------------------------------------------------------------------


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])  # type: ignore[index]
