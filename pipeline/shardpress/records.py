"""Typed records of a result: its parts, its shards, and facts about the run that made it.

They are stored as JSON, and validated when they are read. Text in which bytes are not UTF-8, such as the name of a
file, is escaped in JSON and restored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

import msgspec

from shardpress.columns import Columns
from shardpress.formats import fingerprint

T = TypeVar("T")

_UNFINGERPRINTED = ("folders", "row_names")  # fields of a request that do not identify a run


class Entry(msgspec.Struct, frozen=True):
    """A file in the output directory."""

    file: str  # path relative to the directory
    n_bytes: int
    blake3: str  # digest of the content, in hexadecimal digits


class Outside(NamedTuple):
    """Summary of a column's values outside the model's range, `low` to `high`."""

    column: int
    value: float  # the farthest one
    low: float
    high: float
    n_values: int

    @property
    def distance(self) -> float:
        """Distance of the value from the range, divided by the width of the range."""
        if self.high <= self.low:  # the scaler sets such a column to 0
            return 0.0
        return max(self.low - self.value, self.value - self.high) / (self.high - self.low)

    def described(self, columns: Columns) -> str:
        where = f"column {columns.numbered(self.column)}"
        if self.high <= self.low:
            return f"{where} ({self.value:g}, trained on {self.low:g} only)"
        distance_text = f"{self.distance:.3g} ranges away"
        return f"{where} ({self.value:g}, trained on {self.low:g} to {self.high:g}, {distance_text})"


class Part(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file with the features of consecutive rows of one shard."""

    entry: Entry
    n_rows: int
    n_bad: int  # bad rows, whose features are NaN
    n_outside: int  # good rows with values outside the range of the model's training rows
    shard: int  # number of the shard: its index in the input, or in the order of arrival if shards were appended
    path: str  # file of the shard
    dataset: str
    start: int  # first row in the shard
    stop: int
    # dtype of the stored features; None if they are stored exactly as the encoder returned them
    dtype: str | None = None
    # largest difference between a stored feature and the encoder's result; None without `dtype`
    max_error: float | None = None
    bad: list[dict[str, Any]] = []  # ``row``, ``columns`` and ``reason`` of each bad row
    outside: list[Outside] = []  # columns with values outside the range, the farthest first
    append_id: int = 0  # number of the append, from 1 on; 0 for parts of the run that trained the model
    # row ranges of the shard with fill values for unreadable ones, by the names of extras in the part
    lost: dict[str, list[list[int]]] = {}

    @property
    def file(self) -> str:
        return self.entry.file

    @property
    def key(self) -> str:
        """Name of the part. Sorting parts by name puts them in row order."""
        return part_key(self.shard, self.start)


def part_key(shard: int, start: int) -> str:
    return f"part-{shard:06d}-{start:012d}"  # padded, so that names sort like numbers


class ShardFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """Facts that identify the rows of a shard."""

    file: str  # name, without its directory
    dataset: str
    shape: list[int]
    dtype: str
    form: str
    n_bytes: int  # size of the file
    changed: int  # modification time in nanoseconds since 1970
    extras: list[str]  # next to the rows, which a user has not named
    column_order: str | None = None  # digest of the order in which the columns are read, if it differs from the file's
    contents: str | None = None  # digest of the file, if it was changed in place without a new modification time
    dropped_by: int | None = None  # the append that removed the rows of the shard from the results

    @property
    def identity(self) -> tuple[str, int, int]:
        """Name, size and modification time, which identify a file in any directory."""
        return self.file, self.n_bytes, self.changed


class FileContents(msgspec.Struct, frozen=True, omit_defaults=True):
    """Facts about the content of a shard's file."""

    file: str
    n_bytes: int
    changed: int
    ctime_ns: int
    blake3: str | None  # of the file; None if it is unknown, as the next one
    rows: str | None  # of the dataset with the rows: it stays the same if a program adds another dataset to the file
    is_changed: bool = False  # whether the contents differ from those of an earlier run with the same modification time

    @property
    def identity(self) -> tuple[str, int, int]:
        return self.file, self.n_bytes, self.changed


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """Plain values that determine the results of a run."""

    shards: list[ShardFacts]
    scan: dict[str, Any]  # settings of this stage, as of the next two
    training: dict[str, Any]
    encoding: dict[str, Any]
    folders: list[str]  # of the shards; not part of a fingerprint, so that a data set can be moved between two runs
    n_trained: int | None = None  # shards of the training, if others were appended
    # Extras that are copied although they are neither next to the rows nor requested. They are part of the fingerprint
    # of the features only, so that requesting them changes nothing else.
    row_names: list[str] = []

    def of_scan(self) -> str:
        """Return the fingerprint of the scan."""
        return fingerprint("scan", self._inputs(), self.scan)

    def of_model(self, unreadable: Iterable[int] = ()) -> str:
        """Return the fingerprint of the model, without the shards at the `unreadable` positions."""
        key = fingerprint("model", self.of_scan(), self.training)
        missing = sorted(unreadable)
        return fingerprint(key, missing) if missing else key

    def of_features(self, model: str) -> str:
        """Return the fingerprint of the features, given the fingerprint of the model."""
        key = fingerprint("features", self._inputs(), self.scan, self.encoding, model)
        return fingerprint(key, self.row_names) if self.row_names else key

    def of_all(self) -> str:
        """Return the fingerprint of the whole request."""
        content = plain(self)
        return fingerprint("run", {name: value for name, value in content.items() if name not in _UNFINGERPRINTED})

    def _inputs(self) -> Any:
        return plain([self.shards, self.n_trained])


class Keys(msgspec.Struct, frozen=True):
    """Fingerprints of everything that determines the results of each stage."""

    model: str
    features: str


class Generation(msgspec.Struct, frozen=True):
    """An earlier result that is kept."""

    generation: int
    model: str  # fingerprint of its encoder
    n_rows: int
    digest: str  # of the file, as in its footer


class MapFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """Facts about a map from the features of a result to those of an earlier generation."""

    generation: int  # to which the map leads
    model: str  # fingerprint of the encoder of that generation
    # How well the map fits, as `shardpress.alignment` measures it. A map that is composed of others has no such facts.
    r2: list[float | None] = []
    n_rows: int | None = None
    n_held_out: int | None = None
    summary: str | None = None
    classifier: dict[str, Any] | None = None


class RunFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Facts about the run that made a result."""

    config: dict[str, Any]  # all settings, by their names
    request: Request
    keys: Keys
    made: str  # time
    command: str
    device: str
    versions: dict[str, str]
    storage: dict[str, Any]
    bad_shards: list[dict[str, str]]  # files that were refused and left out: ``file`` and ``reason``
    left_out: dict[str, str] = {}  # extras, and the reasons
    masks: dict[str, str] = {}  # extras that mark the rows with a value of another extra, by the name of that extra
    summary: dict[str, Any]
    verification: dict[str, Any]
    generation: int = 1
    generations: list[Generation] = []  # earlier ones that are kept
    maps: list[MapFacts] = []
    appends: list[dict[str, Any]] = []
    contents: list[FileContents] = []
    views: list[Entry] = []  # files that the index refers to if there are many parts
    report: dict[str, Any] = {}  # what only the report needs


# -- JSON ----------------------------------------------------------------------------------------------------------


def plain(record: Any) -> Any:
    """Return a record as values that JSON can represent."""
    return msgspec.to_builtins(record)


def to_json(record: Any) -> bytes:
    # Python's own writer escapes bytes of file names that are not UTF-8, and keeps NaN.
    return json.dumps(plain(record)).encode()


def from_json(data: bytes, kind: type[T]) -> T:
    """Return the record that `to_json` has written. Raise `ValueError` if it has another form."""
    try:
        return msgspec.convert(json.loads(data), kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ValueError(str(error)) from error
