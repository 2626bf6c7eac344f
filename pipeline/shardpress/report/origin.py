"""Input shards and preprocessing of a finished run, as its result describes them."""

from __future__ import annotations

from pathlib import Path

from shardpress.base.errors import DataError, NoInput
from shardpress.hdf5.shard import Block, Shard
from shardpress.report.recompute import Preprocessing
from shardpress.result.finished import Result
from shardpress.result.records import ShardFacts, Stat
from shardpress.shards.column_order import ColumnCheck, ColumnRule
from shardpress.shards.conversion import digest_of_rows
from shardpress.shards.vet import Master, Selection, vet


def preprocessing_of(result: Result) -> Preprocessing:
    """Return the model and the settings that a run used for encoding."""
    config = result.facts.rows.config
    has_other_rows = config.get("model") or config.get("fit_on") or result.facts.appends
    clips_drift = bool(has_other_rows) and config["on_drift"] == "clip"
    return Preprocessing(result.model, config.get("missing_value"), clips_drift)


class InputShards:
    """Input shards of a run, which are opened at the paths in its result."""

    def __init__(self, result: Result) -> None:
        self._shards = {shard.id: shard for shard in result.shards_with_digests}
        self._model = result.model

    def shard(self, shard_id: str) -> Shard:
        """Return a shard.

        Raise `NoInput` if its file does not exist, and `DataError` if it has changed.
        """
        before = self._shards[shard_id]
        path = Path(before.path)
        if not path.is_file():
            raise NoInput("the file no longer exists at this path")
        orientation = "columns" if before.is_transposed else "rows"
        row_shape = tuple(before.shape[1:]) if before.shape[0] == 1 else None
        file = vet(path, Selection(before.dataset, orientation), row_shape)
        if isinstance(file, Master):
            raise DataError("its rows have changed since the run")
        if before.first_row + before.shape[0] <= file.n_rows:
            file = file.with_rows(before.first_row, before.shape[0])
        match = "ignore" if before.column_order is None else "name"
        check = ColumnCheck(ColumnRule(match, self._model.columns, "the model"))
        file = check.accept(file)
        shard = file.shard(check.columns, (), ())
        if not _has_rows(shard, before):
            raise DataError("its rows have changed since the run")
        return shard


def _has_rows(shard: Shard, before: ShardFacts) -> bool:
    """Return whether a shard has the same rows as before. They are read only if the file may have changed."""
    identity = shard.identity
    if before.stat == Stat(identity.size, identity.mtime_ns, identity.ctime_ns, identity.inode):
        return True
    if (shard.shape, shard.stored_dtype) != before.kind:
        return False
    return digest_of_rows(Block(shard, 0, shard.n_rows)) == before.rows
