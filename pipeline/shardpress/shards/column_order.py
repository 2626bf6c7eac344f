"""Comparison of the columns of all shards and of a model, and the order in which columns are read."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np

from shardpress.base.errors import ConfigError, DataError, Problem, printable, quantity, short_list
from shardpress.hdf5.columns import NO_COLUMNS, Columns, Difference, row_shape_of
from shardpress.shards.vet import InputFile

log = logging.getLogger(__name__)

_LISTED = 3  # names that a message lists
_LOGGED = 10  # names in a line of the log
_LABELS = frozenset({"label", "labels", "target", "class", "index", "id"})
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
    patterns: tuple[str, ...] = ()  # names of the columns to read; ! precedes a pattern of names to leave out
    extras: frozenset[str] = frozenset()  # names of values that a user needs as extras, for example as targets


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
        self._choice: tuple[InputFile, InputFile] | None = None  # the first file with others, before and after it
        self._notes: Counter[str] = Counter()
        self._first_note: dict[str, InputFile] = {}
        self._distinct_orders: dict[bytes, np.ndarray] = {}

    def accept(self, file: InputFile) -> InputFile:
        """Return a file with the order of its columns, and compare later files with it.

        Raise `DataError` if its columns differ from those of the model or of earlier files.
        """
        file = self._with_chosen(file)
        order = self._order_by_name(file) if self._rule.match == "name" else None
        if order is not None:
            file = file.choosing(order)
        columns = file.columns
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
        return file

    def _with_chosen(self, file: InputFile) -> InputFile:
        """Return a file with those of its columns that are rows, which are the same names in all files."""
        names = file.columns.names
        expected = self.columns
        patterns = self._rule.patterns
        if not (file.description.is_mixed or patterns or expected.are_chosen):
            return file
        if not names:
            if patterns:
                words = f"{file} has no column names"
                raise ConfigError(Problem(("columns",), words, "Omit {columns}, or write the names (docs/inputs.md)"))
            return file
        if expected.names and (self._rule.match != "ignore" or set(expected.names) <= set(names)):
            chosen = _positions_of(file, expected.names, self._names_of)
            if patterns and self._rule.where and set(_chosen_by_rule(file, self._rule)) != set(chosen):
                words = f"{' '.join(patterns)}, expected the columns of {self._names_of}"
                raise ConfigError(Problem(("columns",), words, "Omit {columns}"))
        else:
            chosen = _chosen_by_rule(file, self._rule)
        if chosen == list(range(len(names))) and not file.description.is_mixed:
            return file
        order = np.array(chosen, dtype=np.int32)
        order = self._distinct_orders.setdefault(order.tobytes(), order)  # files with the same order share one array
        chosen_file = file.choosing(order)
        self._choice = self._choice or (file, chosen_file)
        return chosen_file

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
        names = file.columns.names
        expected = self.columns.names
        if not names:
            raise DataError(
                f"{file}: has no column names, which --match-columns name needs. Omit the option, or write the names "
                "into the file (docs/inputs.md)."
            )
        if not expected or names == expected:
            return None
        _check_same_names(file, expected, self._names_of)
        order = np.array(_positions_of(file, expected, self._names_of), dtype=np.int32)
        return self._distinct_orders.setdefault(order.tobytes(), order)

    def _extend(self, columns: Columns, file: InputFile) -> None:
        """Add names and numbers of columns that no earlier file has."""
        common = self.columns
        if columns.names and not common.names:
            are_chosen = file.description.is_mixed or bool(self._rule.patterns)
            common = replace(common, names=columns.names, names_from=columns.names_from, are_chosen=are_chosen)
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
        self._log_choice()
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

    def _log_choice(self) -> None:
        if self._choice is None:
            return
        before, after = self._choice
        chosen = set(after.columns.names)
        others = [name for name in before.columns.names if name not in chosen]
        log.info(
            "input: rows have %s: %s; %s: %s (--columns chooses others)",
            quantity(len(chosen), "column"),
            _name_list(after.columns.names, _LOGGED),
            "extras" if before.description.is_mixed else "not read",
            _name_list(others, _LOGGED) or "none",
        )

    def _log_notes(self) -> None:
        for note, n in self._notes.most_common(_LISTED):
            more = f", in {quantity(n, 'shard')}" if n > 1 else ""
            log.warning("%s: column names or numbers are ignored%s: %s", self._first_note[note], more, printable(note))


def _check_same_names(file: InputFile, expected: Sequence[str], where: str) -> None:
    """Raise `DataError` unless a shard has the expected names, and all names are unique."""
    names = file.description.columns.names
    _check_unique(names, str(file))
    _check_unique(expected, where)
    missing = _missing(names, expected)
    surplus = sorted(set(names).difference(expected))
    if missing or surplus:
        raise DataError(
            f"{file}: {len(missing)} columns of {where} are missing ({_name_list(missing)}), and {len(surplus)} "
            f"columns are not in it ({_name_list(surplus)}), expected the same names. Give shards with the same "
            "columns."
        )


def _missing(names: Sequence[str], expected: Sequence[str]) -> list[str]:
    own_names = set(names)
    return [name for name in expected if name not in own_names]


def _positions_of(file: InputFile, expected: Sequence[str], where: str) -> list[int]:
    """Return the position of each expected column in a file. Raise `DataError` if one is missing or not unique."""
    names = file.columns.names
    missing = _missing(names, expected)
    if missing:
        raise DataError(
            f"{file}: {len(missing)} columns of {where} are missing ({_name_list(missing)}), expected all of "
            "them. Give shards with the same columns."
        )
    if len(set(names)) != len(names):
        _check_unique([name for name in names if name in set(expected)], str(file))
    positions = {name: position for position, name in enumerate(names)}
    return [positions[name] for name in expected]


def _chosen_by_rule(file: InputFile, rule: ColumnRule) -> list[int]:
    """Return the positions of the columns of a file that are rows, by their names alone."""
    names = file.columns.names
    wanted = [pattern for pattern in rule.patterns if not pattern.startswith("!")]
    unwanted = [pattern[1:] for pattern in rule.patterns if pattern.startswith("!")]
    for pattern in (*wanted, *unwanted):
        if not any(fnmatchcase(name, pattern) for name in names):
            words = f"{pattern} matches none of {quantity(len(names), 'column')} of {file}"
            raise ConfigError(Problem(("columns",), f"{words}: {_name_list(names, _LOGGED)}"))
    if wanted:
        chosen = [i for i, name in enumerate(names) if _matches(name, wanted)]
    elif file.description.is_mixed:
        has_x = "x" in map(str.lower, names)
        chosen = [i for i, name in enumerate(names) if not _is_label(name.lower(), has_x)]
    else:
        chosen = list(range(len(names)))
    chosen = [i for i in chosen if not (_matches(names[i], unwanted) or _is_extra(file, names[i], rule))]
    if not chosen:
        raise DataError(
            f"{file}: none of {quantity(len(names), 'column')} is left for the rows ({_name_list(names, _LOGGED)}): "
            "they are named like labels or ids, or needed as extras. Choose columns with --columns."
        )
    return chosen


def _is_label(name: str, has_x: bool) -> bool:
    """Return whether a column of a table, whose name is given in lower case, is likely to hold labels or ids."""
    return name in _LABELS or name.endswith("_id") or (name == "y" and not has_x)


def _is_extra(file: InputFile, name: str, rule: ColumnRule) -> bool:
    return file.description.is_mixed and name in rule.extras


def _check_unique(names: Sequence[str], where: str) -> None:
    repeated = [name for name, n in Counter(names).items() if n > 1]
    if repeated:
        raise DataError(
            f"{where}: several columns are named {_name_list(repeated)}, but columns are found by name, "
            "which needs unique names. Rename them (AnnData: adata.var_names_make_unique())."
        )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _name_list(names: Sequence[str], most: int = _LISTED) -> str:
    return short_list((printable(name[:_LONGEST]) for name in names), most)
