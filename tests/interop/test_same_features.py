"""Every way to compute features gives those of an independent computation in float64, for each dtype and setting.

The ways are a run, the estimator, the exported encoder with the README's loop, ONNX, and a run over the same values in
another dtype.

Sample: two settings for each of six dtypes, which the kernels and the reader treat differently. With TEST_CASES=all:
all settings for all dtypes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.cli import main
from shardpress.interop.estimator import TiedAutoencoder
from shardpress.interop.onnx import encoder_onnx
from shardpress.model.encoder import Model
from shardpress.model.preparation import Preparation
from shardpress.result.features import open_features
from shardpress.result.finished import load_model
from tests.interop.test_encoders import of_onnx
from tests.model.test_preparation import slow_row
from tests.support.cases import ALL_CASES, case, sample
from tests.support.helpers import write_shard
from tests.support.interpreters import REPOSITORY

pytestmark = [pytest.mark.compiler, pytest.mark.slow]

TOLERANCE = 1e-5
N_ROWS = 200
MARKER = 77  # missing value of integers
HUGE = "i8, above 2^53"
DTYPES = ["u1", "i1", "?", "u2", "i2", "u4", "i4", "i8", HUGE, "f2", "f4", "f8"]
TESTED = DTYPES if ALL_CASES else ["u1", "?", "i4", HUGE, "f2", "f8"]  # each takes half a minute to compile
CLEANED = ["--impute", "mean", "--clip-quantile", "0.02"]
INDICATED = [*CLEANED, "--missing-indicator"]
SETTINGS: list[list[str]] = [
    [],
    *(["--scale", scale] for scale in ("range", "std", "common", "none")),
    *(["--row-scale", row_scale] for row_scale in ("total", "median", "norm", "max")),
    ["--transform", "log1p"],
    *(["--row-scale", row_scale, "--transform", "log1p"] for row_scale in ("total", "median", "norm", "max")),
    ["--clip-quantile", "0.02"],
    ["--impute", "median"],
    CLEANED,
    *(["--scale", scale, *INDICATED] for scale in ("range", "std", "common", "none")),
    ["--row-scale", "total", "--transform", "log1p", "--scale", "std", *INDICATED],
    ["--row-scale", "norm", "--scale", "common", *INDICATED],
    ["--row-scale", "median", "--scale", "std", *CLEANED],
    ["--row-scale", "max", "--scale", "none"],
    ["--hidden", "5", "--row-scale", "norm", *INDICATED],
]


@dataclass(frozen=True)
class Data:
    """Rows, the flags that describe them, and the same rows with NaN for missing values."""

    rows: np.ndarray  # (n_rows, n_columns)
    flags: list[str]
    floats: np.ndarray  # (n_rows, n_columns), `rows` itself if no values are missing; float64 for integers otherwise


def data_of(kind: str, settings: list[str]) -> Data:
    """Return counts, heavy tails, a constant column, two values and a column far from zero, in a dtype."""
    dtype = np.dtype("i8" if kind == HUGE else kind)
    rng = np.random.default_rng(DTYPES.index(kind))
    rows = np.stack(
        [
            rng.poisson(3, N_ROWS) + 1.0,
            rng.poisson(0.3, N_ROWS),
            np.minimum(rng.gamma(0.4, 10, N_ROWS), 70),
            np.full(N_ROWS, 2),
            rng.integers(0, 2, N_ROWS),
            _far(kind, settings) * (1 + 1e-4 * rng.normal(size=N_ROWS)),
        ],
        axis=1,
    )
    if dtype.kind in "if" and kind != HUGE:
        rows[:, 2] *= rng.choice([-1, 1], N_ROWS)
    if kind == HUGE and "--transform" in settings:  # the logarithms of columns far from zero would be equal
        rows[:, 5] = np.exp(rng.uniform(20, 43, N_ROWS))
    if dtype.kind == "b":
        rows[:, :3] = rng.integers(0, 2, (N_ROWS, 3))
        rows[0] = 1  # a row scale needs a value
    rows = rows.astype(dtype)
    is_missing = rng.random(rows.shape) < 0.1
    is_missing[:, [0, 3]] = False
    if "--impute" not in settings or dtype.kind == "b":
        return Data(rows, [], rows)
    if dtype.kind == "f":
        rows[is_missing] = np.nan
        return Data(rows, [], rows)
    if "--row-scale" in settings or "--transform" in settings:  # do not allow --missing-value
        return Data(rows, [], rows)
    rows[is_missing] = MARKER
    return Data(rows, ["--missing-value", str(MARKER)], np.where(rows == MARKER, np.nan, rows.astype(np.float64)))


def _far(kind: str, settings: list[str]) -> float:
    """Return the size of the column far from zero."""
    scales_equally = "none" in settings or ("common" in settings and "--row-scale" in settings)
    if scales_equally and not (kind == HUGE and "--row-scale" in settings):
        return 5.0  # a much larger column would leave few digits, or none, of the differences of the others
    sizes = {"u1": 250, "i1": 120, "?": 1, "u2": 60_000, "i2": 30_000, "f2": 2000, "f4": 1e4, "f8": 1.6e9}
    return {**sizes, "u4": 4e9, "i4": 2e9, "i8": 8e15, HUGE: 2.0**61}[kind]


# -- the independent computation ---------------------------------------------------------------------------------


def expected_values(model: Model, rows: np.ndarray, settings: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute features and errors in float64 from values and from the arrays of a model.

    Also return the mean squares of the scaled rows, with which the rounding of the errors grows.
    """
    row_scale = settings[settings.index("--row-scale") + 1] if "--row-scale" in settings else None
    preparation = Preparation(row_scale, "log1p" if "log1p" in settings else None)
    x = np.array([slow_row(preparation, row) for row in _values(model, rows)])
    scaler = model.scaler
    is_missing = np.isnan(x)
    if scaler.fill is not None:
        x = np.where(is_missing, scaler.fill, x)
    if scaler.indicators is not None:
        x = np.concatenate([x, is_missing[:, scaler.indicators]], axis=1)
    clipped = x
    if scaler.clips:
        clipped = np.clip(x, scaler.minimum, scaler.maximum)
    features = _of_layers(model, _scaled(model, clipped))
    scaled = _scaled(model, x)
    errors = np.square(_decoded(model, features) - scaled).mean(axis=1)
    return features, errors, np.square(scaled).mean(axis=1)


def _scaled(model: Model, x: np.ndarray) -> np.ndarray:
    scaler = model.scaler
    if scaler.center is not None:
        return np.asarray((x - scaler.center) * scaler.factor)
    width = scaler.maximum - scaler.minimum
    return np.where(width > 0, (x - scaler.minimum) / np.where(width > 0, width, 1), 0)


def _values(model: Model, rows: np.ndarray) -> np.ndarray:
    if model.offset is None:
        return rows.astype(np.float64)
    differences = rows.astype(object) - np.array([int(each) for each in model.offset], object)
    return differences.astype(np.float64)


ACTIVATIONS: dict[str, Any] = {
    "linear": lambda z: z,
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "relu": lambda z: np.maximum(z, 0),
}


def _of_layers(model: Model, x: np.ndarray) -> np.ndarray:
    for W, b, kind in model.network.feature_layers:
        z = x @ model.parameters[W].astype(np.float64) + model.parameters[b]
        x = ACTIVATIONS[kind](z)
    return x


def _decoded(model: Model, features: np.ndarray) -> np.ndarray:
    s = features
    if "gain" in model.parameters:
        s = (s - (0.5 if model.network.code == "sigmoid" else 0)) * model.parameters["gain"]
    names = [name.removeprefix("W") for name in model.parameters if name.startswith("W")]
    for name in reversed(names):
        z = s @ model.parameters[f"W{name}"].T.astype(np.float64) + model.parameters[f"b_output{name}"]
        s = z if name == names[0] else ACTIVATIONS[model.network.activation](z)
    return np.asarray(s)


# -- the ways to compute features --------------------------------------------------------------------------------


def run(folder: Path, rows: np.ndarray, *flags: str) -> int:
    """Run the program over one shard. The output is in the folder ``out``."""
    (folder / "in").mkdir(parents=True)
    write_shard(folder / "in/0.h5", rows)
    quick = ["--epochs", "2", "--n-features", "3", "--row-error"]
    return main("", ["--input", str(folder / "in"), "--output", str(folder / "out"), *quick, *flags])


def of_run(folder: Path) -> np.ndarray:
    return np.asarray(open_features(folder / "out").features.compute())


def errors_of_run(folder: Path) -> np.ndarray:
    return np.asarray(open_features(folder / "out").extras["error"].compute())


def of_npz(folder: Path, rows: np.ndarray) -> np.ndarray:
    """Compute features with the Python code of the README, and of docs/using.md if it is needed."""
    (loop,) = _python_code("README.md", "encoder.npz")
    path = folder / "encoder.npz"
    path.write_bytes(load_model(folder / "out").to_npz())
    with np.load(path) as encoder:
        needs_more = {"row_scale", "transform", "indicators", "offset"} & set(encoder)
    found: dict[str, Any] = {"rows": rows}
    loop = loop.replace("features/encoder.npz", str(path))
    if needs_more:
        (function,) = _python_code("docs/using.md", "def cleaned(")
        exec("import numpy as np\n" + function, found)
        loop = re.sub(r"h = np\.clip\(.*", "h = cleaned(rows, encoder)", loop)
    exec(loop, found)
    found["encoder"].close()
    return np.asarray(found["h"])


def _python_code(page: str, word: str) -> list[str]:
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / page).read_text(), re.S)
    return [block for block in blocks if word in block]


def other_dtypes(rows: np.ndarray) -> list[np.dtype]:
    """Return the other tested dtypes that hold all values exactly."""
    others = [np.dtype(kind) for kind in TESTED if kind not in (HUGE, "?")]
    if np.isnan(rows).any():
        others = [dtype for dtype in others if dtype.kind == "f"]
    with np.errstate(all="ignore"):
        # Python's numbers are compared exactly.
        values = rows.tolist()
        is_held = [np.array_equal(rows.astype(dtype).tolist(), values, equal_nan=True) for dtype in others]
    return [dtype for dtype, held in zip(others, is_held, strict=True) if held and dtype != rows.dtype]


@pytest.mark.parametrize("kind", TESTED)
def test_all_ways_give_the_features_of_an_independent_computation(tmp_path: Path, kind: str) -> None:
    chosen = SETTINGS if ALL_CASES else sample(SETTINGS, 2 * len(TESTED))[TESTED.index(kind) :: len(TESTED)]
    for number, settings in enumerate(chosen):
        folder = tmp_path / str(number)
        with case(settings):
            data = data_of(kind, settings)
            flags = [*settings, *data.flags]
            if kind == HUGE and "--row-scale" in settings:
                assert run(folder, data.rows, *flags) == 65
                continue
            assert run(folder, data.rows, *flags) == 0
            differences = largest_differences(folder, data, settings)
            assert max(differences.values()) <= TOLERANCE, differences


def largest_differences(folder: Path, data: Data, settings: list[str]) -> dict[str, float]:
    """Return the largest difference between the expected features and those of each way.

    If features are larger than 1, differences are relative to the largest one: without a scaling, linear features are
    as large as the rows, and float32 represents about seven digits of them.
    """
    model = load_model(folder / "out")
    expected, expected_errors, squares = expected_values(model, data.floats, settings)
    assert np.std(expected) > 1e-4  # features that differ between rows
    found = {"run": of_run(folder), "npz": of_npz(folder, data.floats)}
    errors = {"error": errors_of_run(folder)}
    if model.offset is None:
        estimator = TiedAutoencoder.from_run(folder / "out")
        found["estimator"] = estimator.transform(data.floats)
        errors["error of estimator"] = -estimator.score_samples(data.floats)
        if not data.flags:
            np.testing.assert_array_equal(errors["error of estimator"], errors["error"])
        found["onnx"] = of_onnx(encoder_onnx(model), data.floats)
        others = [dtype for dtype in other_dtypes(data.rows) if not data.flags or dtype.kind != "f"]
        if others:
            again = folder / "again"
            assert run(again, data.rows.astype(others[0]), "--model", str(folder / "out"), *data.flags) == 0
            found["run again"] = of_run(again)
            errors["error again"] = errors_of_run(again)
    largest = max(1.0, np.abs(expected).max())
    differences = {name: float(np.abs(features - expected).max() / largest) for name, features in found.items()}
    sizes = np.maximum(1, squares + expected_errors)
    return differences | {name: float((np.abs(e - expected_errors) / sizes).max()) for name, e in errors.items()}
