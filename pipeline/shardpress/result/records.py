"""Typed records of a result: its parts, its shards, and facts about the run that made it.

They are stored as JSON, and validated when they are read. Text in which bytes are not UTF-8, such as the name of a
file, is escaped in JSON and restored.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
from msgspec import structs

from shardpress.base.formats import fingerprint, sum_of_digests
from shardpress.hdf5.columns import Columns
from shardpress.result.facts import (
    BadDataFacts,
    BadFile,
    Drift,
    InputFacts,
    KeptAccuracy,
    OneRun,
    RowCheck,
    RunDetails,
    SampleFacts,
    ScanFacts,
    Source,
    StorageFacts,
)

T = TypeVar("T")


_Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]  # of rows or extras
_ShardId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]


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


class BadValues(msgspec.Struct, frozen=True, omit_defaults=True):
    """A bad row, all rows of an unreadable shard, or rows whose values of an extra could not be read."""

    start: int  # first row in the shard
    stop: int
    columns: list[int]  # bad ones of a bad row
    reason: str
    dataset: str | None = None  # of the extra


class Range(msgspec.Struct, frozen=True, omit_defaults=True):
    """Consecutive rows of a shard that a part contains."""

    first: int  # position of the first row in the part
    shard: _ShardId
    start: int  # first row in the shard
    stop: int
    n_bad: int = 0  # bad rows, whose features are NaN
    n_outside: int = 0  # good rows with values outside the range of the model's training rows
    bad: list[BadValues] = []
    outside: list[Outside] = []  # columns with values outside the range, the farthest first
    # row ranges of the shard with fill values for unreadable ones, by the names of extras in the part
    lost: dict[str, list[list[int]]] = {}
    rows: _Digest | None = None  # digest of the rows as they are stored; None if the shard was unreadable
    extras: _Digest | None = None  # digest of the extras; None if some of their values were unreadable

    @property
    def n_rows(self) -> int:
        return self.stop - self.start

    @property
    def is_unreadable(self) -> bool:
        """Whether the shard could not be read, so that all rows are bad."""
        return self.rows is None


class Part(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file with the features of consecutive rows of one or more shards. It is never changed."""

    entry: Entry
    n_rows: int  # in the file
    ranges: list[Range]  # the rows that a result uses, in the order of the file; others are dead
    # dtype of the stored features; None if they are stored exactly as the encoder returned them
    dtype: str | None = None
    # largest difference between a stored feature and the encoder's result; None without `dtype`
    max_error: float | None = None

    @property
    def file(self) -> str:
        return self.entry.file

    @property
    def n_live(self) -> int:
        """Number of rows that a result uses."""
        return sum(rows.n_rows for rows in self.ranges)


def in_order(parts: Iterable[Part], shard_ids: Iterable[str]) -> list[tuple[Part, Range]]:
    """Return all ranges with their parts, in the order of the rows of a result, given that of its shards."""
    positions = {shard_id: i for i, shard_id in enumerate(shard_ids)}
    pairs = [(part, rows) for part in parts for rows in part.ranges]
    return sorted(pairs, key=lambda pair: (positions[pair[1].shard], pair[1].start))


class Stretch(NamedTuple):
    """Rows that are consecutive in a part and in a result."""

    part: Part
    first: int  # position of the first row in the part
    n_rows: int

    @property
    def ranges(self) -> list[Range]:
        """Ranges with these rows, in order."""
        return [rows for rows in self.part.ranges if self.first <= rows.first < self.first + self.n_rows]


def stretches_of(pairs: Iterable[tuple[Part, Range]]) -> list[Stretch]:
    """Join ranges that follow each other in their part and in the result."""
    stretches: list[Stretch] = []
    for part, rows in pairs:
        last = stretches[-1] if stretches else None
        if last is not None and last.part is part and last.first + last.n_rows == rows.first:
            stretches[-1] = last._replace(n_rows=last.n_rows + rows.n_rows)
        else:
            stretches.append(Stretch(part, rows.first, rows.n_rows))
    return stretches


class Stat(NamedTuple):
    """Facts about a file from the file system. If they are the same, so is the content."""

    n_bytes: int
    changed: int  # modification time in nanoseconds since 1970
    ctime_ns: int  # chmod, hard links and backups change it, too
    inode: int


class ShardFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """Facts about a shard, and digests of its content."""

    # What ranges name. It stays while rows of the shard stay in the parts of a result, also if its file is moved.
    id: _ShardId
    path: str
    dataset: str
    shape: list[int]
    dtype: str
    stat: Stat
    first_row: int = 0  # of the rows in the dataset, which can have others before and after them
    column_order: str | None = None  # digest of the order in which the columns are read, if it differs from the file's
    rows: _Digest | None = None  # digest of the rows; None if it is unknown
    extras: _Digest | None = None  # digest of the extras
    is_transposed: bool = False  # whether the rows are along the last axis, or are the columns of a sparse matrix
    append_id: int = 0  # number of the append that brought the rows, from 1 on; 0 for the run that trained the model
    # What identifies the content in addition to the stat: an ETag, or the digest of a listing. None for files.
    source: str | None = None
    # Digest of the names of the columns, if they are some of a table.
    fields: str | None = None
    # Path and stat of the master file that names the rows, if it contains some of their extras.
    master: tuple[str, Stat] | None = None

    @property
    def name(self) -> str:
        return PurePath(self.path).name

    @property
    def place(self) -> tuple[str, str, int]:
        return self.path, self.dataset, self.first_row

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the file with the rows and of the master file."""
        return (self.path,) if self.master is None else (self.path, self.master[0])

    def master_key(self, compares_digests: bool = True) -> tuple[object, ...] | None:
        """Return what identifies the master file in any folder: its name, and its stat or only size and time."""
        if self.master is None:
            return None
        path, stat = self.master
        return PurePath(path).name, *(stat if compares_digests else stat[:2])

    @property
    def selection(self) -> tuple[str, int, bool, str | None, str | None]:
        """Facts that decide which values of the file are its rows, and in which order."""
        return self.dataset, self.first_row, self.is_transposed, self.column_order, self.fields

    @property
    def kind(self) -> tuple[tuple[int, ...], str]:
        """Shape and dtype: rows of another kind are other rows."""
        return tuple(self.shape), self.dtype

    def has_file_of(self, other: ShardFacts) -> bool:
        """Return whether the rows are the same values of the same file."""
        facts = [(shard.stat, shard.source, shard.selection, shard.kind) for shard in (self, other)]
        return facts[0] == facts[1]

    def has_rows_of(self, other: ShardFacts) -> bool:
        """Return whether the rows are known to be the same."""
        return self.rows is not None and (self.kind, self.rows) == (other.kind, other.rows)


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """Plain values that determine the results of a run."""

    shards: list[ShardFacts]
    scan: dict[str, Any]  # settings of this stage, as of the next two
    training: dict[str, Any]
    encoding: dict[str, Any]

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        return {"scan": self.scan, "training": self.training, "encoding": self.encoding}

    def of_scan(self) -> str:
        """Return the fingerprint of the scan. The digests of all rows must be known, except for unreadable shards."""
        shards = [[[shard.shape, shard.dtype], shard.rows] for shard in self.shards]
        return fingerprint("scan", shards, self.scan)

    def of_model(self) -> str:
        """Return the fingerprint of the model."""
        return fingerprint("model", self.of_scan(), self.training)

    def of_features(self, model: str, extras: object) -> str:
        """Return the fingerprint of a row's features, given those of the model, and facts about the extras.

        It does not depend on the shards, because the features of a row depend only on this row.
        """
        encoding = {name: value for name, value in self.encoding.items() if name != "include"}
        return fingerprint("features", self.scan, encoding, model, extras)


def _total(digests: Sequence[str | None]) -> str | None:
    """Return the digest of the rows of several ranges: the sum of theirs; None if one of them is unknown."""
    known = []
    for digest in digests:
        if digest is None:
            return None
        known.append(int(digest, 16))
    return sum_of_digests(known)


def with_digests(shards: Sequence[ShardFacts], parts: Iterable[Part]) -> list[ShardFacts]:
    """Return the shards with the digests of their content, which are the sums of those of their ranges."""
    ranges: dict[str, list[Range]] = defaultdict(list)
    for part in parts:
        for rows in part.ranges:
            ranges[rows.shard].append(rows)
    known = []
    for shard in shards:
        own = ranges[shard.id]
        if len(own) == 1:  # usual, and faster without the sums
            rows_digest, extras_digest = own[0].rows, own[0].extras
        else:
            rows_digest = _total([rows.rows for rows in own])
            extras_digest = _total([rows.extras for rows in own])
        known.append(structs.replace(shard, rows=rows_digest, extras=extras_digest))
    return known


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
    # How well the map fits, as `shardpress.result.alignment` measures it; unknown for a map that is composed of others.
    r2: list[float | None] = []
    n_rows: int | None = None
    n_held_out: int | None = None
    classifier: KeptAccuracy | None = None


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Facts about the model of a result, which appends do not change."""

    key: str  # fingerprint of everything that determines the model
    run: int  # number of the run that trained it, or to which it was given
    source: Source  # in this run
    scan: ScanFacts
    trained: list[str] = []  # digests of the rows of each shard that trained the model; empty if they are unknown
    generation: int = 1
    generations: list[Generation] = []  # earlier ones that are kept
    maps: list[MapFacts] = []


class RowsFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Facts about the rows of a result, which each run determines anew.

    Sample and verification need rows of the input. They stay from the run that read these rows.
    """

    config: dict[str, Any]  # all settings, by their names
    request: Request
    key: str  # fingerprint of everything that determines the features of a row
    storage: StorageFacts
    bad_shards: list[BadFile]  # files that were refused and left out
    uncompared: list[BadFile] = []  # files whose rows stay although they, or some of their rows, cannot be read
    left_out: dict[str, str] = {}  # extras, and the reasons
    masks: dict[str, str] = {}  # extras that mark the rows with a value of another extra, by the name of that extra
    paths: dict[str, str] = {}  # paths of extras that a user has given, if they differ from the names of the extras
    inputs: InputFacts
    bad: BadDataFacts
    drift: Drift | None  # None if the model was trained on all rows
    sample: SampleFacts | None
    sample_run: int  # number of the run that measured the sample
    verification: RowCheck
    verification_run: int


class RunFacts(msgspec.Struct, frozen=True):
    """Facts about a result and the runs that made it."""

    model: ModelFacts
    rows: RowsFacts
    runs: list[OneRun]  # in this directory, including those of earlier models
    details: RunDetails  # of the last run

    @property
    def last(self) -> OneRun:
        return self.runs[-1]

    def run(self, number: int) -> OneRun:
        return self.runs[number - 1]

    @property
    def appends(self) -> list[OneRun]:
        """Runs that have changed rows and kept the model."""
        return [run for run in self.runs if run.append is not None and run.number > self.model.run]


# -- JSON ----------------------------------------------------------------------------------------------------------


def plain(record: object) -> Any:
    """Return a record as values that JSON can represent."""
    return msgspec.to_builtins(record)


def to_json(record: object) -> bytes:
    # Python's own writer escapes bytes of file names that are not UTF-8, and keeps NaN.
    return json.dumps(plain(record)).encode()


def from_json(data: bytes, kind: type[T]) -> T:
    """Return the record that `to_json` has written. Raise `ValueError` if it has another form."""
    try:
        return msgspec.convert(json.loads(data), kind, str_keys=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ValueError(str(error)) from error
