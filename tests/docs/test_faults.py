"""The fault table: every row that one machine can produce has a test of its name, and the page on reliability lists it.

A test is called after the rows it covers: ``test_p5_...``, ``test_v1_v2_...``.
"""

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
def named_after():
    """Names of tests, ``file.py::test_...``, by the rows they are called after."""
    found = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (match := re.match(r"test_((?:[a-z][0-9]+_)+)", node.name)):
                for row in match[1].rstrip("_").split("_"):
                    found.setdefault(row.upper(), []).append(f"{path.relative_to(TESTS)}::{node.name}")
    return found


def listed():
    """What the page's table says: tests by row."""
    lines = re.findall(r"^\| ([A-Z][0-9]+) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    return {row: re.findall(r"`([a-z0-9_/]+\.py::test_[a-z0-9_]+)`", names) for row, names in lines}


@each("row", COVERED)
def test_a_fault_has_a_test(row):
    assert named_after().get(row), f"no test is called test_{row.lower()}_..."


def test_no_test_claims_a_row_that_does_not_exist():
    assert set(named_after()) - set(COVERED) - {"K10", "G7"} == set()


def test_the_page_lists_every_row_with_tests_that_exist():
    table, there = listed(), named_after()
    assert set(COVERED) - set(table) == set()
    gone = {row: [name for name in names if name not in there.get(row, [])] for row, names in table.items()}
    assert {row: names for row, names in gone.items() if names} == {}
    assert [row for row, names in table.items() if not names] == []


def test_the_page_counts_the_tests_that_it_does_not_list():
    lines = re.findall(r"^\| ([A-Z][0-9]+) \| .*?(?: and ([0-9]+) more)? \|$", PAGE.read_text(), re.MULTILINE)
    table, there = listed(), named_after()
    assert {row: len(table[row]) + int(more or 0) for row, more in lines} == {row: len(there[row]) for row, _ in lines}
