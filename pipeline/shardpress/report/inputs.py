"""Input shards and preprocessing of a finished run, as its result describes them."""

from __future__ import annotations

from pathlib import Path

from shardpress.errors import DataError, NoInput
from shardpress.records import Part
from shardpress.report.rows import Preprocessing
from shardpress.result import Result
from shardpress.shards.columns import reordered
from shardpress.shards.shard import Shard, with_offset, with_preparation
from shardpress.shards.vet import Selection, vet


def preprocessing_of(result: Result) -> Preprocessing:
    """Return the model and the settings that a run used for encoding."""
    config = result.facts.config
    has_other_rows = config.get("model") or config.get("fit_on") or result.facts.appends
    clips = bool(has_other_rows) and config["on_drift"] == "clip"
    return Preprocessing(result.model, config.get("missing_value"), clips)


class Inputs:
    """Input shards of a run, which are opened at the paths in its result."""

    def __init__(self, result: Result) -> None:
        request = result.facts.request
        self._shards = request.shards
        self._orientation = result.facts.config.get("orientation")
        self._model = result.model

    def shard(self, part: Part) -> Shard:
        """Return the shard of a part. Raise `NoInput` if its file does not exist, and `DataError` if it has changed."""
        before = self._shards[part.shard]
        shard = vet(self._path(part), Selection(part.dataset, self._orientation))
        identity = shard.identity
        if (identity.size, identity.mtime_ns) != (before.stat.n_bytes, before.stat.changed):
            raise DataError("the file has changed since the run")
        if before.column_order is not None:
            shard = reordered(shard, self._model.columns)
        return with_preparation(with_offset(shard, self._model.offset), self._model.preparation)

    def _path(self, part: Part) -> Path:
        path = Path(part.path)
        if not path.is_file():
            raise NoInput("the file no longer exists at this path")
        return path
