"""The accuracy that a linear classifier of one model's features keeps on mapped features of another model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from shardpress.alignment import LinearMap
from shardpress.features import FAILURES, reading
from shardpress.report.baselines import MIN_TEST_ROWS
from shardpress.report.commonrows import EncodedRows, Piece, common_pieces, default_rows
from shardpress.report.probe import are_correct
from shardpress.report.rows import select_rows

_MAX_CLASSES = 1000
_TEST_SHARE = 3  # one row of this number is a test row


def kept_accuracy(a: EncodedRows, b: EncodedRows, to_a: LinearMap, label: str) -> dict[str, Any] | None:
    """Train a linear classifier on the features of A, and test it on those of A, and on mapped features of B.

    The labels are in an extra of A. Return None if there are too few rows or classes, otherwise ``labels``, ``n_test``,
    ``accuracy`` on the features of A, and ``mapped`` on those of B.
    """
    features_a, features_b, values = _labelled_rows(a, b, label)
    _, codes = np.unique(values, return_inverse=True)
    n_classes = int(codes.max()) + 1 if len(codes) else 0
    is_test = np.random.default_rng(0).permutation(len(codes)) % _TEST_SHARE == 0
    if not 2 <= n_classes <= _MAX_CLASSES or is_test.sum() < MIN_TEST_ROWS:
        return None
    # The training rows are those of A in both cases, and so is the standardization, which belongs to the classifier.
    mapped = np.where(is_test[:, None], to_a.apply(features_b), features_a)
    return {
        "labels": label,
        "n_test": int(is_test.sum()),
        "accuracy": float(are_correct(features_a, codes, is_test).mean()),
        "mapped": float(are_correct(mapped, codes, is_test).mean()),
    }


def _labelled_rows(a: EncodedRows, b: EncodedRows, label: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the features of A and of B, and the labels, of common rows."""
    pieces = common_pieces(a, b)
    selection = select_rows([piece.n_rows for piece in pieces], default_rows((a.n_features, b.n_features)))
    found: list[Sequence[np.ndarray]] = []
    for piece, rows in zip(pieces, selection, strict=True):
        labels = _labels(a.directory, piece, rows, label) if len(rows) else None
        if labels is not None:
            features_a, features_b, is_valid = piece.read(a.directory, b.directory, rows)
            found.append((features_a[is_valid], features_b[is_valid], labels[is_valid]))
    if not found:
        return np.empty((0, 0)), np.empty((0, 0)), np.empty(0)
    all_a, all_b, all_labels = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return all_a, all_b, all_labels


def _labels(directory: Path, piece: Piece, rows: np.ndarray, label: str) -> np.ndarray | None:
    """Return the labels of some rows, or None if they cannot be read."""
    file_of_a, _ = piece.parts
    try:
        with reading(directory / file_of_a) as file:
            values = file[label]
            if h5py.check_string_dtype(values.dtype):
                values = values.asstr("utf-8", "replace")
            return np.asarray(values[rows + piece.starts[0]])
    except FAILURES:
        return None
