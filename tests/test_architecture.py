"""The table of wings is the architecture: imports go one way, heavy libraries stay behind their doors."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

# Every wing may import itself, the ground and what stands here; a wing that is no folder is a file.
GROUND = ["errors", "formats", "runlog", "settings", "signals"]
MAY_IMPORT = {
    **{each: [] for each in ("installed", "progress", *GROUND, "cluster", "hdf5", "output")},
    "shards": ["hdf5", "output.records"],
    "scan": ["shards", "cluster"],
    "model": ["scan.scaler"],
    "device": ["scan.scaler", "kernels"],
    "features": ["hdf5.riders", "output.records"],
    "training": ["shards", "scan", "cluster", "model", "device"],
    "encoding": ["hdf5", "shards", "scan", "cluster", "model", "device", "features", "output.records", "output.disk"],
    # It alone commits, and shows how far a pass has come: what stands above counts for whoever calls.
    "run": ["progress", "output", "shards", "scan", "cluster", "model", "device", "features", "training", "encoding"],
    "cli": ["run", "output.disk"],
}
# Imports that run the wrong way still.
OWED = {
    "training.epochs": ["progress"],
}

ROOT = Path(__file__).parents[1]
PIPELINE = sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "pipeline").rglob("*.pyi")])  # C has a .pyi
KERNELS = sorted((ROOT / "kernels").glob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
# Too large to load for a command line that has a typing error in it.
HEAVY = ["theano", "pygpu", "scipy", "sklearn", "matplotlib", "distributed", "dask.distributed", "pandas"]


def name_of(path):
    return str(path.relative_to(ROOT))


def is_type_checking(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def statements(node):
    """Every node below, but for what only type checkers see."""
    for child in ast.iter_child_nodes(node):
        if not is_type_checking(child):
            yield child
            yield from statements(child)


def imports(path):
    """(module, name or None) of every import in a file, inside functions too."""
    for node in statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from ((node.module, alias.name) for alias in node.names)


def exported(path):
    """What ``__all__`` lists, or None without one."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return ast.literal_eval(node.value)
    return None


def wing_of(module):
    """The wing of a module of pipeline: ``hdf5`` of ``hdf5.plain.describe``."""
    return module.partition(".")[0]


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def file_of(module):
    """The file of a module of ours, or None."""
    path = ROOT / module.replace(".", "/")
    return next(
        (each for each in (path.with_suffix(".py"), path.with_suffix(".pyi"), path / "__init__.py") if each.exists()),
        None,
    )


def our_imports(path):
    """Modules of pipeline and kernels that a file imports."""
    for module, name in imports(path):
        if module.split(".")[0] in ("pipeline", "kernels"):
            yield f"{module}.{name}" if name and file_of(f"{module}.{name}") else module


def wrong_imports(path):
    """What a file imports though its wing may not."""
    here = module_of(path).removeprefix("pipeline.")
    allowed = [wing_of(here), *GROUND, *MAY_IMPORT.get(wing_of(here), []), *OWED.get(here, [])]
    found = (module.removeprefix("pipeline.") for module in our_imports(path))
    return [module for module in found if not any(f"{module}.".startswith(f"{each}.") for each in allowed)]


def test_the_table_names_every_wing():
    assert set(MAY_IMPORT) == {wing_of(module_of(path).removeprefix("pipeline.")) for path in PIPELINE} - {"pipeline"}


@pytest.mark.parametrize("path", PIPELINE, ids=name_of)
def test_a_wing_imports_what_the_table_allows(path):
    assert wrong_imports(path) == []


@pytest.mark.parametrize("path", KERNELS, ids=name_of)
def test_device_code_knows_nothing_of_the_pipeline(path):
    assert [module for module in our_imports(path) if module.startswith("pipeline")] == []


def test_imports_go_one_way():
    TopologicalSorter({module_of(path): set(our_imports(path)) for path in PIPELINE + KERNELS}).prepare()


@pytest.mark.parametrize("path", PIPELINE + SCRIPTS, ids=name_of)
def test_theano_lives_in_kernels_only(path):
    assert [module for module, _ in imports(path) if module.split(".")[0] in ("theano", "pygpu")] == []


@pytest.mark.parametrize("path", PIPELINE + KERNELS, ids=name_of)
def test_every_file_says_what_it_is_and_what_it_gives(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    names = exported(path)
    if path.stem == "__init__":
        assert names is None
        return
    functions = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    assert set(names) - functions - stored == set()


@pytest.mark.parametrize("path", PIPELINE + KERNELS + SCRIPTS, ids=name_of)
def test_files_take_from_each_other_what_is_exported_and_nothing_else(path):
    for module, name in imports(path):
        assert name != "*"
        file = file_of(module) if module.split(".")[0] in ("pipeline", "kernels") else None
        if file and file.stem != "__init__" and name:
            assert name in exported(file), f"{name} of {module}"


def test_the_command_line_starts_light():
    program = f"import sys, pipeline.cli; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"
