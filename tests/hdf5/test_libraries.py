"""Tests of random files by the libraries that users have: rows, names and extras equal what the library reads back.

Sample: 12 files of each form, and with TEST_CASES=all 300.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from shardpress.hdf5.shard import Block, array_shard
from shardpress.shards.conversion import digest_of_rows
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from tests.support.cases import ALL_CASES, case

# The libraries are imported by the functions that use them, because this takes two seconds.
pytestmark = [pytest.mark.process, pytest.mark.slow]

N_FILES = 300 if ALL_CASES else 12
SIGNED = ["i1", "i2", "i4", "i8"]
INTEGERS = [*SIGNED, "u1", "u2", "u4", "u8"]
NUMBERS = [*INTEGERS, "f4", "f8"]
ANY_ORDER = ["?", *(order + code for order in "<>" for code in [*NUMBERS, "f2"])]
# PyTables and pandas write strings and bool in types that only libhdf5 reads, so only zlib can compress those.
CODECS = ["zlib", "bzip2", "blosc", "blosc:lz4", "blosc:lz4hc", "blosc:zlib", "blosc:zstd"]
# AnnData before 0.13, which Python 3.11 and 3.12 use here, cannot write the strings of pandas 3.
TEXT_TYPES = [object, "str"] if sys.version_info >= (3, 13) else [object]
READ_AS = {np.dtype("?"): np.dtype("u1"), np.dtype("f2"): np.dtype("f4")}


@dataclass(frozen=True)
class Contents:
    """Contents of a file as its library reads them, and the settings that select them."""

    rows: np.ndarray  # rows first
    extras: Mapping[str, Any] = field(default_factory=dict)
    names: Sequence[str] = ()  # of columns
    coordinate: Any = None  # a number for each column
    settings: Mapping[str, Any] = field(default_factory=dict)  # of `open_shards`
    fill_value: float | None = None


@pytest.fixture(autouse=True, scope="module")
def plugin_path() -> Iterator[None]:
    """Restore the variable that netCDF4 sets when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HDF5_PLUGIN_PATH", "")
        del os.environ["HDF5_PLUGIN_PATH"]
        yield


# -- random values -------------------------------------------------------------------------------------------------


def pick(rng: np.random.Generator, values: Sequence[Any]) -> Any:
    return values[rng.integers(len(values))]


def is_chosen(rng: np.random.Generator) -> bool:
    return bool(rng.integers(2))


def some_shape(rng: np.random.Generator, rank: int = 2) -> tuple[int, ...]:
    """Return a shape with different numbers of rows and columns: otherwise, an axis does not tell what is along it."""
    most = (50, 9, 4, 3)[:rank]
    while True:
        n_rows, *others = (int(rng.integers(1, n)) for n in most)
        if n_rows != prod(others):
            return n_rows, *others


def some_numbers(rng: np.random.Generator, shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Return numbers that a codec compresses, or any bits, which it does not compress."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b" or is_chosen(rng):
        return rng.integers(0, 2, shape).astype(dtype)
    return np.frombuffer(rng.bytes(prod(shape) * dtype.itemsize), dtype).reshape(shape).copy()


def some_texts(rng: np.random.Generator, n: int) -> list[str]:
    """Return different texts of different lengths."""
    return [f"{pick(rng, ['a', 'ä', 'text of', '细胞'])} {i}" for i in rng.permutation(n)]


def some_identifiers(rng: np.random.Generator, n: int) -> list[str]:
    return [f"c{i}" for i in rng.permutation(n)]


def some_sparse(rng: np.random.Generator, form: str, shape: tuple[int, ...], dtype: str) -> Any:
    dense = some_numbers(rng, shape, dtype)
    dense[rng.random(shape) < pick(rng, [0.1, 0.8, 1.0])] = 0
    if dense.dtype.kind == "f":
        dense[np.isnan(dense)] = np.nan  # SciPy returns signaling NaN as quiet NaN
    return {"csr": scipy.sparse.csr_matrix, "csc": scipy.sparse.csc_matrix}[form](dense)


# -- the comparison ------------------------------------------------------------------------------------------------


def check(path: Path, contents: Contents, rng: np.random.Generator) -> None:
    (shard,) = open_shards([str(path)], **contents.settings)
    n_rows = len(contents.rows)
    rows = native(contents.rows).reshape(n_rows, -1)
    rows = rows.astype(READ_AS.get(rows.dtype, rows.dtype))
    assert (shard.n_rows, shard.n_inputs) == rows.shape
    assert [*shard.columns.names] == [*contents.names]
    assert shard.columns.note == ""
    if contents.coordinate is None:
        assert shard.columns.values is None
    else:
        np.testing.assert_array_equal(shard.columns.values, contents.coordinate)
    assert shard.fill_value == contents.fill_value
    assert {extra.name for extra in shard.extras} == {*contents.extras}
    assert [each for each in shard.left_out if each.is_missed] == []
    start, stop = sorted(int(i) for i in rng.integers(0, n_rows + 1, 2))
    for block in (Block(shard, 0, n_rows), Block(shard, start, stop), Block(shard, start, start)):
        found = read(block)
        assert found.dtype == rows.dtype
        assert found.tobytes() == rows[block.start : block.stop].tobytes()
        assert digest_of_rows(block) == digest_of_rows(Block(array_shard(rows), block.start, block.stop))
        extras = read_extras(block)
        for extra in shard.extras:
            expected = np.asarray(contents.extras[extra.name]).reshape(n_rows)[block.start : block.stop]
            with case(extra=extra.name):
                check_extra(extras[extra.name], expected, extra.categories)


def check_extra(found: np.ndarray, expected: np.ndarray, categories: Sequence[Any] | None) -> None:
    if categories is not None:
        decoded = [None if code < 0 else categories[code] for code in found.tolist()]
        assert decoded == [None if pd.isna(value) else value for value in expected.tolist()]
    elif expected.dtype.kind in "OSU":
        assert [*map(as_text, found.tolist())] == [*map(as_text, expected.tolist())]
    else:
        assert native(found).dtype == native(expected).dtype
        assert native(found).tobytes() == native(expected).tobytes()


def as_text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def native(values: np.ndarray) -> np.ndarray:
    return values.astype(values.dtype.newbyteorder("="))


# -- h5py ----------------------------------------------------------------------------------------------------------


def some_storage(rng: np.random.Generator, shape: Sequence[int], dtype: np.dtype) -> dict[str, Any]:
    """Return options of `create_dataset`: contiguous, compact, or chunked with filters."""
    kind = pick(rng, ["contiguous", "compact", "chunked", "chunked"])
    if kind == "contiguous":
        return {}
    if kind == "compact":
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.COMPACT)
        return {"dcpl": properties}
    options = {
        "chunks": tuple(int(rng.integers(1, n + 1)) for n in shape),
        "maxshape": tuple(None if is_chosen(rng) else n for n in shape),
        "compression": pick(rng, [None, "gzip", "lzf"]),
        "shuffle": is_chosen(rng),
        "fletcher32": is_chosen(rng),
    }
    if dtype.kind in "iu" and rng.random() < 0.2:
        options.update(scaleoffset=0, fletcher32=False)
    return options


def write_h5py_extras(group: Any, rng: np.random.Generator, n_rows: int) -> list[str]:
    """Write numbers and strings next to the rows. Return their names."""
    shapes = [(n_rows,), (n_rows, 1), (1, n_rows)]
    if "X" not in group:  # a matrix might be the rows
        shapes = shapes[:1]
    numbers = some_numbers(rng, pick(rng, shapes), pick(rng, ANY_ORDER))
    group.create_dataset("y", data=numbers, **some_storage(rng, numbers.shape, numbers.dtype))
    words = some_texts(rng, n_rows)
    group["word"] = words
    group["short"] = np.array([word.encode() for word in words])
    return ["y", "word", "short"]


def h5py_rows(path: Path, rng: np.random.Generator) -> Contents:
    name, dataset = pick(rng, [("X", None), ("data/rows", None), ("other", "other")])
    orientation = pick(rng, [None, "rows", "columns"])
    rows = some_numbers(rng, some_shape(rng, int(rng.integers(2, 5))), pick(rng, ANY_ORDER))
    n_rows, n_inputs = rows.shape[0], prod(rows.shape[1:])
    values = np.moveaxis(rows, 0, -1) if orientation == "columns" else rows
    has_labels = rows.ndim == 2 and orientation != "columns"
    labelled = pick(rng, ["", "attribute", "scale of names", "scale of numbers"]) if has_labels else ""
    names = some_texts(rng, n_inputs) if "name" in labelled or labelled == "attribute" else []
    numbers = np.sort(rng.random(n_inputs)) if labelled == "scale of numbers" else None
    libver = pick(rng, ["earliest", "v108", "v110", "latest"])
    with h5py.File(path, "w", libver=(libver, "latest"), track_order=is_chosen(rng)) as file:
        stored = file.create_dataset(name, data=values, **some_storage(rng, values.shape, values.dtype))
        extras = write_h5py_extras(stored.parent, rng, n_rows)
        if labelled == "attribute":
            stored.attrs["columns"] = names
        elif labelled:
            file["scales/column"] = names or numbers
            file["scales/column"].make_scale("column")
            stored.dims[1].attach_scale(file["scales/column"])
    settings = {"dataset": dataset, "orientation": orientation}
    with h5py.File(path) as file:
        group = file[name].parent
        found = file[name][:]
        rows = np.moveaxis(found, -1, 0) if orientation == "columns" else found
        return Contents(rows, {each: group[each][()] for each in extras}, names, numbers, settings)


def h5py_records(path: Path, rng: np.random.Generator) -> Contents:
    """Write numbers and strings of variable length in any order."""
    n_rows = int(rng.integers(1, 50))
    columns = {f"c{i}": some_numbers(rng, (n_rows,), pick(rng, ANY_ORDER)) for i in range(2, 2 + rng.integers(1, 9))}
    texts = {name: some_texts(rng, n_rows) for name in ("word", "note", "short")}
    types = {name: values.dtype for name, values in columns.items()}
    types |= {"word": h5py.string_dtype(), "note": h5py.string_dtype("ascii" if is_chosen(rng) else "utf-8")}
    types["short"] = np.dtype("S20")
    names = [str(name) for name in rng.permutation(sorted(types))]
    records = np.zeros(n_rows, np.dtype([(name, types[name]) for name in names], align=is_chosen(rng)))
    for name, values in (columns | texts).items():
        records[name] = [text.encode() for text in values] if name in texts else values
    with h5py.File(path, "w", libver=(pick(rng, ["earliest", "v108", "latest"]), "latest")) as file:
        file.create_dataset("group/table", data=records, **some_storage(rng, records.shape, records.dtype))
    with h5py.File(path) as file:
        extras = {name: file["group/table"].fields(name)[:] for name in texts}
    return side_by_side({name: columns[name] for name in names if name in columns}, extras)


# -- AnnData -------------------------------------------------------------------------------------------------------


def anndata(path: Path, rng: np.random.Generator) -> Contents:
    import anndata

    n_rows, n_inputs = some_shape(rng)
    kinds = pick(rng, [pd.Index(["b", "a", "ä"], dtype=pick(rng, TEXT_TYPES)), pd.Index([3, 1, 2])])
    index = pd.Index(some_texts(rng, n_rows), dtype=pick(rng, TEXT_TYPES), name=pick(rng, [None, "cell"]))
    columns = {
        "kind": pd.Categorical.from_codes(rng.integers(-1, 3, n_rows), kinds),
        "number": some_numbers(rng, (n_rows,), pick(rng, ["?", *NUMBERS])),
        "word": pd.Series(some_texts(rng, n_rows), index, pick(rng, TEXT_TYPES)),
    }
    variables = pd.DataFrame(index=pd.Index(some_texts(rng, n_inputs), dtype=pick(rng, TEXT_TYPES)))
    place = pick(rng, ["X", "X", "layers/counts", "raw/X"])
    form = pick(rng, ["dense", "csr", "csc"])
    matrix = some_numbers(rng, (n_rows, n_inputs), pick(rng, NUMBERS))
    if form != "dense":
        matrix = some_sparse(rng, form, (n_rows, n_inputs), pick(rng, NUMBERS))
    data = anndata.AnnData(matrix, obs=pd.DataFrame(columns, index=index), var=variables)
    data.layers["counts"] = matrix
    data.obsm["pca"] = rng.random((n_rows, 2))
    data.raw = data
    if place == "raw/X":
        data = data[:, : 1 + n_inputs // 2].copy()
    data.write_h5ad(path, compression=pick(rng, [None, "gzip", "lzf"]))
    data = anndata.read_h5ad(path)
    source = data.raw if place == "raw/X" else data
    rows = data.layers["counts"] if place == "layers/counts" else source.X
    if form != "dense":
        rows = rows.toarray()
    include = pick(rng, [[], ["obs"], ["obs/word", "obs/kind"]])
    included = {"[]": [], "['obs']": [*columns]}.get(str(include), ["word", "kind"])
    extras = {name: data.obs[name].to_numpy() for name in included}
    settings = {"dataset": None if place == "X" else place, "include": include}
    if form == "csc":
        settings = {"dataset": settings["dataset"], "orientation": "columns"}
        return Contents(rows.T, {"_index": source.var_names.to_numpy()}, data.obs_names, settings=settings)
    extras["_index"] = data.obs_names.to_numpy()
    return Contents(rows, extras, source.var_names, settings=settings)


# -- pandas and PyTables -------------------------------------------------------------------------------------------


def some_frame(rng: np.random.Generator, names: Sequence[Any], dtypes: Sequence[str]) -> pd.DataFrame:
    n_rows = int(rng.integers(9, 50))
    values = some_numbers(rng, (n_rows, len(names)), pick(rng, dtypes))
    indexes = [
        pd.RangeIndex(n_rows),
        pd.Index(rng.integers(-9, 9, n_rows)),
        pd.Index(rng.random(n_rows)),
        pd.Index(some_texts(rng, n_rows)),
        pd.date_range("2024-01-01", periods=n_rows, freq="h"),
    ]
    return pd.DataFrame(values, index=pick(rng, indexes), columns=names)


def values_of_index(index: pd.Index) -> np.ndarray:
    """Return times as the numbers that pandas stores."""
    values = index.to_numpy()
    return values.astype("i8") if values.dtype.kind == "M" else values


def pandas_fixed(path: Path, rng: np.random.Generator) -> Contents:
    n_inputs = int(rng.integers(1, 9))
    names = pick(rng, [some_texts(rng, n_inputs), [int(i) for i in rng.permutation(n_inputs)]])
    some_frame(rng, names, NUMBERS).to_hdf(path, key="df", complevel=pick(rng, [None, 5]))
    frame = pd.read_hdf(path, "df")
    extras = {"axis1": values_of_index(frame.index)}
    return Contents(frame.to_numpy(), extras, [*map(str, names)], settings={"dataset": pick(rng, [None, "df"])})


def pandas_table(path: Path, rng: np.random.Generator) -> Contents:
    names = some_identifiers(rng, int(rng.integers(2, 9)))
    are_fields = is_chosen(rng)
    frame = some_frame(rng, names, [*SIGNED, "u1", "f4", "f8"])  # others cannot be queried
    is_text = frame.index.dtype == "str"
    options = {
        "data_columns": True if are_fields else None,
        "complevel": pick(rng, [None, 5]),
        "complib": "zlib" if is_text else pick(rng, CODECS),
        "min_itemsize": {"index": 40} if is_text else None,
    }
    half = len(frame) // 2
    for part in (frame[:half], frame[half:]):
        if len(part):
            part.to_hdf(path, key="df", format="table", append=True, **options)
    frame = pd.read_hdf(path, "df")
    extras = {"index": values_of_index(frame.index)}
    return Contents(frame.to_numpy(), extras, names, settings={"dataset": pick(rng, [None, "df"])})


def pandas_mixed(path: Path, rng: np.random.Generator) -> Contents:
    """Write a frame of columns of random kinds, in one of the formats of pandas."""
    n_rows = int(rng.integers(9, 50))
    frame = pd.DataFrame(index=pd.Index(rng.permutation(n_rows)))
    is_fixed = is_chosen(rng)
    for i in range(int(rng.integers(2, 12))):
        kind = pick(rng, [*SIGNED, "u1", "f4", "f8", "?", "text", "time", "kind"])
        if kind == "text" and not is_fixed:  # fixed frames have pickles of texts
            frame[f"{kind}{i}"] = some_texts(rng, n_rows)
        elif kind == "time":
            frame[f"{kind}{i}"] = pd.date_range("2024-01-01", periods=n_rows, freq="h")
        elif kind == "kind" and not is_fixed:
            frame[f"{kind}{i}"] = pd.Categorical([pick(rng, ["a", "b", None]) for _ in range(n_rows)])
        else:
            frame[f"c{i}"] = some_numbers(rng, (n_rows,), "f4" if kind in ("text", "kind") else kind)
    for name in ("first", "second"):
        frame[name] = some_numbers(rng, (n_rows,), pick(rng, ["f4", "i2"]))
    labels = [name for name in ("label", "cell_id", "y") if is_chosen(rng)]
    for name in labels:
        frame[name] = rng.integers(0, 3, n_rows)
    frame = frame[[frame.columns[i] for i in rng.permutation(len(frame.columns))]]
    if is_fixed:
        frame.to_hdf(path, key="df")
    else:
        fields = [name for name in frame.columns if is_chosen(rng)]
        frame.to_hdf(path, key="df", format="table", data_columns=fields, complevel=pick(rng, [None, 5]))
    frame = pd.read_hdf(path, "df")
    extras = {("axis1" if is_fixed else "index"): frame.index.to_numpy()}
    rows = []
    for name, values in frame.items():
        if values.dtype.kind in "biuf" and name not in labels:
            rows.append(values)
        else:
            extras[name] = values.to_numpy("i8") if values.dtype.kind == "M" else values.to_numpy()
    dtype = np.result_type(*(values.dtype for values in rows))
    with np.errstate(invalid="ignore"):  # signaling NaN
        matrix = np.stack([values.to_numpy(dtype) for values in rows], axis=1)
    return Contents(matrix, extras, [values.name for values in rows])


def some_filters(rng: np.random.Generator, dtype: np.dtype) -> Any:
    import tables

    codec = "zlib" if dtype.kind == "b" else pick(rng, CODECS)
    shuffle = pick(rng, ["", "shuffle", "bitshuffle"] if codec.startswith("blosc") else ["", "shuffle"])
    options = {name: name == shuffle for name in ("shuffle", "bitshuffle")}
    return tables.Filters(int(rng.integers(10)), codec, fletcher32=is_chosen(rng), **options)


def pytables_array(path: Path, rng: np.random.Generator) -> Contents:
    import tables

    rows = some_numbers(rng, some_shape(rng, int(rng.integers(2, 5))), pick(rng, ANY_ORDER))
    atom = tables.Atom.from_dtype(rows.dtype)
    shape = (0, *rows.shape[1:])
    chunkshape = tuple(int(rng.integers(1, n + 1)) for n in rows.shape)
    options = {"filters": some_filters(rng, rows.dtype), "chunkshape": chunkshape, "createparents": True}
    with tables.open_file(path, "w", user_block_size=pick(rng, [0, 512])) as file:
        extendable = file.create_earray("/rows", "A", atom, shape, byteorder=byte_order(rows.dtype), **options)
        for row in np.array_split(rows, 3):
            extendable.append(row)
        y = some_numbers(rng, (len(rows),), pick(rng, NUMBERS))
        file.create_array("/rows", "y", y)
        file.create_array("/rows", "word", [f"word {i}".encode() for i in range(len(rows))])
    with tables.open_file(path) as file:
        extras = {"y": file.root.rows.y.read(), "word": np.array(file.root.rows.word.read())}
        return Contents(file.root.rows.A.read(), extras)


def byte_order(dtype: np.dtype) -> str:
    return "big" if dtype.byteorder == ">" else "little"


def pytables_table(path: Path, rng: np.random.Generator) -> Contents:
    import tables

    n_rows, n_inputs = some_shape(rng)
    names = some_identifiers(rng, n_inputs)
    number = np.dtype(pick(rng, ["?", *NUMBERS, ">i4", ">f8", "f2"]))
    has_index = is_chosen(rng)
    fields = [("index", np.dtype("i8").newbyteorder(number.byteorder))] if has_index else []
    records = np.zeros(n_rows, [*fields, *((name, number) for name in names)])
    for name in records.dtype.names:
        records[name] = some_numbers(rng, (n_rows,), records.dtype[name])
    with tables.open_file(path, "w") as file:
        table = file.create_table(
            "/", "table", records, filters=some_filters(rng, number), byteorder=byte_order(number)
        )
        table.append(records[: n_rows // 2])
    with tables.open_file(path) as file:
        found = file.root.table.read()
    rows = np.stack([found[name] for name in names], axis=1)
    return Contents(rows, {"index": found["index"]} if has_index else {}, names)


# -- netCDF4 -------------------------------------------------------------------------------------------------------


def netcdf(path: Path, rng: np.random.Generator) -> Contents:
    import netCDF4

    rows = some_numbers(
        rng, some_shape(rng, int(rng.integers(2, 4))), pick(rng, [o + c for o in "<>" for c in NUMBERS])
    )
    coordinate = pick(rng, ["", "names", "numbers"]) if rows.ndim == 2 else ""
    has_times = is_chosen(rng)
    is_unlimited = is_chosen(rng)
    fill = pick(rng, [None, 7])
    names = some_texts(rng, rows.shape[1]) if coordinate == "names" else []
    options = {"contiguous": not is_unlimited}
    if is_unlimited or is_chosen(rng):
        options = {
            "zlib": is_chosen(rng),
            "shuffle": is_chosen(rng),
            "fletcher32": is_chosen(rng),
            "chunksizes": tuple(int(rng.integers(1, n + 1)) for n in rows.shape),
        }
    dimensions = ("time", "place", "depth")[: rows.ndim]
    with netCDF4.Dataset(path, "w") as file:
        inner = file.createGroup("group")
        outer, group = pick(rng, [(file, file), (file, inner), (inner, inner)])
        for name, n in zip(dimensions, rows.shape, strict=True):
            outer.createDimension(name, None if name == "time" and is_unlimited else n)
        endian = byte_order(rows.dtype)
        variable = group.createVariable("rows", rows.dtype, dimensions, endian=endian, fill_value=fill, **options)
        variable.set_auto_maskandscale(False)
        variable[:] = rows
        group.createVariable("y", "f8", ("time",))[:] = rng.random(len(rows))
        if has_times:
            outer.createVariable("time", "i4", ("time",))[:] = np.arange(len(rows))
        if coordinate == "names":
            outer.createVariable("place", str, ("place",))[:] = np.array(names, object)
        elif coordinate == "numbers":
            outer.createVariable("place", "f4", ("place",))[:] = rng.random(rows.shape[1])
        extras = ["y", "time"] if has_times and outer is group else ["y"]
        groups = outer.path, group.path
    with netCDF4.Dataset(path) as file:
        file.set_auto_maskandscale(False)
        outer, group = (file if each == "/" else file[each] for each in groups)
        numbers = outer["place"][:] if coordinate == "numbers" else None
        return Contents(group["rows"][:], {each: group[each][:] for each in extras}, names, numbers, fill_value=fill)


def netcdf_columns(path: Path, rng: np.random.Generator) -> Contents:
    """Write variables of one dimension, perhaps with a coordinate."""
    import netCDF4

    n_rows = int(rng.integers(2, 50))
    columns = some_columns(rng, n_rows)
    columns = {name: values for name, values in columns.items() if values.dtype.kind != "b"}
    columns["third"] = some_numbers(rng, (n_rows,), "f8")
    is_unlimited = is_chosen(rng)
    with netCDF4.Dataset(path, "w") as file:
        group = pick(rng, [file, file.createGroup("group")])
        group.createDimension("time", None if is_unlimited else n_rows)
        for name, values in columns.items():
            options = {"zlib": is_chosen(rng), "endian": byte_order(values.dtype)}
            variable = group.createVariable(name, values.dtype, ("time",), **options)
            variable.set_auto_maskandscale(False)
            variable[:] = values
        times = np.arange(n_rows) / 4
        if is_chosen(rng):
            group.createVariable("time", "f8", ("time",))[:] = times
        extras = {"time": times} if "time" in group.variables else {}
    return side_by_side(columns, extras)


# -- MATLAB --------------------------------------------------------------------------------------------------------


def matlab(path: Path, rng: np.random.Generator) -> Contents:
    """Write a MATLAB 7.3 file with hdf5storage, because MATLAB cannot run here."""
    import hdf5storage

    orientation = pick(rng, ["columns", "rows"])
    rows = some_numbers(rng, some_shape(rng, int(rng.integers(2, 4))), pick(rng, ["?", *NUMBERS]))
    stored = rows if orientation == "columns" else rows.T
    arrays = {"X": stored, "y": some_numbers(rng, (len(rows), 1), pick(rng, NUMBERS))}
    options = {"compress": is_chosen(rng), "compress_size_threshold": 0, "store_python_metadata": is_chosen(rng)}
    hdf5storage.savemat(str(path), arrays, format="7.3", appendmat=False, **options)
    found = hdf5storage.loadmat(str(path), appendmat=False)
    in_file = found["X"].T  # HDF5 has the axes in the reverse order
    rows = np.moveaxis(in_file, -1, 0) if orientation == "columns" else in_file
    return Contents(rows, {"y": found["y"]}, settings={"orientation": orientation})


# -- many datasets -------------------------------------------------------------------------------------------------


def some_columns(rng: np.random.Generator, n_rows: int) -> dict[str, np.ndarray]:
    """Return columns of random dtypes, with names in natural order, and labels that are extras."""
    columns = {f"c{i}": some_numbers(rng, (n_rows,), pick(rng, NUMBERS)) for i in range(2, 2 + int(rng.integers(10)))}
    columns["first"] = some_numbers(rng, (n_rows,), pick(rng, ["f4", "?", ">i2"]))
    columns["second"] = some_numbers(rng, (n_rows,), pick(rng, ["f4", "?", "u1"]))
    return columns | {name: rng.integers(0, 3, n_rows) for name in ("label", "cell_id") if is_chosen(rng)}


def side_by_side(columns: Mapping[str, np.ndarray], extras: Mapping[str, Any], **settings: Any) -> Contents:
    rows = {name: values for name, values in columns.items() if name not in ("label", "cell_id")}
    dtype = np.result_type(*(values.dtype for values in rows.values()))
    with np.errstate(invalid="ignore"):  # signaling NaN
        matrix = np.stack([values.astype(dtype) for values in rows.values()], axis=1)
    others = {name: values for name, values in columns.items() if name not in rows}
    return Contents(matrix, {**extras, **others}, [*rows], settings=settings)


def h5py_columns(path: Path, rng: np.random.Generator) -> Contents:
    n_rows = int(rng.integers(2, 50))
    columns = some_columns(rng, n_rows)
    group = pick(rng, ["", "a/b/"])
    words = [text.encode() for text in some_texts(rng, n_rows)]
    with h5py.File(path, "w") as file:
        for name in rng.permutation(sorted(columns)):
            values = columns[name]
            file.create_dataset(f"{group}{name}", data=values, **some_storage(rng, values.shape, values.dtype))
        file[f"{group}word"] = words
        file[f"{group}version"] = 3
    return side_by_side(columns, {"word": words}, dataset=pick(rng, [None, group or "/"]))


def vaex(path: Path, rng: np.random.Generator) -> Contents:
    """Write the layout of vaex, which is not installed here."""
    columns = some_columns(rng, int(rng.integers(2, 50)))
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[f"table/columns/{name}/data"] = values
        file["table/columns/word/data"] = np.zeros(9, "u1")
        file["table/columns/word/indices"] = np.arange(4)
    return side_by_side(columns, {})


def h5py_samples(path: Path, rng: np.random.Generator) -> Contents:
    rank = int(rng.integers(1, 4))
    rows = some_numbers(rng, (int(rng.integers(2, 30)), *some_shape(rng, 3)[:rank]), pick(rng, ANY_ORDER))
    rows = np.concatenate([rows, rows], axis=1)  # a sample has several values
    storage = some_storage(rng, rows.shape[1:], rows.dtype)
    for option in ("scaleoffset", "maxshape"):  # only libhdf5 reads such chunks, and samples must not need it
        storage.pop(option, None)
    is_nested = is_chosen(rng)
    group = pick(rng, ["", "a/"])
    names = [f"sample {i}" for i in range(len(rows))]
    with h5py.File(path, "w") as file:
        for i in rng.permutation(len(rows)):
            name = f"{group}{names[i]}"
            own = f"{name}/values" if is_nested else name
            file.create_dataset(own, data=rows[i], **storage)
            file[name].attrs["kind"] = "ab"[i % 2]
            file[name].attrs["weight"] = i / 2
    extras = {"_index": names, "kind": ["ab"[i % 2] for i in range(len(rows))], "weight": np.arange(len(rows)) / 2}
    orientation = "rows" if rank == 1 and not is_nested else None
    return Contents(rows, extras, settings={"orientation": orientation, "dataset": pick(rng, [None, group or "/"])})


# -- the tests -----------------------------------------------------------------------------------------------------

FORMS = [
    h5py_rows,
    h5py_records,
    netcdf_columns,
    anndata,
    pandas_fixed,
    pandas_table,
    pandas_mixed,
    pytables_array,
    pytables_table,
    netcdf,
    matlab,
]
FORMS += [h5py_columns, vaex, h5py_samples]


@pytest.mark.filterwarnings("ignore:The chararray class:DeprecationWarning")  # hdf5storage uses it
@pytest.mark.parametrize("write", FORMS, ids=lambda write: write.__name__)
def test_contents_are_those_that_the_library_reads(tmp_path, write):
    for seed in range(N_FILES):
        with case(seed=seed):
            rng = np.random.default_rng(seed)
            path = tmp_path / f"{seed}.h5"
            check(path, write(path, rng), rng)
