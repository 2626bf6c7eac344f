"""The content of an output directory when a run starts, and the settings that an append takes over from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from msgspec import structs

from shardpress.base.errors import ConfigError, NoInput, printable
from shardpress.hdf5.files import Identity
from shardpress.hdf5.shard import Description, Extra
from shardpress.output.disk import Disk
from shardpress.output.folder import DESCRIPTIONS
from shardpress.output.journal import Journal
from shardpress.result.finished import INDEX, Result, given_name, load_model
from shardpress.result.records import Request
from shardpress.run.difference import Base
from shardpress.settings.config import Config
from shardpress.settings.conflicts import conflicts_with_finished, refuse, with_finished
from shardpress.shards.vet import InputFile


class UnchangingDisk(Disk):
    """Disk that removes no file, not even those that a run would remove."""

    def remove(self, path: Path) -> None:
        """Do nothing."""

    def free_bytes(self, path: Path) -> int:
        return super().free_bytes(existing_folder(path))


def existing_folder(path: Path) -> Path:
    """Return a folder, or the nearest existing one above it."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())


def open_readonly(config: Config) -> Journal | None:
    """Return the journal of an output directory without locking or changing it; None if it does not exist yet.

    Raise `NoInput` if a run with ``--append`` has nothing to append to.
    """
    results = config.results
    directory = Path(results.output)
    if results.append and not (directory / INDEX).exists():
        raise NoInput(
            f"output={printable(directory)}: contains no finished run, expected one to append to. Run the same command "
            "without --append first."
        )
    if not directory.is_dir():
        return None
    return Journal(directory, UnchangingDisk(), results.restart, results.append or results.retrain)


def base_of(journal: Journal | None) -> Base | None:
    """Return what an output directory contains, without its parts; None if it contains no result."""
    if journal is None or journal.base is None:
        return None
    result = journal.base
    facts = result.facts
    request = structs.replace(facts.rows.request, shards=result.shards_with_digests)
    if journal.request is not None:
        request = _with_later_stats(request, journal.request)
    return Base(
        request,
        facts.model.key,
        result.encoder,
        facts.rows.key,
        n_appends=len(facts.appends),
    )


def _with_later_stats(request: Request, later: Request) -> Request:
    """Return the request with the stats of files in which a later run has found the same content."""
    stats = {shard.id: shard.stat for shard in later.shards if shard.rows is not None}
    shards = [structs.replace(shard, stat=stats.get(shard.id, shard.stat)) for shard in request.shards]
    return structs.replace(request, shards=shards)


def earlier_rows(result: Result) -> InputFile:
    """Return the rows of a result with its extras, whose dtypes, categories and masks new rows get."""
    masks = result.facts.rows.masks
    paths = result.facts.rows.paths
    extras = []
    for name, (dtype, categories) in result.extras().items():
        extra = Extra(given_name(name), dtype, mask=masks.get(name), path=paths.get(name, ""))
        if categories is not None:
            codes = tuple(range(len(categories)))
            extra = replace(extra, fill=-1, categories=tuple(categories), codes=codes)
        extras.append(extra)
    shape = (result.n_rows, result.n_features)
    rows = Description("features", shape, "<f4", extras=tuple(extras))
    return InputFile(str(result.path), Identity(0, 0, 0, 0), rows, 0, result.n_rows)


def kept_content(result: Result) -> bytes:
    """Return the descriptions of the input files of a result, or nothing if they cannot be read."""
    try:
        return (result.directory / DESCRIPTIONS.format(result.digest)).read_bytes()
    except OSError:
        return b""


# -- settings ------------------------------------------------------------------------------------------------------


def with_settings_of(config: Config, result: Result) -> Config:
    """Return the settings of an append, with those of the result on which its rows depend.

    Raise `ConfigError` if a setting that affects the results was given with another value.
    """
    stored = Config.from_flat(result.facts.rows.config)
    refuse(conflicts_with_finished(config, stored))
    _check_model(config, result)
    return with_finished(config, stored)


def _check_model(config: Config, result: Result) -> None:
    """Raise `ConfigError` if `--model` is another model than that of a finished run."""
    given = config.inputs.model
    if given is None or given == result.facts.rows.config.get("model"):
        return
    if load_model(given).fingerprint != result.encoder:
        raise ConfigError(
            f"model={printable(given)}: another model than that of the finished run in "
            f"output={printable(result.directory)}. Omit --model, or choose another --output."
        )
