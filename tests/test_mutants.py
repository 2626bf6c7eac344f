"""Tests of the table of mutations: the table matches the code, and tests catch a sample of the mutations."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.cases import case
from tests.support.interpreters import REPOSITORY
from tests.support.mutants import plant_all, sample
from tests.support.mutations import MUTATIONS


def functions_of(file: Path) -> set[str]:
    """Return the names of all functions of a file."""
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


def test_names_of_mutations_are_unique() -> None:
    names = [mutation.name for mutation in MUTATIONS]
    assert len(set(names)) == len(names)


def test_each_mutated_text_occurs_once_in_its_file() -> None:
    n_found = {each.name: (REPOSITORY / each.file).read_text().count(each.text) for each in MUTATIONS}
    wrong = [
        f"{each.name}: found {n_found[each.name]} times in {each.file}: {each.text!r}"
        for each in MUTATIONS
        if n_found[each.name] != 1
    ]
    assert wrong == [], "Choose a text in tests/support/mutations.py that occurs once and has the same meaning."


def test_mutated_python_files_can_be_parsed() -> None:
    for mutation in MUTATIONS:
        if mutation.file.endswith(".py"):
            source = (REPOSITORY / mutation.file).read_text().replace(mutation.text, mutation.replacement)
            with case(mutation.name):
                ast.parse(source)


def test_tests_of_mutations_exist() -> None:
    missing = []
    for mutation in MUTATIONS:
        assert mutation.tests, mutation.name
        for test in mutation.tests:
            file, _, name = test.partition("::")
            path = REPOSITORY / file
            if not path.is_file() or (name and name.partition("[")[0] not in functions_of(path)):
                missing.append(f"{mutation.name}: {test}")
    assert missing == []


@pytest.mark.process
def test_a_sample_of_mutations_is_caught() -> None:
    # `make soak` tests all mutations.
    mutations = sample(3)
    found = list(plant_all(mutations))
    assert [result.mutation for result in found] == mutations
    survivors = [str(result) for result in found if not result.caught_by]
    assert survivors == []
