"""Check before a run that the disk has room for everything that the run writes."""

from __future__ import annotations

import logging

from shardpress.base.errors import WriteFailed, printable
from shardpress.encoding.storage import storage_of
from shardpress.output.disk import PAGE
from shardpress.output.journal import Journal
from shardpress.report.reference import MAX_DIRECTIONS
from shardpress.run.encoding_stage import part_size
from shardpress.run.task import Task
from shardpress_kernels.rules import RULES

log = logging.getLogger(__name__)

CHECKPOINTS_KEPT = 2
"""Checkpoints of a training run that stay: more than one, because the last one could be damaged."""
_LEAST_COMPRESSED = 4  # compression ratio that is assumed before any features are known
# Measured: bytes of files without rows, columns and weights, for each column, and for each shard.
_PART = 9 * PAGE
_MODEL = 3 * PAGE
_INDEX = 10 * PAGE  # in addition to the model
_REFERENCE = 3 * PAGE  # in the index
_REPORT = 10 * PAGE
_COLUMN = 40  # in the scan and in the model
_SHARD = 300  # in the index and in the journal
_OTHERS = 5 * PAGE  # marker, lock, journal and log


def check_space(journal: Journal, task: Task, row_bytes: float | None = None) -> dict[str, int]:
    """Return ``n_bytes`` that the run needs, and those ``available``; raise `WriteFailed` if they are too few.

    `row_bytes` is the measured size of the features and extras of a row, if they are compressed.
    """
    needed = _needed_bytes(journal, task, row_bytes)
    try:
        free = journal.disk.free_bytes(journal.directory)
    except OSError as error:
        log.debug("output=%s: the free space is unknown: %s", printable(journal.directory), error)
        return {"n_bytes": needed}
    if needed > free:
        raise WriteFailed(
            f"output={printable(journal.directory)}: {free} bytes are free, expected at least {needed} for the "
            "features, checkpoints and the index. Free some space, or choose another --output."
        )
    return {"n_bytes": needed, "available": free}


def _needed_bytes(journal: Journal, task: Task, row_bytes: float | None) -> int:
    """Return the bytes that the run adds to the disk at its peak: either during training, or before it ends.

    This is a lower bound if training writes three checkpoints, as it does unless its epochs are very short. It omits
    lists of bad rows and strings.
    """
    has = {kind: bool(journal.records(kind)) for kind in ("scan", "model")}
    old_checkpoints = sum(record.entry.n_bytes for record in journal.records("checkpoint"))
    columns = _COLUMN * task.inputs.n_inputs
    weights = 4 * task.max_network.n_weights
    model = _MODEL + weights + columns
    training = 0
    if task.model is None and not has["model"]:
        settings = task.settings.training
        n_copies = 2 + len(RULES[settings.optimizer].states) + (settings.replicas > 1)
        training = min(settings.epochs, CHECKPOINTS_KEPT + 1) * n_copies * weights

    # Existing parts may belong to this model, whose fingerprint is known only after the training.
    parts = [*(record.part for record in journal.parts()), *task.change.kept]
    n_missing = max(0, task.inputs.n_rows - sum(part.n_live for part in parts))
    table = _SHARD * len(task.inputs.shards)
    new_index = _INDEX + model + table + _reference_bytes(task)
    old_index = 0 if journal.published is None else len(journal.published.data)
    generation = old_index if task.settings.results.retrain else 0
    end = _bytes_of_parts(task, n_missing, row_bytes) + table + generation + new_index
    end += max(0, _REPORT - old_index)  # the index replaces the earlier one before the report is written
    if n_missing and not has["model"]:
        end += model
    scan = columns if task.is_scanned and not has["scan"] else 0
    others = _OTHERS if journal.request is None else 0
    return others + scan + max(0, training - old_checkpoints, end - old_checkpoints)


def _reference_bytes(task: Task) -> int:
    """Return the bytes of the statistics of held-out rows, see `shardpress.report.reference`."""
    if task.model is not None or not task.settings.validation.validation_fraction:
        return 0
    n_features = task.settings.network.n_outputs
    n_directions = min(MAX_DIRECTIONS, n_features)
    n_numbers = 4 * task.inputs.n_inputs + (n_features + n_directions) * (n_directions + 1)
    return _REFERENCE + 8 * n_numbers


def _bytes_of_parts(task: Task, n_rows: int, row_bytes: float | None) -> int:
    """Return the least size of the parts with `n_rows` rows that are not encoded yet."""
    if not n_rows:
        return 0
    if row_bytes is None:
        storage = storage_of(task.settings.storage)
        row_bytes = storage.itemsize * task.settings.network.n_outputs
        if storage.compression != "none":
            row_bytes //= _LEAST_COMPRESSED
        row_bytes += 1 + sum(extra.dtype.itemsize for extra in task.inputs.shards[0].extras)  # 1 for `valid`
        row_bytes += 4 * task.settings.storage.row_error
    size = part_size(task, n_rows)
    n_parts = max(-(-n_rows // size.n_rows), -(-len(task.encoded) // size.n_shards))
    return int(n_rows * row_bytes) + _PART * n_parts
