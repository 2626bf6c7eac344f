"""Tests of the recipes in CONTRIBUTING.md: their examples work in a copy of the code."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from textwrap import dedent, indent

import h5py
import numpy as np
import pytest

from tests.support.cuda import stub
from tests.support.helpers import write_shard
from tests.support.interpreters import REPOSITORY, EndedProcess, run_python, search_path

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


def in_tree(tree: Path, code: str, warnings: str = "error", **variables: str | None) -> EndedProcess:
    """Run a program that uses the copy of the code, and return the result."""
    path = f"{search_path(tree)}:{REPOSITORY}"  # the last entry contains the helpers of tests
    ended = run_python(code, warnings, PYTHONPATH=path, **variables)
    assert ended.code == 0, ended.stderr
    return ended


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_names_files_that_exist(title: str) -> None:
    words = re.findall(r"`([\w/]+\.\w+)`", recipe(title))
    assert len(words) >= 4
    assert [word for word in words if "NAME" not in word and not (REPOSITORY / word).is_file()] == []


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
    facts["network"] = [model.network.activation, model.network.code, model.network.gain]
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
    facts["spread"] = float(expected.std(axis=0).min())
"""

DERIVATIVES = """
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

    def moved_cost(name, index, by):
        moved = {**p, name: p[name].copy()}
        moved[name][index] += by
        return reference.row_errors(network, x, moved).mean()

    of_finite_differences = 0.0
    for name, gradient in zip(p, gradients, strict=True):
        for index in np.ndindex(gradient.shape):
            slope = (moved_cost(name, index, 1e-5) - moved_cost(name, index, -1e-5)) / 2e-5
            of_finite_differences = max(of_finite_differences, abs(slope - gradient[index]))
    facts["of finite differences"] = of_finite_differences

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
    assert found["network"] == ["tanh", "tanh", True]
    assert found["costs"][1] < found["costs"][0]
    assert max(found["errors"].values()) < 1e-5, found["errors"]
    assert found["spread"] > 0.01


@pytest.mark.process
def test_a_new_activation_has_its_derivative_everywhere(tree: Path) -> None:
    found = in_tree(tree, DERIVATIVES).facts
    assert found["settings"] == ["tanh", "tanh"]
    assert found["fuses"], "the comparison uses the C code"
    assert found["of finite differences"] < 1e-8
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


# -- both on devices ---------------------------------------------------------------------------------------------

ON_DEVICE = """
    import numpy as np
    from shardpress_kernels import backend, graph
    from shardpress_kernels.activations import ACTIVATIONS
    from shardpress_kernels.updates import updates_of

    facts["device"] = backend.start(require=True).used
    theano = backend.load()
    tanh, z, d = ACTIVATIONS["tanh"], np.linspace(-3, 3, 50, dtype=np.float32), np.float32(0.5)
    p, g = backend.shared(z, name="p"), backend.shared(z[::-1].copy(), name="g")
    a = tanh.value(graph.MATH, p)
    updates = updates_of("adagrad", [g], [p], np.float32(0.1))
    function = backend.compile_function([], [a, tanh.gradient(graph.MATH, d * g, a)], updates=updates)
    facts["operations"] = [type(node.op).__name__ for node in function.maker.fgraph.toposort()]
    value, gradient = map(np.asarray, function())
    expected = np.tanh(z.astype(np.float64))
    moved = z - 0.1 * z[::-1] / np.sqrt(z[::-1].astype(np.float64) ** 2 + 1e-6)
    pairs = [(value, expected), (gradient, 0.5 * z[::-1] * (1 - expected**2)), (p.get_value(), moved)]
    facts["errors"] = [float(np.abs(found - right).max()) for found, right in pairs]
"""


@pytest.mark.process
@pytest.mark.pygpu
@pytest.mark.parametrize("device", ["cuda", "opencl0:0"])
def test_new_records_compile_for_devices(tree: Path, device: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("pygpu" if device == "cuda" else "opencl")
    card = stub.card() if device == "cuda" else {}
    found = in_tree(tree, ON_DEVICE, THEANO_FLAGS=f"device={device}", **card).facts
    assert found["device"] == device
    assert "GpuElemwise" in found["operations"]
    assert max(found["errors"]) < 1e-5


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
