"""A part's file: HDF5 lays it out in memory around the features, and is not asked again for parts of one layout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import h5py
import numpy as np

from pipeline.encoding.template import MARK_BYTES, Skeleton, mark, put, skeleton_of
from pipeline.features import FEATURES, VALID
from pipeline.hdf5.riders import CATEGORIES
from pipeline.output.disk import PAGE

__all__ = ["PartMemory", "allocate", "describe", "part_bytes", "write_attributes"]

FORMAT = "shardpress-features/1"
_ROOM = 2**17  # bytes beside the features, at first


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
            write_attributes(file, attributes)
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
    write_attributes(file, _attributes(about))


def write_attributes(file: h5py.File | h5py.Dataset, attributes: Mapping[str, Any]) -> None:
    """As `h5py.File.attrs` would, in half the time."""
    scalar = h5py.h5s.create(h5py.h5s.SCALAR)
    for key, value in attributes.items():
        stored = np.array(value, dtype=h5py.string_dtype()) if isinstance(value, str) else np.asarray(value)
        kind = h5py.h5t.py_create(stored.dtype, logical=True)
        h5py.h5a.create(file.id, key.encode(), kind, scalar).write(stored)
