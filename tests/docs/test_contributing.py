"""Tests of CONTRIBUTING.md: its first test passes, and the examples of its recipes work in a copy of the code."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import h5py
import numpy as np
import pytest

from tests.support import standin
from tests.support.helpers import write_shard
from tests.support.interpreters import REPOSITORY, EndedProcess, run_python, search_path
from tests.support.interruptions import SIZES

PAGE = (REPOSITORY / "CONTRIBUTING.md").read_text()
RECIPES = ("Add an activation", "Add a form of rows", "Add an optimizer", "Add a setting", "Add a command")
N_INPUTS = 7


def recipe(title: str) -> str:
    """Return the text of a recipe."""
    _, _, rest = PAGE.partition(f"### {title}\n")
    assert rest, title
    return re.split(r"\n##+ ", rest)[0]


def examples(title: str) -> list[str]:
    """Return the Python examples of a recipe."""
    return [dedent(block) for block in re.findall(r" *```python\n(.*?) *```", recipe(title), re.S)]


def insert_before(path: Path, mark: str, text: str) -> None:
    """Insert text into a file before a mark that occurs once in it."""
    source = path.read_text()
    assert source.count(mark) == 1, (path, mark)
    path.write_text(source.replace(mark, text + mark))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a copy of the code with the examples of all recipes."""
    root = tmp_path_factory.mktemp("tree")
    for package in ("kernels", "pipeline"):
        shutil.copytree(REPOSITORY / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))

    (activation,) = examples("Add an activation")
    insert_before(root / "kernels/shardpress_kernels/activations.py", "\n_RECORDS = (", f"\n{activation}\n")
    insert_before(root / "kernels/shardpress_kernels/activations.py", ")\n\nACTIVATIONS =", "    _TANH,\n")

    (form,) = examples("Add a form of rows")
    forms = root / "pipeline/shardpress/hdf5/forms"
    (forms / "separate.py").write_text(form)
    insert_before(
        forms / "known.py", "from shardpress.hdf5.forms.table", "from shardpress.hdf5.forms.separate import Separate\n"
    )
    insert_before(forms / "known.py", "Table(), ", "Separate(), ")

    (rule,) = examples("Add an optimizer")
    insert_before(root / "kernels/shardpress_kernels/rules.py", "\n_RECORDS = (", f"\n{rule}\n")
    insert_before(root / "kernels/shardpress_kernels/rules.py", ")\n\nRULES =", "    _ADAGRAD,\n")

    (setting,) = examples("Add a setting")
    insert_before(root / "pipeline/shardpress/settings/config.py", "    seed: Natural", indent(setting, "    "))
    insert_before(
        root / "pipeline/shardpress/settings/flags.py", '        *("validation_fraction",', '        "noise",\n'
    )

    command, line = examples("Add a command")
    (root / "pipeline/shardpress/commands/weights.py").write_text(command)
    insert_before(root / "pipeline/shardpress/commands/table.py", "}\n_EXAMPLES =", f"    {line}")
    return root


@pytest.fixture(autouse=True)
def outside_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start programs outside the checkout. Inside, they would import its code instead of the copy."""
    monkeypatch.chdir(tmp_path)


def in_tree(tree: Path, code: str, warnings: str = "error") -> EndedProcess:
    """Run a program that uses the copy of the code, and return the result."""
    path = f"{search_path(tree)}:{REPOSITORY}"  # the last entry contains the helpers of tests
    ended = run_python(code, warnings, PYTHONPATH=path)
    assert ended.code == 0, ended.stderr
    return ended


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_names_files_that_exist(title: str) -> None:
    words = re.findall(r"`([\w/]+\.\w+)`", recipe(title))
    assert len(words) >= 4
    assert [word for word in words if "NAME" not in word and not (REPOSITORY / word).is_file()] == []


def test_the_first_test_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standin.install(monkeypatch)
    names: dict[str, Any] = {}
    (program,) = examples("Write a test")
    exec(program, names)
    names["test_rows_of_a_new_file_get_features"](standin.Workspace(tmp_path, *SIZES))


# -- an activation -----------------------------------------------------------------------------------------------

RUN = """
    import numpy as np
    from shardpress.commands.table import main
    from shardpress.features import open_features
    from shardpress.interop.onnx import encoder_onnx
    from shardpress.result import load_model
    import onnxruntime

    flags = ["--hidden", "16", "--activation", "tanh", "--code-activation", "tanh", "--n-features", "3"]
    facts["exit code"] = main(["run", "--quiet", "--input", "x.h5", "--output", "out", "--epochs", "3", *flags])
    facts["verified"] = main(["verify", "out"])
    facts["exported"] = main(["export", "out", "--to", "npz"])
    model = load_model("out")
    history = model.about["training"]["history"]
    facts["costs"] = [history[0]["cost"], history[-1]["cost"]]

    rows = np.load("rows.npy")
    p = {name: array.astype(np.float64) for name, array in model.parameters.items()}
    hidden = np.tanh(model.scaler.transform(rows) @ p["W_1"] + p["b_hidden_1"])
    expected = np.tanh(hidden @ p["W_2"] + p["b_hidden_2"])
    session = onnxruntime.InferenceSession(encoder_onnx(model))
    encoder = np.load("out/encoder.npz")
    h = rows
    for i, name in enumerate(encoder["activations"], 1):
        h = getattr(np, name)(h @ encoder[f"W_{i}"] + encoder[f"b_{i}"])
    found = {
        "of the run": open_features("out").features.compute(),
        "by NumPy": model.encode(rows),
        "by ONNX": session.run(None, {"rows": rows})[0],
        "by encoder.npz": h,
    }
    facts["errors"] = {path: float(np.abs(features - expected).max()) for path, features in found.items()}
"""

GRADIENTS = """
    import numpy as np
    from shardpress_kernels.autoencoder import Autoencoder
    from shardpress_kernels.network import Network
    from shardpress_kernels.step import TrainingStep
    from shardpress.settings.flags import parse
    from tests.support import reference
    from tests.support.networks import random_parameters

    config = parse(["--activation", "tanh", "--code-activation", "tanh"], {}, "")
    facts["settings"] = [config.network.activation, config.network.code_activation]

    rng = np.random.default_rng(0)
    network, x = Network((7, 6, 5, 3), "tanh", "tanh", gain=True), rng.random((20, 7), dtype=np.float32)
    parameters = random_parameters(rng, network)
    p = {name: array.astype(np.float64) for name, array in parameters.items()}
    cost, gradients = reference.gradients(network, x, x, p)
    # In the first step at a rate of -1, the velocity is the gradient.
    autoencoder = Autoencoder(network)
    autoencoder.set_parameters(parameters)
    facts["fuses"] = autoencoder.uses_ops(x.dtype)
    step = TrainingStep(autoencoder, "momentum", x.dtype)
    step.begin(x, None, len(x))
    facts["of the cost"] = abs(step.take([-1.0], with_cost=True) - cost)
    found = step.state().values()
    facts["of the gradients"] = max(float(np.abs(a - b).max()) for a, b in zip(found, gradients, strict=True))
"""


@pytest.mark.process
def test_a_new_activation_trains_encodes_and_is_exported(tree: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = (rng.random((300, 2)) @ rng.random((2, N_INPUTS)) + 0.1 * rng.random((300, N_INPUTS))).astype(np.float32)
    write_shard(tmp_path / "x.h5", rows)
    np.save("rows.npy", rows)

    found = in_tree(tree, RUN, "default").facts

    assert found["exit code"] == found["verified"] == found["exported"] == 0
    assert found["costs"][1] < found["costs"][0]
    assert max(found["errors"].values()) < 1e-5, found["errors"]


@pytest.mark.process
def test_gradients_of_a_new_activation_equal_numpy(tree: Path) -> None:
    found = in_tree(tree, GRADIENTS).facts
    assert found["settings"] == ["tanh", "tanh"]
    assert found["fuses"], "the comparison uses the C code"
    assert found["of the cost"] < 1e-5
    assert found["of the gradients"] < 1e-5


# -- an optimizer ------------------------------------------------------------------------------------------------

STEPS = """
    import numpy as np
    from shardpress_kernels import backend
    from shardpress_kernels.autoencoder import Autoencoder
    from shardpress_kernels.network import Network
    from shardpress_kernels.step import TrainingStep
    from shardpress.settings.flags import parse
    from shardpress.settings.resolve import resolve
    from tests.support import reference
    from tests.support.networks import random_parameters

    config = parse(["--optimizer", "adagrad"], {}, "")
    facts["settings"] = [config.training.optimizer, resolve(config, 1000, 7).training.learning_rate]

    rng = np.random.default_rng(0)
    network, minibatches = Network((7, 3)), rng.random((5, 20, 7), dtype=np.float32)
    parameters = random_parameters(rng, network)
    p = {name: array.astype(np.float64) for name, array in parameters.items()}
    squares = {name: np.zeros_like(array) for name, array in p.items()}
    for x in minibatches:
        _, gradients = reference.gradients(network, x, x, p)
        for name, g in zip(p, gradients, strict=True):
            squares[name] += g**2
            p[name] -= 0.1 * g / np.sqrt(squares[name] + 1e-6)

    fuses = backend.uses_ops
    for path in ("C code", "graph"):
        backend.uses_ops = fuses if path == "C code" else lambda: False
        autoencoder = Autoencoder(network)
        autoencoder.set_parameters(parameters)
        step = TrainingStep(autoencoder, "adagrad", np.dtype(np.float32))
        for x in minibatches:
            step.begin(x, None, len(x))
            step.take([0.1])
        found = autoencoder.parameters()
        facts[path] = max(float(np.abs(found[name] - p[name]).max()) for name in p)
        facts[f"states of the {path}"] = list(step.state())
    facts["moved"] = max(float(np.abs(parameters[name] - p[name]).max()) for name in p)
"""


@pytest.mark.process
def test_steps_of_a_new_optimizer_equal_numpy(tree: Path) -> None:
    found = in_tree(tree, STEPS).facts
    assert found["settings"] == ["adagrad", 0.01]
    assert found["moved"] > 0.1
    for path in ("C code", "graph"):
        assert found[path] < 1e-5
        assert found[f"states of the {path}"] == ["W.square", "b_hidden.square", "b_output.square"]


# -- a form of rows ----------------------------------------------------------------------------------------------

READ = """
    from shardpress.commands.table import main
    from shardpress.hdf5.shard import Block
    from shardpress.shards.open import open_shards
    from shardpress.shards.rows import read

    (shard,) = open_shards(["x.h5"], "table")
    facts["rows"] = [read(Block(shard, start, start + 5)).tolist() for start in range(0, 20, 5)]
    facts["inspected"] = main(["inspect", "x.h5", "--dataset", "table", "--json"])
"""


@pytest.mark.process
def test_rows_of_a_new_form_are_described_and_read(tree: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 3))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for column, name in enumerate("abc"):
            file.create_dataset(f"table/{name}", data=rows[:, column], chunks=(7,), compression="gzip")

    found = in_tree(tree, READ).facts

    assert np.concatenate(found["rows"]).tolist() == rows.tolist()
    assert found["inspected"] == 0


# -- a setting ---------------------------------------------------------------------------------------------------

SETTING = """
    from shardpress.errors import UsageError
    from shardpress.settings.config import fingerprint_values
    from shardpress.settings.flags import parse

    for noise in ("default", "0.5", "1"):
        flags = [] if noise == "default" else ["--noise", noise]
        try:
            facts[noise] = fingerprint_values(parse(flags, {}, ""), "model")["noise"]
        except UsageError as error:
            facts[noise] = str(error)
"""


@pytest.mark.process
def test_a_new_setting_has_a_flag_limits_and_a_fingerprint(tree: Path) -> None:
    found = in_tree(tree, SETTING).facts
    assert (found["default"], found["0.5"]) == (0.0, 0.5)
    assert found["1"].startswith("--noise: 1.0, expected ")


# -- a command ---------------------------------------------------------------------------------------------------

COMMANDS = """
    import sys
    from contextlib import redirect_stdout
    from io import StringIO
    from pathlib import Path
    import numpy as np
    from shardpress_kernels.network import Network
    from shardpress.commands.table import main
    from shardpress.model import Model
    from shardpress.scan.scaler import Scaler

    parameters = {name: np.zeros(shape, np.float32) for name, shape in Network((7, 3)).shapes.items()}
    model = Model(Scaler(np.zeros(7), np.ones(7)), Network((7, 3)), parameters)
    Path("index.h5").write_bytes(model.to_hdf5())
    for arguments in (["weights", "."], [], ["weights", "--help"]):
        with redirect_stdout(StringIO()) as output:
            try:
                code = main(arguments)
            except SystemExit as ended:
                code = ended.code
        facts[" ".join(arguments)] = [code, output.getvalue()]
"""


@pytest.mark.process
def test_a_new_command_runs_and_is_listed(tree: Path, tmp_path: Path) -> None:
    found = in_tree(tree, COMMANDS).facts
    assert {code for code, _ in found.values()} == {0}
    assert found["weights ."][1] == "21\n"
    assert "weights      print the number of weights of a model" in found[""][1]
    assert found["weights --help"][1].startswith("Count the weights of a model.\n\n    shardpress weights features\n")
