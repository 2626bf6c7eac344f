"""The feature-shard format, and how downstream opens it.

1. ``parts/part-<shard>-<first row>-<unique>.h5`` holds the features of a row range of one input shard: ``features``
   (n_rows, n_features) float32, C order, little-endian, contiguous and aligned to 4096 bytes, so that it can be mapped;
   ``valid`` (n_rows,) bool, false where the input row was a bad one and its features are NaN; and the riding datasets
   under their own names, the same ones in every part; in the group ``__categories`` what the codes in some of them
   stand for. Where a shard has none, `missing_value` stands, or the code -1, and ``NAME_present`` tells which rows have
   one. It is itself a valid input shard.
2. ``index.h5`` is a virtual dataset over all parts, in the order of the input's rows: one file to open. It is a view,
   and says so: without the parts beside it there are no values in it, but what `missing_value` gives.
3. ``manifest.json`` names the parts in that order; it is written last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.encoding.template import MARK_BYTES, Skeleton, mark, put, skeleton_of
from pipeline.errors import DataError, ReadFailed, shown
from pipeline.formats import missing_value
from pipeline.hdf5.riders import CATEGORIES
from pipeline.output.disk import PAGE
from pipeline.output.records import MANIFEST, read_manifest

__all__ = [
    "COMPLAINTS",
    "FEATURES",
    "VALID",
    "Features",
    "PartMemory",
    "allocate",
    "categories_of",
    "common",
    "describe",
    "index_bytes",
    "open_features",
    "part_bytes",
    "reading",
]

FEATURES, VALID, INDEX = "features", "valid", "index.h5"
FORMAT = "shardpress-features/1"
VIEW = "the values stand in parts/: copy the whole directory, or the file that --single-file writes"
_WHOLE = "Copy the whole directory, with manifest.json, index.h5 and parts/, or the file that --single-file writes."
_ROOM = 2**17  # bytes beside the features, at first
COMPLAINTS = (OSError, RuntimeError, LookupError, ValueError)  # HDF5's come as any of them


class PartMemory:
    """Memory in which one part after the other becomes a file, without a copy of its features.

    HDF5 lays the file out around them. Fresh memory for each part, and copies into and out of HDF5's own, would take
    longer than encoding.

    Parameters
    ----------
    n_rows : int
        Of the largest part.
    n_features : int
    rider_bytes : int
        Of the riding datasets, for each row; what is longer is taken in all the same.
    categories : mapping of str to sequence
        What the codes in riding datasets stand for, by the datasets' names: texts or numbers.
    """

    def __init__(
        self, n_rows: int, n_features: int, rider_bytes: int = 0, categories: Mapping[str, Sequence[Any]] | None = None
    ) -> None:
        self._categories = {name: _stored(found) for name, found in (categories or {}).items()}
        self._names: dict[str, str] = {}  # under which riding datasets stand
        self._n_features = n_features
        self._place = _place_of_features()
        n_bytes = self._place + n_rows * (4 * n_features + 1 + rider_bytes) + _ROOM
        self._memory = _pages(n_bytes)
        self._n_used = 0
        self._layout = ""  # of the last part
        self._skeleton: Skeleton | None = None

    def features(self, n_rows: int) -> np.ndarray:
        """Where the features of the next part go: shape (n_rows, n_features), float32."""
        end = self._place + 4 * n_rows * self._n_features
        return self._memory[self._place : end].view("<f4").reshape(n_rows, self._n_features)

    def file(self, valid: np.ndarray, riders: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> memoryview:
        """The bytes of a feature shard with the features that stand there; they last until the next part.

        Parameters
        ----------
        valid : ndarray of shape (n_rows,), bool
        riders : mapping
            Riding datasets of n_rows values each, numbers or text. One that is called like a dataset of ours becomes
            ``source_...``.
        about : mapping
            What goes into the attributes; nested values as JSON.
        """
        self._names = {name: _free_name(name, {FEATURES, VALID, *riders}) for name in riders}
        arrays = {VALID: valid, **{self._names[name]: values for name, values in riders.items()}}
        attributes = _attributes(about)
        varying = {name: data for name, value in attributes.items() if (data := _varying(value)) is not None}
        layout = _layout(arrays, attributes, varying)
        if layout != self._layout:
            self._layout, self._skeleton = layout, self._skeleton_of(arrays, attributes, varying)
        if self._skeleton is None:
            places = self._lay_out(arrays, attributes)
            for name, place in places.items():
                put(self._memory, place, arrays[name])
        else:
            self._skeleton.fill(self._memory, arrays, varying)
            self._n_used = self._skeleton.n_bytes
        return self._memory[: self._n_used].data

    def _skeleton_of(
        self, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any], varying: Mapping[str, bytes]
    ) -> Skeleton | None:
        """Of parts of this layout; None where texts of any lengths ride along, or marks cannot be told apart."""
        if any(values.dtype.hasobject for values in arrays.values()):
            return None
        marks = {name: mark(i, len(data)) for i, (name, data) in enumerate(varying.items())}
        as_marks = {name: _value_of(attributes[name], data) for name, data in marks.items()}
        places = self._lay_out(arrays, {**attributes, **as_marks})
        extents = {name: (place, arrays[name].nbytes) for name, place in places.items()}
        extents[FEATURES] = (self._place, self.features(len(arrays[VALID])).nbytes)
        return skeleton_of(self._memory[: self._n_used], extents, marks)

    def _lay_out(self, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> dict[str, int]:
        """Have HDF5 write all but the values of arrays of numbers; where those go."""
        features = self.features(len(arrays[VALID]))
        image = _Image(self._memory)
        # What the last file has left: gaps are zeros.
        self._memory[: self._place] = 0
        self._memory[self._place + features.nbytes : self._n_used] = 0
        self._n_used = len(self._memory)
        places: dict[str, int | None] = {}
        with h5py.File(image, "w", alignment_threshold=1, alignment_interval=PAGE) as file:
            place = allocate(file, FEATURES, features.shape, features.dtype)
            for name, values in arrays.items():
                if values.dtype.hasobject:
                    file.create_dataset(name, data=values, dtype=h5py.string_dtype())
                else:
                    places[name] = allocate(file, name, values.shape, values.dtype)
            for name, found in self._categories.items():
                file.create_dataset(f"{CATEGORIES}/{self._names[name]}", data=found)
            _write_attributes(file, attributes)
        if place not in (None, self._place):
            raise RuntimeError(f"HDF5 puts features at byte {place}, expected {self._place} as in an empty file")
        self._memory, self._n_used = image.memory, image.size
        return {name: place for name, place in places.items() if place is not None}


def part_bytes(
    features: np.ndarray, valid: np.ndarray, riders: Mapping[str, np.ndarray], about: Mapping[str, Any]
) -> bytes:
    """The bytes of a feature shard with these features (n_rows, n_features); the rest is as for `PartMemory.file`."""
    memory = PartMemory(features.shape[0], features.shape[1])
    memory.features(len(features))[:] = features
    return bytes(memory.file(valid, riders, about))


class _Image:
    """A file object over memory, as h5py takes it in a file's place; it takes more memory when it must."""

    def __init__(self, memory: np.ndarray) -> None:
        self.memory, self.size, self._at = memory, 0, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self.size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, n_bytes: int) -> bytes:
        """By which h5py knows a file."""
        return self.memory[self._at : self._at + n_bytes].tobytes()

    def readinto(self, target: memoryview) -> int:
        target[:] = self.memory[self._at : self._at + len(target)].data
        self._at += len(target)
        return len(target)

    def write(self, data: memoryview) -> int:
        self._make_room(self._at + len(data))
        self.memory[self._at : self._at + len(data)] = np.frombuffer(data, dtype=np.uint8)
        self._at += len(data)
        self.size = max(self.size, self._at)
        return len(data)

    def truncate(self, size: int) -> int:
        self._make_room(size)
        self.size = size
        return size

    def flush(self) -> None:
        """Nothing is held back."""

    def _make_room(self, size: int) -> None:
        if size > len(self.memory):
            memory = _pages(size + _ROOM)
            memory[: len(self.memory)] = self.memory
            self.memory = memory


def _pages(n_bytes: int) -> np.ndarray:
    """Zeros that begin with a page, as they must to be written past the page cache."""
    memory = np.zeros(n_bytes + PAGE, dtype=np.uint8)
    start = -memory.ctypes.data % PAGE
    return memory[start : start + n_bytes]


@cache
def _place_of_features() -> int:
    """Where HDF5 puts the first dataset of a file."""
    image = _Image(np.empty(0, dtype=np.uint8))
    with h5py.File(image, "w", alignment_threshold=1, alignment_interval=PAGE) as file:
        place = allocate(file, FEATURES, (1, 1), np.dtype("<f4"))
    assert place is not None
    return place


def allocate(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> int | None:
    """Have HDF5 make a dataset, and leave its values alone; the first one's byte, if there are any."""
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_obj_track_times(False)
    how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    kind, space = h5py.h5t.py_create(dtype, logical=True), h5py.h5s.create_simple(shape)
    made = h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=how)
    place: int | None = made.get_offset()
    return place


def _free_name(rider: str, taken: set[str]) -> str:
    """The name under which a riding dataset stands beside the features: its own, if that is not one of ours."""
    name = rider
    while name in (FEATURES, VALID, CATEGORIES) or (name != rider and name in taken):
        name = f"source_{name}"
    return name


def _stored(categories: Sequence[Any]) -> np.ndarray:
    """Texts as UTF-8 of one length, which HDF5 lays out alike in every file."""
    if not all(isinstance(each, str) for each in categories):
        return np.array(categories)
    texts = [each.encode("utf-8", "surrogateescape") for each in categories]
    return np.array(texts, h5py.string_dtype("utf-8", max([1, *map(len, texts)])))


def categories_of(path: Path) -> dict[str, np.ndarray]:
    """What codes in a part, or a single file, stand for, by the datasets' names; as they are stored."""
    with reading(path) as file:
        group = file.get(CATEGORIES)
        return {name: found[()] for name, found in group.items()} if isinstance(group, h5py.Group) else {}


def _attributes(about: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and texts, as they are stored."""
    return {
        # HDF5 takes UTF-8 only, and a file's name may be anything.
        key: value if isinstance(value, (int, float)) else _text(value).encode("utf-8", "backslashreplace").decode()
        for key, value in {"format": FORMAT, **about}.items()
    }


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _varying(value: object) -> bytes | None:
    """The bytes of an attribute that may be another one in a file of the same layout."""
    if type(value) is int and -(2**63) <= value < 2**63:
        return np.asarray(value).tobytes()
    if isinstance(value, str) and len(data := value.encode()) >= MARK_BYTES and b"\0" not in data:
        return data
    return None


def _value_of(like: object, data: bytes) -> int | str:
    """The attribute that is stored as these bytes."""
    return data.decode() if isinstance(like, str) else int(np.frombuffer(data, np.int64)[0])


def _layout(arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any], varying: Mapping[str, bytes]) -> str:
    """Equal for files that differ in nothing but values."""
    shapes = [(name, values.shape, values.dtype, values.dtype.metadata) for name, values in arrays.items()]
    fixed = [(name, len(varying[name]) if name in varying else value) for name, value in attributes.items()]
    return repr((shapes, fixed))


def describe(file: h5py.File, about: Mapping[str, Any]) -> None:
    """Give a file its attributes, as `PartMemory.file` does."""
    _write_attributes(file, _attributes(about))


def _write_attributes(file: h5py.File | h5py.Dataset, attributes: Mapping[str, Any]) -> None:
    """As `h5py.File.attrs` would, in half the time."""
    scalar = h5py.h5s.create(h5py.h5s.SCALAR)
    for key, value in attributes.items():
        stored = np.array(value, dtype=h5py.string_dtype()) if isinstance(value, str) else np.asarray(value)
        kind = h5py.h5t.py_create(stored.dtype, logical=True)
        h5py.h5a.create(file.id, key.encode(), kind, scalar).write(stored)


def index_bytes(
    directory: Path, files: Sequence[str], about: Mapping[str, Any], alone: Sequence[tuple[int, int]] = ()
) -> bytes:
    """The bytes of ``index.h5``: virtual datasets over parts that stand in `directory`.

    Riding datasets that not every part has, or not in one dtype, are left out; the parts keep them.

    Parameters
    ----------
    directory : Path
    files : sequence of str
        The parts, relative to it, in the order of the rows.
    about : mapping
        What goes into the attributes.
    alone : sequence of (int, int)
        Each part's features' shape, where it is known that nothing rides along. Parts are opened for it otherwise.

    Raises
    ------
    ReadFailed
    """
    if alone:
        shapes = [{FEATURES: (shape, np.dtype("<f4")), VALID: (shape[:1], np.dtype(bool))} for shape in alone]
    else:
        shapes = [_shapes(directory / name) for name in files]
    with h5py.File.in_memory() as file:
        describe(file, {**about, "view": VIEW})
        for key, dtype in common(shapes).items():
            _write_virtual(file, key, files, [part[key][0] for part in shapes], dtype)
        for key, found in {} if alone else categories_of(directory / files[0]).items():
            file.create_dataset(f"{CATEGORIES}/{key}", data=found)
        file.flush()
        return bytes(file.id.get_file_image())


def common(parts: Sequence[Mapping[str, tuple[tuple[int, ...], np.dtype]]]) -> dict[str, np.dtype]:
    """Dtypes of the datasets that every part has, of those in which they agree; given as shapes and dtypes."""
    first, *others = ({key: _kind(*found) for key, found in part.items()} for part in parts)
    return {key: parts[0][key][1] for key, kind in first.items() if all(other.get(key) == kind for other in others)}


def _kind(shape: tuple[int, ...], dtype: np.dtype) -> tuple[Any, ...]:
    """NumPy takes enumerations for equal whatever their values are called."""
    return shape[1:], dtype, h5py.check_enum_dtype(dtype)


def _write_virtual(
    file: h5py.File, key: str, files: Sequence[str], shapes: Sequence[tuple[int, ...]], dtype: np.dtype
) -> None:
    """A dataset over the ones of this name in `files`, as an `h5py.VirtualLayout` would, in half the time."""
    whole = h5py.h5s.create_simple((sum(shape[0] for shape in shapes), *shapes[0][1:]))
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_layout(h5py.h5d.VIRTUAL)
    if dtype.kind in "fciu":  # all others' are HDF5's own
        how.set_fill_value(np.array(missing_value(dtype), dtype))
    name, first = key.replace("%", "%%").encode(), 0  # HDF5 reads % in it as a format
    for path, shape in zip(files, shapes, strict=True):
        whole.select_hyperslab((first, *(0 for _ in shape[1:])), shape)
        how.set_virtual(whole, path.encode(), name, h5py.h5s.create_simple(shape))
        first += shape[0]
    whole.select_all()
    h5py.h5d.create(file.id, key.encode(), h5py.h5t.py_create(dtype, logical=True), whole, dcpl=how)
    _write_attributes(file[key], {"view": VIEW})


def _shapes(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of each dataset of a part."""
    try:
        with reading(path) as part:
            return {key: (item.shape, item.dtype) for key, item in part.items() if key != CATEGORIES}
    except COMPLAINTS as error:
        raise ReadFailed(
            f"file={shown(path)}: cannot be read again: {error}. Type the same command again without --verify sizes: "
            "what is damaged is made anew."
        ) from error


def reading(path: str | Path) -> h5py.File:
    """Open without HDF5's lock, which would keep out a run that replaces what is read."""
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "locking flag" not in str(error):
            raise
        return h5py.File(path, "r")  # within a process all must agree, and somebody has it open with the lock


# -- downstream --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Features:
    """A finished run's features, lazily.

    ``features[valid].compute_chunk_sizes()`` are those that count; without it, Dask does not know how many they are.

    Attributes
    ----------
    features : dask.array.Array of shape (n_rows, n_features), float32
        In the order of the input's rows.
    valid : dask.array.Array of shape (n_rows,), bool
        False where the input row held NaN or Inf.
    riders : dict of str to dask.array.Array of shape (n_rows,)
        Labels, ids and whatever else rode along; texts, of any or of one length, as objects of type str.
    manifest : dict
        What the run says of itself; of a single file, its attributes.
    categories : dict of str to ndarray
        What the codes in a riding dataset stand for: code i for its i-th entry, -1 for none.
    """

    features: Any
    valid: Any
    riders: dict[str, Any]
    manifest: dict[str, Any] = field(repr=False)
    categories: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        kinds = {name: "str" if array.dtype == object else array.dtype for name, array in self.riders.items()}
        riders = ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "nothing"
        return (
            f"<Features: {len(self.features)} rows x {self.features.shape[1]} features, "
            f"{self.manifest.get('n_bad', 'unknown how many')} bad rows; riding along: {shown(riders)}>"
        )


def open_features(path: str | Path, block_rows: int = 65536) -> Features:
    """Open an output directory, or the single file that was written there.

    Parameters
    ----------
    path : str or Path
        The directory, or the index in it; or the single file, wherever it lies.
    block_rows : int
        Rows of one Dask chunk, at most.

    Raises
    ------
    NoInput
        When it holds no finished run.
    DataError
        When a part is missing or not as the manifest says, or an index stands without its parts.
    """
    found = Path(path)
    if not found.is_file():
        return _open_directory(found, block_rows)
    if found.name == INDEX and (found.parent / MANIFEST).exists():
        return _open_directory(found.parent, block_rows)
    return _open_file(found, block_rows)


def _open_directory(directory: Path, block_rows: int) -> Features:
    import dask.array as da

    manifest = read_manifest(directory)
    try:
        parts = [(directory / part["file"], int(part["n_rows"])) for part in manifest["parts"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"features={shown(directory)}: its manifest names no proper parts: {error!r}") from error
    if not parts:
        raise DataError(f"features={shown(directory)}: its manifest names no parts")
    names = common([_check_part(path, n_rows) for path, n_rows in parts])
    arrays = {name: da.concatenate([_lazy(path, name, block_rows) for path, _ in parts]) for name in names}
    return Features(arrays.pop(FEATURES), arrays.pop(VALID), arrays, manifest, _spelled(parts[0][0]))


def _open_file(path: Path, block_rows: int) -> Features:
    where = f"file={shown(path)}"
    try:
        with reading(path) as file:
            # Without its parts it would give rows of what stands for a missing value, and no error.
            if file[FEATURES].is_virtual:
                raise DataError(f"{where}: holds no values, since the parts that it is a view of are missing. {_WHOLE}")
            n_rows, about = len(file[FEATURES]), dict(file.attrs)
            names = [name for name, item in file.items() if name != CATEGORIES and item.shape[:1] == (n_rows,)]
    except (*COMPLAINTS, AttributeError, TypeError) as error:
        raise DataError(f"{where}: holds no features that can be read: {error}") from error
    if VALID not in names:
        raise DataError(f"{where}: no dataset {VALID!r} beside its features, expected what --single-file writes")
    arrays = {name: _lazy(path, name, block_rows) for name in names}
    return Features(arrays.pop(FEATURES), arrays.pop(VALID), arrays, {**about, "n_rows": n_rows}, _spelled(path))


def _spelled(path: Path) -> dict[str, np.ndarray]:
    """Categories, texts as Python has them."""
    try:
        found = categories_of(path)
    except COMPLAINTS as error:
        raise DataError(f"file={shown(path)}: its categories cannot be read: {error}") from error
    return {
        name: np.char.decode(v, "utf-8", "surrogateescape") if v.dtype.kind == "S" else v for name, v in found.items()
    }


def _check_part(path: Path, n_rows: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of each dataset of a part, as they are read."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"file={shown(path)}: the manifest names it, but it is not there. {_WHOLE}") from error
    try:
        with reading(path) as file:
            found = {name: (each.shape, _read_as(each.dtype)) for name, each in file.items() if name != CATEGORIES}
            n_found = file[FEATURES].shape[0]
    except COMPLAINTS as error:
        raise DataError(f"file={shown(path)}: the manifest names it, but it cannot be read: {error}") from error
    if n_found != n_rows:
        raise DataError(f"file={shown(path)}: {n_found} rows, expected {n_rows} as the manifest says")
    return found


def _read_as(dtype: np.dtype) -> np.dtype:
    """As `_read_slice` has it: texts, of whatever length, are objects."""
    return np.dtype(object) if h5py.check_string_dtype(dtype) else dtype


def _lazy(path: Path, name: str, block_rows: int) -> Any:
    import dask
    import dask.array as da

    with reading(path) as file:
        shape, dtype = file[name].shape, _read_as(file[name].dtype)
    pieces = [
        da.from_delayed(
            dask.delayed(_read_slice)(str(path), name, start, min(start + block_rows, shape[0])),
            (min(start + block_rows, shape[0]) - start, *shape[1:]),
            dtype=dtype,
        )
        for start in range(0, max(shape[0], 1), block_rows)
    ]
    return da.concatenate(pieces)


def _read_slice(path: str, name: str, start: int, stop: int) -> np.ndarray:
    with reading(path) as file:
        values = file[name]
        if h5py.check_string_dtype(values.dtype):
            values = values.asstr("utf-8", "surrogateescape")
        return np.asarray(values[start:stop])
