"""The fault table of docs/reliability.md lists tests for every fault that one machine can produce."""

import ast
import re
from functools import cache
from pathlib import Path

from tests.support.cases import each

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "reliability.md"


def rows(letter, first, last):
    return [f"{letter}{number}" for number in range(first, last + 1)]


COVERED = [
    *rows("P", 1, 12),
    *rows("D", 1, 14),
    *rows("C", 1, 7),
    *rows("I", 1, 21),
    *rows("V", 1, 10),
    *rows("G", 1, 6),
    *rows("K", 1, 10),
    *rows("S", 1, 19),
    *rows("U", 1, 5),
]


@cache
def listed():
    """Return the tests of each row of the table, as ``file.py::test_...``."""
    lines = re.findall(r"^\| ([A-Z][0-9]+) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    assert len(dict(lines)) == len(lines), "a row occurs twice"
    return {row: re.findall(r"`([a-z0-9_/]+\.py::test_[a-z0-9_]+)`", names) for row, names in lines}


@cache
def names_in(file):
    """Return the names of the tests of a file; none if it does not exist."""
    path = TESTS / file
    if not path.is_file():
        return set()
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@each("row", COVERED)
def test_fault_has_a_test(row):
    assert listed().get(row)


def test_table_lists_known_faults_only():
    assert list(listed()) == COVERED


@each("row", COVERED)
def test_listed_tests_exist_and_are_listed_once_in_a_row(row):
    tests = listed()[row]
    missing = [name for name in tests if name.partition("::")[2] not in names_in(name.partition("::")[0])]
    assert missing == []
    assert len(set(tests)) == len(tests)
