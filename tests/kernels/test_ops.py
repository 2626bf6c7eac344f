"""Tests of the CPU Ops against their NumPy reference: for all networks, at all edges of tiles, for any threads.

Sample: if a test combines dtypes, rules or networks, each value occurs in one combination; rows have 5 dtypes, and
errors and steps are computed for two of them. With TEST_CASES=all, all combinations are tested.
"""

import sys
import threading

import numpy as np
import pytest

from shardpress_kernels import ops
from shardpress_kernels.autoencoder import Autoencoder
from shardpress_kernels.hostmath import are_within
from shardpress_kernels.network import Head, Network, TargetLoss
from shardpress_kernels.rules import RULES
from shardpress_kernels.step import TrainingStep
from tests.support import reference
from tests.support.cases import ALL_CASES, case, cross, each
from tests.support.compiler import macros
from tests.support.interpreters import run_python
from tests.support.steps import take_step
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.compiler

# Tiles have 6 rows and, depending on the processor, 8, 16 or 64 columns. Rows of W are processed 512 at a time, rows of
# a minibatch 258 at a time. The compiled code depends on the options of a network, but not on its widths. A step takes
# 5 s to compile, so these networks have few different options, and tests share them.
WIDTHS = [(1, 1), (7, 3), (15, 16), (17, 15), (64, 64), (65, 33), (100, 130), (512, 48), (513, 17), (1030, 70)]
ONE_LAYER = [Network(widths) for widths in WIDTHS]
SHALLOW = Network((65, 33), code="linear", gain=True)
EVERY_OPTION = Network((70, 513, 66), "leaky-relu", "linear", gain=True)
DEEP = [
    Network((2049, 129, 8)),
    EVERY_OPTION,
    Network((5, 20, 16, 3, 1), "leaky-relu"),
    Network((65, 130, 9), "leaky-relu", "linear", gain=True, output_layer="hidden"),
]
WITH_CLASSES = [
    Network((65, 33), gain=True, nested=True, head=Head("classes", 10)),
    Network((230, 210), gain=True, nested=True, head=Head("classes", 65)),
]
WITH_NUMBERS = Network((40, 70, 17), "relu", "linear", gain=True, nested=True, head=Head("numbers", 1))
MANY_CLASSES = Network((30, 530, 520), head=Head("classes", 300))
CORRUPTION = 0.25
# A compiled function reuses its memory, which must not show after fewer rows.
HEIGHTS = [259, 1, 600, 5, 6, 7, 24, 25, 97, 258]
THREADS = [1, 2, 4]
LOSS = TargetLoss(weight=0.3, scale=2.5)


@pytest.fixture
def rng():
    return np.random.default_rng(20240317)


def random_parameters(rng, network):
    """Return parameters for which the output of every layer stays near 1."""
    shapes = network.shapes.items()
    parameters = {name: rng.normal(0, 1 / np.sqrt(shape[0]), shape).astype(np.float32) for name, shape in shapes}
    if network.gain:
        parameters["gain"] = rng.uniform(1, 2, network.n_features).astype(np.float32)
    return parameters


def of_one_layer(W, b_hidden):
    return {"W": W, "b_hidden": b_hidden, "b_output": np.zeros(len(W))}


def autoencoder_of(network, parameters, scaling=(), n_threads=2):
    """Return an autoencoder with parameters, given its center, its scale and, optionally, its limits."""
    autoencoder = Autoencoder(network, *scaling)
    autoencoder.set_parameters(parameters)
    autoencoder.n_threads.set_value(np.int64(n_threads))
    assert autoencoder.uses_ops(np.dtype("f4"))
    return autoencoder


def scaling_of(network, kind):
    """Return center, scale and limits of bytes; nothing if the rows are scaled."""
    if kind == "scaled":
        return ()
    zeros = np.zeros(network.n_inputs, np.float32)
    return zeros, zeros + np.float32(1 / 255), (zeros, zeros + 255)


def random_rows(rng, n_rows, network, kind):
    """Return rows of bytes, of floats, or of scaled floats, and the same rows scaled in float64."""
    if kind == "scaled":
        rows = rng.random((n_rows, network.n_inputs), dtype=np.float32)
    else:
        rows = rng.integers(0, 256, (n_rows, network.n_inputs)).astype({"bytes": "u1", "floats": "f4"}[kind])
    return rows, reference.scaled(rows, scaling_of(network, kind)[:2])


def random_targets(rng, head, n_rows):
    """Return targets. Some are missing."""
    is_missing = rng.random(n_rows) < 0.3
    if head.kind == "numbers":
        return np.where(is_missing, np.nan, rng.normal(size=n_rows)).astype(np.float32)
    return np.where(is_missing, -1, rng.integers(0, head.n_outputs, n_rows)).astype(np.float32)


def arrays_of_step(rng, network, n_rows, corruption):
    """Return what a step needs in addition to the rows, by name."""
    arrays = {}
    if corruption:
        arrays["noise"] = rng.integers(0, 256, (n_rows, network.n_inputs), dtype=np.uint8)
    if network.head is not None:
        arrays["targets"] = random_targets(rng, network.head, n_rows)
    if network.nested:
        arrays["kept"] = rng.integers(0, network.n_features + 1, n_rows).astype(np.float32)
    return arrays


def float64(parameters):
    return {name: array.astype(np.float64) for name, array in parameters.items()}


def assert_same_bits(found, expected):
    np.testing.assert_array_equal(np.asarray(found).view(np.uint32), np.asarray(expected).view(np.uint32))


# ---- against NumPy


def check_features_and_errors(rng, network, kind):
    parameters = random_parameters(rng, network)
    autoencoder = autoencoder_of(network, parameters, scaling_of(network, kind))
    p = float64(parameters)
    for n_rows in [0, *HEIGHTS]:
        with case(n_rows):
            rows, x = random_rows(rng, n_rows, network, kind)
            features = autoencoder.encode(rows)
            assert_close(features, reference.features(network, x, p), "cpu", "features")
            assert_close(autoencoder.errors(rows), reference.row_errors(network, x, p), "cpu", "cost")
            others = np.ascontiguousarray(features[::-1])
            expected = reference.row_errors(network, x, p, others.astype(np.float64))
            assert_close(autoencoder.errors(rows, others), expected, "cpu", "cost")


def check_error_and_gradients(rng, network, corruption=0.0, kind="floats"):
    parameters = random_parameters(rng, network)
    autoencoder = autoencoder_of(network, parameters, scaling_of(network, kind))
    step = TrainingStep(autoencoder, "momentum", np.dtype("f4"), corruption=corruption, loss=LOSS)
    for n_rows in HEIGHTS:
        with case(n_rows):
            rows, x = random_rows(rng, n_rows, network, kind)
            arrays = arrays_of_step(rng, network, n_rows, corruption)
            visible = reference.masked(x, arrays["noise"], corruption) if corruption else x
            targets = None
            if "targets" in arrays:
                targets = reference.Targets(arrays["targets"], LOSS)
            autoencoder.set_parameters(parameters)
            step.set_state({name: np.zeros_like(array) for name, array in step.state().items()})
            error = take_step(step, rows, -1.0, with_cost=True, **arrays)
            expected_error, gradients = reference.gradients(
                network, x, visible, float64(parameters), targets, arrays.get("kept")
            )
            assert_close(error, expected_error, "cpu", "cost")
            # In the first step at a rate of -1, the velocity is the gradient.
            for found, expected in zip(step.state().values(), gradients, strict=True):
                assert_close(found, expected, "cpu", "gradients")


@pytest.mark.process
@each("kind", ["bytes", "scaled"])
@each("network", ONE_LAYER)
def test_features_and_errors_of_one_layer_equal_numpy_at_edges(rng, network, kind):
    check_features_and_errors(rng, network, kind)


@each("kind, network", cross(["floats", "bytes"], [*DEEP, SHALLOW]))
def test_features_and_errors_of_networks_equal_numpy(rng, network, kind):
    check_features_and_errors(rng, network, kind)


@each("network", ONE_LAYER)
def test_gradients_of_one_layer_equal_numpy_at_edges(rng, network):
    check_error_and_gradients(rng, network, kind="scaled")


@each(
    "network, corruption",
    [
        *((network, 0.0) for network in (DEEP[2], MANY_CLASSES, WITH_NUMBERS)),
        *((network, CORRUPTION) for network in WITH_CLASSES),
    ],
)
def test_gradients_of_networks_equal_numpy(rng, network, corruption):
    check_error_and_gradients(rng, network, corruption)


def test_network_with_every_option_equals_numpy(rng):
    # Separate networks for all options and instruction sets would compile for minutes.
    check_features_and_errors(rng, EVERY_OPTION, "bytes")
    check_error_and_gradients(rng, EVERY_OPTION, CORRUPTION)


DTYPES = sorted(ops.DTYPES) if ALL_CASES else ["float64", "int16", "int64", "uint64", "uint8"]


@each("working, dtype", cross(["float32", "float64", None], DTYPES))
def test_features_and_gradients_of_every_dtype_equal_numpy(rng, dtype, working):
    rows = (rng.random((40, 19)) * (200 if np.dtype(dtype).kind != "i" else 100)).astype(dtype)
    scaling = ()
    if working is None:
        rows //= rows.dtype.type(100)  # otherwise sigmoids would saturate
    else:
        low = rows.min(axis=0).astype(working)
        high = rows.max(axis=0).astype(working)
        scaling = (low, (1 / np.where(high > low, high - low, 1)).astype(working))
    network = Network((19, 5))
    parameters = random_parameters(rng, network)
    autoencoder = autoencoder_of(network, parameters, scaling)
    x = reference.scaled(rows, scaling)
    expected = reference.features(network, x, float64(parameters))
    assert_close(autoencoder.encode(rows), expected, "cpu", "features")
    if not ALL_CASES and dtype not in ("uint8", "int64"):
        return
    expected = reference.row_errors(network, x, float64(parameters))
    assert_close(autoencoder.errors(rows), expected, "cpu", "cost")
    numbers = rng.permutation(40)[:31]
    x = x[numbers]
    step = TrainingStep(autoencoder, "momentum", np.dtype(dtype), resident=rows.copy())
    cost, gradients = reference.gradients(network, x, x, float64(parameters))
    assert_close(take_step(step, numbers, 0.1, with_cost=True), cost, "cpu", "cost")
    for found, expected in zip(step.state().values(), gradients, strict=True):
        assert_close(found, -0.1 * expected, "cpu", "gradients")


@pytest.mark.process
@pytest.mark.usefixtures("path")
@each("working, dtype", cross(["float32", "float64"], ["u1", "f8", "f4"]))
@each("n_inputs", [1, 65])
def test_rows_outside_the_range_are_reported(rng, working, dtype, n_inputs):
    # Some rows contain one value just outside the range, in any column, or NaN or Inf. Other rows are just inside it.
    low = np.full(n_inputs, 10, working)
    high = np.full(n_inputs, 90, working)
    rows = rng.integers(11, 90, (60, n_inputs)).astype(dtype)
    rows[0] = low
    rows[1] = high
    outside = {7: 9, 20: 91, 33: 0}
    if rows.dtype.kind == "f":
        kind = rows.dtype.type
        outside |= {40: np.nan, 41: -np.nan, 42: np.inf, 43: -np.inf, 44: np.finfo(dtype).max, 45: -np.finfo(dtype).max}
        if np.can_cast(dtype, working):
            outside |= {50: np.nextafter(kind(10), kind(0)), 51: np.nextafter(kind(90), kind(100))}
    for row, value in outside.items():
        rows[row, rng.integers(n_inputs)] = value
    network = Network((n_inputs, 3))
    autoencoder = Autoencoder(network, np.full(n_inputs, 47, working), 1 / (high - low), (low, high))
    autoencoder.set_parameters(random_parameters(rng, network))
    out = np.empty((60, 3), np.float32)
    assert autoencoder.encode_checked(rows, out).tolist() == sorted(outside)
    others = np.setdiff1d(np.arange(60), list(outside))
    assert_same_bits(out[others], autoencoder.encode(rows)[others])
    assert np.isfinite(out[others]).all()


# ---- rows of bytes


def has_products_of_bytes():
    return not macros().isdisjoint({"__AVX512VNNI__", "__AVXVNNI__"})


def hard_columns(kind, rng, n_inputs=300):
    """Return bytes, and the center and scale of their columns."""
    low = np.zeros(n_inputs)
    high = np.full(n_inputs, 255)
    if kind == "far from zero":
        low[:] = 200
    elif kind == "a few narrow ones":
        high[::30] = 1
    elif kind == "of all ranges":
        high[:] = 2 ** (np.arange(n_inputs) % 8 + 1) - 1
        low[::3] = high[::3] = np.arange(n_inputs)[::3] % 256
    scale = np.where(high > low, 1 / np.maximum(high - low, 1), 1)
    rows = rng.integers(low, high + 1, (500, n_inputs)).astype(np.uint8)
    return rows, low.astype(np.float32), scale.astype(np.float32)


HARD_COLUMNS = ["even", "far from zero", "a few narrow ones", "of all ranges"]


def hard_weights(kind, rng, n_inputs=300, n_features=60):
    W = rng.normal(0, 1 / np.sqrt(n_inputs), (n_inputs, n_features))
    if kind == "a few huge ones":
        W[rng.random(W.shape) < 0.01] *= 100
    elif kind == "of all sizes":
        W *= np.exp(2 * rng.normal(size=(n_inputs, 1))) / 10
    elif kind == "tiny":
        W *= 1e-35
    elif kind == "mostly 0":
        W[rng.random(W.shape) < 0.9] = 0
        W[:, 0] = 0
    return W.astype(np.float32)


HARD_WEIGHTS = ["normal", "a few huge ones", "of all sizes", "tiny", "mostly 0"]


@each("weights", HARD_WEIGHTS)
@each("columns", HARD_COLUMNS)
def test_features_of_bytes_are_as_exact_as_those_of_floats(rng, columns, weights):
    rows, *scaling = hard_columns(columns, rng)
    W = hard_weights(weights, rng)
    network = Network(W.shape)
    exact = (rows - scaling[0].astype(np.float64)) * scaling[1].astype(np.float64)  # not rounded
    parameters = of_one_layer(W, (-exact.mean(axis=0) @ W).astype(np.float32))
    autoencoder = autoencoder_of(network, parameters, scaling)
    features = autoencoder.encode(rows)
    of_floats = autoencoder.encode(rows.astype(np.uint16))
    expected = reference.code(network, reference.scaled(rows, scaling), float64(parameters))
    assert_close(features, expected, "cpu", "features")
    expected = reference.code(network, exact, float64(parameters))
    errors = [np.sqrt(np.mean((found - expected) ** 2)) for found in (features, of_floats)]
    assert errors[0] <= 1.05 * errors[1]
    if weights == "normal":  # bytes are multiplied as integers, if the processor can, and where this is exact
        in_integers = columns != "of all ranges" and has_products_of_bytes()
        assert np.array_equal(features, of_floats) != in_integers


@each("dtype, bad", [("u1", np.nan), ("u1", np.inf), ("u1", -np.inf), ("f4", np.nan), ("f4", np.inf), ("f4", 3e38)])
@each("where", ["W", "b_hidden", "center", "scale"])
def test_bytes_and_floats_are_scaled_first_for_extreme_parameters(rng, dtype, where, bad):
    # Rows of u2 and f8 are always scaled first.
    network = Network((300, 8))
    rows, center, scale = hard_columns("even", rng)
    arrays = {**random_parameters(rng, network), "center": center, "scale": scale}
    arrays[where].flat[7] = bad
    scaling = (arrays.pop("center"), arrays.pop("scale"))
    autoencoder = autoencoder_of(network, arrays, scaling)
    scaled_first = autoencoder.encode(rows.astype({"u1": "u2", "f4": "f8"}[dtype]))
    np.testing.assert_allclose(autoencoder.encode(rows.astype(dtype)), scaled_first, rtol=0, atol=1e-6)


@each("n_inputs", [65_536, 65_537, 140_001])
def test_sums_of_bytes_do_not_overflow(n_inputs):
    # All bytes are 255, and the digits of the weights are the largest of either sign.
    rows = np.full((7, n_inputs), 255, np.uint8)
    scaling = (np.zeros(n_inputs, "f4"), np.full(n_inputs, 1 / 255, "f4"))
    W = np.array([1, -1, 1 - 2**-16], np.float32) / np.full((n_inputs, 1), n_inputs, np.float32)
    network = Network(W.shape)
    parameters = of_one_layer(W, np.zeros(3))
    expected = reference.code(network, reference.scaled(rows, scaling), float64(parameters))
    tolerance = 1e-3  # a long sum, with all terms rounded the same way
    if n_inputs <= 65_536 and has_products_of_bytes():
        tolerance = 5e-6
    found = autoencoder_of(network, parameters, scaling).encode(rows)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@each("name", ["W", "b_hidden", "center", "scale"])
def test_changed_parameter_of_bytes_is_noticed_between_calls(rng, name):
    # Data derived from the parameters is reused while the parameters stay the same.
    network = Network((300, 60))
    rows, *scaling = hard_columns("even", rng)
    autoencoder = autoencoder_of(network, random_parameters(rng, network), scaling)
    before = autoencoder.encode(rows)
    assert_same_bits(autoencoder.encode(rows), before)
    variables = dict(zip(["center", "scale"], autoencoder.scaling(), strict=True)) | autoencoder.shared
    changed = variables[name].get_value()
    changed.flat[-1] *= 3
    changed.flat[-1] += 1
    variables[name].set_value(changed)
    scaling = [variable.get_value() for variable in autoencoder.scaling()]
    expected = autoencoder_of(network, autoencoder.parameters(), scaling).encode(rows)
    assert not np.array_equal(expected, before)
    assert_same_bits(autoencoder.encode(rows), expected)
    autoencoder.n_threads.set_value(np.int64(4))  # needs more memory
    assert_same_bits(autoencoder.encode(rows), expected)


@each("n_inputs", [1, 101])
def test_bytes_are_compared_with_ranges_of_any_numbers(rng, n_inputs):
    # The limits of one column are varied: whole numbers or fractions, inside or outside the range of a byte, or NaN.
    network = Network((n_inputs, 5))
    parameters = random_parameters(rng, network)
    rows = rng.integers(50, 200, (256, n_inputs), dtype=np.uint8)
    limits = [(low, high) for low in (-1, 0, 1, 254, 255, 256) for high in (-1, 0, 1, 254, 255, 256)]
    limits += [(0.5, 255.5), (254.5, 300.0), (-3e38, 3e38), (100, 99), (99.5, 99.6), (np.nan, 255), (0, np.nan)]
    center = np.full(n_inputs, 120.5, np.float32)
    scale = np.full(n_inputs, 1 / 149, np.float32)
    for low, high in limits:
        lowest = np.full(n_inputs, 50, np.float32)
        highest = np.full(n_inputs, 199, np.float32)
        column = rng.integers(n_inputs)
        lowest[column] = low
        highest[column] = high
        rows[:, column] = np.arange(256)
        autoencoder = autoencoder_of(network, parameters, (center, scale, (lowest, highest)))
        found = autoencoder.encode_checked(rows, np.empty((256, 5), np.float32))
        np.testing.assert_array_equal(found, np.flatnonzero(~are_within(rows, lowest, highest)))
        rows[:, column] = 100


@pytest.mark.process
def test_no_memory_is_read_after_the_last_row():
    # The rows end at the end of a page. The next page cannot be accessed.
    code = """
    import ctypes, mmap
    import numpy as np
    from shardpress_kernels.autoencoder import Autoencoder
    from shardpress_kernels.network import Network
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 33 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + 32 * page), ctypes.c_size_t(page), 0) == 0
    rng = np.random.default_rng(0)
    facts["n_compared"] = 0
    for n_inputs in (7, 97, 98, 99, 100):
        zeros = np.zeros(n_inputs, np.float32)
        autoencoder = Autoencoder(Network((n_inputs, 20)), zeros, zeros + np.float32(1 / 255), (zeros, zeros + 255))
        weights = {name: rng.normal(0, 0.1, array.shape) for name, array in autoencoder.parameters().items()}
        autoencoder.set_parameters(weights)
        for n_rows in range(1, 20):
            for dtype in (np.uint8, np.float32):
                rows = rng.integers(0, 256, (n_rows, n_inputs)).astype(dtype)
                out = np.empty((n_rows, 20), np.float32)
                at_end = np.frombuffer(memory, dtype, rows.size, 32 * page - rows.nbytes).reshape(rows.shape)
                at_end[:] = rows
                assert autoencoder.encode_checked(at_end, out).size == 0
                assert np.array_equal(out, autoencoder.encode(rows))
                facts["n_compared"] += 1
    """
    ended = run_python(code)
    assert ended.facts.get("n_compared") == 5 * 19 * 2, ended.stderr


# ---- rows of floats


@each("offset", [0, -1, 1.5, 1000])
@each("n_features", [64, 65])
def test_rows_of_floats_are_not_scaled_if_columns_begin_near_0(rng, n_features, offset):
    # If a column begins far from 0, rows are scaled first, like rows of other dtypes. With more than 64 features, all
    # rows are scaled first.
    network = Network((300, n_features))
    width = np.exp(rng.normal(size=300)).astype(np.float32)
    low = (offset * width).astype(np.float32)
    scale = 1 / width
    if abs(offset) == 1:
        low *= np.float32(0.999)  # otherwise the rounding of the scale would matter
    rows = (low + rng.random((500, 300), dtype=np.float32) * width).astype(np.float32)
    parameters = random_parameters(rng, network)
    autoencoder = autoencoder_of(network, parameters, (low, scale))
    found = autoencoder.encode(rows)
    scaled_first = autoencoder.encode(rows.astype(np.float64))
    if abs(offset) > 1 or n_features > 64:
        assert_same_bits(found, scaled_first)
        return
    assert not np.array_equal(found, scaled_first)
    x = (rows - low.astype(np.float64)) * scale.astype(np.float64)  # not rounded
    expected = reference.code(network, x, float64(parameters))
    assert_close(found, expected, "cpu", "features")
    errors = [np.sqrt(np.mean((features - expected) ** 2)) for features in (found, scaled_first)]
    assert errors[0] <= 1.05 * (1 + 2 * abs(offset)) * errors[1]  # the mean row is 1/2


# ---- the same bits


@each(
    "kind, network",
    [(kind, Network(widths)) for kind in ("bytes", "floats") for widths in [(101, 24), (786, 65), (599, 17), (9, 64)]]
    + cross(["bytes", "floats"], DEEP),
)
def test_row_has_the_same_bits_next_to_any_rows(rng, network, kind):
    parameters = random_parameters(rng, network)
    rows, _ = random_rows(rng, 611, network, kind)
    first = autoencoder_of(network, parameters, scaling_of(network, kind), n_threads=1)
    assert first.ignores_positions(rows.dtype)
    features = first.encode(rows)
    errors = first.errors(rows)
    decoded = first.errors(rows, features)
    for n_threads in THREADS:
        autoencoder = autoencoder_of(network, parameters, scaling_of(network, kind), n_threads=n_threads)
        for start, stop in [(0, 611), (0, 1), (3, 4), (5, 300), (7, 610), (605, 611), (606, 611)]:
            some = rows[start:stop]
            assert_same_bits(autoencoder.encode(some), features[start:stop])
            assert_same_bits(autoencoder.errors(some), errors[start:stop])
            assert_same_bits(autoencoder.errors(some, features[start:stop]), decoded[start:stop])
        assert_same_bits(autoencoder.encode(np.ascontiguousarray(rows[::-1])), features[::-1])


@each("rule", RULES if ALL_CASES else ["momentum"])
def test_training_gives_the_same_bits_for_any_threads_and_place(rng, rule):
    network = WITH_CLASSES[1]
    parameters = random_parameters(rng, network)
    rows, _ = random_rows(rng, 700, network, "floats")
    minibatches = [rng.permutation(700)[:n_rows] for n_rows in (259, 7, 512)]
    arrays = [arrays_of_step(rng, network, len(numbers), CORRUPTION) for numbers in minibatches]
    results = []
    for n_threads, resident in [(1, rows), (2, rows), (4, rows), (2, None)]:
        autoencoder = autoencoder_of(network, parameters, scaling_of(network, "floats"), n_threads)
        step = TrainingStep(autoencoder, rule, rows.dtype, resident, CORRUPTION, LOSS)
        costs = []
        for numbers, own in zip(minibatches, arrays, strict=True):
            minibatch = rows[numbers] if resident is None else numbers
            costs.append(take_step(step, minibatch, 0.01, with_cost=True, **own))
        results.append([np.float32(costs), *autoencoder.parameters().values(), *step.state().values()])
    for found in results[1:]:
        for array, expected in zip(found, results[0], strict=True):
            assert_same_bits(array, expected)


# ---- NaN and Inf


@each("kind, network", [("bytes", Network((20, 3), code="linear", gain=True)), ("floats", Network((20, 40, 3)))])
def test_rows_with_features_that_are_not_finite_are_reported(rng, network, kind):
    # All sums are finite, except in the rows in which a column with huge weights is not zero.
    parameters = random_parameters(rng, network)
    parameters[network.layers[0][0]][3:5] = 3e38
    rows, _ = random_rows(rng, 60, network, kind)
    rows[:, 3:5] = 0
    rows[[5, 6, 59], 3:5] = 255
    autoencoder = autoencoder_of(network, parameters, scaling_of(network, kind))
    out = np.empty((60, 3), np.float32)
    found = autoencoder.encode_checked(rows, out)
    np.testing.assert_array_equal(found, np.flatnonzero(~np.isfinite(out).all(axis=1)))
    assert set(found) <= {5, 6, 59}
    assert len(found) == 3 or network.code == "sigmoid"


def test_nan_of_any_bit_pattern_stays_nan():
    # The function `exponential` in C adds to the bits of its argument, which could turn NaN into a number.
    bits = np.array([0x7FC00000, 0x7FC00001, 0x7F800001, 0xFFC00001, 0x7FFFFFFF, 0xFFFFFFFF], dtype=np.uint32)
    autoencoder = autoencoder_of(Network((1, 20)), of_one_layer(np.ones((1, 20)), np.zeros(20)))
    assert np.isnan(autoencoder.encode(bits.view(np.float32)[:, None])).all()


def test_sigmoid_is_exact_in_float32_and_saturates():
    z = np.concatenate([np.linspace(-90, 30, 200_001), [-1e30, -300, -88.1, 17, 89, 300, 1e30, 0, -0.0]])
    z = z.astype(np.float32)[:, None]
    autoencoder = autoencoder_of(Network((1, 1)), of_one_layer(np.ones((1, 1)), np.zeros(1)))
    found = autoencoder.encode(z)[:, 0]
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-z[:, 0].astype(np.float64)))
    normal = expected > 1e-37
    assert (np.abs(found - expected)[normal] < 1.6e-7 * expected[normal]).all()
    assert (found[~normal] < 2e-37).all()
    np.testing.assert_array_equal(found[-9:], [0, 0, 0, 1, 1, 1, 1, 0.5, 0.5])
    assert (found[z[:, 0] < -88] == 0).all()
    assert (np.diff(found[:200_001]) >= -6e-8).all()


# ---- arrays


def test_arrays_can_have_any_layout(rng):
    network = Network((50, 21))
    parameters = random_parameters(rng, network)
    rows = rng.random((33, 50), dtype=np.float32)
    expected = autoencoder_of(network, parameters).encode(rows)
    unaligned = np.frombuffer(b"x" + rows.tobytes(), dtype=np.uint8)[1:].view(np.float32).reshape(rows.shape)
    autoencoder = autoencoder_of(network, parameters | {"W": np.asfortranarray(parameters["W"])})
    for same in (rows, np.asfortranarray(rows), unaligned, np.repeat(rows, 2, axis=1)[:, ::2]):
        assert_same_bits(autoencoder.encode(same), expected)
    around = np.full(35 * 21 + 1, 7, dtype=np.float32)
    for out in (
        np.zeros((33, 40), np.float32)[:, 3:24],
        np.zeros((21, 33), np.float32).T,
        np.zeros((33, 21), np.float32)[::-1],
        around[1 + 21 : 1 + 34 * 21].reshape(33, 21),  # not aligned to 8 bytes
    ):
        assert autoencoder.encode(rows, out) is out
        assert_same_bits(np.ascontiguousarray(out), expected)
    assert (around[: 1 + 21] == 7).all()
    assert (around[1 + 34 * 21 :] == 7).all()


def test_arrays_of_wrong_shapes_are_refused_by_name(rng):
    network = Network((5, 4, 3), "leaky-relu", "linear", gain=True)
    parameters = random_parameters(rng, network)
    rows = np.zeros((4, 5), np.float32)
    autoencoder = autoencoder_of(network, parameters, scaling_of(network, "floats"))
    with pytest.raises(ValueError, match=r"\bW_2\b.*\(3, 4\).*\(4, 3\)"):
        autoencoder.set_parameters(parameters | {"W_2": np.ones((3, 4))})
    for name, shape in {"W_2": (6, 3), "gain": (2,)}.items():
        variable = autoencoder.shared[name]
        before = variable.get_value()
        variable.set_value(np.zeros(shape, np.float32))
        with pytest.raises(ValueError, match=rf"\b{name}\b.*\({shape[0]}, .*\({before.shape[0]}, "):
            autoencoder.encode(rows)
        variable.set_value(before)
    with pytest.raises(ValueError, match=r"\bW_1\b"):
        autoencoder.encode(np.zeros((4, 6), np.float32))
    with pytest.raises(ValueError, match=r"\bout\b"):
        autoencoder.encode(rows, np.zeros((5, 3), np.float32))
    with pytest.raises(ValueError, match=r"\bcenter\b"):
        autoencoder_of(network, parameters, (np.zeros(4, np.float32), np.ones(5, np.float32))).encode(rows)


def test_arrays_that_a_step_cannot_use_are_refused(rng):
    network = Network((5, 3), gain=True, nested=True, head=Head("classes", 3))
    autoencoder = autoencoder_of(network, random_parameters(rng, network), scaling_of(network, "floats"))
    step = TrainingStep(autoencoder, "momentum", np.dtype("f4"), corruption=CORRUPTION, loss=LOSS)
    rows = np.zeros((4, 5), np.float32)
    others = arrays_of_step(rng, network, 4, CORRUPTION)
    take_step(step, rows, 0.1, **others)
    before = autoencoder.parameters()
    for name, value, words in [
        ("noise", None, "noise"),
        ("noise", np.zeros((3, 5), np.uint8), "noise"),
        ("targets", np.zeros(3, np.float32), "the targets"),
        ("targets", np.array([0, 1, 3, 2], np.float32), "row 2 "),
        ("targets", np.array([np.nan, 0, 1, 2], np.float32), "row 0 "),
        ("kept", np.zeros(3, np.float32), "kept"),
        ("kept", np.full(4, np.nan, np.float32), "keeps"),
    ]:
        with case(name, words), pytest.raises(ValueError, match=words):
            take_step(step, rows, 0.1, **(others | {name: value}))
    with pytest.raises(ValueError, match="minibatch has no rows"):
        take_step(step, rows[:0], 0.1, **{name: array[:0] for name, array in others.items()})
    for name, array in autoencoder.parameters().items():
        np.testing.assert_array_equal(array, before[name])


@each("number", [-1, 9])
def test_row_numbers_after_the_last_row_are_refused(rng, number):
    network = Network((5, 3))
    autoencoder = autoencoder_of(network, random_parameters(rng, network), scaling_of(network, "bytes"))
    before = autoencoder.parameters()
    step = TrainingStep(autoencoder, "momentum", np.dtype("u1"), resident=np.zeros((9, 5), np.uint8))
    with pytest.raises(IndexError, match=rf"\brow {number}\b.*\b9\b"):
        take_step(step, np.array([0, number]), 0.1)
    for name, array in autoencoder.parameters().items():
        np.testing.assert_array_equal(array, before[name])


# ---- processes and threads


def test_other_python_threads_run_during_a_call(rng):
    # The interpreter does not switch threads in this test. The other thread runs only if the encoder releases the lock.
    network = Network((784, 256))
    rows = rng.random((3_000, 784), dtype=np.float32)
    autoencoder = autoencoder_of(network, random_parameters(rng, network), n_threads=1)
    autoencoder.encode(rows)
    lock = threading.Lock()
    lock.acquire()
    has_run = threading.Event()

    def run():
        with lock:
            has_run.set()

    thread = threading.Thread(target=run)
    thread.start()
    before = sys.getswitchinterval()
    sys.setswitchinterval(10**6)
    lock.release()
    n_calls = 0
    try:
        while n_calls < 1000 and not has_run.is_set():  # a busy machine may have no core for the thread during one call
            autoencoder.encode(rows)
            n_calls += 1
        assert has_run.is_set()
        assert n_calls
    finally:
        sys.setswitchinterval(before)
        thread.join()


@pytest.mark.process
def test_child_of_a_fork_has_its_own_threads():
    code = """
    import os
    import numpy as np
    from shardpress_kernels.autoencoder import Autoencoder
    from shardpress_kernels.network import Network
    from shardpress.training.start import start_of
    autoencoder = Autoencoder(Network((784, 64)))
    rows = np.random.default_rng(0).random((500, 784), dtype=np.float32)
    autoencoder.set_parameters(start_of(autoencoder.network, np.random.default_rng(0), None))
    autoencoder.n_threads.set_value(np.int64(3))
    expected = autoencoder.encode(rows)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(autoencoder.encode(rows), expected) else 1)
    facts["child"] = os.waitpid(child, 0)[1]
    facts["parent"] = bool(np.array_equal(autoencoder.encode(rows), expected))
    """
    assert run_python(code).facts == {"child": 0, "parent": True}


# ---- flags of Theano


@pytest.mark.process
def test_flags_of_the_user_hardly_change_results():
    code = """
    import numpy as np
    from shardpress_kernels import backend
    from shardpress_kernels.autoencoder import Autoencoder
    from shardpress_kernels.network import Network
    from shardpress_kernels.step import TrainingStep
    from shardpress.training.start import start_of
    rng = np.random.default_rng(0)
    autoencoder = Autoencoder(Network((50, 7)))
    rows = rng.random((40, 50), dtype=np.float32)
    autoencoder.set_parameters(start_of(autoencoder.network, rng, None))
    step = TrainingStep(autoencoder, "momentum", rows.dtype)
    facts["uses_ops"] = backend.uses_ops()
    facts["costs"] = []
    for _ in range(5):
        step.begin(rows, None, len(rows))
        facts["costs"].append(step.take([0.1], with_cost=True))
    out = np.zeros((40, 7), np.float32)
    autoencoder.encode(rows, out)
    facts["features"] = out.tolist()
    facts["tiny"] = float(np.float32(1e-39) * np.float32(0.5))
    """
    expected = run_python(code).facts
    assert expected["uses_ops"]
    assert expected["tiny"] == pytest.approx(5e-40), "the process does not flush subnormal numbers to zero"
    assert run_python(code, THEANO_FLAGS="optimizer_excluding=inplace").facts == expected
    found = run_python(code, THEANO_FLAGS="mode=FAST_COMPILE").facts
    assert not found["uses_ops"]  # but Theano's own operations, in NumPy
    np.testing.assert_allclose(found["costs"], expected["costs"], rtol=1e-4)
    np.testing.assert_allclose(found["features"], expected["features"], atol=1e-4)
