"""Reading of model files in pure Python, without libhdf5.

Users receive models from other people. Links, storage, shapes and sizes are therefore checked against the network that
the file describes, before any content is used. If the directory has a manifest, the digest in it is checked, too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from shardpress.choices import ROW_SCALES, TRANSFORMS
from shardpress.columns import NO_COLUMNS, Columns
from shardpress.errors import DataError, NoInput, OtherVersion, ReadFailed, ShardpressError, printable, short_list
from shardpress.formats import MOST_JSON_BYTES, check_version, digest, parse_bounded
from shardpress.hdf5.files import opened, read_at, translated_error, with_retries
from shardpress.hdf5.plain.contents import Contents, read_arrays, read_contents
from shardpress.hdf5.plain.datasets import Dataset, value_of
from shardpress.hdf5.superblock import check_superblock
from shardpress.output.records import MANIFEST, Entry, read_manifest
from shardpress.preparation import Preparation, preparation_of
from shardpress.scan.ranks import MAX_KNOTS, are_tables
from shardpress_kernels.activations import CODES, HIDDEN
from shardpress_kernels.network import OUTPUT_LAYERS, Network

FORMAT = "shardpress-model/4"
COLUMNS = "columns"
"""Name of the dataset that describes the columns, as JSON."""
_INDICATORS = "indicators"
_NAME = "model.h5"
_EXPECTED = "expected a model.h5 or an output directory that contains one"
_FORGED = "The file is not a model that shardpress wrote, or it is damaged or forged: do not use it."
_MOST_METADATA = MOST_JSON_BYTES + 2**22  # maximum number of bytes to read in addition to the arrays
_MOST_WIDTHS = 300
_MOST_COLUMN_BYTES = 2**13  # bytes of JSON per column: a name has at most 1,024 bytes, and JSON may escape each
_PIECE = 2**20  # bytes read at once for a digest
_MAX_NAMES = 10  # maximum number of arrays that a message lists
_QUOTED = 500  # maximum number of characters that a message quotes


@dataclass(frozen=True, eq=False)
class _StoredModel:
    """Content of a model file.

    The arrays are ``minimum``, ``maximum`` and the parameters of the network. A file can also contain ``fill``,
    ``clips``, ``offset``, ``indicators``, both ``center`` and ``factor``, and both ``knots`` and ``ranks``. Shapes and
    dtypes are as expected, all values are finite, indicators belong to existing columns, and knots and ranks increase.
    """

    network: Network
    arrays: Mapping[str, np.ndarray]
    about: Mapping[str, Any]
    fingerprint: str  # fingerprint that the file stores
    columns: Columns
    preparation: Preparation | None


def listed_model(path: Path) -> Entry | None:
    """Return the entry of a model in the manifest of its directory, or None if the manifest or the entry is missing."""
    is_directory = os.path.isdir(path)
    if not is_directory and path.name != _NAME:
        return None
    directory = path if is_directory else path.parent
    try:
        manifest = read_manifest(directory)
    except NoInput:
        return None
    except DataError:
        if is_directory or _is_ours(directory / MANIFEST):
            raise
        return None
    for line in manifest.get("files", []):
        if PurePosixPath(line["file"]).name == _NAME:
            return Entry(line["file"], line.get("n_bytes"), line.get("blake3"))
    return None


def _is_ours(manifest: Path) -> bool:
    """Return whether a damaged manifest was written by shardpress, not by another program."""
    try:
        with open(manifest, "rb") as file:
            return b"shardpress" in file.read(2**10)
    except OSError:
        return True


def read_model_file(path: Path, entry: Entry | None) -> _StoredModel:
    """Return the content of a model file, or of the one in an output directory.

    The file must have the size and digest of `entry`, the result of `listed_model`. The errors are those of
    `shardpress.model.load_model`, which also checks the fingerprint.
    """
    if os.path.isdir(path):
        # Use the name in the manifest: if a run was killed, ``model.h5`` may still link to the model of an earlier run.
        path = path / (entry.file if entry else _NAME)
    where = f"model={printable(path)}"
    if "\0" in str(path):
        raise NoInput(f"{where}: not the name of a file, {_EXPECTED}")
    return with_retries(lambda: _read(path, entry, where), where)


def _read(path: Path, entry: Entry | None, where: str) -> _StoredModel:
    """Read the file once. Raise `OSError` if the storage fails."""
    try:
        with opened(str(path)) as (descriptor, identity):
            if entry is not None:
                _check_digest(descriptor, identity.size, entry, where)
            return _stored(descriptor, identity.size, where)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoInput(f"{where}: does not exist, {_EXPECTED}") from error
    except OSError as error:
        meaning = translated_error(error, where)
        if isinstance(meaning, ReadFailed):
            raise
        raise meaning from error


def _check_digest(descriptor: int, size: int, entry: Entry, where: str) -> None:
    """Raise `DataError` if the file differs from its entry in the manifest."""
    if size == entry.n_bytes:
        starts = range(0, size, _PIECE)
        found = digest(read_at(descriptor, start, min(_PIECE, size - start)) for start in starts)
        if found == entry.blake3:
            return
        what = f"its BLAKE3 digest is {found}, expected {entry.blake3}"
    else:
        what = f"it has {size} bytes, expected {entry.n_bytes}"
    raise DataError(
        f"{where}: {what} according to {MANIFEST}. The file has changed since it was written. Use an intact copy. "
        "If a run is about to finish in this directory, try again afterwards."
    )


def _stored(descriptor: int, size: int, where: str) -> _StoredModel:
    """Return the content of an open file.

    Sizes that the file declares are checked before memory is allocated. No allocation is larger than the file.
    """
    try:
        base = check_superblock(descriptor, size, where)
        contents = read_contents(descriptor, size, base, _MOST_METADATA)
        _check_format(_text(contents, "format"))
        network = _network(contents)
        preparation = _preparation(contents)
        datasets = _datasets(contents, network, preparation)
        arrays = read_arrays(descriptor, size, base, datasets, where)
        description = arrays.pop(COLUMNS, None)
        n_columns = network.n_inputs - len(arrays.get(_INDICATORS, ()))
        columns = NO_COLUMNS
        if description is not None:
            columns = Columns.from_json(description.tobytes(), n_columns)
        _check_values(arrays, n_columns)
        fingerprint = _text(contents, "fingerprint")
        return _StoredModel(network, arrays, _about(contents), fingerprint, columns, preparation)
    except OtherVersion as error:
        raise type(error)(f"{where}: {error}") from error
    except (OSError, MemoryError, ShardpressError):
        raise
    except Exception as error:  # a damaged or forged file can cause any error
        # Only the text of a `ValueError` is useful to users.
        reason = "its links, storage or types are not as expected"
        if isinstance(error, ValueError) and str(error):
            reason = printable(str(error)[:_QUOTED])
        raise DataError(f"{where}: cannot be read: {reason}. {_FORGED}") from error


# The functions below raise a `ValueError` for content that a model file cannot have.


def _about(contents: Contents) -> dict[str, Any]:
    """Return the attribute ``about``, checked as far as callers rely on its form."""
    about = parse_bounded(_text(contents, "about"))
    is_valid = isinstance(about, dict)
    for name in ("config", "training"):
        is_valid = is_valid and isinstance(about.get(name, {}), dict)
    if not is_valid or not isinstance(about.get("training", {}).get("history", []), list):
        raise ValueError("attribute about is invalid, expected a JSON object with the objects config and training")
    return about


def _attribute(contents: Contents, name: str) -> Any:
    """Return the value of an attribute, which is a str or an array of numbers."""
    if name not in contents.attributes:
        raise ValueError(f"attribute {name} is missing")
    return value_of(contents.file, contents.attributes[name])


def _text(contents: Contents, name: str) -> str:
    value = _attribute(contents, name)
    if not isinstance(value, str):
        raise ValueError(f"attribute {name} is {value.dtype} of shape {value.shape}, expected a string")
    return value


def _numbers(contents: Contents, name: str, kinds: str, rank: int) -> np.ndarray:
    value = _attribute(contents, name)
    if isinstance(value, str) or value.ndim != rank or value.dtype.kind not in kinds:
        raise ValueError(f"attribute {name} is invalid, expected {rank} dimensions, dtype of kind {kinds}")
    return value


def _network(contents: Contents) -> Network:
    widths = _numbers(contents, "widths", "iu", 1)
    gain = _numbers(contents, "gain", "b", 0)
    activation = _text(contents, "activation")
    code = _text(contents, "code")
    output_layer = "code"
    if "output_layer" in contents.attributes:
        output_layer = _text(contents, "output_layer")
    network = Network(tuple(widths.tolist()), activation, code, bool(gain), output_layer=output_layer)
    known = activation in HIDDEN and code in CODES and output_layer in OUTPUT_LAYERS
    if not known or not 2 <= len(widths) <= _MOST_WIDTHS or min(network.widths) < 1:
        raise ValueError(
            f"expected 2 to {_MOST_WIDTHS} widths of at least 1, an activation in {HIDDEN}, a code in {CODES} and an "
            f"output_layer in {OUTPUT_LAYERS}, found {network}"
        )
    if output_layer == "hidden" and len(widths) < 3:
        raise ValueError(f"its output_layer is hidden, but its network has only the widths {list(network.widths)}")
    return network


def _preparation(contents: Contents) -> Preparation | None:
    values: dict[str, str | None] = {}
    for name, known in (("row_scale", ROW_SCALES), ("transform", TRANSFORMS)):
        values[name] = _text(contents, name) if name in contents.attributes else None
        if values[name] not in (None, *known):
            raise ValueError(f"expected attribute {name} to be one of {', '.join(known)}, found {values[name]!r}")
    return preparation_of(values["row_scale"], values["transform"])


def _check_format(found: str) -> None:
    """Refuse another format. This check comes first, because its other attributes would look damaged."""
    if found != FORMAT:
        check_version(FORMAT, found, "Train the model again, or use another model.")
        raise ValueError(f"expected format {FORMAT!r}, found {found!r}")


def _datasets(contents: Contents, network: Network, preparation: Preparation | None) -> dict[str, Dataset]:
    """Return the headers of all arrays, after checking that shapes and dtypes match the network."""
    expected = _expected_arrays(contents, network)
    if preparation is not None and preparation.transform == "rank":
        n_columns = network.n_inputs - _n_indicators(contents, network)
        expected |= _expected_tables(contents, n_columns)
    datasets = {name: _dataset(contents, name) for name in expected}
    for name, (shape, dtype) in expected.items():
        found = np.dtype(datasets[name].dtype[0])
        if datasets[name].shape != shape or found != dtype:
            raise ValueError(
                f"array {name} is {found} of shape {datasets[name].shape}, expected {np.dtype(dtype)} of shape {shape}"
            )
    if COLUMNS in contents.addresses:
        datasets[COLUMNS] = _description_of_columns(contents, network.n_inputs)
    return datasets


def _expected_arrays(contents: Contents, network: Network) -> dict[str, tuple[tuple[int, ...], type]]:
    """Return the shape and dtype of each array that a network requires, and of each optional array in the file."""
    n_indicators = _n_indicators(contents, network)
    each_input = ((network.n_inputs,), np.float64)
    each_column = ((network.n_inputs - n_indicators,), np.float64)
    required: dict[str, tuple[tuple[int, ...], type]] = {"minimum": each_input, "maximum": each_input}
    for name, shape in network.shapes.items():
        required[name] = (shape, np.float32)
    if "center" in contents.addresses or "factor" in contents.addresses:
        required |= {"center": each_input, "factor": each_input}
    if n_indicators:
        required |= {"fill": each_column, _INDICATORS: ((n_indicators,), np.int64)}
    missing = [name for name in required if name not in contents.addresses]
    if missing:
        raise ValueError(
            f"arrays {short_list(missing, _MAX_NAMES)} are missing, expected {short_list(required, _MAX_NAMES)}"
        )
    optional = {"fill": each_column, "clips": ((), np.bool_), "offset": each_column}
    return required | {name: kind for name, kind in optional.items() if name in contents.addresses}


def _expected_tables(contents: Contents, n_columns: int) -> dict[str, tuple[tuple[int, ...], type]]:
    """Return the shape and dtype of the arrays of `RankTables`. All columns have the same number of knots."""
    shape = _dataset(contents, "knots").shape
    n_knots = shape[-1] if len(shape) == 2 else 0
    if not 1 <= n_knots <= MAX_KNOTS:
        raise ValueError(f"array knots has the shape {shape}, expected ({n_columns}, 1 to {MAX_KNOTS})")
    kind = ((n_columns, n_knots), np.float64)
    return {"knots": kind, "ranks": kind}


def _n_indicators(contents: Contents, network: Network) -> int:
    """Return the number of missing indicators. Each column has at most one."""
    if _INDICATORS not in contents.addresses:
        return 0
    shape = _dataset(contents, _INDICATORS).shape
    most = network.n_inputs // 2
    if len(shape) != 1 or not 1 <= shape[0] <= most:
        raise ValueError(f"array {_INDICATORS} has the shape {shape}, expected 1 to {most} columns")
    return shape[0]


def _description_of_columns(contents: Contents, n_inputs: int) -> Dataset:
    """Return the header of the dataset that describes the columns. Its length can vary up to a limit."""
    dataset = _dataset(contents, COLUMNS)
    found = np.dtype(dataset.dtype[0])
    most_bytes = _MOST_COLUMN_BYTES * (n_inputs + 1)
    if found != np.uint8 or len(dataset.shape) != 1 or dataset.n_bytes > most_bytes:
        raise ValueError(
            f"dataset {COLUMNS} is {found} of shape {dataset.shape}, expected at most {most_bytes} bytes of JSON"
        )
    return dataset


def _dataset(contents: Contents, name: str) -> Dataset:
    try:
        return contents.dataset(name)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"array {name} is not stored as numbers, contiguously and in the file itself") from error


def _check_values(arrays: Mapping[str, np.ndarray], n_columns: int) -> None:
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"array {name} contains NaN or Inf, expected finite {array.dtype}")
    if "knots" in arrays and not are_tables(arrays["knots"], arrays["ranks"]):
        raise ValueError("arrays knots and ranks are invalid, expected increasing knots, and ranks between 0 and 1")
    indicators = arrays.get(_INDICATORS)
    if indicators is None:
        return
    if indicators[0] < 0 or indicators[-1] >= n_columns or not (indicators[1:] > indicators[:-1]).all():
        raise ValueError(f"array {_INDICATORS} is invalid, expected increasing numbers of the {n_columns} columns")
