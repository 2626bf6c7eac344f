"""Input shards and preprocessing of a finished run, as its manifest describes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardpress.errors import DataError, NoInput, printable
from shardpress.model import Model
from shardpress.report.rows import PartLine, Preprocessing
from shardpress.shards.columns import reordered
from shardpress.shards.shard import Shard, with_offset, with_preparation
from shardpress.shards.vet import Selection, vet


def preprocessing_of(manifest: Mapping[str, Any], model: Model) -> Preprocessing:
    """Return the model and the settings that a run used for encoding."""
    config = manifest["config"]
    has_other_rows = config.get("model") or config.get("fit_on") or manifest.get("appends")
    clips = bool(has_other_rows) and config["on_drift"] == "clip"
    return Preprocessing(model, config.get("missing_value"), clips)


class Inputs:
    """Input shards of a run, which are opened at the paths in the manifest or in the input directories."""

    def __init__(self, manifest: Mapping[str, Any], model: Model) -> None:
        request = manifest["request"]
        self._shards = request["inputs"]["shards"]
        self._folders = request.get("folders", [])
        self._orientation = manifest["config"].get("orientation")
        self._model = model

    def shard(self, part: PartLine) -> Shard:
        """Return the shard of a part. Raise `NoInput` if its file does not exist, and `DataError` if it has changed."""
        before = self._shards[part["shard"]]
        shard = vet(self._path(part), Selection(part["dataset"], self._orientation))
        identity = shard.identity
        if (identity.size, identity.mtime_ns) != (before["n_bytes"], before["changed"]):
            raise DataError("the file has changed since the run")
        if "column_order" in before:
            shard = reordered(shard, self._model.columns)
        return with_preparation(with_offset(shard, self._model.offset), self._model.preparation)

    def _path(self, part: PartLine) -> Path:
        path = Path(part["path"])
        for candidate in (path, *(Path(folder) / path.name for folder in self._folders)):
            if candidate.is_file():
                return candidate
        raise NoInput(f"the file no longer exists at this path or in {', '.join(map(printable, self._folders))}")
