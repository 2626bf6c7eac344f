"""The scenarios of the golden set.

To add one, write a `Scenario` with its runs, and store its values: `python -m tests.golden --store NAME`. If the files
that it needs do not exist yet, add them to `inputs.py`. Flags that change results are given explicitly, here or in
`BASE`, so that new defaults are not taken for wrong results.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BASE = """
    --orientation rows --match-columns order --on-bad-data raise --on-drift pass --missing-indicator no
    --clip-quantile 0 --scale std --n-features 6 --hidden none --activation relu --code-activation linear --nested no
    --output-layer code --optimizer adam --learning-rate 0.001 --batch-size 32 --epochs 2 --corruption 0 --replicas 1
    --seed 1 --validation-fraction 0.1 --patience 0 --storage-dtype float32 --compression none
"""
"""Flags of each run that trains. The flags of a run take precedence."""


@dataclass(frozen=True)
class Run:
    """A run of the program.

    Input files, or directories of such files, are copied to the directory `shards` under their names without directory,
    so "floats/0.h5 changed/1.h5" replaces one of two files.
    """

    inputs: str
    flags: str = ""
    output: str = "features"  # name of the output directory

    def arguments(self) -> list[str]:
        """Return the command line, for the directory with the files of the scenario."""
        flags = self.flags.split()
        if "--model" not in flags:
            flags = BASE.split() + flags
        return ["--input", "shards", "--output", self.output, "--quiet", *flags]


@dataclass(frozen=True)
class Scenario:
    """Runs, and what is read from the last output directory."""

    name: str
    runs: tuple[Run, ...]
    reads: tuple[dict[str, Any], ...] = ({},)  # arguments of each call of ``open_features``


def _scenario(name: str, inputs: str, flags: str = "") -> Scenario:
    """Return a scenario with one run."""
    return Scenario(name, (Run(inputs, flags),))


# Networks, dtypes and optimizers are combined sparingly, because each combination is compiled.
SCENARIOS = (
    # Dtypes and layouts, with the scalings.
    _scenario("float32", "floats"),
    _scenario("float64-gzip", "doubles"),
    _scenario("uint8-rank-3", "images", "--scale common"),
    _scenario("uint8-binary", "bits", "--scale auto"),
    _scenario("uint16-total", "dense-counts", "--row-scale total --transform log1p"),
    _scenario("int16-max", "shorts", "--row-scale max --scale none"),
    _scenario("int32-column-major", "column-major", "--orientation columns --scale range"),
    _scenario("int64-offset", "longs", "--scale range"),
    _scenario("float16-storage", "floats", "--row-scale norm --storage-dtype float16 --compression gzip"),
    # Networks and optimizers.
    _scenario("sigmoid", "floats", "--code-activation sigmoid --scale range"),
    _scenario("two-layers", "images", "--hidden 16,12 --activation leaky-relu --code-activation sigmoid"),
    _scenario("nested", "floats", "--nested yes --n-features 16"),
    _scenario("wide", "floats", "--output-layer hidden --hidden 16"),
    _scenario("masking-noise", "floats", "--hidden 16 --corruption 0.25"),
    _scenario("momentum", "floats", "--optimizer momentum --learning-rate 0.01"),
    _scenario("nesterov", "floats", "--optimizer nesterov --learning-rate 0.01"),
    _scenario("rmsprop", "floats", "--optimizer rmsprop"),
    # Bad data.
    _scenario("bad-rows", "bad-rows", "--on-bad-data skip --row-scale median"),
    _scenario("impute-mean", "gaps", "--impute mean --missing-indicator yes"),
    _scenario("missing-value", "sentinels", "--missing-value -9999 --impute median --clip-quantile 0.01 --scale range"),
    # Targets.
    _scenario("target-fit-on", "floats", "--target y --fit-on split==train --target-weight 1"),
    _scenario("target-numbers", "floats", "--target value --target-weight 0.5"),
    _scenario("target-few-labels", "floats", "--target few --target-weight 1"),
    # Processes. Fewer epochs would be too few steps for two replicas.
    _scenario(
        "replicas-two-workers", "floats", "--replicas 2 --workers 2 --batch-size 4 --epochs 32 --learning-rate 0.0001"
    ),
    # Files of other software.
    _scenario("anndata", "anndata", "--include obs/kind obs/donor --row-scale total --transform log1p"),
    _scenario("matlab", "foreign/matlab.mat", "--orientation columns --n-features 2"),
    _scenario("pytables", "foreign/pytables.h5", "--n-features 2"),
    _scenario("pandas", "foreign/frames-table.h5", "--n-features 2"),
    _scenario("netcdf", "foreign/netcdf-times.nc", "--n-features 2 --on-bad-data skip --impute mean"),
    # Several files and several runs.
    _scenario("columns-by-name", "named", "--match-columns name"),
    Scenario(
        "model",
        (
            Run("floats/0.h5", "--scale range", output="model"),
            Run("floats/1.h5 changed/0.h5", "--model model --on-drift clip"),
        ),
    ),
    Scenario(
        "append-new-files",
        (Run("anndata/0.h5ad", "--include obs/kind"), Run("anndata", "--include obs/kind --append")),
        reads=({}, {"appends": [1]}),
    ),
    Scenario("append-changed-file", (Run("floats"), Run("floats/0.h5 changed/1.h5", "--append"))),
    Scenario(
        "retrain",
        (Run("floats/0.h5"), Run("floats", "--retrain --keep-generations 2")),
        reads=({}, {"generation": 1}, {"as_of": 1}),
    ),
)


def run_scenario(scenario: Scenario, inputs: Path, folder: Path, run: Callable[[list[str]], None]) -> None:
    """Run a scenario in a folder.

    `run` is called with the command line of each run, whose paths are relative to the folder. It raises an exception if
    the run fails.
    """
    for each in scenario.runs:
        _place(each.inputs.split(), inputs, folder / "shards")
        run(each.arguments())


def _place(names: list[str], inputs: Path, shards: Path) -> None:
    """Replace the files in the directory that a run reads."""
    shutil.rmtree(shards, ignore_errors=True)
    shards.mkdir(parents=True)
    for name in names:
        path = inputs / name
        for file in path.iterdir() if path.is_dir() else [path]:
            shutil.copy2(file, shards / file.name)
