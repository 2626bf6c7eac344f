"""Print how large this project is: lines of each package and of the tests, words of the docs, settings and commands.

    make sizes                                               this checkout
    .venv/bin/python scripts/sizes.py --against COMMIT       each number in COMMIT, and in this checkout
    .venv/bin/python scripts/sizes.py DIR                    another copy of the project

Lines and code are those of the Python files. Code excludes docstrings, comments and blank lines. Public names are the
functions and classes at the top of a module whose names begin without an underscore.
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import subprocess
import sys
import tarfile
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
ROOT_MODULES = "modules at the root"
SOURCE_FOLDERS = ("pipeline", "kernels")
OTHER_LANGUAGES = (".c", ".cpp", ".css", ".h", ".html", ".sh")
LAYOUT_TOKENS = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


@dataclass
class Lines:
    """Numbers of files and lines; None where a number says nothing."""

    files: int
    lines: int
    code: int | None = None
    names: int | None = None


@dataclass
class Sizes:
    """All numbers of a copy of the project, by their titles."""

    lines: dict[str, Lines] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)


def source_folder(tree: Path, folder: str, package: str) -> Path:
    """Return the directory of a package. In earlier commits, the folders were packages, not source roots."""
    is_package = (tree / folder / "__init__.py").exists()
    return tree / folder if is_package else tree / folder / package


def python_files(folder: Path) -> list[Path]:
    """Return all Python files in a directory."""
    return sorted(folder.rglob("*.py"))


def n_lines(path: Path) -> int:
    """Return the number of lines of a text file."""
    return path.read_text().count("\n")


def count_python(paths: Sequence[Path]) -> Lines:
    """Count the lines and the public names of Python files."""
    sources = [path.read_text() for path in paths]
    code = sum(map(count_code, sources))
    names = sum(map(count_public_names, sources))
    return Lines(len(paths), sum(map(n_lines, paths)), code, names)


def count_code(source: str) -> int:
    """Return the number of lines without docstrings, comments and blank lines."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (tokenize.COMMENT, *LAYOUT_TOKENS):
            lines.update(range(token.start[0], token.end[0] + 1))
    with_body = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in [each for each in ast.walk(ast.parse(source)) if isinstance(each, with_body)]:
        if ast.get_docstring(node) is not None:
            docstring = node.body[0]
            lines.difference_update(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return len(lines)


def count_public_names(source: str) -> int:
    """Return the number of functions and classes of a module whose names begin without an underscore."""
    definitions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return sum(not node.name.startswith("_") for node in definitions)


def count_other_languages(folders: Iterable[Path]) -> Lines:
    """Count the lines of C, C++, CSS, HTML and shell files."""
    paths = [path for folder in folders for path in folder.rglob("*") if path.suffix in OTHER_LANGUAGES]
    return Lines(len(paths), sum(map(n_lines, paths)))


def measure(tree: Path) -> Sizes:
    """Measure a copy of the project."""
    sizes = Sizes()
    files_of: defaultdict[str, list[Path]] = defaultdict(list)
    package = source_folder(tree, "pipeline", "shardpress")
    for path in python_files(package):
        room = path.relative_to(package).parts[0]
        files_of[ROOT_MODULES if room.endswith(".py") else room].append(path)
    files_of["kernels"] = python_files(source_folder(tree, "kernels", "shardpress_kernels"))
    for row, paths in files_of.items():
        sizes.lines[row] = count_python(paths)
    sizes.lines["all"] = count_python([path for paths in files_of.values() for path in paths])
    sizes.lines["C, HTML and CSS"] = count_other_languages([tree / folder for folder in SOURCE_FOLDERS])
    for title, folder in [("tests", "tests"), ("of which tests/support", "tests/support"), ("scripts", "scripts")]:
        sizes.lines[title] = count_python(python_files(tree / folder))
        sizes.lines[title].names = None
    sizes.lines["C and shell of tests and scripts"] = count_other_languages([tree / "tests", tree / "scripts"])
    sizes.others = count_words(tree) | count_interface(tree)
    return sizes


def count_words(tree: Path) -> dict[str, int]:
    """Count the words of the docs."""
    pages = {name: [tree / f"{name}.md"] for name in ("README", "CONTRIBUTING", "CHANGELOG")}
    pages["docs/*.md"] = sorted((tree / "docs").glob("*.md"))
    return {f"words of {name}": sum(len(path.read_text().split()) for path in pages[name]) for name in pages}


def count_interface(tree: Path) -> dict[str, int]:
    """Count what users can set and call; the help texts are those of the program itself."""
    page = help_text(tree, "run", "--help-all") or help_text(tree, "run", "--help")
    groups = Counter(group for group, line in entries(page) if line.startswith("  -"))
    n_others = groups.pop("options:")  # argparse's group for flags without a group: no settings
    commands = [line for group, line in entries(help_text(tree, "--help")) if group and line.startswith("  ")]
    return {
        "settings with a flag": groups.total(),
        "other flags of run": n_others,
        "parameters of TiedAutoencoder": count_parameters(tree, "TiedAutoencoder"),
        "commands of shardpress": len(commands),
    }


def help_text(tree: Path, *arguments: str) -> str:
    """Return what `shardpress` prints in a copy of the project; empty if it refuses the arguments."""
    roots = [str(tree), *(str(tree / folder) for folder in SOURCE_FOLDERS)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(roots)}
    command = [sys.executable, "-P", "-m", "shardpress", *arguments]
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    if result.returncode and "UsageError" not in result.stderr:
        raise RuntimeError(f"shardpress {' '.join(arguments)} failed in {tree}: {result.stderr.strip()}")
    return "" if result.returncode else result.stdout


def entries(page: str) -> list[tuple[str, str]]:
    """Return the lines of a help page, each with the heading above it."""
    found = []
    heading = ""
    for line in page.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            heading = line
        else:
            found.append((heading, line))
    return found


def count_parameters(tree: Path, name: str) -> int:
    """Return the number of parameters of a dataclass. A copy without compiled modules cannot import it."""
    for path in python_files(tree / "pipeline"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name == name:
                return sum(isinstance(statement, ast.AnnAssign) for statement in node.body)
    raise RuntimeError(f"{tree} contains no class {name}")


def extract_commit(tree: Path, commit: str, folder: Path) -> Path:
    """Write the files of a commit into a directory, and return the directory."""
    archive = subprocess.check_output(["git", "-C", str(tree), "archive", commit])
    with tarfile.open(fileobj=io.BytesIO(archive)) as file:
        file.extractall(folder, filter="data")
    return folder


def print_tables(before: Sizes, after: Sizes) -> None:
    """Print all numbers as tables in Markdown, and both values where they differ."""
    print("| package | files | lines | code | public names |\n|---|---|---|---|---|")
    for title in {**after.lines, **before.lines}:  # a package of only one of them is empty in the other one
        earlier = before.lines.get(title, Lines(0, 0, 0, 0))
        now = after.lines.get(title, Lines(0, 0, 0, 0))
        cells = [cell(*pair) for pair in zip(astuple(earlier), astuple(now), strict=True)]
        print(f"| {title} | {' | '.join(cells)} |")
    print("\n| | number |\n|---|---|")
    for title, number in after.others.items():
        print(f"| {title} | {cell(before.others[title], number)} |")


def cell(before: int | None, after: int | None) -> str:
    """Return the text of a cell."""
    if after is None:
        return ""
    return f"{after:,}" if before == after else f"{before:,} -> {after:,}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the sizes, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", nargs="?", type=Path, default=ROOT, metavar="DIR", help="default: this checkout")
    parser.add_argument("--against", metavar="COMMIT", help="also measure this commit of the repository in DIR")
    options = parser.parse_args(argv)
    tree = options.tree.resolve()
    after = measure(tree)
    before = after
    if options.against:
        with TemporaryDirectory() as folder:
            before = measure(extract_commit(tree, options.against, Path(folder)))
    print_tables(before, after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
