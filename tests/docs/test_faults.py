"""The fault list of docs/reliability.md has tests for every fault that one machine can produce."""

import ast
import re
from functools import cache
from pathlib import Path

from tests.support.cases import each

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "reliability.md"


def faults(letter, first, last):
    return [f"{letter}{number}" for number in range(first, last + 1)]


COVERED = [
    *faults("P", 1, 12),
    *faults("D", 1, 14),
    *faults("C", 1, 7),
    *faults("I", 1, 21),
    *faults("V", 1, 10),
    *faults("G", 1, 6),
    *faults("K", 1, 10),
    *faults("S", 1, 19),
    *faults("U", 1, 5),
]


@cache
def fault_tests():
    """Return the tests of each fault in the list, as ``file.py::test_...``."""
    items = re.findall(r"^- ([A-Z][0-9]+): .+\n((?:  .+\n)*)", PAGE.read_text(), re.MULTILINE)
    assert len(dict(items)) == len(items), "a fault occurs twice"
    return {fault: [name_of(line) for line in lines.splitlines()] for fault, lines in items}


def name_of(line):
    """Return the name of the test in a line of the list."""
    found = re.fullmatch(r"  - `([a-z0-9_/]+\.py::test_[a-z0-9_]+)`", line)
    assert found, f"not a test: {line!r}"
    return found[1]


@cache
def names_in(file):
    """Return the names of the tests of a file; none if it does not exist."""
    path = TESTS / file
    if not path.is_file():
        return set()
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@each("fault", COVERED)
def test_fault_has_a_test(fault):
    assert fault_tests().get(fault)


def test_list_has_known_faults_only():
    assert list(fault_tests()) == COVERED


@each("fault", COVERED)
def test_listed_tests_exist_and_occur_once_per_fault(fault):
    tests = fault_tests()[fault]
    missing = [name for name in tests if name.partition("::")[2] not in names_in(name.partition("::")[0])]
    assert missing == []
    assert len(set(tests)) == len(tests)
