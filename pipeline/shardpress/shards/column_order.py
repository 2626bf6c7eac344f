"""Comparison of the columns of all shards and of a model, and the order in which columns are read."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from shardpress.base.errors import DataError, printable, quantity, short_list
from shardpress.hdf5.columns import NO_COLUMNS, Columns, Difference, row_shape_of
from shardpress.shards.vet import InputFile

log = logging.getLogger(__name__)

_LISTED = 3  # names that a message lists
_LONGEST = 40  # characters of a name


@dataclass(frozen=True)
class ColumnRule:
    """Rule for the comparison of columns."""

    # "order": names and numbers of all columns must agree in their order. "name": columns with the same names in
    # another order are reordered. "ignore": nothing is compared.
    match: str = "order"
    expected: Columns = NO_COLUMNS  # of a fitted model; the columns of shards are read in the same order
    where: str = ""  # name of that model in messages
    n_inputs: int | None = None  # number of columns of that model. None: that of the first shard


IN_ORDER = ColumnRule()


class ColumnCheck:
    """Comparison of the columns of each shard with the columns of the model or of earlier shards."""

    def __init__(self, rule: ColumnRule = IN_ORDER) -> None:
        if rule.match == "name" and rule.where and not rule.expected.names:
            raise DataError(
                f"{rule.where}: has no column names, which --match-columns name needs. Train a model on input with "
                "names, or omit the option if the columns are in the model's order."
            )
        self.columns = rule.expected
        self._rule = rule
        self._names_of = rule.where
        self._values_of = rule.where
        self._n_inputs = rule.n_inputs
        self._n_inputs_of = rule.where
        self._n_named = 0
        self._has_any = False
        self._n_shards = 0
        self._n_reordered = 0
        self._notes: Counter[str] = Counter()
        self._first_note: dict[str, InputFile] = {}
        self._distinct_orders: dict[bytes, np.ndarray] = {}

    def accept(self, file: InputFile) -> InputFile:
        """Return a file with the order of its columns, and compare later files with it.

        Raise `DataError` if its columns differ from those of the model or of earlier files.
        """
        order = self._order_by_name(file) if self._rule.match == "name" else None
        columns = file.description.columns
        if order is not None:
            columns = columns.reordered(order)
        if self._rule.match != "ignore":
            difference = columns.first_difference(self.columns)
            if difference is not None:
                raise self._error(file, columns, difference)
        # The error about names comes first, because it says which columns are missing.
        if self._n_inputs not in (None, file.n_inputs):
            raise DataError(
                f"{file}: shape {file.shape} has {file.n_inputs} columns, expected {self._n_inputs} as in "
                f"{self._n_inputs_of}. Give shards with the same number of columns."
            )
        if self._n_inputs is None:
            self._n_inputs = file.n_inputs
            self._n_inputs_of = f"{file} of shape {file.shape}"
        self._n_reordered += order is not None
        self._count(file)
        self._extend(columns, file)
        return replace(file, order=order)

    def _error(self, file: InputFile, columns: Columns, difference: Difference) -> DataError:
        is_name = bool(columns.names) and columns.names != self.columns.names and bool(self.columns.names)
        where = self._names_of if is_name else self._values_of
        return DataError(
            f"{file}: column {difference.column} is {difference.actual}, expected {difference.expected} as in {where}. "
            f"{self._advice(columns, is_name)}"
        )

    def _advice(self, columns: Columns, is_name: bool) -> str:
        advice = "Give shards with the same columns in the same order"
        if not is_name:
            return f"{advice}, or skip the comparison with --match-columns ignore."
        if sorted(columns.names) == sorted(self.columns.names):
            return f"Only the order of the names differs. {advice}, or reorder them with --match-columns name."
        return f"{advice}."

    def _order_by_name(self, file: InputFile) -> np.ndarray | None:
        """Return the position in a shard of each column, (n_inputs,), int32; None if they are in this order."""
        names = file.description.columns.names
        expected = self.columns.names
        if not names:
            raise DataError(
                f"{file}: has no column names, which --match-columns name needs. Omit the option, or write the names "
                "into the file (docs/inputs.md)."
            )
        if not expected or names == expected:
            return None
        _check_same_names(file, expected, self._names_of)
        positions = {name: position for position, name in enumerate(names)}
        order = np.array([positions[name] for name in expected], dtype=np.int32)
        return self._distinct_orders.setdefault(order.tobytes(), order)  # shards with the same order share one array

    def _extend(self, columns: Columns, file: InputFile) -> None:
        """Add names and numbers of columns that no earlier file has."""
        common = self.columns
        if columns.names and not common.names:
            common = replace(common, names=columns.names, names_from=columns.names_from)
            self._names_of = str(file)
        if columns.values is not None and common.values is None:
            common = replace(common, values=columns.values, values_from=columns.values_from)
            self._values_of = str(file)
        row_shape = row_shape_of(file.shape) or common.row_shape
        if row_shape != common.row_shape:
            common = replace(common, row_shape=row_shape)
        self.columns = common

    def _count(self, file: InputFile) -> None:
        columns = file.description.columns
        self._n_shards += 1
        self._n_named += bool(columns.names)
        self._has_any |= columns.is_known
        if columns.note:
            self._notes[columns.note] += 1
            self._first_note.setdefault(columns.note, file)

    def log(self) -> None:
        """Log which columns were compared, and why the names in some files are ignored."""
        self._log_notes()
        if self._rule.where and self._has_any != self._rule.expected.is_known:
            lacking = "the input has" if self._rule.expected.is_known else "the model has"
            log.info("input: columns are not compared with those of %s: %s no names", self._rule.where, lacking)
        if not self._has_any:
            return
        if self._rule.match == "ignore":
            log.info("input: columns: %s, not compared (--match-columns ignore)", self.columns)
            return
        self._log_comparison()

    def _log_comparison(self) -> None:
        of_model = f" and with {self._rule.where}" if self._rule.expected.is_known else ""
        log.info("input: columns: %s, compared over %s%s", self.columns, quantity(self._n_shards, "shard"), of_model)
        if self._n_named and self._n_named < self._n_shards:
            n_nameless = self._n_shards - self._n_named
            log.info("input: columns: %s without names, read in the order of the others", quantity(n_nameless, "shard"))
        if self._n_reordered:
            log.info("input: columns of %s are reordered by name", quantity(self._n_reordered, "shard"))

    def _log_notes(self) -> None:
        for note, n in self._notes.most_common(_LISTED):
            more = f", in {quantity(n, 'shard')}" if n > 1 else ""
            log.warning("%s: column names or numbers are ignored%s: %s", self._first_note[note], more, printable(note))


def _check_same_names(file: InputFile, expected: Sequence[str], where: str) -> None:
    """Raise `DataError` unless a shard has the expected names, and all names are unique."""
    names = file.description.columns.names
    _check_unique(names, str(file))
    _check_unique(expected, where)
    own_names = set(names)
    missing = [name for name in expected if name not in own_names]
    surplus = sorted(own_names.difference(expected))
    if missing or surplus:
        raise DataError(
            f"{file}: {len(missing)} columns of {where} are missing ({_name_list(missing)}), and {len(surplus)} "
            f"columns are not in it ({_name_list(surplus)}), expected the same names. Give shards with the same "
            "columns."
        )


def _check_unique(names: Sequence[str], where: str) -> None:
    repeated = [name for name, n in Counter(names).items() if n > 1]
    if repeated:
        raise DataError(
            f"{where}: several columns are named {_name_list(repeated)}, but --match-columns name needs unique names. "
            "Rename them (AnnData: adata.var_names_make_unique())."
        )


def _name_list(names: Sequence[str]) -> str:
    return short_list((printable(name[:_LONGEST]) for name in names), _LISTED)
