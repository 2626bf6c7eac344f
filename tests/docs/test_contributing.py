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
from tests.support.interpreters import REPOSITORY, run_python, search_path
from tests.support.interruptions import SIZES

PAGE = (REPOSITORY / "CONTRIBUTING.md").read_text()
N_INPUTS = 8


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


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Make a copy of the code with the examples of all recipes."""
    root = tmp_path / "tree"
    for package in ("kernels", "pipeline"):
        shutil.copytree(REPOSITORY / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))

    (activation,) = examples("Add an activation")
    insert_before(root / "kernels/shardpress_kernels/activations.py", "\n_RECORDS = (", f"\n{activation}\n")
    insert_before(root / "kernels/shardpress_kernels/activations.py", ")\n\nACTIVATIONS =", "    _TANH,\n")

    (form,) = examples("Add a form of rows")
    forms = root / "pipeline/shardpress/hdf5/forms"
    (forms / "complex.py").write_text(form)
    insert_before(
        forms / "known.py", "from shardpress.hdf5.forms.table", "from shardpress.hdf5.forms.complex import Complex\n"
    )
    insert_before(forms / "known.py", "Records(), ", "Complex(), ")

    (rule,) = examples("Add an optimizer")
    insert_before(root / "kernels/shardpress_kernels/rules.py", "\n_RECORDS = (", f"\n{rule}\n")
    insert_before(root / "kernels/shardpress_kernels/rules.py", ")\n\nRULES =", "    _ADAGRAD,\n")

    (setting,) = examples("Add a setting")
    insert_before(root / "pipeline/shardpress/settings/config.py", "    seed: Natural", indent(setting, "    "))

    command, line = examples("Add a command")
    (root / "pipeline/shardpress/commands/weights.py").write_text(command)
    insert_before(root / "pipeline/shardpress/commands/registry.py", "}\n_EXAMPLES =", f"    {line}")
    return root


def test_the_first_test_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standin.install(monkeypatch)
    names: dict[str, Any] = {}
    (program,) = examples("Write a test")
    exec(program, names)
    names["test_rows_of_a_new_file_get_features"](standin.Workspace(tmp_path, *SIZES))


PROGRAM = """
    from contextlib import redirect_stdout
    from io import StringIO
    import numpy as np
    import onnxruntime
    from shardpress.commands.registry import main
    from shardpress.result.features import open_features
    from shardpress.interop.onnx import encoder_onnx
    from shardpress.result.finished import load_model
    from shardpress.settings.config import fingerprint_values
    from shardpress.settings.flags import parse

    # A run over rows in the new form, with the activation, the optimizer and the setting.
    flags = ["--hidden", "16", "--activation", "tanh", "--code-activation", "tanh", "--n-features", "3"]
    flags += ["--optimizer", "adagrad", "--noise", "0.5", "--dataset", "spectra", "--output", "out", "--epochs", "3"]
    facts["exit code"] = main(["run", "--quiet", "--input", "x.h5", *flags])
    model = load_model("out")
    facts["costs"] = [epoch.cost for epoch in model.about.training.history]

    rows = np.load("rows.npy")
    p = {name: array.astype(np.float64) for name, array in model.parameters.items()}
    hidden = np.tanh(model.scaler.transform(rows) @ p["W_1"] + p["b_hidden_1"])
    expected = np.tanh(hidden @ p["W_2"] + p["b_hidden_2"])
    session = onnxruntime.InferenceSession(encoder_onnx(model))
    found = {
        "of the run": open_features("out").features.compute(),
        "by NumPy": model.encode(rows),
        "by ONNX": session.run(None, {"rows": rows})[0],
    }
    facts["errors"] = {path: float(np.abs(features - expected).max()) for path, features in found.items()}

    # The setting, and the command.
    facts["noise"] = fingerprint_values(parse(["--noise", "0.5"], {}, ""), "model")["noise"]
    with redirect_stdout(StringIO()) as output:
        main(["weights", "out"])
    facts["output of the command"] = output.getvalue()
    facts["n weights"] = model.network.n_weights
"""


@pytest.mark.process
@pytest.mark.slow
def test_examples_of_the_recipes_work(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # inside the checkout, a program would import its code instead of the copy
    rng = np.random.default_rng(1)
    rows = (rng.random((300, 2)) @ rng.random((2, N_INPUTS)) + 0.1 * rng.random((300, N_INPUTS))).astype(np.float32)
    with h5py.File("x.h5", "w") as file:
        for name, part in zip(("real", "imag"), np.split(rows, 2, axis=1), strict=True):
            file.create_dataset(f"spectra/{name}", data=part, chunks=(70, 2), compression="gzip")
    np.save("rows.npy", rows)
    ended = run_python(PROGRAM, "default", PYTHONPATH=search_path(tree))
    found = ended.facts
    assert found["exit code"] == 0
    assert found["costs"][-1] < found["costs"][0]
    assert max(found["errors"].values()) < 1e-5, found["errors"]
    assert found["noise"] == 0.5
    assert found["output of the command"] == f"{found['n weights']}\n"
