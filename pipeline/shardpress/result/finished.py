"""A result: one file, ``index.h5``, with the model, the tables and facts of a run, and virtual datasets over its parts.

A file with only a model has the same form. docs/using.md describes the datasets.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from msgspec.structs import replace

from shardpress.base.errors import DataError, NoInput, printable
from shardpress.hdf5.categories import read_categories
from shardpress.hdf5.sealed import GROUP, digest_of, read_sealed, reading_group, sealed, write_json
from shardpress.model.encoder import Model
from shardpress.model.modelfile import read_model
from shardpress.result.alignment import LinearMap
from shardpress.result.records import (
    Part,
    Range,
    RunFacts,
    ShardFacts,
    from_json,
    in_order,
    plain,
    to_json,
    with_digests,
)
from shardpress.settings.config import Config

INDEX = "index.h5"
GENERATION = "generation-{}.h5"
"""Name of an earlier result, by its number."""

FEATURES = "features"
VALID = "valid"
ERROR = "error"
"""Mean squared error of the reconstruction of each row, with ``--row-error``."""
USE = "use"
"""Dataset of the index that says what each row was used for: a number of `Use`."""
APPEND_ID = "append_id"
"""Number of the append that encoded each row: 0 for the rows of the run that trained the model."""
RESERVED = (FEATURES, VALID, USE, APPEND_ID, ERROR, GROUP)
"""Names that no extra has in the files of an output."""
_PREFIX = "source_"  # of extras with such names

_PART = re.compile(r"parts/part-[0-9-]*[0-9a-f]{32}\.h5")


class Use(IntEnum):
    """Role of a row in the training."""

    TRAINING = 0  # trained the model, or may have
    VALIDATION = 1  # measured the error during the training
    LEFT_OUT = 2  # was left out by ``--fit-on``
    LATER = 3  # arrived after the training


@dataclass(frozen=True, eq=False)
class Result:
    """The result of a finished run: its model, tables and facts, as one file contains them.

    The parts are not opened.
    """

    path: Path  # of the file
    data: bytes  # its content
    facts: RunFacts
    parts: list[Part]

    @classmethod
    def open(cls, path: str | Path, is_foreign: bool = False, earlier: Result | None = None) -> Result:
        """Read and check the result in an output directory, or in a file such as ``generation-1.h5``.

        A file that may come from somebody else (`is_foreign`) is first opened in a child process. If the file is still
        that of an `earlier` result, this is returned.

        Raises
        ------
        NoInput
            If there is no result.
        DataError
            If the file is damaged, or if shardpress has not written it.
        OtherVersion
            If another version of shardpress has written it.
        ReadFailed, NotPermitted, SystemLimit
            If the storage or the system fails.
        """
        file = file_of(path)
        where = f"result={printable(file)}"
        data = read_sealed(file, where, is_foreign)
        if earlier is not None and (file, data) == (earlier.path, earlier.data):
            return earlier
        with reading_group(data, where) as group:
            if "run" not in group:
                raise NoInput(f"{where}: contains only a model, expected the result of a finished run")
            run = group["run"]
            facts = from_json(run["facts"][()].tobytes(), RunFacts)
            shards = from_json(run["shards"][()].tobytes(), list[ShardFacts])
            Config.from_flat(facts.rows.config)  # an append relies on valid settings
            facts = _with_shards(facts, shards)
            parts = from_json(run["parts"][()].tobytes(), list[Part])
            if not parts:
                raise ValueError("it has no parts")
            names = [part.file for part in parts if not _PART.fullmatch(part.file)]
            if names:
                raise ValueError(f"it names {names[0]}, expected files in parts/")
            _check_rows(shards, parts)
        return cls(file, data, facts, parts)

    @classmethod
    def written(cls, directory: Path, data: bytes, facts: RunFacts, parts: list[Part]) -> Result:
        """Return the result in `data`, the content of an index in a directory, without reading its tables."""
        stored = from_json(to_json(_with_shards(facts, [])), RunFacts)  # for example with lists instead of tuples
        return cls(directory / INDEX, data, _with_shards(stored, facts.rows.request.shards), parts)

    @property
    def directory(self) -> Path:
        return self.path.parent

    @property
    def digest(self) -> str:
        """BLAKE3 of the file without its footer, in hexadecimal digits."""
        return digest_of(self.data)

    @cached_property
    def model(self) -> Model:
        with self._reading() as group:
            return read_model(group["model"])

    @property
    def encoder(self) -> str:
        """Fingerprint of the model."""
        return self.model.fingerprint

    @property
    def n_features(self) -> int:
        return self.model.n_features

    @cached_property
    def ranges(self) -> list[tuple[Part, Range]]:
        """All ranges of rows with their parts, in the order of the rows."""
        return in_order(self.parts, self.by_id)

    @cached_property
    def by_id(self) -> dict[str, ShardFacts]:
        """The shards by the ids that ranges name, in the order of the rows."""
        return {shard.id: shard for shard in self.shards}

    @property
    def shards(self) -> list[ShardFacts]:
        """The input files, without digests of their rows."""
        return self.facts.rows.request.shards

    @cached_property
    def shards_with_digests(self) -> list[ShardFacts]:
        return with_digests(self.shards, self.parts)

    @property
    def n_rows(self) -> int:
        return sum(part.n_live for part in self.parts)

    @property
    def n_bad(self) -> int:
        return sum(rows.n_bad for _, rows in self.ranges)

    @cached_property
    def files(self) -> frozenset[str]:
        """Paths of all parts, relative to the directory."""
        return frozenset(part.file for part in self.parts)

    def generation(self, number: int) -> Result:
        """Open the result of a generation: this one, or an earlier one that is kept.

        The errors are those of `open`. Another file than the one that was kept is a `DataError`.
        """
        if number == self.facts.model.generation:
            return self
        earlier = Result.open(self.directory / GENERATION.format(number))
        kept = {generation.generation: generation.digest for generation in self.facts.model.generations}
        if earlier.digest != kept[number]:
            raise DataError(
                f"result={printable(earlier.path)}: is another file than the one that {INDEX} names. Restore it from "
                "a copy of the output directory."
            )
        return earlier

    def map_to(self, generation: int) -> LinearMap:
        """Return the map from the features to those of an earlier generation, which `facts.model.maps` lists."""
        with self._reading() as group:
            stored = group["run/maps"][str(generation)]
            linear = LinearMap(stored["W"][()], stored["b"][()], *(stored.attrs[name] for name in _ENCODERS))
            if not linear.is_usable:
                raise ValueError(f"its map to generation {generation} is invalid")
            return linear

    def statistics(self) -> dict[str, np.ndarray]:
        """Return the statistics of held-out rows with which appended rows are compared; empty if there are none."""
        with self._reading() as group:
            return _statistics(group)

    def use(self) -> np.ndarray:
        """Return what each row was used for, uint8 (n_rows,): the numbers of `Use`."""
        with self._reading() as group:
            dataset = group.file[USE]
            if dataset.shape != (self.n_rows,) or dataset.dtype != np.uint8 or dataset.is_virtual:
                raise ValueError(f"its dataset {USE} does not have a number for each row")
            use: np.ndarray = dataset[()]
            if use.max(initial=0) > max(Use):
                raise ValueError(f"its dataset {USE} has the number {use.max()}, expected at most {max(Use)}")
            return use

    def extras(self) -> dict[str, tuple[np.dtype, list[Any] | None]]:
        """Return the dtype of each extra of all rows, and its categories if the values are codes."""
        with self._reading() as group:
            extras = {}
            for name, item in group.file.items():
                if isinstance(item, h5py.Dataset) and item.is_virtual and name not in (FEATURES, VALID, ERROR):
                    dtype = np.dtype((item.dtype, item.shape[1:])) if item.ndim > 1 else item.dtype
                    extras[name] = (dtype, read_categories(item.id))
            return extras

    def manifest(self) -> dict[str, Any]:
        """Return facts about the result as plain values, without the tables and the numbers of the report."""
        facts: dict[str, Any] = {
            "model": self.encoder,
            "n_rows": self.n_rows,
            "n_bad": self.n_bad,
            "n_features": self.n_features,
        }
        for name in ("config", "storage", "bad_shards", "uncompared", "left_out", "masks", "paths"):
            facts[name] = plain(getattr(self.facts.rows, name))
        for name in ("generation", "generations", "maps"):
            facts[name] = plain(getattr(self.facts.model, name))
        facts["runs"] = plain(self.facts.runs)
        last = self.facts.last
        facts |= {"made": last.made, "command": last.command, "device": last.device, "versions": last.versions}
        if self.model.is_nested:
            facts["nested"] = True
        if self.model.target is not None:
            facts["target"] = plain(self.model.target)
        return facts

    @contextmanager
    def _reading(self) -> Iterator[h5py.Group]:
        with reading_group(self.data, f"result={printable(self.path)}") as group:
            yield group


def _with_shards(facts: RunFacts, shards: list[ShardFacts]) -> RunFacts:
    """Return the facts with these shards, which are stored in a table of their own."""
    return replace(facts, rows=replace(facts.rows, request=replace(facts.rows.request, shards=shards)))


def _check_rows(shards: Sequence[ShardFacts], parts: Sequence[Part]) -> None:
    """Raise `ValueError` unless the parts contain each row of the shards once."""
    for part in parts:
        end = 0
        for rows in part.ranges:
            if rows.first < end:
                raise ValueError(f"rows of its part {part.file} are used twice, or are not in their order")
            end = rows.first + rows.n_rows
        if end > part.n_rows:
            raise ValueError(f"its part {part.file} has {part.n_rows} rows, but {end} are used")
    ends = {shard.id: 0 for shard in shards}  # of the rows so far
    if len(ends) < len(shards):
        raise ValueError("two of its shards have the same id")
    unknown = {rows.shard for part in parts for rows in part.ranges} - ends.keys()
    if unknown:
        raise ValueError(f"its parts name the unknown shard {min(unknown)}")
    for part, rows in in_order(parts, ends):
        if not rows.start == ends[rows.shard] < rows.stop:
            raise ValueError(f"rows of its part {part.file} do not follow the rows before them")
        ends[rows.shard] = rows.stop
    if any(ends[shard.id] != shard.shape[0] for shard in shards):
        raise ValueError("its parts do not contain all rows of its shards")


_ENCODERS = ("encoder_from", "encoder_to")


def stored_name(extra: str) -> str:
    """Return the name of the dataset with an extra. Names that are reserved, with any prefixes, get a prefix."""
    return f"{_PREFIX}{extra}" if _is_reserved(extra) else extra


def given_name(dataset: str) -> str:
    """Return the name of the extra in a dataset."""
    return dataset.removeprefix(_PREFIX) if _is_reserved(dataset) else dataset


def _is_reserved(name: str) -> bool:
    while name.startswith(_PREFIX):
        name = name.removeprefix(_PREFIX)
    return name in RESERVED


def file_of(path: str | Path) -> Path:
    """Return the file of a result or a model: the path itself, or the index in an output directory."""
    path = Path(path)
    return path / INDEX if os.path.isdir(path) else path  # unlike `Path.is_dir`, this raises no error


def load_model(path: str | Path) -> Model:
    """Read a fitted model. Files from other people can be read safely.

    Parameters
    ----------
    path : str or Path
        An output directory, its ``index.h5``, or a copy of this file anywhere.

    Returns
    -------
    Model

    Raises
    ------
    NoInput
        If the file does not exist.
    DataError
        If the file contains no model, or has changed since it was written, or if arrays are missing, have wrong shapes
        or are not finite.
    OtherVersion
        If another version of shardpress has written the file.
    ReadFailed, NotPermitted, SystemLimit
        If the storage or the system fails.
    """
    return read_model_file(file_of(path), is_foreign=True)


def read_model_file(path: Path, is_foreign: bool = False) -> Model:
    """Return the model in a file. The errors are those of `load_model`."""
    where = f"model={printable(path)}"
    with reading_group(read_sealed(path, where, is_foreign), where) as group:
        return read_model(group["model"])


def load_statistics(path: str | Path, fingerprint: str) -> dict[str, np.ndarray]:
    """Return `Result.statistics` from a file of a model; empty if its model has another fingerprint."""
    file = file_of(path)
    where = f"model={printable(file)}"
    with reading_group(read_sealed(file, where, is_foreign=True), where) as group:
        return _statistics(group) if read_model(group["model"]).fingerprint == fingerprint else {}


def _statistics(group: h5py.Group) -> dict[str, np.ndarray]:
    if "run/reference" not in group:
        return {}
    names: list[str] = []
    group["run/reference"].visit(names.append)
    items = {name: group["run/reference"][name] for name in names}
    return {name: item[()] for name, item in items.items() if isinstance(item, h5py.Dataset)}


# -- writing -------------------------------------------------------------------------------------------------------


def result_bytes(
    write_rows: Callable[[h5py.File], object],
    model: Model,
    facts: RunFacts,
    parts: list[Part],
    maps: Mapping[int, LinearMap],
    statistics: Mapping[str, np.ndarray],
) -> bytes:
    """Return the content of the file of a result.

    `write_rows` writes the virtual datasets. `maps` are the maps to earlier generations, by their numbers, and
    `statistics` the arrays of `Result.statistics`.
    """

    def write(group: h5py.Group) -> None:
        model.write(group.create_group("model"))
        run = group.create_group("run")
        write_json(run, "facts", to_json(_with_shards(facts, [])))
        write_json(run, "shards", to_json(facts.rows.request.shards))
        write_json(run, "parts", to_json(parts))
        for number, linear in maps.items():
            stored = run.create_group(f"maps/{number}")
            stored["W"] = linear.W
            stored["b"] = linear.b
            stored.attrs.update({name: getattr(linear, name) for name in _ENCODERS})
        for name, array in statistics.items():
            run[f"reference/{name}"] = array

    return sealed(write, write_rows)
