"""The format of feature shards, and `open_features`, which reads them.

A part, ``parts/part-<shard>-<row>-<unique>.h5``, holds the features of consecutive rows of one or more input shards.
Its name contains the first of them. It is itself a valid input shard, and contains:

- ``features`` (n_rows, n_features), float32: little-endian, in C order, contiguous, and aligned to 4096 bytes, so that
  the features can be memory-mapped. With ``--storage-dtype`` and ``--compression``, features can be stored as float16,
  or in compressed chunks of rows.
- ``valid`` (n_rows,), bool: false for bad rows. The features of bad rows are NaN.
- ``error`` (n_rows,), float32, with ``--row-error``: the mean squared error of the reconstruction in scaled units, NaN
  for bad rows.
- Extras under their own names, or with the prefix ``source_`` if the name is reserved. All parts have the same extras.
  If a shard lacks an extra, its rows hold `missing_value` or the code -1 instead, and a mask such as ``NAME_present``
  is false for these rows.
- The attribute ``categories`` of each extra that is stored as codes (`shardpress.hdf5.categories`).

``index.h5`` (`shardpress.result.finished`) lists the parts and the rows of them that belong to the result. Its virtual
datasets present these rows to other programs.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from shardpress.base.errors import DataError, printable, short_list
from shardpress.hdf5.categories import array_of, read_categories
from shardpress.hdf5.sealed import has_footer
from shardpress.result.asof import find_map, plain_number
from shardpress.result.finished import APPEND_ID, FEATURES, INDEX, VALID, Result
from shardpress.result.frames import data_frame, import_pandas
from shardpress.result.records import Part, Range, stretches_of

_WHOLE = "Copy the whole directory, with parts/, or the file that shardpress export --to hdf5 writes."
_NAMED = 10  # appends that a message names
_REPEAT = "Run the command of that run again, which recomputes damaged files."
# h5py raises OSError and RuntimeError. The other errors occur if a dataset is missing, or if a group has its name.
FAILURES = (OSError, RuntimeError, LookupError, ValueError, AttributeError, TypeError)

Shape = tuple[tuple[int, ...], np.dtype]
"""Shape and dtype of a dataset."""


def categories_of(path: Path) -> dict[str, np.ndarray]:
    """Return the categories in a part or a single file as numbers or str. The keys are the names of the extras."""
    with reading(path) as file:
        categories = {}
        for name, item in file.items():
            values = read_categories(item.id) if isinstance(item, h5py.Dataset) else None
            if values is not None:
                categories[name] = array_of(values)
    return categories


def common_dtypes(parts: Sequence[Mapping[str, Shape]]) -> dict[str, np.dtype]:
    """Return the dtypes of the datasets that all parts contain with the same dtype and the same row shape."""
    first, *others = [{name: _kind(shape) for name, shape in part.items()} for part in parts]
    dtypes = {}
    for name, kind in first.items():
        if all(other.get(name) == kind for other in others):
            _, dtype = parts[0][name]
            dtypes[name] = dtype
    return dtypes


def _kind(shape: Shape) -> object:
    """Return the properties of a dataset that must be equal in all parts."""
    dims, dtype = shape
    # NumPy ignores enumerations when it compares dtypes.
    return dims[1:], dtype, h5py.check_enum_dtype(dtype)


def reading(path: str | Path) -> h5py.File:
    """Open a file without an HDF5 lock, so that a run can replace the file while it is open."""
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "locking flag" not in str(error):
            raise
        return h5py.File(path, "r")  # this process has already opened the file with a lock, and both modes must agree


@dataclass(frozen=True)
class Features:
    """Features of a finished run as lazy Dask arrays.

    ``features[valid].compute_chunk_sizes()`` selects the features of good rows. Without ``compute_chunk_sizes``, Dask
    does not know the number of good rows.

    Attributes
    ----------
    features : dask.array.Array of shape (n_rows, n_features), float32
        Features in the order of the input rows. The dtype is float16 if they are stored as float16.
    valid : dask.array.Array of shape (n_rows,), bool
        False for bad rows, such as rows with NaN or Inf.
    extras : dict of str to dask.array.Array of shape (n_rows,)
        Extras, such as labels and ids, and ``error`` if the run stored the error of each row. Strings are Python
        objects of type str.
    manifest : dict
        Facts about the run, or the attributes of a single file. For several runs, ``runs`` lists their facts, next to
        the totals ``n_rows`` and ``n_bad``.
    categories : dict of str to ndarray
        Categories of the extras that are stored as codes. Code i refers to entry i, and -1 to a missing value.
    """

    features: Any
    valid: Any
    extras: dict[str, Any]
    manifest: dict[str, Any] = field(repr=False)
    categories: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    result: Result | None = field(default=None, repr=False)  # None for a single file, and for several runs

    def to_pandas(self, only_valid: bool = False) -> Any:
        """Read all rows into a pandas DataFrame.

        The columns are ``feature0``, ``feature1`` and so on, then ``valid``, then the extras. Extras that are stored as
        codes become categoricals. The index is the extra ``_index`` (the names of AnnData's cells), ``index``, or
        ``axis1`` (the index of a pandas frame in fixed format), or numbers if there is no such extra. An extra with the
        name of another column gets the prefix ``source_``.

        Parameters
        ----------
        only_valid : bool
            True to omit the bad rows and the column ``valid``.

        Returns
        -------
        pandas.DataFrame

        Raises
        ------
        DeviceError
            If pandas is not installed.
        """
        import dask

        import_pandas()  # before the rows are read, which can take long
        features, valid, extras = dask.compute(self.features, self.valid, self.extras)
        if not only_valid:
            return data_frame(features, valid, extras, self.categories)
        chosen = {name: values[valid] for name, values in extras.items()}
        return data_frame(features[valid], None, chosen, self.categories)

    def __repr__(self) -> str:
        kinds = {name: "str" if array.dtype == object else array.dtype for name, array in self.extras.items()}
        extras = ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "nothing"
        n_bad = self.manifest.get("n_bad", "an unknown number of")
        return (
            f"<Features: {len(self.features)} rows x {self.features.shape[1]} features, "
            f"{n_bad} bad rows; extras: {printable(extras)}>"
        )


def open_features(
    path: str | Path | Sequence[str | Path],
    block_rows: int = 65536,
    n_features: int | None = None,
    as_of: int | str | Path | None = None,
    appends: int | Collection[int] | None = None,
    generation: int | None = None,
) -> Features:
    """Open the features in an output directory, in a single file, or in several of them.

    Parameters
    ----------
    path : str, Path or sequence of these
        An output directory, its ``index.h5``, or a file that ``shardpress export --to hdf5`` wrote. The rows of
        several runs are concatenated in the order of the paths. The runs must have one encoder, unless `as_of` maps
        their features to those of one encoder. The result has the extras that all runs have with one kind of values,
        and their masks. Codes refer to the categories of all runs.
    block_rows : int
        Maximum number of rows in a Dask chunk.
    n_features : int, optional
        Number of the first features to return. The features must have been trained with ``--nested``.
    as_of : int, str or Path, optional
        Generation to whose features the features are mapped, so that classifiers that were trained on these can be
        used: the number of a generation (``--retrain``), an output directory with its features, or a file that
        ``shardpress compare --map`` wrote. Only such a file leads to the features of another output directory with
        another training. The manifest then names the other encoder. Features that this encoder made are not changed.
    appends : int or collection of int, optional
        Numbers of the appends (``--append``) whose rows are returned; 0 stands for the rows of the run that trained the
        model. By default, all rows are returned, and the extra ``append_id`` contains the number of each row.
    generation : int, optional
        Number of an earlier generation whose features are returned, if the output directory still contains them.

    Returns
    -------
    Features

    Raises
    ------
    NoInput
        If the directory contains no finished run.
    DataError
        If a part is missing or is not as the index says, if an index was copied without its parts, if the runs have
        different encoders, if `n_features` is given for features that are not nested or too few, if there is no map to
        `as_of`, or if there are no rows of `appends` or `generation`.
    """
    appends = plain_number(appends)
    numbers = [appends] if isinstance(appends, int) else appends
    selection = _Selection(block_rows, numbers, generation, n_features, plain_number(as_of))
    if isinstance(path, (str, Path)):
        return _open_one(Path(path), selection)
    return _joined([(str(one), _open_one(Path(one), selection)) for one in path])


class _Selection(NamedTuple):
    block_rows: int
    appends: Collection[int] | None
    generation: int | None
    n_features: int | None
    as_of: int | str | Path | None


def _open_one(path: Path, selection: _Selection) -> Features:
    opened = _open_rows(path, selection)
    if selection.n_features is not None:
        opened = _first_features(opened, selection.n_features, path)
    if selection.as_of is not None:
        opened = _as_of(opened, selection.as_of, path)
    return opened


def _open_rows(path: Path, selection: _Selection) -> Features:
    if not os.path.isfile(path) or path.name == INDEX or has_footer(path):
        return _open_result(path, selection)
    if selection.appends is not None or selection.generation is not None:
        raise DataError(
            f"file={printable(path)}: does not contain the numbers of appends or generations, expected the output "
            "directory. Open that, or omit appends and generation."
        )
    return _open_file(path, selection.block_rows)


def _as_of(opened: Features, as_of: int | str | Path, path: Path) -> Features:
    """Return the features mapped to those of another generation, of another output directory, or by a map file."""
    to_other = find_map(path, as_of, str(opened.manifest.get("model")), opened.result)
    if to_other is None:
        return opened
    n_from, n_to = to_other.W.shape
    width = opened.features.shape[1]
    if width != n_from:
        raise DataError(
            f"features={printable(path)}: has {width} features, but map={printable(str(as_of))} expects {n_from}"
        )
    chunks = (opened.features.chunks[0], (n_to,))
    meta = np.empty((0, n_to), np.float32)
    features = opened.features.map_blocks(to_other.apply, chunks=chunks, dtype=np.float32, meta=meta)
    manifest = {**opened.manifest, "model": to_other.encoder_to}
    if isinstance(as_of, int):
        manifest["generation"] = as_of
    return replace(opened, features=features, manifest=manifest)


def _first_features(opened: Features, n_features: int, path: Path) -> Features:
    width = opened.features.shape[1]
    if not opened.manifest.get("nested"):
        raise DataError(
            f"features={printable(path)}: trained without --nested, so the first {n_features} features cannot be "
            "used without the others. Train with --nested, or with another --n-features."
        )
    if not 1 <= n_features <= width:
        raise DataError(f"features={printable(path)}: has {width} features, found n_features={n_features}")
    return replace(opened, features=opened.features[:, :n_features])


# -- several runs ------------------------------------------------------------------------------------------------


def _joined(runs: Sequence[tuple[str, Features]]) -> Features:
    import dask.array as da

    if not runs:
        raise DataError("no paths of features, expected at least one")
    _check_encoders(runs)
    opened = _with_masks([run for _, run in runs])
    first, *others = opened
    extras = {}
    categories = {}
    for name in first.extras:
        if all(name in other.extras for other in others) and _are_alike(name, opened):
            arrays, union = _common_codes(name, opened)
            extras[name] = da.concatenate(arrays)
            if union is not None:
                categories[name] = union
    manifests = [run.manifest for run in opened]
    manifest: dict[str, Any] = {"runs": manifests, "n_rows": sum(len(run.features) for run in opened)}
    if all("n_bad" in facts for facts in manifests):
        manifest["n_bad"] = sum(int(facts["n_bad"]) for facts in manifests)
    features = da.concatenate([run.features for run in opened])
    valid = da.concatenate([run.valid for run in opened])
    return Features(features, valid, extras, manifest, categories)


def _with_masks(runs: Sequence[Features]) -> list[Features]:
    """Return the runs with the masks of all of them. A run without a mask of an extra has a value in each row."""
    import dask.array as da

    masks: dict[str, str] = {}
    for run in runs:
        masks |= run.manifest.get("masks", {})
    completed = []
    for run in runs:
        own = run.manifest.get("masks", {})
        extras = dict(run.extras)
        for name, mask in masks.items():
            if name in own:
                extras[mask] = run.extras[own[name]]
            elif name in extras and mask not in extras:
                extras[mask] = da.ones_like(run.valid)
        completed.append(replace(run, extras=extras))
    return completed


def _check_encoders(runs: Sequence[tuple[str, Features]]) -> None:
    """Raise `DataError` unless all runs were encoded by one model. Models have fingerprints."""
    first_path, first = runs[0]
    expected = first.manifest.get("model")
    for path, run in runs[1:]:
        encoder = run.manifest.get("model")
        if encoder is None or encoder != expected:
            raise DataError(
                f"features={printable(path)}: made by the encoder {printable(str(encoder))}, expected the encoder "
                f"{printable(str(expected))} of features={printable(first_path)}. Encode the rows again with "
                f"shardpress run --model {printable(first_path)}; or fit a map with shardpress compare --map, and pass "
                "it as as_of."
            )


def _are_alike(name: str, runs: Sequence[Features]) -> bool:
    """Return whether the values of an extra can be concatenated: they have one kind of dtype, or of categories."""
    has_categories = {name in run.categories for run in runs}
    kinds = {run.extras[name].dtype.kind for run in runs}
    if True in has_categories:
        kinds = {run.categories[name].dtype.kind for run in runs if name in run.categories}
    shapes = {run.extras[name].shape[1:] for run in runs}
    return len(has_categories) == len(kinds) == len(shapes) == 1


def _common_codes(name: str, runs: Sequence[Features]) -> tuple[list[Any], np.ndarray | None]:
    """Return an extra of each run. If it consists of codes, they refer to the categories that follow, of all runs."""
    arrays = [run.extras[name] for run in runs]
    if name not in runs[0].categories:
        return arrays, None
    lists = [run.categories[name].tolist() for run in runs]
    if all(categories == lists[0] for categories in lists):
        return arrays, runs[0].categories[name]
    union = list(dict.fromkeys(category for categories in lists for category in categories))
    dtype = np.min_scalar_type(-max(1, len(union)))
    positions = {category: i for i, category in enumerate(union)}
    for i, categories in enumerate(lists):
        codes = np.array([*(positions[category] for category in categories), -1], dtype)  # the last entry maps -1 to -1
        arrays[i] = arrays[i].map_blocks(codes.take, dtype=dtype, meta=codes[:0])
    return arrays, array_of(union)


# -- one run -----------------------------------------------------------------------------------------------------


def _open_result(path: Path, selection: _Selection) -> Features:
    result = Result.open(path)
    try:
        return _features_of(result, selection)
    except DataError:
        if Result.open(path).digest == result.digest:
            raise
        return _open_result(path, selection)  # a run has replaced the result meanwhile, and removed parts


def _features_of(result: Result, selection: _Selection) -> Features:
    if selection.generation is not None:
        result = _generation(result, selection.generation)
    pairs = result.ranges
    manifest = result.manifest()
    if selection.appends is not None:
        pairs = _ranges_of(selection.appends, result)
        manifest["n_rows"] = sum(rows.n_rows for _, rows in pairs)
        manifest["n_bad"] = sum(rows.n_bad for _, rows in pairs)
    stretches = stretches_of(pairs)
    parts = {part.file: part for part, _ in pairs}
    shapes = {file: check_part(result.directory, part) for file, part in parts.items()}
    pieces = [
        _Piece(result.directory / part.file, shapes[part.file], first, n_rows) for part, first, n_rows in stretches
    ]
    opened = _opened(pieces, manifest, selection.block_rows, categories_in(result))
    if result.facts.appends:
        opened.extras[APPEND_ID] = _lazy_append_ids(
            [(result.by_id[rows.shard].append_id, rows.n_rows) for _, rows in pairs], selection.block_rows
        )
    return replace(opened, result=result)


def categories_in(result: Result) -> dict[str, np.ndarray]:
    """Return the categories of the extras of all rows."""
    return {name: array_of(values) for name, (_, values) in result.extras().items() if values is not None}


def _generation(result: Result, number: int) -> Result:
    known = [*(kept.generation for kept in result.facts.model.generations), result.facts.model.generation]
    if number not in known:
        raise DataError(
            f"features={printable(result.directory)}: no longer contains generation={number}, expected one of "
            f"{short_list(map(str, known), _NAMED)}. Keep more of them with --keep-generations."
        )
    return result.generation(number)


def _ranges_of(appends: Collection[int], result: Result) -> list[tuple[Part, Range]]:
    selected = [(part, rows) for part, rows in result.ranges if result.by_id[rows.shard].append_id in appends]
    if not selected:
        known = short_list(map(str, sorted({shard.append_id for shard in result.shards})), _NAMED)
        raise DataError(
            f"features={printable(result.directory)}: has no rows of appends={sorted(appends)}, expected numbers of "
            f"its appends: {known}."
        )
    return selected


def _lazy_append_ids(append_ids: Sequence[tuple[int, int]], block_rows: int) -> Any:
    import dask.array as da

    runs = []  # of equal numbers
    for append_id, group in groupby(append_ids, key=lambda pair: pair[0]):
        n_rows = sum(n for _, n in group)
        runs.append(da.full(n_rows, append_id, dtype=np.int32, chunks=block_rows))
    return da.concatenate(runs)


def _open_file(path: Path, block_rows: int) -> Features:
    where = f"file={printable(path)}"
    try:
        with reading(path) as file:
            # Without the parts of a virtual dataset, HDF5 would return missing values instead of an error.
            if file[FEATURES].is_virtual:
                raise DataError(f"{where}: has no values, because the parts that it refers to are missing. {_WHOLE}")
            shapes = _shapes_of(file)
            manifest = {**file.attrs, "n_rows": file[FEATURES].shape[0]}
    except FAILURES as error:
        raise DataError(f"{where}: contains no readable features: {error}. {_WHOLE}") from error
    pieces = [_Piece(path, shapes, 0, manifest["n_rows"])]
    return _opened(pieces, manifest, block_rows, _readable_categories(path))


class _Piece(NamedTuple):
    """Rows in a file."""

    path: Path
    shapes: Mapping[str, Shape]  # of the datasets in the file
    first: int
    n_rows: int


def _opened(
    pieces: Sequence[_Piece],
    manifest: dict[str, Any],
    block_rows: int,
    categories: dict[str, np.ndarray],
) -> Features:
    import dask.array as da  # imported here, because it takes longer to load than all other modules

    for piece in pieces:
        if VALID not in piece.shapes:
            where = f"file={printable(piece.path)}"
            raise DataError(
                f"{where}: contains no dataset {VALID!r}, expected a file that shardpress export --to hdf5 wrote"
            )
    names = common_dtypes([piece.shapes for piece in pieces])
    arrays = {name: da.concatenate([_lazy(piece, name, block_rows) for piece in pieces]) for name in names}
    features = arrays.pop(FEATURES)
    valid = arrays.pop(VALID)
    return Features(features, valid, arrays, manifest, categories)


def _readable_categories(path: Path) -> dict[str, np.ndarray]:
    try:
        return categories_of(path)
    except FAILURES as error:
        raise DataError(f"file={printable(path)}: its categories cannot be read: {error}. {_REPEAT}") from error


def check_part(directory: Path, part: Part) -> dict[str, Shape]:
    """Return the result of `_shapes_of` for a part. Raise `DataError` if the part is not as the index says."""
    path = directory / part.file
    try:
        os.stat(path)  # HDF5 does not distinguish between a missing and a damaged file
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"file={printable(path)}: the index names this file, but it does not exist. {_WHOLE}"
        ) from error
    try:
        with reading(path) as file:
            shapes = _shapes_of(file)
            n_found = file[FEATURES].shape[0]
    except FAILURES as error:
        raise DataError(
            f"file={printable(path)}: the index names this file, but it cannot be read: {error}. {_REPEAT}"
        ) from error
    if n_found != part.n_rows:
        raise DataError(
            f"file={printable(path)}: has {n_found} rows, expected {part.n_rows} according to the index. {_REPEAT}"
        )
    return shapes


def _shapes_of(file: h5py.File) -> dict[str, Shape]:
    """Return the shape and dtype of each dataset with one value per row. All strings have the dtype object."""
    n_rows = file[FEATURES].shape[0]
    shapes: dict[str, Shape] = {}
    for name, item in file.items():
        if isinstance(item, h5py.Dataset) and (item.shape or ())[:1] == (n_rows,):
            is_text = h5py.check_string_dtype(item.dtype) is not None
            shapes[name] = (item.shape, np.dtype(object) if is_text else item.dtype)
    return shapes


def _lazy(piece: _Piece, name: str, block_rows: int) -> Any:
    import dask
    import dask.array as da

    (_, *row_shape), dtype = piece.shapes[name]
    blocks = []
    end = piece.first + piece.n_rows
    for start in range(piece.first, max(end, piece.first + 1), block_rows):  # Dask needs a block, even without rows
        stop = min(start + block_rows, end)
        values = dask.delayed(_read_slice)(str(piece.path), name, start, stop)
        blocks.append(da.from_delayed(values, (stop - start, *row_shape), dtype=dtype))
    return da.concatenate(blocks)


def _read_slice(path: str, name: str, start: int, stop: int) -> np.ndarray:
    # Each piece opens the file again, because Dask's threads and processes cannot share an open file.
    with reading(path) as file:
        return read_values(file[name], start, stop)


def read_values(dataset: h5py.Dataset, start: int, stop: int) -> np.ndarray:
    """Return the values (stop - start, ...) of some rows, in their dtype. Strings become objects of type str."""
    if h5py.check_string_dtype(dataset.dtype) is not None:
        return np.asarray(dataset.asstr("utf-8", "surrogateescape")[start:stop])
    return np.asarray(dataset[start:stop])


def rows_with_value(run: Features, name: str) -> np.ndarray:
    """Return a mask of the rows that have a value of an extra, bool (n_rows,).

    The other rows are those of shards without the extra, and those whose value could not be read. Their fill values can
    be values of other rows, too.
    """
    has_value = np.ones(len(run.extras[name]), dtype=bool)
    if run.result is None:
        return has_value
    mask = run.result.facts.rows.masks.get(name)
    if mask is not None:
        has_value &= run.extras[mask].compute()
    return has_value & ~are_lost(run.result.ranges, name)


def are_lost(ranges: Sequence[tuple[Part, Range]], name: str) -> np.ndarray:
    """Return a mask of the rows whose value of an extra could not be read, bool (n_rows,)."""
    masks = [in_ranges(np.arange(rows.start, rows.stop), rows.lost.get(name, [])) for _, rows in ranges]
    return np.concatenate(masks)


def in_ranges(numbers: np.ndarray, ranges: Sequence[Sequence[int]]) -> np.ndarray:
    """Return whether each number is in one of the ranges, which are pairs of a first number and an end: bool (n,)."""
    is_inside = np.zeros(len(numbers), dtype=bool)
    for first, end in ranges:
        is_inside |= (numbers >= first) & (numbers < end)
    return is_inside
