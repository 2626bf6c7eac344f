"""The request of a run: everything that determines its results, and fingerprints of it.

Fingerprints form a chain. The inputs and the settings that affect the scan determine the scan; the scan and the
settings that affect the model determine the model; the inputs, the model and the settings that affect the features
determine the features. Each setting declares in `shardpress.settings.config` what it affects.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from shardpress.errors import printable, quantity
from shardpress.model import Model
from shardpress.records import Request, ShardFacts, from_json, plain, to_json
from shardpress.rowfacts import SELECTED, n_trained_shards, selection_digest
from shardpress.settings.config import fingerprint_values
from shardpress.settings.resolve import Settings
from shardpress.shards.extras import row_names_in
from shardpress.shards.shard import Shard
from shardpress.training.targets import Targets

# Format numbers. Increment them when the same settings give different results.
_SCAN = 1
_TRAINING = 1
_ENCODING = 1

_LISTED = 10  # differences that a message lists
_FOLDERS = 3  # directories that a message lists
_FILES = 3  # changed files that a message lists; more are summarized
# A run can be resumed after an update of NumPy or Python. With all supported versions of NumPy, results are equal bit
# for bit (`tests/run/test_pythons.py`), except for the rounding of principal components, which depends on the BLAS of
# NumPy and on the processor. Change this version if a later NumPy gives other results.
_NUMPY = "1.26.4"
_TARGETS = "target_values"  # key of the digest of the targets
# Keys of an identity, and their names in messages.
_IN_WORDS = {"n_bytes": "size", "changed": "modification time"}
# Phrases for keys whose values are digests.
_SENTENCES = {
    "contents": "its contents changed although its modification time did not",
    SELECTED: "fit_on selects other rows",
    _TARGETS: "the values of target differ",
}


def request_of(
    settings: Settings,
    shards: Sequence[Shard],
    model: Model | None,
    fitted: np.ndarray | None = None,
    targets: Targets | None = None,
) -> Request:
    """Return the request of a run.

    A given `model` is not trained. `fitted` (n_rows,), bool, marks the rows that ``--fit-on`` selects.
    """
    scan = {**fingerprint_values(settings, "scan"), "format": _SCAN}
    training = {"model": model.fingerprint} if model is not None else _training_request(settings)
    # The settings name extras by short names, which can stand for other datasets with another --include.
    if fitted is not None:
        scan[SELECTED] = selection_digest(fitted)
    if targets is not None:
        training[_TARGETS] = targets.digest
    if model is not None and model.scaler.fill is not None:
        scan["filled"] = True  # rows with missing values are not bad if the model fills these in
    request = Request(
        shards=[_facts_of(shard) for shard in shards],
        scan=scan,
        training=training,
        encoding={**fingerprint_values(settings, "features"), "format": _ENCODING},
        folders=sorted({os.path.realpath(os.path.dirname(shard.path)) for shard in shards}),
        row_names=row_names_in(shards, settings.inputs.include),
    )
    return from_json(to_json(request), Request)  # with lists instead of tuples, as it is read from a file


def _training_request(settings: Settings) -> dict[str, Any]:
    """Return everything that determines the model, except for the scan."""
    training = fingerprint_values(settings, "model")
    if settings.timing.finish_by:
        # A run with a deadline measures how many epochs fit. A run without one must not reuse that model. A second run
        # with a deadline resumes with the number of epochs that the first one decided on.
        training["by_deadline"] = True
    training["versions"] = {"numpy": _NUMPY, "Theano": version("Theano")}
    training["format"] = _TRAINING
    return training


def _facts_of(shard: Shard) -> ShardFacts:
    """Return the facts that identify the rows of a shard."""
    return ShardFacts(
        file=Path(shard.path).name,
        dataset=shard.dataset,
        shape=list(shard.shape),
        dtype=shard.stored_dtype,
        form=shard.form,
        n_bytes=shard.identity.size,
        changed=shard.identity.mtime_ns,
        extras=[extra.name for extra in shard.extras if not extra.is_named],
        column_order=None if shard.order is None else _order_digest(shard.order),
    )


def _order_digest(order: np.ndarray) -> str:
    """Return the SHA-256 of the order (n_inputs,) in which a shard's columns are read."""
    return sha256(order.astype("<i4").tobytes()).hexdigest()


# -- comparing two requests --------------------------------------------------------------------------------------------


def differences(before: Request, now: Request) -> str:
    """Return the differences between two requests in words; empty if there are none."""
    changes = list(_changed_files(_shards(before), _shards(now)))
    if n_appended := _n_appended(before):
        changes.insert(0, f"{quantity(n_appended, 'input')} appended to a model that was trained on the others")
    for stage in ("scan", "training", "encoding"):
        changes += _changes(getattr(before, stage), getattr(now, stage)).values()
    folders_before = _folders_in_words(before)
    folders_now = _folders_in_words(now)
    if changes and folders_before and folders_before != folders_now:
        changes.insert(0, f"the inputs are in {folders_now} instead of {folders_before}")
    more = f" and {len(changes) - _LISTED} more" if len(changes) > _LISTED else ""
    return "; ".join(changes[:_LISTED]) + more


def other_inputs(before: Request, now: Request) -> bool:
    """Return whether an earlier request used another data set: it had files that are not requested now.

    Files with the same names in other directories count as another data set if all of them differ.
    """
    names_now = {shard.file for shard in _shards(now)}
    if any(shard.file not in names_now for shard in _shards(before)):
        return True
    is_moved = not set(now.folders) & set(before.folders)
    return is_moved and not set(_file_identities(before)) & set(_file_identities(now))


def shares_inputs(before: Request, now: Request) -> bool:
    """Return whether two requests have unchanged files in common."""
    return bool(set(_file_identities(before)) & set(_file_identities(now)))


def can_append(before: Request, now: Request) -> bool:
    """Return whether ``--append`` could extend the results of an earlier request.

    No file of the earlier request is missing, and either files or extras differ. The settings of the training are not
    compared, because some of them depend on the number of rows.
    """
    are_same = _file_identities(before) == _file_identities(now)
    has_other_extras = _without_extras(before) == _without_extras(now) and before.encoding != now.encoding
    return not other_inputs(before, now) and (not are_same or _n_appended(before) > 0 or has_other_extras)


def may_only_add_extras(before: Request, now: Request) -> bool:
    """Return whether a request names the files and settings of an earlier one, and extras in addition.

    The order of the files can differ after an append. The files may have changed, but the shapes of their rows may not.
    """
    extras_before = _named_extras(before)
    extras_now = _named_extras(now)
    # An append that has only added extras has left a request that no other command repeats.
    has_more_extras = extras_before < extras_now or (extras_before == extras_now and not _n_appended(before))
    has_same_settings = _without_extras(before) == _without_extras(now)
    return has_more_extras and has_same_settings and _descriptions(before) == _descriptions(now)


def _named_extras(request: Request) -> set[str]:
    """Return the extras that a user has named."""
    return set(request.encoding["include"])


def _descriptions(request: Request) -> list[str]:
    """Return name and rows of each file, without the contents, in an order that does not depend on appends."""
    shards = [replace(shard, extras=[], n_bytes=0, changed=0, contents=None) for shard in _shards(request)]
    return sorted(repr(shard) for shard in shards)


def _without_extras(request: Request) -> list[Any]:
    """Return the settings of all stages, except for the extras that a user has named."""
    encoding = {name: value for name, value in request.encoding.items() if name != "include"}
    return [request.scan, request.training, encoding]


def other_settings(before: Request, now: Request) -> bool:
    """Return whether two requests list the same files but different settings for the model or its rows."""
    return _file_identities(before) == _file_identities(now) and _choices(before) != _choices(now)


def _shards(request: Request) -> list[ShardFacts]:
    """Return the shards, except for those whose rows were removed from the results."""
    return [shard for shard in request.shards if shard.dropped_by is None]


def _n_appended(request: Request) -> int:
    """Return the number of shards that were appended after the training."""
    return sum(shard.dropped_by is None for shard in request.shards[n_trained_shards(request) :])


def _folders_in_words(request: Request) -> str:
    return ", ".join(printable(folder) for folder in request.folders[:_FOLDERS])


def _file_identities(request: Request) -> list[tuple[str, int, int]]:
    return [shard.identity for shard in _shards(request)]


def _choices(request: Request) -> list[Any]:
    """Return the settings of scan and training, and the datasets."""
    choices: list[Any] = []
    for settings in (request.scan, request.training):
        # Versions of packages are excluded: users do not choose them, and can hardly restore earlier ones.
        choices.append({name: value for name, value in settings.items() if name not in ("versions", "format")})
    choices.append([shard.dataset for shard in _shards(request)])
    return choices


def _changed_files(before: Sequence[ShardFacts], now: Sequence[ShardFacts]) -> Iterator[str]:
    names_before = [shard.file for shard in before]
    names_now = [shard.file for shard in now]
    if names_before == names_now:
        found = [_changes(plain(a), plain(b)) for a, b in zip(before, now, strict=True)]
        changes = {name: each for name, each in zip(names_now, found, strict=True) if each}
        if len(changes) > _FILES:
            yield f"{len(changes)} of {len(now)} inputs ({'; '.join(_common_changes(list(changes.values())))})"
            return
        for name, each in changes.items():
            yield f"input {printable(name)} ({'; '.join(each.values())})"
        return
    removed = set(names_before) - set(names_now)
    added = set(names_now) - set(names_before)
    yield from (f"input {printable(name)} was removed" for name in names_before if name in removed)
    yield from (f"input {printable(name)} was added" for name in names_now if name in added)
    if sorted(names_before) == sorted(names_now):
        yield "the order of the inputs changed"


def _common_changes(changes: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yield a phrase for each key that differs in some of many files."""
    for key in dict.fromkeys(key for each in changes for key in each):
        phrases = [each[key] for each in changes if key in each]
        if len(phrases) == len(changes) and len(set(phrases)) == 1:
            yield phrases[0]
        else:
            word = _IN_WORDS.get(key, key)
            yield f"{word} of {len(phrases)} {'file' if len(phrases) == 1 else 'files'}"


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Return a phrase for each key whose value differs: current keys first, then keys that no longer exist."""
    found = {}
    for key in {**now, **before}:
        value_before = before.get(key)
        value_now = now.get(key)
        if value_before == value_now:
            continue
        if key in _SENTENCES:
            found[key] = _SENTENCES[key]
            continue
        in_words = _time if key == "changed" else printable
        name = _IN_WORDS.get(key, key)
        found[key] = f"{name} {in_words(value_before)} -> {in_words(value_now)}"
    return found


def _time(nanoseconds: object) -> str:
    """Return a modification time, in nanoseconds since 1970, as date and time."""
    if not isinstance(nanoseconds, int):
        return printable(nanoseconds)
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(seconds)}.{rest:09d}"
