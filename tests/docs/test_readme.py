"""Tests of the README: its commands run in order, and the features of Fashion-MNIST are as good as it says.

Sample: the sample run trains for 3 epochs, after which the features are good enough; with TEST_CASES=all for the number
of epochs in the README.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts import make_data
from shardpress.result.features import open_features
from shardpress.result.finished import load_model
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read
from tests.support.cases import ALL_CASES
from tests.support.helpers import blocks, write_shard
from tests.support.interpreters import REPOSITORY, environment

pytestmark = pytest.mark.process

PAGE = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"(?:^    \S.*\n)+", re.sub(r"^```.*?^```$", "", PAGE, flags=re.M | re.S), re.M)
EPOCHS: dict[str, str | None] = {} if ALL_CASES else {"SHARDPRESS_EPOCHS": "3"}
PYTHON = re.findall(r"^```python\n(.*?)```$", PAGE, re.M | re.S)
# The project is already set up here. The test suite cannot run inside itself, so it is replaced by one of its files.
MAKE = """#!/bin/sh
export PYTEST_ADDOPTS="-p no:cacheprovider tests/base/test_errors.py"
exec {make} --file=Makefile --old-file=setup --old-file=.venv-readers/.complete PYTHON_OF_VENV={python} "$@"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the checkout with two shards."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("scripts", "tests", "pipeline", "kernels", "Makefile", "pyproject.toml"):
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    for name in ("data", "shards", "bin"):
        (folder / name).mkdir()
    (folder / "data/theirs.h5").write_text("no input of `make run`")
    rng = np.random.default_rng(0)
    for number in range(2):
        y = np.arange(300) % 2
        write_shard(folder / f"shards/{number}.h5", rng.normal(size=(300, 12)) + 4 * y[:, None], extras={"y": y})
    (folder / "bin/make").write_text(MAKE.format(make=shutil.which("make"), python=sys.executable))
    (folder / "bin/make").chmod(0o755)
    return folder


def run_commands(folder: Path, block: str) -> str:
    """Return the output of commands that must succeed; two spaces separate a command from its explanation."""
    program = "\n".join(line.strip().split("  ")[0] for line in block.splitlines())
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    # With two threads, the products of the classifiers take more processor time, because other tests run meanwhile.
    env = environment(PATH=path, OPENBLAS_NUM_THREADS="1", **EPOCHS)
    result = subprocess.run(["sh", "-ec", program], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, program + result.stdout + result.stderr
    return result.stdout + result.stderr


def test_commands_of_the_readme_run(folder: Path) -> None:
    setting_up, extracting = [run_commands(folder, block) for block in BLOCKS]
    assert re.search("[0-9]+ passed", setting_up)
    assert "600 rows x 12 columns -> 6 features in features/index.h5" in extracting
    assert "1.0000  on 6 features" in extracting
    example = PYTHON[0]  # tests/model/test_encoder.py has the test of the other example
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(example, names)
    assert names["output"].features.shape == (600, 6)
    if not make_data.FASHION_FOLDER.exists():
        pytest.skip("this machine has no Fashion-MNIST (Debian: dataset-fashion-mnist)")
    check_sample(folder, setting_up)


def check_sample(folder: Path, output: str) -> None:
    """Check the features of Fashion-MNIST, in the directory of the samples."""
    sample = folder / "sample/fashion-mnist"
    model = load_model(sample / "features")
    shards = open_shards([str(folder / "data/fashion-mnist-test")])
    rows = np.concatenate([read(block) for block in blocks(shards, 10_000)])
    x = model.scaler.transform(rows)
    y = model.decode(model.encode(rows))
    assert np.mean((x - y) ** 2) <= 0.0135
    features = open_features(sample / "features-test").features.compute()
    assert features.std(axis=0).min() > 0.01
    accuracy = {
        kind: float(value)
        for value, kind in re.findall(r"([\d.]+)  on 64 (features|principal components)$", output, re.M)
    }
    assert accuracy["features"] >= 0.82
    assert accuracy["features"] > accuracy["principal components"]
    assert "sample/fashion-mnist/picture.png" in run_commands(folder, "python scripts/picture.py")
    assert (sample / "picture.png").read_bytes()[:4] == b"\x89PNG"
