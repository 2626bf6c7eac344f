"""Targets that a head learns to predict during training: classes or numbers in an extra."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shardpress.base.errors import ConfigError, Problem, printable
from shardpress.base.formats import digest
from shardpress.cluster.executor import compute
from shardpress.cluster.threads import threads
from shardpress.hdf5.shard import Block, Extra, Shard, first_rows
from shardpress.model.device import DeviceAutoencoder
from shardpress.model.labels import has_label, remark_on_missing, text_of
from shardpress.shards.rows import read_in_pieces
from shardpress_kernels.hostmath import head_outputs, target_losses
from shardpress_kernels.network import Head, TargetLoss

MAX_CLASSES = 1000
"""Largest number of classes of a head."""
_MAX_WHOLE = 50  # distinct values of floats that are classes if all are whole numbers, as MATLAB stores labels
_NO_CLASS = -1


@dataclass(frozen=True, eq=False)
class Targets:
    """Targets of rows."""

    name: str  # name of the extra
    head: Head
    # (n_rows,), float32: number of each row's class, or -1; or numbers with mean 0 and deviation 1, or NaN
    values: np.ndarray
    classes: tuple[str, ...]  # names of the classes; empty for numbers
    share: float  # share of the rows to fit to that have a target
    digest: str  # digest of all targets, before any conversion that processors could round in different ways
    remark: str = ""  # sentence about a class that looks like "no label"

    def of_shards(self, shards: Sequence[Shard], unreadable: Sequence[int]) -> Targets:
        """Return the targets of the shards that are not unreadable."""
        if not unreadable:
            return self
        starts = first_rows(shards)
        kept = [self.values[starts[i] : starts[i + 1]] for i in range(len(shards)) if i not in unreadable]
        return replace(self, values=np.concatenate([self.values[:0], *kept]))


@dataclass(frozen=True, eq=False)
class Supervision:
    """Training of a head together with the autoencoder."""

    targets: Targets  # targets of all rows that can be read
    validation: np.ndarray  # (n_validation,), float32: targets of the validation rows
    loss: TargetLoss

    def validate(self, autoencoder: DeviceAutoencoder, rows: np.ndarray) -> tuple[float, float | None]:
        """Return the weighted mean loss of the validation rows, and the share of them that the head assigns correctly.

        Rows without a target have a loss of 0, as in a training step. The share is None for numbers, and if no row has
        a class.
        """
        head = self.targets.head
        parameters = autoencoder.parameters()
        z = head_outputs(autoencoder.code(rows), parameters, self.loss.scale)
        loss = self.loss.weight * float(target_losses(head, z, self.validation).mean())
        has_target = self.validation >= 0
        if head.kind == "numbers" or not has_target.any():
            return loss, None
        is_right = z.argmax(axis=1) == self.validation
        return loss, float(is_right[has_target].mean())


# -- reading -------------------------------------------------------------------------------------------------------


def read_targets(
    name: str, shards: Sequence[Shard], fitted: np.ndarray | None, missing: str | None, n_threads: int
) -> Targets:
    """Read the values of an extra as targets of all rows.

    Parameters
    ----------
    fitted : ndarray of shape (n_rows,), bool, or None
        Mask of the rows to fit to; the other ones have no target.
    missing : str or None
        Value of ``--missing-label``.

    Raises
    ------
    ConfigError
        If the values cannot be targets.
    DataError, ReadFailed, NotPermitted, SystemLimit
        If values cannot be read.
    """
    starts = first_rows(shards)
    values: list[np.ndarray] = [np.empty(0)] * len(shards)
    known: list[np.ndarray] = [np.empty(0, dtype=bool)] * len(shards)

    def read(number: int) -> None:
        extra = next(extra for extra in shards[number].extras if extra.name == name)
        values[number], known[number] = _read(shards[number], extra, missing)

    with threads(n_threads) as pool:
        compute([(read, number) for number in range(len(shards))], pool, n_threads)
    for number, has_target in enumerate(known):
        if fitted is not None:
            has_target &= fitted[starts[number] : starts[number + 1]]
    n_fitted = starts[-1] if fitted is None else int(np.count_nonzero(fitted))
    return targets_of(name, values, known, int(n_fitted))


def _read(shard: Shard, extra: Extra, missing: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of an extra, and a mask of the rows that have one."""
    if extra.dtype.kind not in "biufSO":
        words = f"{printable(extra.name)} has the dtype {extra.dtype}, expected one number or string for each row"
        raise ConfigError(Problem(("target",), words))
    if extra.stored is None:
        return np.zeros(shard.n_rows, dtype=np.int64), np.zeros(shard.n_rows, dtype=bool)
    pieces = [_plain(extra, values, missing) for values in read_in_pieces(Block(shard, 0, shard.n_rows), extra)]
    if not pieces:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)
    values = np.concatenate([values for values, _ in pieces])
    return values, np.concatenate([has_value for _, has_value in pieces])


def _plain(extra: Extra, values: np.ndarray, missing: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return values as numbers or strings, and a mask of those that are targets."""
    if extra.categories is not None:
        values = np.array([*map(text_of, extra.categories), ""], dtype=object)[values]
    elif values.dtype.kind in "SO":
        values = np.array([text_of(value) for value in values.tolist()], dtype=object)
    return numbers_or_texts(values), has_label(values, missing)


def numbers_or_texts(values: np.ndarray) -> np.ndarray:
    """Return floats as float64 and Booleans as integers; integers and strings stay as they are."""
    if values.dtype.kind == "f":
        return values.astype(np.float64)
    if values.dtype.kind == "b":
        return values.astype(np.int64)
    return values


def targets_of(name: str, values: Sequence[np.ndarray], known: Sequence[np.ndarray], n_fitted: int) -> Targets:
    """Return the targets for the values of all shards.

    Strings and whole numbers are classes. Floats are numbers, unless they are at most 50 different whole numbers.

    Parameters
    ----------
    known : sequence of ndarray of bool
        For each shard, a mask of the rows whose value is a target.
    n_fitted : int
        Number of rows to fit to.

    Raises
    ------
    ConfigError
        If there are no targets, or too many classes.
    """
    share = sum(int(np.count_nonzero(mask)) for mask in known) / max(1, n_fitted)
    if not share:
        raise ConfigError(
            Problem(("target",), f"{printable(name)} has no value in the rows to train on, expected one in some rows")
        )
    are_floats = any(array.dtype.kind == "f" for array in values)
    distinct = _distinct(values, known, _MAX_WHOLE if are_floats else MAX_CLASSES)
    if are_floats and (distinct is None or not all(float(value).is_integer() for value in distinct)):
        return _numbers(name, values, known, share)
    if distinct is None:
        words = f"has more than {MAX_CLASSES} different values, expected at most {MAX_CLASSES} classes, or floats"
        raise ConfigError(Problem(("target",), f"{printable(name)} {words} to predict numbers"))
    if len(distinct) < 2:
        raise ConfigError(Problem(("target",), f"{printable(name)} has only one value, expected two classes or more"))
    classes = sorted(distinct)
    names = tuple(map(text_of, classes))
    codes = np.concatenate([_codes(array, mask, classes) for array, mask in zip(values, known, strict=True)])
    return Targets(
        name=name,
        head=Head("classes", len(classes)),
        values=codes,
        classes=names,
        share=share,
        digest=digest([json.dumps(names).encode(), codes.astype("<f4").tobytes()]),
        remark=remark_on_missing(names, codes, [array.dtype for array in values]),
    )


def _distinct(values: Sequence[np.ndarray], known: Sequence[np.ndarray], most: int) -> set[Any] | None:
    """Return the distinct values, or None if there are more than `most`."""
    distinct: set[Any] = set()
    for array, mask in zip(values, known, strict=True):
        distinct.update(np.unique(array[mask]).tolist())
        if len(distinct) > most:
            return None
    return distinct


def _codes(values: np.ndarray, known: np.ndarray, classes: Sequence[Any]) -> np.ndarray:
    """Return the number of the class of each row, float32, or -1."""
    numbers = {value: number for number, value in enumerate(classes)}
    codes = np.full(len(values), _NO_CLASS, dtype=np.float32)
    if known.any():
        distinct, inverse = np.unique(values[known], return_inverse=True)
        codes[known] = np.array([numbers[value] for value in distinct.tolist()], dtype=np.float32)[inverse]
    return codes


def _numbers(name: str, values: Sequence[np.ndarray], known: Sequence[np.ndarray], share: float) -> Targets:
    """Return numbers, scaled to mean 0 and deviation 1."""
    all_values = np.concatenate(values).astype(np.float64)
    has_target = np.concatenate(known)
    present = all_values[has_target]
    with np.errstate(over="ignore", invalid="ignore"):
        mean = present.mean()
        deviation = present.std()
    if not (np.isfinite(deviation) and deviation > 0):
        raise ConfigError(
            Problem(("target",), f"{printable(name)} does not vary, or overflows float64, expected numbers that vary")
        )
    scaled = np.where(has_target, (all_values - mean) / deviation, np.nan).astype(np.float32)
    stored = np.where(has_target, all_values, np.nan).astype("<f8")
    return Targets(name, Head("numbers", 1), scaled, (), share, digest([stored.tobytes()]))
