"""Refusal of a run whose settings do not allow what it would change, with the differences in words."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from datetime import datetime

from shardpress.base.errors import ConfigError, DataError, NoInput, printable, quantity, short_list
from shardpress.hdf5.shard import UnreadableShard
from shardpress.output.journal import Journal
from shardpress.result.finished import stored_name
from shardpress.result.records import Request, ShardFacts
from shardpress.run.difference import Base, Change, Wanted, difference
from shardpress.run.request import SELECTED, TARGETS
from shardpress.run.resume import expensive_work, has_other_labels
from shardpress.run.task import Task
from shardpress.settings.config import Config

log = logging.getLogger(__name__)

_LISTED = 10  # differences that a message lists
_NAMED = 5  # files that a message names
_FILES = 2  # changed files that a message describes; more are only named
# Phrases for settings whose values are digests.
_SENTENCES = {SELECTED: "fit_on selects other rows", TARGETS: "the values of target differ"}


def _differences(base: Base, wanted: Wanted, change: Change) -> str:
    """Return the differences in words; empty if there are none."""
    words = list(_files_in_words(base, wanted, change))
    for name, (before, now) in change.settings.items():
        words.append(_SENTENCES.get(name, f"{name} {printable(before)} -> {printable(now)}"))
    if change.trains and base.n_appends:
        words.insert(0, "the model was trained before files were appended")
    more = f" and {len(words) - _LISTED} more" if len(words) > _LISTED else ""
    return "; ".join(words[:_LISTED]) + more


def check_change(journal: Journal, task: Task) -> None:
    """Raise `ConfigError`, `DataError` or `NoInput` unless the run can replace what the directory contains."""
    if task.base is not None:
        _refuse(task.base, task.wanted, task.change, task.settings, _lost_extras(journal, task))
        _check_unreadable(task, journal)
    elif journal.base is None and journal.request is not None and (journal.records() or journal.parts()):
        _refuse_unfinished(journal.request, task.wanted, expensive_work(journal), task.settings)


def log_change(task: Task) -> None:
    """Log which files a run adds to a result, and which ones it encodes again."""
    if task.source != "kept":
        return
    for words in changed_files(task):
        log.info("%s: %s", "append" if task.appends else "input", words)
    if task.change.copied:
        log.info(
            "encoding: the rows of %s, which are mostly unused or small, are copied to other parts",
            quantity(len(task.change.copied), "earlier part"),
        )
    if task.change.encodes_again:
        log.info("encoding all rows again, because their extras or the form in which they are stored differ")


def _lost_extras(journal: Journal, task: Task) -> list[str]:
    """Return the extras of a finished run that the files of the input, or the settings, no longer give."""
    if journal.base is None:
        return []
    names = {stored_name(extra.name) for extra in task.inputs.shards[0].extras}
    masks = journal.base.facts.rows.masks.values()  # a mask is not needed if all rows have a value
    return sorted(journal.base.extras().keys() - names - set(masks))


def changed_files(task: Task) -> list[str]:
    """Return words about each kind of difference between the files of a result and those of the input."""
    base = task.base
    if base is None:
        return []
    moved = task.change.moved(base, task.wanted)
    names = [printable(task.request.shards[i].name) for i in moved]
    return [*_files_in_words(base, task.wanted, task.change), *_counted("moved", names)]


def _refuse(base: Base, wanted: Wanted, change: Change, config: Config, lost: Sequence[str]) -> None:
    """Raise an error unless the settings allow the change of a finished run, which would lose some extras."""
    results = config.results
    where = f"output={printable(results.output)}"
    if results.append:
        _check_gone(base, change, where, results.drop_missing)
        if lost:
            raise _loss_error(change, where, lost)
        return
    if not (change.has_other_rows or change.trains or change.encodes_again) or _only_adds_extras(change, lost):
        return
    words = _differences(base, wanted, change)
    if not words and change.trains:
        words = "its model was trained on other rows"
    elif not words:
        words = f"this one has no {printable(short_list(lost, _NAMED))}"
    if change.gone and not (results.retrain and results.drop_missing):
        raise ConfigError(
            f"{where}: contains the results of other input files: {words}. {_advice_on_gone(change, config, where)}"
        )
    if not (results.overwrite or results.retrain):
        raise ConfigError(f"{where}: contains the results of a different run: {words}. {_advice(base, change, where)}")
    log.info("%s: replacing the earlier results, which differ: %s", where, words)


def _loss_error(change: Change, where: str, lost: Sequence[str]) -> ConfigError | DataError:
    """Return the error of an append that would remove extras."""
    words = (
        f"{where}: contains {quantity(len(lost), 'extra')} that this run would remove or rename: "
        f"{printable(short_list(lost, _NAMED))}"
    )
    if "include" in change.settings:
        return ConfigError(f"{words}, because of --include. Omit it, or choose another --output with --model.")
    return DataError(f"{words} (see the warnings above). Restore the files, or raise --memory-budget.")


def _only_adds_extras(change: Change, lost: Sequence[str]) -> bool:
    settings = change.settings.keys() - {"include"}
    if change.settings.get("row_error") == (False, True):
        settings -= {"row_error"}
    has_others = change.has_other_rows or lost or settings
    return change.encodes_again and not has_others


def _refuse_unfinished(before: Request, wanted: Wanted, progress: str, config: Config) -> None:
    """Raise `ConfigError` unless the settings allow replacing an unfinished run.

    A typing error in a command must not discard a training run. `progress` describes its expensive results; it is empty
    if there are none.
    """
    base = Base(before, model="", encoder="", features="")
    change = difference(base, wanted)
    where = f"output={printable(config.results.output)}"
    words = _differences(base, wanted, change)
    if progress and change.gone:
        raise ConfigError(
            f"{where}: contains an unfinished run of other input files ({progress}): {words}. Choose another --output, "
            "or discard that run with --restart."
        )
    # Versions of packages are excluded: users do not choose them, and can hardly restore earlier ones.
    has_other_settings = bool(change.settings.keys() - set(wanted.request.encoding) - {"versions", "format"})
    if progress and has_other_settings and not change.has_other_rows and not config.results.overwrite:
        raise ConfigError(
            f"{where}: contains an unfinished run ({progress}) with other settings: {words}. Restore these settings to "
            "resume it, choose another --output, or use the new settings with --overwrite (results that are still "
            "valid are reused)."
        )
    if words:
        log.warning(
            "this run differs from the previous one in this output; recomputing everything that depends on: %s", words
        )


def _check_gone(base: Base, change: Change, where: str, drops: bool) -> None:
    if not change.gone:
        return
    names = short_list((printable(base.request.shards[i].name) for i in change.gone), _NAMED)
    n_files = quantity(len(change.gone), "file")
    if not drops:
        raise NoInput(
            f"{where}: contains the features of {n_files} that are not in --input: {names}. Add these files to "
            f"--input, or remove their rows from the results with --drop-missing. {_way_to_keep(where)}"
        )
    log.warning("append: the rows of %s are removed from the results (--drop-missing): %s", n_files, names)


def _check_unreadable(task: Task, journal: Journal) -> None:
    """Raise `DataError` if a run has to read files that cannot be used, to encode or to judge their rows again."""
    unreadable = [i for i, shard in enumerate(task.inputs.shards) if isinstance(shard, UnreadableShard)]
    if not unreadable:
        return
    names = short_list((printable(task.inputs.shards[i].path) for i in unreadable), _NAMED)
    where = f"output={printable(task.settings.results.output)}"
    change = task.change
    is_judged = journal.base is not None and has_other_labels(task.settings, journal.base.facts.rows)
    is_encoded = not set(unreadable).isdisjoint(task.encoded)
    if change.trains or is_encoded or (is_judged and not change.has_other_rows):
        raise DataError(
            f"{where}: contains rows of files that cannot be used (see the warnings above), and that this run has to "
            f"read: {names}. Restore these files; or remove them from --input, and their rows with --append "
            "--drop-missing."
        )
    n_uncompared = quantity(task.inputs.n_uncompared, "row")
    is_known = journal.base is not None and all(
        bad in journal.base.facts.rows.uncompared for bad in task.inputs.uncompared
    )
    log.log(
        logging.INFO if is_known else logging.WARNING,
        "%s: the rows of files that cannot be used stay in the results: %s; %s could not be compared with the files",
        where,
        names,
        n_uncompared,
    )


def _way_to_keep(where: str) -> str:
    """Return advice for files that were deleted after their encoding."""
    output = where.removeprefix("output=")
    return (
        f"To keep these rows, encode only the new files with the same model: shardpress run --model {output} --input "
        f"NEW_FILES --output OTHER; open_features(['{output}', 'OTHER']) joins the results."
    )


def _advice_on_gone(change: Change, config: Config, where: str) -> str:
    if config.results.retrain:
        return "Add these files to --input, or train without them with --drop-missing."
    advice = (
        "Choose another --output, or discard the results with --restart. (--overwrite replaces only results of the "
        "same files.)"
    )
    if any(place.is_same for place in change.places):
        update = "To remove the rows of missing files, and keep the model, use --append --drop-missing."
        advice = f"{update} {_way_to_keep(where)} {advice}"
    return advice


def _advice(base: Base, change: Change, where: str) -> str:
    has_more_files = change.has_other_rows or base.n_appends
    if change.settings and not has_more_files and "include" not in change.settings:
        return (
            "Choose another --output, or replace them with --overwrite (results that are still valid are reused) or "
            "--restart."
        )
    # Training again takes long and gives other features, which earlier classifiers cannot use.
    return (
        "To encode only new and changed files, with the same model, use --append. To write the features of new files "
        f"to another --output, use --model {where.removeprefix('output=')} with their --input. To train a new "
        "generation on all files, use --retrain; to replace the results, --overwrite."
    )


# -- words -------------------------------------------------------------------------------------------------------------


def _files_in_words(base: Base, wanted: Wanted, change: Change) -> Iterator[str]:
    """Yield words about missing, new and changed files."""
    before = base.request.shards
    now = wanted.request.shards
    new = []
    changed: list[str] = []
    for place in change.places:
        if place.wanted is None or place.is_same:
            continue
        shard = now[place.wanted]
        name = printable(shard.name)
        if place.base is None:
            new.append(name)
        elif len(changed) < _FILES:
            changed.append(f"{name} ({'; '.join(_changes(before[place.base], shard))})")
        else:
            changed.append(name)
    yield from _counted("missing", [printable(before[i].name) for i in change.gone])
    yield from _counted("new", new)
    yield from _counted("changed", changed)


def _counted(kind: str, files: Sequence[str]) -> Iterator[str]:
    """Yield the number of files of a kind and some of their names, if there are any."""
    if files:
        yield f"{quantity(len(files), f'{kind} file')}: {short_list(files, _NAMED)}"


def _changes(before: ShardFacts, now: ShardFacts) -> Iterator[str]:
    """Yield a phrase for each difference between two states of a shard."""
    if before.is_transposed != now.is_transposed:
        yield f"its rows are along the {'last' if now.is_transposed else 'first'} axis"
        return
    if before.stat[:2] == now.stat[:2] and before.kind == now.kind and before.column_order == now.column_order:
        if None in (before.rows, now.rows):
            yield "its contents may have changed although its modification time did not"
        else:
            yield "its contents changed although its modification time did not"
        return
    if before.shape != now.shape:
        yield f"shape {tuple(before.shape)} -> {tuple(now.shape)}"
    if before.dtype != now.dtype:
        yield f"dtype {before.dtype} -> {now.dtype}"
    if before.stat.n_bytes != now.stat.n_bytes:
        yield f"size {before.stat.n_bytes} -> {now.stat.n_bytes}"
    if before.stat.changed != now.stat.changed:
        yield f"modification time {_time(before.stat.changed)} -> {_time(now.stat.changed)}"
    if before.column_order != now.column_order:
        yield "another order of the columns"


def _time(nanoseconds: int) -> str:
    """Return a modification time, in nanoseconds since 1970, as date and time."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(seconds)}.{rest:09d}"
