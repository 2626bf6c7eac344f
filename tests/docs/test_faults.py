"""The fault table of the page on reliability lists, for every fault that one machine can produce, tests that exist."""

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
    *rows("K", 1, 9),
    *rows("S", 1, 19),
    *rows("U", 1, 5),
]


@cache
def existing():
    """Return the names of all tests, ``file.py::test_...``."""
    found = set()
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found.add(f"{path.relative_to(TESTS)}::{node.name}")
    return found


@cache
def listed():
    """Return the tests that the table of the page lists, by row."""
    lines = re.findall(r"^\| ([A-Z][0-9]+) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    assert len(dict(lines)) == len(lines), "a row is listed twice"
    return {row: re.findall(r"`([^`]+::[^`]+)`", tests) for row, tests in lines}


@each("row", COVERED)
def test_the_table_lists_tests_of_each_fault(row):
    assert listed().get(row)


def test_the_table_lists_no_other_faults():
    assert set(listed()) == set(COVERED)


@each("row", COVERED)
def test_listed_tests_exist(row):
    assert set(listed()[row]) - existing() == set()


@each("row", COVERED)
def test_a_row_lists_a_test_once(row):
    assert len(set(listed()[row])) == len(listed()[row])
