"""Tests of the architecture: the imports that are allowed between packages."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

# The packages and modules of `shardpress`. Each imports only itself and those before it.
ORDER = (
    *("base", "settings", "hdf5", "model", "result", "shards", "cluster", "scan", "training", "output", "encoding"),
    *("report", "run", "interop", "shardpress", "setup", "cli", "commands", "__main__"),
)
# Modules without Theano, which every package of `shardpress` is allowed to import.
PLAIN = [
    "shardpress_kernels.activations",
    "shardpress_kernels.network",
    "shardpress_kernels.hostmath",
    "shardpress_kernels.rules",
    "shardpress_kernels.theanofiles",
    "shardpress_kernels.trust",
]

ROOT = Path(__file__).parents[1]
# A module in C has a .pyi file.
SOURCE_ROOTS = {"shardpress": ROOT / "pipeline", "shardpress_kernels": ROOT / "kernels"}
PACKAGE = SOURCE_ROOTS["shardpress"] / "shardpress"
PIPELINE = sorted(path for ending in ("py", "pyi") for path in PACKAGE.rglob(f"*.{ending}"))
KERNELS = sorted((SOURCE_ROOTS["shardpress_kernels"] / "shardpress_kernels").glob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
DEFINITIONS = (ast.FunctionDef, ast.ClassDef)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield every statement below a node, except for code that only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr) and not is_type_checking(child):
            yield child
            yield from statements(child)


@cache
def imports(source: str) -> list[tuple[str, str | None]]:
    """Return (module, name or None) of every import, also in functions; a relative import begins with dots."""
    found: list[tuple[str, str | None]] = []
    for node in statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [("." * node.level + (node.module or ""), alias.name) for alias in node.names]
    return found


def module_of(path: Path) -> str:
    (root,) = (root for root in SOURCE_ROOTS.values() if path.is_relative_to(root))
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


@cache
def file_of(module: str) -> Path | None:
    """Return the file of one of our modules."""
    root = SOURCE_ROOTS.get(module.split(".")[0])
    if root is None:
        return None
    stem = root / module.replace(".", "/")
    candidates = [stem.with_suffix(".py"), stem.with_suffix(".pyi"), stem / "__init__.py"]
    return next((path for path in candidates if path.exists()), None)


def our_imports(source: str) -> list[str]:
    """Return the modules of our packages that a source imports."""
    ours = [(module, name) for module, name in imports(source) if module.split(".")[0] in SOURCE_ROOTS]
    return [f"{module}.{name}" if name and file_of(f"{module}.{name}") else module for module, name in ours]


def wrong_imports(module: str, source: str) -> list[str]:
    """Return the imports of a module that are not allowed in its package."""
    package = module.removeprefix("shardpress.").split(".")[0]
    if package == "shardpress_kernels":
        return [each for each in our_imports(source) if not each.startswith("shardpress_kernels")]
    allowed = [*PLAIN, *ORDER[: ORDER.index(package) + 1]]
    if module == "shardpress.model.device":
        allowed.append("shardpress_kernels")
    ours = [each.removeprefix("shardpress.") for each in our_imports(source)]
    of_kernels = [each for each, _ in imports(source) if each.split(".")[0] in ("theano", "pygpu") or each[0] == "."]
    return of_kernels + [each for each in ours if not any(f"{each}.".startswith(f"{name}.") for name in allowed)]


def test_a_package_imports_itself_and_those_before_it() -> None:
    packages = {module_of(path).removeprefix("shardpress.").split(".")[0] for path in PIPELINE}
    assert set(ORDER) == packages
    wrong = {path: wrong_imports(module_of(path), path.read_text()) for path in PIPELINE + KERNELS}
    assert {module_of(path): modules for path, modules in wrong.items() if modules} == {}


def test_a_file_name_occurs_once() -> None:
    """Except for commands, which can have the name of the module that they call."""
    modules = [module_of(path).split(".") for path in PIPELINE if path.parent.name != "commands"]
    packages = {name for parts in modules for name in parts[:-1]}
    names = Counter(parts[-1] for parts in modules if parts[-1] not in packages)
    assert [name for name, n in names.items() if n > 1] == []


def test_imports_have_no_cycles() -> None:
    graph = {module_of(path): set(our_imports(path.read_text())) for path in PIPELINE + KERNELS}
    TopologicalSorter(graph).prepare()


def test_files_import_no_private_names() -> None:
    for path in PIPELINE + KERNELS + SCRIPTS:
        for module, name in imports(path.read_text()):
            assert name != "*", path
            if file_of(module) and name:
                assert not name.startswith("_"), f"{path}: {name} of {module}"


def test_public_names_are_used_in_other_modules() -> None:
    n_files: Counter[str] = Counter()
    for path in [*PIPELINE, *KERNELS, *SCRIPTS, *(ROOT / "tests").rglob("*.py")]:
        n_files.update(set(re.findall(r"\w+", path.read_text())))
    for path in PIPELINE + KERNELS:
        if path.suffix == ".pyi" or path.parent.name == "commands":  # `registry` looks the functions of a command up
            continue
        defined = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, DEFINITIONS)]
        assert [name for name in defined if name[0] != "_" and n_files[name] == 1] == [], path
