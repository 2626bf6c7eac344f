"""The request of a run: everything that determines its results.

Fingerprints form a chain. The digests of the rows and the settings that affect the scan determine the scan; the scan
and the settings that affect the model determine the model; the model and the settings that affect the features
determine the features of a row. Each setting declares in `shardpress.settings.config` what it affects.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from typing import Any

import h5py
import numpy as np
from msgspec import structs

from shardpress.base.formats import fingerprint
from shardpress.base.packages import version_of
from shardpress.encoding.partfile import row_shapes, stored_masks, stored_paths
from shardpress.hdf5.columns import Columns
from shardpress.hdf5.files import Identity
from shardpress.hdf5.shard import Extra, Shard
from shardpress.model.encoder import Model
from shardpress.result.finished import FEATURES, VALID
from shardpress.result.records import Request, ShardFacts, Stat, from_json, to_json
from shardpress.settings.config import fingerprint_values
from shardpress.settings.resolve import Settings
from shardpress.training.targets import Targets

# Format numbers. Increment them when the same settings give different results.
_SCAN = 1
_TRAINING = 1
_ENCODING = 1

# A run can be resumed after an update of NumPy or Python. With all supported versions of NumPy, results are equal bit
# for bit (`tests/run/test_pythons.py`), except for the rounding of principal components, which depends on the BLAS of
# NumPy and on the processor. Change this version if a later NumPy gives other results.
_NUMPY = "1.26.4"
_ID_DIGITS = 16
SELECTED = "fitted"
"""Key in the settings of a scan: the digest of the rows that ``--fit-on`` selects."""
TARGETS = "target_values"
"""Key in the settings of a training: the digest of the targets."""


def request_of(
    settings: Settings,
    shards: Sequence[ShardFacts],
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
        scan[SELECTED] = _selection_digest(fitted)
    if targets is not None:
        training[TARGETS] = targets.digest
    if model is not None and model.scaler.fill is not None:
        scan["filled"] = True  # rows with missing values are not bad if the model fills these in
    encoding = {**fingerprint_values(settings, "features"), "format": _ENCODING}
    request = from_json(to_json(Request([], scan, training, encoding)), Request)  # with lists, as in a file
    return structs.replace(request, shards=list(shards))


def _training_request(settings: Settings) -> dict[str, Any]:
    """Return everything that determines the model, except for the scan."""
    training = fingerprint_values(settings, "model")
    if settings.training.finish_by:
        # A run with a deadline measures how many epochs fit. A run without one must not reuse that model. A second run
        # with a deadline resumes with the number of epochs that the first one decided on.
        training["by_deadline"] = True
    training["versions"] = {"numpy": _NUMPY, "Theano": version_of("Theano")}
    training["format"] = _TRAINING
    return training


def facts_of(shard: Shard, compares_digests: bool = True) -> ShardFacts:
    """Return the facts that identify a shard and the order of its columns, without digests of its content.

    Runs that resume each other give it the same id, in any order of the files. If only sizes are compared, neither
    ctime nor inode changes it.
    """
    order = shard.order
    facts = ShardFacts(
        id="",
        path=absolute(shard.path),
        dataset=shard.dataset,
        shape=list(shard.shape),
        dtype=shard.stored_dtype,
        stat=_stat_of(shard.identity),
        first_row=shard.first_row,
        is_transposed=shard.is_transposed,
        column_order=None if order is None else sha256(order.astype("<i4").tobytes()).hexdigest(),
        fields=_names_digest(shard.columns) if shard.columns.are_chosen and order is None else None,
        master=_master_of(shard),
    )
    stat = facts.stat if compares_digests else facts.stat[:2]
    master = facts.master_key(compares_digests)
    content = (facts.path, *facts.selection, *facts.kind, *stat, facts.source, master)
    return structs.replace(facts, id=fingerprint(*content)[:_ID_DIGITS])


def _stat_of(identity: Identity) -> Stat:
    return Stat(identity.size, identity.mtime_ns, identity.ctime_ns, identity.inode)


def _master_of(shard: Shard) -> tuple[str, Stat] | None:
    """Return the path and the stat of the master file, if it has extras of the shard."""
    if shard.master is None or not any(extra.is_in_master for extra in shard.extras):
        return None
    return absolute(shard.master.path), _stat_of(shard.master.identity)


def _names_digest(columns: Columns) -> str:
    return sha256(json.dumps(columns.names).encode()).hexdigest()


def absolute(path: str) -> str:
    """Return the path of a file from the root. A link as the last component stays, because its name identifies it."""
    folder, name = os.path.split(path)
    return os.path.join(real_folder(folder), name)


def real_folder(folder: str) -> str:
    """Return the path of a folder from the root, without links."""
    return _real_folder(folder, os.getcwd())


@cache
def _real_folder(folder: str, start: str) -> str:
    return os.path.realpath(os.path.join(start, folder))


def _selection_digest(selected: np.ndarray) -> str:
    """Return the SHA-256 of the rows that ``--fit-on`` selects, given as a mask (n_rows,)."""
    return sha256(len(selected).to_bytes(8, "little") + np.packbits(selected).tobytes()).hexdigest()


def schema_of(extras: Sequence[Extra]) -> list[Any]:
    """Return plain values that describe the datasets of extras in a part, without their categories."""
    masks = stored_masks(extras)
    paths = stored_paths(extras)
    schema = []
    for name, (shape, dtype) in sorted(row_shapes(0, extras).items()):
        if name not in (FEATURES, VALID):
            enum = h5py.check_enum_dtype(dtype)
            names = None if enum is None else sorted(enum.items())
            schema.append([name, dtype.str, list(shape), names, masks.get(name), paths.get(name)])
    return schema


def categories_of(extras: Sequence[Extra]) -> list[Any]:
    """Return the categories of extras, to which the codes in parts refer."""
    return [[extra.name, list(extra.categories)] for extra in extras if extra.categories is not None]
