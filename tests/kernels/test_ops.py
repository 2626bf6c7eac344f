"""Tests of the CPU Ops against their NumPy reference: at all edges of tiles, for any number of threads and other rows.

Sample: if a test combines dtypes, rules, shapes or layouts, each value occurs in one combination; with TEST_CASES=all,
all combinations are tested.
"""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from shardpress_kernels import ops
from shardpress_kernels.autoencoder import Autoencoder, theano
from shardpress_kernels.hostmath import are_within
from shardpress_kernels.network import Network
from shardpress_kernels.rules import RULES
from shardpress_kernels.step import TrainingStep
from tests.support import reference
from tests.support.cases import case, cross, each
from tests.support.compiler import macros
from tests.support.interpreters import run_python
from tests.support.steps import forget, take_step
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.compiler

# Tiles have 6 rows and, depending on the processor, 8, 16 or 64 columns. Rows of W are processed 512 at a time, rows of
# a minibatch 258 at a time.
WIDTHS = [(1, 1), (7, 3), (15, 16), (17, 15), (64, 64), (65, 33), (100, 130), (512, 48), (513, 17), (1030, 70)]
HEIGHTS = [1, 5, 6, 7, 24, 25, 258, 259, 600]
THREADS = [1, 2, 4]


@pytest.fixture
def rng():
    return np.random.default_rng(20240317)


def random_parameters(rng, n_inputs, n_features):
    shapes = {"W": (n_inputs, n_features), "b_hidden": (n_features,), "b_output": (n_inputs,)}
    return {name: rng.normal(0, 1 / np.sqrt(n_inputs), shape).astype(np.float32) for name, shape in shapes.items()}


def autoencoder_of(parameters, center=None, scale=None, n_threads=2):
    autoencoder = Autoencoder(Network(parameters["W"].shape), center, scale)
    autoencoder.set_parameters(parameters)
    autoencoder.n_threads.set_value(np.int64(n_threads))
    assert autoencoder.uses_ops(np.dtype("f4"))
    return autoencoder


def scaling_of(rows, working):
    if working is None:
        return []
    low = rows.min(axis=0).astype(working)
    high = rows.max(axis=0).astype(working)
    return [low, (1 / np.where(high > low, high - low, 1)).astype(working)]


def float64(parameters):
    return [array.astype(np.float64) for array in parameters.values()]


def code_of(x, W, b_hidden):
    """Return the code of the reference, for a network of one layer of sigmoids."""
    return reference.code(Network(W.shape), x, [W, b_hidden, np.zeros(len(W))])


def gradients_of(x, parameters):
    """Return the gradients of the reference, for a network of one layer of sigmoids."""
    return reference.gradients(Network(parameters[0].shape), x, x, parameters)


def assert_same_bits(found, expected):
    np.testing.assert_array_equal(np.asarray(found).view(np.uint32), np.asarray(expected).view(np.uint32))


# ---- against NumPy


@pytest.mark.process
@each("n_inputs, n_features", WIDTHS)
def test_features_and_errors_equal_numpy_at_tile_edges(rng, n_inputs, n_features):
    parameters = random_parameters(rng, n_inputs, n_features)
    autoencoder = autoencoder_of(parameters)
    network = Network((n_inputs, n_features))
    p = float64(parameters)
    for n_rows in [0, *HEIGHTS]:
        x = rng.random((n_rows, n_inputs), dtype=np.float32)
        assert_close(autoencoder.encode(x), reference.code(network, x, p), "cpu", "float32", "features")
        assert_close(autoencoder.errors(x), reference.row_errors(network, x, p), "cpu", "float32", "cost")


@each("n_inputs, n_features", WIDTHS)
def test_features_of_bytes_equal_numpy_at_tile_edges(rng, n_inputs, n_features):
    parameters = random_parameters(rng, n_inputs, n_features)
    scaling = np.zeros(n_inputs, np.float32), np.full(n_inputs, 1 / 255, np.float32)
    autoencoder = autoencoder_of(parameters, *scaling)
    for n_rows in [0, *HEIGHTS]:
        rows = rng.integers(0, 256, (n_rows, n_inputs), dtype=np.uint8)
        expected = reference.code(autoencoder.network, reference.scaled(rows, scaling), float64(parameters))
        assert_close(autoencoder.encode(rows), expected, "cpu", "float32", "features")


@each("n_inputs, n_features", WIDTHS)
def test_error_and_gradients_equal_numpy_at_tile_edges(rng, n_inputs, n_features):
    parameters = random_parameters(rng, n_inputs, n_features)
    autoencoder = autoencoder_of(parameters)
    step = TrainingStep(autoencoder, "momentum", np.dtype("f4"))
    for n_rows in HEIGHTS:
        x = rng.random((n_rows, n_inputs), dtype=np.float32)
        autoencoder.set_parameters(parameters)
        forget(step)
        cost, gradients = gradients_of(x.astype(np.float64), float64(parameters))
        assert_close(take_step(step, x, -1.0, with_cost=True), cost, "cpu", "float32", "cost")
        # In the first step at a rate of -1, the velocity is the gradient.
        for found, expected in zip(step.state().values(), gradients, strict=True):
            assert_close(found, expected, "cpu", "float32", "gradients")


@each("working, dtype", cross(["float32", "float64", None], sorted(ops.DTYPES)))
def test_training_on_every_dtype_equals_numpy(rng, dtype, working):
    rows = (rng.random((40, 19)) * (200 if np.dtype(dtype).kind != "i" else 100)).astype(dtype)
    if working is None:
        rows //= rows.dtype.type(100)  # otherwise sigmoids would saturate
    scaling = scaling_of(rows, working)
    parameters = random_parameters(rng, 19, 5)
    numbers = rng.permutation(40)[:31]
    autoencoder = autoencoder_of(parameters, *scaling)
    step = TrainingStep(autoencoder, "momentum", np.dtype(dtype), resident=rows.copy())
    cost, gradients = gradients_of(reference.scaled(rows[numbers], scaling), float64(parameters))
    assert_close(take_step(step, numbers, 0.1, with_cost=True), cost, "cpu", "float32", "cost")
    for found, expected in zip(step.state().values(), gradients, strict=True):
        assert_close(found, -0.1 * expected, "cpu", "float32", "gradients")


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_equals_its_numpy_reference(rng, rule):
    parameters = random_parameters(rng, 70, 33)
    expected = float64(parameters)
    states = [[np.zeros_like(array) for _ in RULES[rule].states] for array in expected]
    autoencoder = autoencoder_of(parameters)
    step = TrainingStep(autoencoder, rule, np.dtype("f4"))
    for count in range(1, 13):
        minibatch = rng.random((300, 70), dtype=np.float32)
        take_step(step, minibatch, 0.01 / count)
        rate = 0.01 / count * (np.sqrt(1 - 0.999**count) / (1 - 0.9**count) if rule == "adam" else 1)
        _, gradients = gradients_of(minibatch.astype(np.float64), expected)
        for parameter, gradient, own in zip(expected, gradients, states, strict=True):
            for array, values in zip(
                [parameter, *own], RULES[rule].update(parameter, gradient, rate, *own), strict=True
            ):
                array[...] = values
    for found, array in zip(autoencoder.parameters().values(), expected, strict=True):
        assert_close(found, array, "cpu", "float32", "parameters")
    found = {name: array for name, array in step.state().items() if name != "step"}
    roles = [f"{name}.{role}" for name in parameters for role in RULES[rule].states]
    for name, array in zip(roles, [array for own in states for array in own], strict=True):
        assert_close(found.pop(name), array, "cpu", "float32", "parameters")
    assert found == {}


@pytest.mark.process
@pytest.mark.parametrize("optimizer", ["", "fused"])
@each("working, dtype", cross(["float32", "float64"], ["u1", "f8", "f4", "i8", "i2"]))
@each("n_inputs", [1, 15, 64, 100])
def test_rows_outside_the_range_are_reported(rng, monkeypatch, optimizer, working, dtype, n_inputs):
    # Some rows contain one value just outside the range, in any column, or NaN or Inf. Other rows are just inside it.
    monkeypatch.setattr("shardpress_kernels.backend.uses_ops", lambda: not optimizer)
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
    parameters = random_parameters(rng, n_inputs, 3)
    center = np.full(n_inputs, 47, working)
    autoencoder = Autoencoder(Network((n_inputs, 3)), center, 1 / (high - low), (low, high))
    autoencoder.set_parameters(parameters)
    out = np.empty((60, 3), np.float32)
    assert autoencoder.encode_checked(rows, out).tolist() == sorted(outside)
    others = np.setdiff1d(np.arange(60), list(outside))
    assert_same_bits(out[others], autoencoder.encode(rows)[others])
    assert np.isfinite(out[others]).all()


def test_checking_rows_requires_a_range():
    with pytest.raises(ValueError, match=r"center.*scale.*limits"):
        Autoencoder(Network((3, 2))).encode_checked(np.zeros((1, 3), np.float32), np.empty((1, 2), np.float32))


NETWORKS = [Network((9, 4)), Network((9, 5, 4), "leaky-relu", "linear", gain=True)]


@each("inplace, network", cross([False, True], NETWORKS))
def test_an_op_changes_only_the_inputs_that_it_may_change(rng, network, inplace):
    parameters = [rng.normal(0, 1 / 3, shape).astype(np.float32) for shape in network.shapes.values()]
    rows = rng.random((20, 9), dtype=np.float32)
    noise = rng.integers(0, 256, (14, 9), dtype=np.uint8)
    one = np.array(1, dtype=np.int64)
    rate = np.array(0.2, dtype=np.float32)
    states = [np.zeros_like(array) for array in parameters for _ in RULES["adam"].states]
    scaling = scaling_of(rows, "float32")
    numbers = np.arange(3, 17)
    limits = [np.full(9, 0.1, np.float32), np.full(9, 0.9, np.float32)]
    checked = [np.empty((20, 4), np.float32), np.empty(20, bool)]
    cases = [
        (ops.Encode, (), [rows, *parameters, one, np.empty((20, 4), np.float32), *scaling]),
        (ops.Encode, (True,), [rows, *parameters, one, *limits, *checked, *scaling]),
        (ops.Errors, (), [rows, *parameters, one, np.empty(20, np.float32), *scaling]),
        (ops.Errors, (True,), [rows, rows[:, :4].copy(), *parameters, one, np.empty(20, np.float32), *scaling]),
        (ops.Step, ("adam", 0.3, True), [rows, numbers, noise, rate, one, *parameters, *states, *scaling]),
        (ops.Step, ("adam", 0.0, False), [rows, rate, one, *parameters, *states, *scaling]),
    ]
    for op, properties, arrays in cases:
        check_inputs_after_a_call_of(op(network, *properties, inplace=inplace), arrays)


def check_inputs_after_a_call_of(op, arrays):
    copies = [array.copy() for array in arrays]
    variables = [theano.tensor.TensorType(array.dtype, (False,) * array.ndim)() for array in arrays]
    node = op(*variables, return_list=True)[0].owner
    values = [[array] for array in copies] + [[None] for _ in node.outputs]
    storages = dict(zip([*node.inputs, *node.outputs], values, strict=True))
    computed = {variable: [variable in node.inputs] for variable in storages}
    op.make_thunk(node, storages, computed, [], impl="c")()
    outputs = [storages[variable][0] for variable in node.outputs]
    changed = [copies[i] for i in op.changed]
    for array, output in zip(changed, outputs[len(outputs) - len(changed) :], strict=True):
        assert np.shares_memory(array, output) == op.inplace
    may_change = op.changed if op.inplace else ()
    for i, (array, before) in enumerate(zip(copies, arrays, strict=True)):
        assert i in may_change or np.array_equal(array, before)


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
    elif kind.startswith("constant"):
        low[::3] = high[::3] = np.arange(n_inputs)[::3] % 256
    scale = np.where(high > low, 1 / np.maximum(high - low, 1), kind == "constant and scaled by 1")
    rows = rng.integers(low, high + 1, (500, n_inputs)).astype(np.uint8)
    return rows, low.astype(np.float32), scale.astype(np.float32)


HARD_COLUMNS = ["even", "far from zero", "a few narrow ones", "of all ranges", "constant", "constant and scaled by 1"]


def hard_weights(kind, rng, n_inputs=300, n_features=60):
    W = rng.normal(0, 1 / np.sqrt(n_inputs), (n_inputs, n_features))
    if kind == "a few huge ones":
        W[rng.random(W.shape) < 0.01] *= 100
    elif kind == "of all sizes":
        W *= np.exp(2 * rng.normal(size=(n_inputs, 1))) / 10
    elif kind == "of one sign":
        W = np.abs(W) / 3
    elif kind == "tiny":
        W *= 1e-35
    elif kind == "mostly 0":
        W[rng.random(W.shape) < 0.9] = 0
        W[:, 0] = 0
    return W.astype(np.float32)


HARD_WEIGHTS = ["normal", "a few huge ones", "of all sizes", "of one sign", "tiny", "mostly 0"]


@each("weights", HARD_WEIGHTS)
@each("columns", HARD_COLUMNS)
def test_features_of_bytes_are_as_exact_as_those_of_floats(rng, columns, weights):
    rows, *scaling = hard_columns(columns, rng)
    W = hard_weights(weights, rng)
    exact = (rows - scaling[0].astype(np.float64)) * scaling[1].astype(np.float64)  # not rounded
    b_hidden = (-exact.mean(axis=0) @ W).astype(np.float32)
    autoencoder = autoencoder_of({"W": W, "b_hidden": b_hidden, "b_output": np.zeros(len(W))}, *scaling)
    features = autoencoder.encode(rows)
    of_floats = autoencoder.encode(rows.astype(np.uint16))
    expected = code_of(reference.scaled(rows, scaling), W.astype(np.float64), b_hidden.astype(np.float64))
    assert_close(features, expected, "cpu", "float32", "features")
    expected = code_of(exact, W.astype(np.float64), b_hidden.astype(np.float64))
    errors = [np.sqrt(np.mean((found - expected) ** 2)) for found in (features, of_floats)]
    assert errors[0] <= 1.05 * errors[1]


@pytest.mark.process
@each(
    "n_inputs, columns, in_integers",
    [(300, name, name in [*HARD_COLUMNS[:3], "constant"]) for name in HARD_COLUMNS]
    + [(n, "even", n > 20) for n in (10, 100, 1000)],
)
def test_bytes_use_integer_products_where_these_are_exact(rng, n_inputs, columns, in_integers):
    # Values of other dtypes are multiplied as floats. Bytes are multiplied as floats if the processor lacks the
    # instruction.
    rows, *scaling = hard_columns(columns, rng, n_inputs)
    autoencoder = autoencoder_of(random_parameters(rng, n_inputs, 60), *scaling)
    of_bytes = autoencoder.encode(rows)
    of_floats = autoencoder.encode(rows.astype(np.uint16))
    assert np.array_equal(of_bytes, of_floats) != (in_integers and has_products_of_bytes())


@each("bad", [np.nan, np.inf, -np.inf])
@each("where", ["W", "b_hidden", "center", "scale"])
def test_bytes_use_float_products_if_parameters_are_not_finite(rng, where, bad):
    rows, center, scale = hard_columns("even", rng)
    parameters = random_parameters(rng, 300, 60)
    for name, array in {**parameters, "center": center, "scale": scale}.items():
        if name == where:
            array.flat[37] = bad
    autoencoder = autoencoder_of(parameters, center, scale)
    assert_same_bits(autoencoder.encode(rows), autoencoder.encode(rows.astype(np.uint16)))


@each("n_inputs", [65_535, 65_536, 65_537, 140_001])
def test_sums_of_bytes_do_not_overflow(n_inputs):
    # All bytes are 255, and the digits of the weights are the largest of either sign.
    rows = np.full((7, n_inputs), 255, np.uint8)
    scaling = (np.zeros(n_inputs, "f4"), np.full(n_inputs, 1 / 255, "f4"))
    W = np.array([1, -1, 1 - 2**-16], np.float32) / np.full((n_inputs, 1), n_inputs, np.float32)
    autoencoder = autoencoder_of({"W": W, "b_hidden": np.zeros(3), "b_output": np.zeros(n_inputs)}, *scaling)
    expected = code_of(reference.scaled(rows, scaling), W.astype(np.float64), np.zeros(3))
    tolerance = (
        5e-6 if n_inputs <= 65_536 and has_products_of_bytes() else 1e-3
    )  # a long sum, with all terms rounded the same way
    np.testing.assert_allclose(autoencoder.encode(rows), expected, rtol=0, atol=tolerance)


@each("name", ["W", "b_hidden", "center", "scale"])
def test_changed_parameter_is_noticed_between_calls(rng, name):
    # Data derived from the parameters is reused while the parameters stay the same.
    rows, *scaling = hard_columns("even", rng)
    parameters = random_parameters(rng, 300, 60)
    autoencoder = autoencoder_of(parameters, *scaling)
    before = autoencoder.encode(rows)
    assert_same_bits(autoencoder.encode(rows), before)
    variables = dict(zip(["center", "scale"], autoencoder.scaling(), strict=True)) | autoencoder.shared
    changed = variables[name].get_value()
    changed.flat[-1] *= 3
    changed.flat[-1] += 1
    variables[name].set_value(changed)
    scaling = [variable.get_value() for variable in autoencoder.scaling()]
    expected = autoencoder_of(autoencoder.parameters(), *scaling).encode(rows)
    assert not np.array_equal(expected, before)
    assert_same_bits(autoencoder.encode(rows), expected)
    autoencoder.n_threads.set_value(np.int64(4))  # needs more memory
    assert_same_bits(autoencoder.encode(rows), expected)


@each("n_inputs", [1, 3, 63, 64, 65, 100, 785])
def test_bytes_are_compared_with_ranges_of_any_numbers(rng, n_inputs):
    # The limits of one column are varied: whole numbers or fractions, inside or outside the range of a byte, or NaN.
    rows = rng.integers(50, 200, (256, n_inputs), dtype=np.uint8)
    whole = [(low, high) for low in (-1, 0, 1, 254, 255, 256) for high in (-1, 0, 1, 254, 255, 256)]
    others = [(-0.5, 254.5), (0.5, 255.5), (254.5, 300.0), (-3e38, 3e38), (100, 99), (99.5, 100.4), (99.5, 99.6)]
    nothing = [(np.nan, 255), (0, np.nan), (np.nan, np.nan)]
    parameters = random_parameters(rng, n_inputs, 5)
    for low, high in whole + others + nothing:
        lowest = np.full(n_inputs, 50, np.float32)
        highest = np.full(n_inputs, 199, np.float32)
        column = rng.integers(n_inputs)
        lowest[column] = low
        highest[column] = high
        rows[:, column] = np.arange(256)
        center = np.full(n_inputs, 120.5, np.float32)
        scale = np.full(n_inputs, 1 / 149, np.float32)
        autoencoder = Autoencoder(Network((n_inputs, 5)), center, scale, (lowest, highest))
        autoencoder.set_parameters(parameters)
        found = autoencoder.encode_checked(rows, np.empty((256, 5), np.float32))
        np.testing.assert_array_equal(found, np.flatnonzero(~are_within(rows, lowest, highest)))
        rows[:, column] = 100


@pytest.mark.process
@each("dtype", ["uint8", "float32"])
def test_no_memory_is_read_after_the_last_row(dtype):
    # The rows end at the end of a page. The next page cannot be accessed.
    code = f"""
    import ctypes, mmap
    import numpy as np
    from shardpress_kernels.autoencoder import Autoencoder
    from shardpress_kernels.network import Network
    dtype = np.dtype("{dtype}")
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 33 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + 32 * page), ctypes.c_size_t(page), mmap.PROT_NONE) == 0
    rng = np.random.default_rng(0)
    for n_inputs in (7, 97, 98, 99, 100):
        zeros = np.zeros(n_inputs, np.float32)
        autoencoder = Autoencoder(Network((n_inputs, 20)), zeros, zeros + np.float32(1 / 255), (zeros, zeros + 255))
        autoencoder.set_parameters(start_of(autoencoder.network, rng, None))
        for n_rows in range(1, 20):
            rows = rng.integers(0, 256, (n_rows, n_inputs)).astype(dtype)
            out = np.empty((n_rows, 20), np.float32)
            at_end = np.frombuffer(memory, dtype, rows.size, 32 * page - rows.nbytes).reshape(rows.shape)
            at_end[:] = rows
            assert autoencoder.encode_checked(at_end, out).size == 0
            assert np.array_equal(out, autoencoder.encode(rows))
    """
    run_python(code)


# ---- rows of floats


@each("offset", [0, 0.5, -1, 1, 1.5, 1000])
@each("n_features", [8, 64, 65])
def test_rows_of_floats_are_not_scaled_if_columns_begin_near_0(rng, n_features, offset):
    # If a column begins far from 0, rows are scaled first, like rows of other dtypes. With more than 64 features, all
    # rows are scaled first.
    width = np.exp(rng.normal(size=300)).astype(np.float32)
    low = (offset * width).astype(np.float32)
    scale = 1 / width
    if abs(offset) == 1:
        low *= np.float32(0.999)  # otherwise the rounding of the scale would matter
    rows = (low + rng.random((500, 300), dtype=np.float32) * width).astype(np.float32)
    parameters = random_parameters(rng, 300, n_features)
    autoencoder = autoencoder_of(parameters, low, scale)
    found = autoencoder.encode(rows)
    scaled_first = autoencoder.encode(rows.astype(np.float64))
    W, b_hidden, _ = float64(parameters)
    expected = code_of((rows - low.astype(np.float64)) * scale.astype(np.float64), W, b_hidden)  # not rounded
    if abs(offset) > 1 or n_features > 64:
        assert_same_bits(found, scaled_first)
        return
    assert not np.array_equal(found, scaled_first)
    assert_close(found, expected, "cpu", "float32", "features")
    errors = [np.sqrt(np.mean((features - expected) ** 2)) for features in (found, scaled_first)]
    assert errors[0] <= 1.05 * (1 + 2 * abs(offset)) * errors[1]  # the mean row is 1/2


@each("bad", [np.nan, np.inf, 3e38])
@each("where", ["W", "b_hidden", "center", "scale"])
def test_floats_are_scaled_if_parameters_cannot_be_folded(rng, where, bad):
    rows = rng.random((50, 30), dtype=np.float32)
    parameters = random_parameters(rng, 30, 8)
    center = np.zeros(30, np.float32)
    scale = np.full(30, 2, np.float32)
    for name, array in {**parameters, "center": center, "scale": scale}.items():
        if name == where:
            array.flat[7] = bad
    autoencoder = autoencoder_of(parameters, center, scale)
    found = autoencoder.encode(rows)
    scaled_first = autoencoder.encode(rows.astype(np.float64))
    np.testing.assert_allclose(found, scaled_first, rtol=0, atol=1e-6)


# ---- the same bits


@each("dtype", [np.uint8, np.float32])
@each("n_inputs, n_features", [(101, 24), (786, 65), (599, 17), (9, 64)])
def test_row_gives_the_same_bits_next_to_any_other_rows(rng, n_inputs, n_features, dtype):
    rows = rng.integers(0, 256, (203, n_inputs)).astype(dtype)
    scaling = scaling_of(rows, "float32")
    parameters = random_parameters(rng, n_inputs, n_features)
    features = autoencoder_of(parameters, *scaling, n_threads=1).encode(rows)
    for n_threads in THREADS:
        autoencoder = autoencoder_of(parameters, *scaling, n_threads=n_threads)
        for start, stop in [(0, 203), (0, 1), (3, 4), (5, 100), (7, 202), (197, 203), (198, 203)]:
            assert_same_bits(autoencoder.encode(rows[start:stop]), features[start:stop])
        assert_same_bits(autoencoder.encode(np.ascontiguousarray(rows[::-1])), features[::-1])


@each("n_inputs, n_features", [(100, 24), (784, 64), (600, 130)])
def test_row_gives_the_same_bits_with_any_number_of_threads(rng, n_inputs, n_features):
    rows = rng.integers(0, 256, (611, n_inputs), dtype=np.uint8)
    scaling = scaling_of(rows, "float32")
    parameters = random_parameters(rng, n_inputs, n_features)
    first = autoencoder_of(parameters, *scaling, n_threads=1)
    features = first.encode(rows)
    errors = first.errors(rows)
    for n_threads in THREADS:
        autoencoder = autoencoder_of(parameters, *scaling, n_threads=n_threads)
        for start, stop in [(0, 611), (0, 1), (3, 4), (5, 300), (7, 610), (600, 611)]:
            assert_same_bits(autoencoder.encode(rows[start:stop]), features[start:stop])
            assert_same_bits(autoencoder.errors(rows[start:stop]), errors[start:stop])
        backwards = np.ascontiguousarray(rows[::-1])
        assert_same_bits(autoencoder.encode(backwards), features[::-1])


@each("rule, shape", cross(list(RULES), [(100, 24, 37), (784, 64, 512), (600, 130, 259)]))
def test_training_gives_the_same_bits_with_any_number_of_threads(rng, rule, shape):
    n_inputs, n_features, n_rows = shape
    parameters = random_parameters(rng, n_inputs, n_features)
    rows = rng.random((700, n_inputs), dtype=np.float32)
    minibatches = [rng.permutation(700)[:n_rows] for _ in range(4)]
    results = []
    for n_threads in THREADS:
        autoencoder = autoencoder_of(parameters, n_threads=n_threads)
        step = TrainingStep(autoencoder, rule, rows.dtype, resident=rows)
        costs = [take_step(step, minibatch, 0.01, with_cost=True) for minibatch in minibatches]
        results.append([np.float32(costs), *autoencoder.parameters().values(), *step.state().values()])
    for found in results[1:]:
        for array, expected in zip(found, results[0], strict=True):
            assert_same_bits(array, expected)


def test_concurrent_calls_are_independent(rng):
    parameters = random_parameters(rng, 784, 64)
    rows = rng.random((5000, 784), dtype=np.float32)
    autoencoders = [autoencoder_of(parameters) for _ in range(2)]
    expected = autoencoders[0].encode(rows)
    autoencoders[1].encode(rows)  # Theano compiles in one thread at a time
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            for features in pool.map(lambda autoencoder: autoencoder.encode(rows), autoencoders):
                assert_same_bits(features, expected)


# ---- NaN and Inf


@each("bad", [np.nan, np.inf, -np.inf])
@each("n_inputs, n_features", [(100, 24), (784, 64), (600, 130)])
def test_row_that_is_not_finite_affects_no_other(rng, bad, n_inputs, n_features):
    parameters = random_parameters(rng, n_inputs, n_features)
    rows = rng.random((50, n_inputs), dtype=np.float32)
    autoencoder = autoencoder_of(parameters)
    features = autoencoder.encode(rows)
    errors = autoencoder.errors(rows)
    bad_rows = rows.copy()
    others = np.delete(np.arange(50), [5, 49])
    bad_rows[[5, 49], 17] = bad
    found = autoencoder.encode(bad_rows)
    assert_same_bits(found[others], features[others])
    assert_same_bits(autoencoder.errors(bad_rows)[others], errors[others])
    assert not np.isfinite(autoencoder.errors(bad_rows)[[5, 49]]).any()
    saturated = np.where(bad * parameters["W"][17] > 0, 1, 0) if np.isinf(bad) else np.full(n_features, np.nan)
    np.testing.assert_array_equal(found[[5, 49]], [saturated] * 2)


def test_nan_of_any_bit_pattern_stays_nan():
    # The function `exponential` in C adds to the bits of its argument, which could turn NaN into a number.
    bits = np.array([0x7FC00000, 0x7FC00001, 0x7F800001, 0xFFC00001, 0x7FFFFFFF, 0xFFFFFFFF], dtype=np.uint32)
    autoencoder = autoencoder_of({"W": np.ones((1, 20)), "b_hidden": np.zeros(20), "b_output": np.zeros(1)})
    assert np.isnan(autoencoder.encode(bits.view(np.float32)[:, None])).all()


def test_sigmoid_is_exact_in_float32_and_saturates():
    z = np.concatenate([np.linspace(-90, 30, 200_001), [-1e30, -300, -88.1, 17, 89, 300, 1e30, 0, -0.0]])
    z = z.astype(np.float32)[:, None]
    autoencoder = autoencoder_of({"W": np.ones((1, 1)), "b_hidden": np.zeros(1), "b_output": np.zeros(1)})
    found = autoencoder.encode(z)[:, 0]
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-z[:, 0].astype(np.float64)))
    normal = expected > 1e-37
    assert (np.abs(found - expected)[normal] < 1.6e-7 * expected[normal]).all()
    assert (found[~normal] < 2e-37).all()
    np.testing.assert_array_equal(found[-9:], [0, 0, 0, 1, 1, 1, 1, 0.5, 0.5])
    assert (found[z[:, 0] < -88] == 0).all()
    assert (np.diff(found[:200_001]) >= -6e-8).all()


@pytest.mark.process
def test_subnormal_numbers_are_not_flushed_to_zero():
    code = """
    import numpy as np
    from shardpress_kernels.autoencoder import Autoencoder
    from shardpress_kernels.network import Network
    from shardpress_kernels.step import TrainingStep
    autoencoder = Autoencoder(Network((5, 3)))
    rows = np.full((40, 5), 1e-40, np.float32)
    autoencoder.encode(rows)
    step = TrainingStep(autoencoder, "momentum", rows.dtype)
    step.begin(rows, None, len(rows))
    step.take([0.1])
    facts["tiny"] = float(np.float32(1e-39) * np.float32(0.5))
    """
    assert run_python(code).facts["tiny"] == pytest.approx(5e-40)


# ---- memory layouts of arrays


def test_features_are_written_to_the_given_array_only(rng):
    autoencoder = autoencoder_of(random_parameters(rng, 50, 21))
    rows = rng.random((33, 50), dtype=np.float32)
    expected = autoencoder.encode(rows)
    around = np.full(35 * 21 + 1, 7, dtype=np.float32)
    out = around[1 + 21 : 1 + 34 * 21].reshape(33, 21)  # not aligned to 8 bytes
    assert autoencoder.encode(rows, out) is out
    assert_same_bits(out, expected)
    assert (around[: 1 + 21] == 7).all()
    assert (around[1 + 34 * 21 :] == 7).all()


@each("order", ["strided", "transposed", "reversed"])
def test_features_are_written_to_arrays_of_any_layout(rng, order):
    autoencoder = autoencoder_of(random_parameters(rng, 50, 21))
    rows = rng.random((33, 50), dtype=np.float32)
    out = {
        "strided": np.zeros((33, 40), np.float32)[:, 3:24],
        "transposed": np.zeros((21, 33), np.float32).T,
        "reversed": np.zeros((33, 21), np.float32)[::-1],
    }[order]
    assert autoencoder.encode(rows, out) is out
    assert_same_bits(np.ascontiguousarray(out), autoencoder.encode(rows))


def test_rows_can_be_unaligned_strided_and_read_only(rng):
    autoencoder = autoencoder_of(random_parameters(rng, 50, 21))
    rows = rng.random((33, 50), dtype=np.float32)
    expected = autoencoder.encode(rows)
    unaligned = np.frombuffer(b"x" + rows.tobytes(), dtype=np.uint8)[1:].view(np.float32).reshape(rows.shape)
    for same in (np.asfortranarray(rows), unaligned, np.repeat(rows, 2, axis=1)[:, ::2]):
        assert_same_bits(autoencoder.encode(same), expected)


def test_parameters_can_have_any_memory_order(rng):
    parameters = random_parameters(rng, 50, 21)
    rows = rng.random((33, 50), dtype=np.float32)
    expected = autoencoder_of(parameters).encode(rows)
    fortran_order = parameters | {"W": np.asfortranarray(parameters["W"])}
    assert_same_bits(autoencoder_of(fortran_order).encode(rows), expected)


def test_short_minibatch_after_a_long_one_is_independent(rng):
    # A compiled step reuses its memory. The padding after the rows must stay 0.
    parameters = random_parameters(rng, 70, 33)
    minibatches = rng.random((4, 300, 70), dtype=np.float32)
    sizes = [7, 300, 1, 299]
    autoencoder = autoencoder_of(parameters)
    step = TrainingStep(autoencoder, "momentum", np.dtype("f4"))
    for size, minibatch in zip(sizes, minibatches, strict=True):
        autoencoder.set_parameters(parameters)
        forget(step)
        take_step(step, minibatch[:size], -1.0)
        new = TrainingStep(autoencoder_of(parameters), "momentum", np.dtype("f4"))
        take_step(new, minibatch[:size], -1.0)
        for found, expected in zip(step.state().values(), new.state().values(), strict=True):
            assert_same_bits(found, expected)


# ---- errors


def test_arrays_of_wrong_shapes_are_refused_by_name(rng):
    autoencoder = autoencoder_of(random_parameters(rng, 5, 3))
    with pytest.raises(ValueError, match=r"\bW\b.*\(5, 3\).*\(6, 3\)"):
        autoencoder.encode(np.zeros((4, 6), np.float32))
    with pytest.raises(ValueError, match=r"\bout\b.*\(5, 3\).*\(4, 3\)"):
        autoencoder.encode(np.zeros((4, 5), np.float32), np.zeros((5, 3), np.float32))
    with pytest.raises(ValueError, match=r"\bcenter\b.*\(4, 1\).*\(5, 1\)"):
        autoencoder_of(random_parameters(rng, 5, 3), np.zeros(4), np.ones(5)).encode(np.zeros((4, 5), np.float32))


@each("number", [-1, 9])
def test_row_numbers_after_the_last_row_are_refused(rng, number):
    autoencoder = autoencoder_of(random_parameters(rng, 5, 3))
    before = autoencoder.parameters()
    step = TrainingStep(autoencoder, "adam", np.dtype("f4"), resident=np.zeros((9, 5), np.float32))
    with pytest.raises(IndexError, match=rf"\brow {number}\b.*\b9\b"):
        take_step(step, np.array([0, number]), 0.1)
    for name, array in autoencoder.parameters().items():
        np.testing.assert_array_equal(array, before[name])


def test_empty_minibatch_is_refused(rng):
    step = TrainingStep(autoencoder_of(random_parameters(rng, 5, 3)), "momentum", np.dtype("f4"))
    with pytest.raises(ValueError, match="minibatch"):
        take_step(step, np.zeros((0, 5), np.float32), 0.1)


def test_other_dtypes_are_computed_by_theano(rng):
    parameters = random_parameters(rng, 5, 3)
    autoencoder = autoencoder_of(parameters)
    rows = rng.random((4, 5)) > 0.5
    assert not autoencoder.uses_ops(rows.dtype)
    expected = code_of(rows.astype(np.float64), *float64(parameters)[:2])
    assert_close(autoencoder.encode(rows), expected, "cpu", "float32", "features")


# ---- processes and threads


def test_other_python_threads_run_during_a_call(rng):
    # The interpreter does not switch threads in this test. The other thread runs only if the encoder releases the lock.
    parameters = random_parameters(rng, 784, 256)
    rows = rng.random((3_000, 784), dtype=np.float32)
    autoencoder = autoencoder_of(parameters, n_threads=1)
    n_yields = [0]
    stop = threading.Event()
    autoencoder.encode(rows)

    def yield_repeatedly():
        while not stop.is_set():
            n_yields[0] += 1
            os.sched_yield()  # releases the lock

    thread = threading.Thread(target=yield_repeatedly)
    before = sys.getswitchinterval()
    thread.start()
    sys.setswitchinterval(10**6)
    try:
        meanwhile = 0
        for _ in range(1000):  # a busy machine may have no core for the thread during one call
            before_call = n_yields[0]
            autoencoder.encode(rows)
            meanwhile += n_yields[0] - before_call
            if meanwhile:
                break
    finally:
        sys.setswitchinterval(before)
        stop.set()
        thread.join()
    assert meanwhile


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


@pytest.mark.process
def test_idle_threads_sleep():
    # The loop yields the core to other threads after each check, because a busy machine may need some time.
    code = """
    import os
    from pathlib import Path
    import numpy as np
    from shardpress_kernels.autoencoder import Autoencoder
    from shardpress_kernels.network import Network
    def states():
        others = [path for path in Path("/proc/self/task").iterdir() if path.name != str(os.getpid())]
        stats = [(path / "stat").read_text() for path in others]
        return {stat.rpartition(")")[2].split()[0] for stat in stats}
    autoencoder = Autoencoder(Network((784, 64)))
    autoencoder.n_threads.set_value(np.int64(4))
    autoencoder.encode(np.zeros((500, 784), np.float32))
    quiet = 0
    for _ in range(5000):
        quiet = quiet + 1 if states() == {"S"} else 0
        if quiet == 100:
            break
        os.sched_yield()
    facts["quiet"] = quiet
    """
    assert run_python(code).facts["quiet"] == 100


@pytest.mark.process
@pytest.mark.parametrize(("variables", "expected"), [({"OPENBLAS_NUM_THREADS": "3"}, 3), ({"OMP_NUM_THREADS": "5"}, 5)])
def test_number_of_threads_set_by_the_user_is_kept(variables, expected):
    code = """
    from shardpress_kernels.autoencoder import Autoencoder
    from shardpress_kernels.network import Network
    facts["threads"] = int(Autoencoder(Network((5, 3))).n_threads.get_value())
    """
    without_limits = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"))
    assert run_python(code, **without_limits | variables).facts["threads"] == expected
    assert run_python(code, **without_limits).facts["threads"] == len(os.sched_getaffinity(0))


# ---- compiling


@pytest.mark.process
@pytest.mark.parametrize("flags", ["optimizer_excluding=fused", "optimizer_excluding=inplace:fused"])
def test_flags_of_the_user_can_disable_the_ops(flags):
    code = """
    import numpy as np
    from shardpress_kernels import backend
    from shardpress_kernels.autoencoder import Autoencoder
    from shardpress_kernels.network import Network
    compiled = backend.compile_function
    functions = []
    backend.compile_function = lambda *arguments: functions.append(compiled(*arguments)) or functions[-1]
    Autoencoder(Network((5, 3))).encode(np.zeros((4, 5), np.float32))
    facts["fuses"] = backend.uses_ops()
    (function,) = functions
    facts["ops"] = [type(node.op).__name__ for node in function.maker.fgraph.apply_nodes]
    """
    facts = run_python(code, THEANO_FLAGS=flags).facts
    assert not facts["fuses"]
    assert "Encode" not in facts["ops"]
    assert any("Gemm" in op or "Dot" in op for op in facts["ops"])


@pytest.mark.process
def test_results_do_not_depend_on_in_place_optimization():
    code = """
    import numpy as np
    from shardpress_kernels.autoencoder import Autoencoder
    from shardpress_kernels.network import Network
    from shardpress_kernels.step import TrainingStep
    from shardpress.training.start import start_of
    rng = np.random.default_rng(0)
    autoencoder = Autoencoder(Network((50, 7)))
    rows = rng.random((40, 50), dtype=np.float32)
    autoencoder.set_parameters(start_of(autoencoder.network, rng, None))
    step = TrainingStep(autoencoder, "adam", rows.dtype)
    facts["costs"] = []
    for _ in range(5):
        step.begin(rows, None, len(rows))
        facts["costs"].append(step.take([0.01], with_cost=True))
    out = np.zeros((40, 7), np.float32)
    autoencoder.encode(rows, out)
    facts["features"] = out.tolist()
    """
    expected = run_python(code).facts
    for flags in ("optimizer_excluding=inplace", "optimizer=fast_compile", "optimizer=None"):
        with case(flags):
            assert run_python(code, THEANO_FLAGS=flags).facts == expected
    for flags in ("linker=py", "mode=FAST_COMPILE"):  # Theano's own operations, in NumPy
        with case(flags):
            found = run_python(code, THEANO_FLAGS=flags).facts
            np.testing.assert_allclose(found["costs"], expected["costs"], rtol=1e-4)
            np.testing.assert_allclose(found["features"], expected["features"], atol=1e-4)


def test_cache_version_depends_on_the_source(monkeypatch):
    network = Network((9, 4))
    every = ops.Encode(network), ops.Errors(network), ops.Step(network, "adam", 0.0, True)
    versions = [op.c_code_cache_version() for op in every]
    assert len(set(versions)) == 3
    monkeypatch.setattr(ops, "_source", lambda file: "other code")
    assert ops.Encode(network).c_code_cache_version() not in versions
