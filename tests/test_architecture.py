"""The file list is the architecture: imports go one way, heavy libraries stay behind their doors."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# In the order of the data; a file may import from those above it only.
ORDER = [
    "installed",
    "errors",
    "signals",
    "formats",
    "configfile",
    "config",
    "disk",
    "ledger",
    "groupcommit",
    "cluster",
    "files",
    "superblock",
    "forms",
    "codecs",
    "walk",
    "stacked",
    "sparse",
    "candidates",
    "riders",
    "probe",
    "sandbox",
    "gatekeeper",
    "layout",
    "metadata",
    "plainfile",
    "gate",
    "lzf",
    "filters",
    "rawread",
    "rowforms",
    "ridinglog",
    "riding",
    "sources",
    "master",
    "shards",
    "progress",
    "runlog",
    "scan",
    "model",
    "minibatches",
    "plan",
    "request",
    "skeleton",
    "features",
    "singlefile",
    "policy",
    "training",
    "encoding",
    "job",
    "earlier",
    "device",
    "fit",
    "run",
    "cli",
]

PIPELINE = sorted((ROOT / "pipeline").glob("*.py*"))  # what is written in C has a .pyi
KERNELS = sorted((ROOT / "kernels").glob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
# Too large to load for a command line that has a typing error in it.
HEAVY = ["theano", "pygpu", "scipy", "sklearn", "matplotlib", "distributed", "dask.distributed", "pandas"]


def name_of(path):
    return f"{path.parent.name}/{path.name}"


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


def pipeline_imports(path):
    """Files of the pipeline that a file imports."""
    for module, name in imports(path):
        parts = [*module.split("."), name]
        if parts[0] == "pipeline":
            yield parts[1]


def exported(path):
    """What ``__all__`` lists, or None without one."""
    path = path if path.exists() else path.with_suffix(".pyi")
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return ast.literal_eval(node.value)
    return None


def test_the_list_names_every_file():
    assert sorted(ORDER) == [path.stem for path in PIPELINE if path.stem != "__init__"]


@pytest.mark.parametrize("path", PIPELINE, ids=name_of)
def test_a_file_imports_only_from_files_above_it(path):
    above = ORDER[: ORDER.index(path.stem)] if path.stem in ORDER else []
    assert [name for name in pipeline_imports(path) if name not in above] == []


@pytest.mark.parametrize("path", KERNELS, ids=name_of)
def test_device_code_knows_nothing_of_the_pipeline(path):
    assert list(pipeline_imports(path)) == []


@pytest.mark.parametrize("path", PIPELINE + SCRIPTS, ids=name_of)
def test_theano_lives_in_kernels_only(path):
    assert [module for module, _ in imports(path) if module.split(".")[0] in ("theano", "pygpu")] == []


@pytest.mark.parametrize("path", [path for path in PIPELINE if path.stem not in ("run", "device", "fit")], ids=name_of)
def test_only_the_run_its_device_and_the_fit_know_the_device_code(path):
    assert [module for module, _ in imports(path) if module.split(".")[0] == "kernels"] == []


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
        package, _, stem = module.partition(".")
        assert name != "*"
        if package in ("pipeline", "kernels") and stem and name:
            assert name in exported(ROOT / package / f"{stem}.py"), f"{name} of {module}"


def test_the_command_line_starts_light():
    program = f"import sys, pipeline.cli; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"
