"""Tests of the table of mutations: the table matches the code, and tests catch a sample of the mutations."""

from __future__ import annotations

import ast
import shutil
from itertools import groupby
from pathlib import Path

import pytest

from tests.support.cases import case
from tests.support.interpreters import REPOSITORY
from tests.support.mutants import Failed, Sources, copy_remaining, main, n_by_row, plant_all, sample, select
from tests.support.mutations import MUTATIONS, Mutation

_HARMLESS = Mutation("harmless", "notes.txt", "one", "two", ("tests/test_cases.py",))


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


def test_each_row_of_packages_has_enough_mutations(capsys: pytest.CaptureFixture) -> None:
    numbers = n_by_row()
    assert sum(numbers.values()) == len(MUTATIONS) >= 100
    assert {row: n for row, n in numbers.items() if n < 5} == {}
    assert main(["rows"]) == 0
    assert [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()] == [
        [str(n), row] for row, n in numbers.items()
    ]


def test_mutations_of_a_row_are_together() -> None:
    rows = [row for row, _ in groupby(MUTATIONS, lambda mutation: mutation.row)]
    assert len(set(rows)) == len(rows)


def test_a_sample_has_one_mutation_of_each_row() -> None:
    assert [mutation.row for mutation in sample(100)] == [row for row, _ in groupby(MUTATIONS, lambda each: each.row)]
    assert select(["3"]) == sample(3)
    assert select(["all"]) == list(MUTATIONS)
    assert select([MUTATIONS[-1].name]) == [MUTATIONS[-1]]
    for arguments in ([], ["no-such-mutation"]):
        with pytest.raises(SystemExit, match=MUTATIONS[0].name):
            select(arguments)


def test_a_file_is_mutated_only_within_the_context(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("one three")
    sources = Sources(tmp_path)
    times = []
    for _ in range(2):
        with sources.apply(_HARMLESS):
            assert path.read_text() == "two three"
            times.append(int(path.stat().st_mtime))
        assert path.read_text() == "one three"
        times.append(int(path.stat().st_mtime))
    assert len(set(times)) == len(times), "stale byte code would be used"
    for text in ("three", "one one"):
        path.write_text(text)
        with pytest.raises(Failed, match=r"notes\.txt"), sources.apply(_HARMLESS):
            pass
        assert path.read_text() == text


def test_a_module_removed_while_the_cache_is_copied_is_left_out(tmp_path: Path) -> None:
    for module in ("kept", "removed"):
        (tmp_path / "cache" / module).mkdir(parents=True)
        (tmp_path / "cache" / module / "module.so").write_text(module)

    def copy_file(source: str, target: str) -> None:
        if Path(source).parent.name == "removed":
            shutil.rmtree(Path(source).parent)
        shutil.copy2(source, target)

    copy_remaining(tmp_path / "cache", tmp_path / "copy", copy_file)
    assert [path.read_text() for path in (tmp_path / "copy").glob("*/*")] == ["kept"]


def test_a_module_that_cannot_be_copied_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "module.so").symlink_to("nowhere")
    with pytest.raises(shutil.Error, match=r"module\.so"):
        copy_remaining(tmp_path / "cache", tmp_path / "copy")


@pytest.mark.process
def test_a_sample_of_mutations_is_caught() -> None:
    # `make soak` tests all mutations.
    mutations = sample(3)
    found = list(plant_all(mutations))
    assert [result.mutation for result in found] == mutations
    survivors = [str(result) for result in found if not result.caught_by]
    assert survivors == []


@pytest.mark.process
def test_a_mutation_that_no_test_sees_survives(capsys: pytest.CaptureFixture) -> None:
    # The output and the exit code report the survivor.
    file = "pipeline/shardpress/signals.py"
    docstring = (REPOSITORY / file).read_text().splitlines()[0]
    unnoticed = Mutation(
        "unseen", file, docstring, docstring.replace('"""', '"""Another text. ', 1), ("tests/test_cases.py",)
    )
    assert main(["unseen"], (unnoticed,)) == 1
    assert "unseen: SURVIVED" in capsys.readouterr().out


@pytest.mark.process
def test_a_test_that_cannot_run_catches_nothing(capsys: pytest.CaptureFixture) -> None:
    fault = Mutation(
        "fault", "pipeline/shardpress/signals.py", "_n_deferred -= 1", "_n_deferred -= 2", ("tests/test_gone.py",)
    )
    assert main(["fault"], (fault,)) == 1
    assert "test_gone.py" in capsys.readouterr().err
