"""Tests of `make run`: it writes only to its own directory, and to no file of the user."""

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

MAKEFILE = Path(__file__).parents[2] / "Makefile"


@pytest.mark.parametrize("name", ["fashion-mnist", "digits"])
def test_sample_run_writes_to_its_own_directory(tmp_path, name):
    """Each set of samples has its own directory, so that the run succeeds again after the set has changed."""
    for shard in (f"{name}-train-0.h5", f"{name}-train-1.h5", "mine.h5", "my-train-0.h5"):
        (tmp_path / "data" / shard).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / shard).touch()
    command = ["make", "-s", "-f", MAKEFILE, "-o", "setup", "run", "PYTHON_OF_VENV=echo"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    shards = f"data/{name}-train-0.h5 data/{name}-train-1.h5"
    out = f"sample/{name}/features"
    assert result.stdout.splitlines() == [
        "scripts/make_data.py",
        f"scripts/extract.py --overwrite --input {shards} --output {out}",
        f"scripts/extract.py --overwrite --model {out} --input data/{name}-test --output {out}-test",
        f"scripts/classify.py {out} --test {out}-test",
    ]
