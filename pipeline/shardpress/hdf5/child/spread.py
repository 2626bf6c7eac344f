"""Functions of the child that recognize rows in many datasets of a group: one for each column, or one for each sample.

Only names, shapes and dtypes decide which of the two they are.
"""

import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import h5py
import numpy as np
from h5py._objects import ObjectID
from h5py.h5g import GroupID

from shardpress.hdf5.child.find import Dataset, Rejection, attribute, link_of, member, names_in, own_dataset
from shardpress.hdf5.child.find_extras import is_dimension_scale, is_usable
from shardpress.hdf5.fields import Field
from shardpress.hdf5.forms.form import is_number
from shardpress.hdf5.layout import Layout
from shardpress.hdf5.names import ROW_NAMES, natural_key, normal, parts_of, split, text, under
from shardpress.hdf5.shard import Extra

_DATA = b"data"
_INDICES = b"indices"  # of vaex: `data` holds the bytes of texts
_COLUMNS = [b"table", b"columns"]  # groups in which vaex has a group with `data` for each column
_MANY = 10  # matrices of equal shape that are samples, whatever their names
_MOST_ATTRIBUTES = 20  # of a sample
_MOST_ATTRIBUTE = 1024  # bytes
_NUMBER = re.compile(r"\d+")
_EITHER = (
    "{} datasets of shape {}, whose names differ only in a number: each can be a column or a sample. Give "
    "--orientation columns if each is a column, or --orientation rows if each is a sample."
)


class Piece(NamedTuple):
    """A dataset that is a column or a sample. It is opened when it is needed, because there can be 100,000 of them."""

    kind: tuple[tuple[int, ...], np.dtype]  # shape and dtype
    place: tuple[GroupID, str]  # the group and its path
    owner: bytes  # name in the group: of the dataset, or of its own group, whose attributes describe it
    inner: bytes = b""  # name of the dataset in its own group

    @property
    def name(self) -> str:
        return text(self.owner)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.kind[0]

    @property
    def dtype(self) -> np.dtype:
        return self.kind[1]

    @property
    def group(self) -> GroupID:
        return self.place[0]

    @property
    def link(self) -> bytes:
        """Path of the dataset in the group."""
        return self.owner + b"/" + self.inner if self.inner else self.owner

    @property
    def path(self) -> str:
        return under(self.place[1], text(self.link))

    def open(self) -> Dataset:
        return Dataset(h5py.h5d.open(self.group, self.link))


class Spread(NamedTuple):
    """The datasets with the columns or the samples, in natural order of their names."""

    are_samples: bool
    pieces: list[Piece]
    others: list[Piece]  # of another shape or dtype than most


def spread_in(group: GroupID, path: str, orientation: str | None) -> Spread | None:
    """Return the columns or samples in a group, or None if it holds something else.

    Refuse datasets that can be either, unless the orientation is ``columns`` or ``rows``.
    """
    names = sorted(names_in(group), key=lambda name: natural_key(text(name)))
    pieces = list(_own_pieces(group, path, names))
    wide = [piece for piece in pieces if len(piece.shape) > 1]
    if wide:
        samples = _samples(wide)
        are_meant = len(wide) >= _MANY or _differ_in_numbers(wide)
        return samples if are_meant and orientation != "columns" and len(samples.pieces) > 1 else None
    lines = _most_frequent(pieces, [piece.shape for piece in pieces])
    if len(lines) > 1:
        if orientation is None and _differ_in_numbers(lines):
            raise Rejection(_EITHER.format(len(lines), lines[0].shape), path)
        return _samples(lines) if orientation == "rows" else Spread(False, lines, [])
    nested = list(_nested_pieces(group, path, names))
    if parts_of(path)[-2:] == _COLUMNS:
        columns = _most_frequent(nested, [piece.shape for piece in nested])
        return Spread(False, columns, [piece for piece in nested if piece not in columns]) if columns else None
    samples = _samples(nested)
    return samples if orientation != "columns" and len(samples.pieces) > 1 else None


def groups_of(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the groups that hold several of these datasets of equal shape, or groups with one of them each."""
    parents = Counter((split(name)[0], shape) for name, shape in shapes.items())
    places = [place for (place, _), n in parents.items() if n > 1]
    if not places:
        nested = {name: shape for name, shape in shapes.items() if "/" in name}
        grandparents = Counter((split(split(name)[0])[0], split(name)[1], shape) for name, shape in nested.items())
        places = [place for (place, *_), n in grandparents.items() if n > 1]
    return [place or "/" for place in dict.fromkeys(places)]


def could_be_samples(place: str, paths: Sequence[str]) -> bool:
    """Return whether datasets can be samples of a group: all are in it, and are many, or differ in a number."""
    prefix = "" if place == "/" else f"{place}/"
    are_inside = all(path.startswith(prefix) and path.removeprefix(prefix).count("/") <= 1 for path in paths)
    return are_inside and (len(paths) >= _MANY or len({_NUMBER.sub("0", path) for path in paths}) == 1)


def is_line(item: object) -> bool:
    """Return whether an object is a dataset with several numbers along one axis, which is no coordinate of netCDF."""
    return (
        isinstance(item, Dataset) and _is_numeric(item) and len(item.shape or ()) == 1 and not is_dimension_scale(item)
    )


def _is_numeric(dataset: Dataset) -> bool:
    dtype = dataset.dtype
    is_plain = dtype is not None and is_number(dtype) and not h5py.check_enum_dtype(dtype)
    return is_plain and not dataset.place and dataset.size > 1


def _own_pieces(group: GroupID, path: str, names: Sequence[bytes]) -> Iterator[Piece]:
    place = (group, path)
    kinds: dict[object, tuple[tuple[int, ...], np.dtype]] = {}  # which pieces share, because they take memory
    for name in names:
        if h5py.h5g.get_objinfo(group, name, follow_link=False).type != h5py.h5g.DATASET:
            continue
        dataset = own_dataset(group, name)
        if dataset is not None and _is_numeric(dataset) and not is_dimension_scale(dataset):
            yield Piece(_kind_of(dataset, kinds), place, name)


def _kind_of(
    dataset: Dataset, kinds: dict[object, tuple[tuple[int, ...], np.dtype]]
) -> tuple[tuple[int, ...], np.dtype]:
    assert dataset.dtype is not None
    kind = (dataset.shape or (), dataset.dtype)
    return kinds.setdefault(kind, kind)


def _nested_pieces(group: GroupID, path: str, own_names: Sequence[bytes]) -> Iterator[Piece]:
    """Yield the dataset of each group in a group: the only one with several numbers, which has the same name in all."""
    place = (group, path)
    kinds: dict[object, tuple[tuple[int, ...], np.dtype]] = {}
    name: bytes | None = _DATA if parts_of(path)[-2:] == _COLUMNS else None
    for own_name in own_names:
        own_group = None if link_of(group, own_name) else member(group, own_name)
        if not isinstance(own_group, GroupID) or own_group.links.exists(_INDICES):
            continue
        if name is None:
            names = [piece.owner for piece in _own_pieces(own_group, "", names_in(own_group))]
            if len(names) != 1:
                return
            (name,) = names
        dataset = own_dataset(own_group, name)
        if dataset is not None and _is_numeric(dataset):
            yield Piece(_kind_of(dataset, kinds), place, own_name, name)


def _samples(pieces: Sequence[Piece]) -> Spread:
    """Return the datasets of the most frequent shape and dtype as samples."""
    samples = _most_frequent(pieces, [(piece.shape, piece.dtype) for piece in pieces])
    chosen = {piece.name for piece in samples}
    return Spread(True, samples, [piece for piece in pieces if piece.name not in chosen])


def _most_frequent(pieces: Sequence[Piece], keys: Sequence[Hashable]) -> list[Piece]:
    """Return the pieces with the most frequent key; of several, with that of the first piece."""
    if not pieces:
        return []
    ((most, _),) = Counter(keys).most_common(1)
    return [piece for piece, key in zip(pieces, keys, strict=True) if key == most]


def _differ_in_numbers(pieces: Sequence[Piece]) -> bool:
    return len({_NUMBER.sub("0", piece.name) for piece in pieces}) == 1


# -- extras --------------------------------------------------------------------------------------------------------


def extras_of(samples: Spread, path: str) -> Iterator[Extra]:
    """Yield the names of samples, and their numbers and texts in attributes that all of them have, as extras."""
    yield _inline(
        normal(under(path, ROW_NAMES)), [piece.name.encode("utf-8", "surrogateescape") for piece in samples.pieces]
    )
    first = samples.pieces[0]
    names = _attribute_names(h5py.h5o.open(first.group, first.owner))
    for name, values in _attributes(samples.pieces, names).items():
        yield _inline(normal(under(path, text(name))), values)


def _inline(path: str, values: Sequence[Any]) -> Extra:
    array = np.array(values)
    layout = Layout(path, array.shape, array.dtype, "inline", data=array.tobytes())
    return Extra(path, array.dtype, Field(layout, array.dtype), is_named=True)


def _attribute_names(owner: ObjectID) -> list[bytes]:
    names: list[bytes] = []

    def take(name: bytes) -> bool | None:
        if is_usable(name) and not name.isupper():  # HDF5 and PyTables have their own attributes in capitals
            names.append(name)
        return len(names) == _MOST_ATTRIBUTES or None  # True ends the iteration

    h5py.h5a.iterate(owner, take)
    return names


def _attributes(pieces: Sequence[Piece], names: Sequence[bytes]) -> dict[bytes, list[Any]]:
    """Return the attributes that all samples have, and their values: only numbers, or only texts as UTF-8."""
    values: dict[bytes, list[Any]] = {name: [] for name in names}
    for piece in pieces:
        owner = h5py.h5o.open(piece.group, piece.owner)
        for name in list(values):
            value = attribute(owner, name, _is_short)
            if value is None:
                del values[name]
            else:
                values[name].append(value.item())
    return {name: column for name, column in values.items() if len({isinstance(value, bytes) for value in column}) == 1}


def _is_short(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    is_text = h5py.check_string_dtype(dtype) is not None
    return shape == () and (is_text or dtype.kind in "biuf") and dtype.itemsize <= _MOST_ATTRIBUTE
