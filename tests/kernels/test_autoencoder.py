"""The model on the CPU against slow, obvious NumPy: gradients, training steps, features of rows of every dtype."""

import numpy as np
import pytest

from kernels import TILE_ROWS, backend
from kernels import autoencoder as module
from kernels.autoencoder import PARAMETERS, Autoencoder, theano
from kernels.step import TrainingStep
from kernels.updates import RULES
from pipeline.model import Model
from pipeline.scan.scaler import Scaler
from tests.support.tolerances import assert_close

DTYPES = [np.dtype(code) for code in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")]
SCALINGS = ["float32", "float64", None]
N_INPUTS, N_FEATURES = 7, 3


# ---- oracles


def oracle_code(p, x):
    return 1 / (1 + np.exp(-(x @ p["W"] + p["b_hidden"])))


def oracle_reconstruction(p, h):
    return h @ p["W"].T + p["b_output"]


def oracle_cost(p, x):
    return np.mean((x - oracle_reconstruction(p, oracle_code(p, x))) ** 2)


def oracle_gradients(p, x, width=1e-5):
    """Central finite differences of the cost, one entry of one parameter at a time."""
    gradients = {}
    for name in PARAMETERS:
        gradients[name] = np.zeros_like(p[name])
        for i in np.ndindex(p[name].shape):
            above, below = ({key: array.copy() for key, array in p.items()} for _ in range(2))
            above[name][i] += width
            below[name][i] -= width
            gradients[name][i] = (oracle_cost(above, x) - oracle_cost(below, x)) / (2 * width)
    return gradients


def oracle_scaled(rows, minimum, scale):
    """What the design says, in the working dtype of `minimum`."""
    if minimum is None:
        return rows.astype(np.float32)
    return ((rows.astype(minimum.dtype) - minimum) * scale).astype(np.float32)


# ---- what tests are made of


def float64(arrays):
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def random_parameters(rng, n_inputs=N_INPUTS, n_features=N_FEATURES):
    shapes = {"W": (n_inputs, n_features), "b_hidden": (n_features,), "b_output": (n_inputs,)}
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def random_autoencoder(rng, n_inputs=N_INPUTS, n_features=N_FEATURES, minimum=None, scale=None):
    autoencoder = Autoencoder(n_inputs, n_features, minimum, scale)
    autoencoder.set_parameters(random_parameters(rng, n_inputs, n_features))
    return autoencoder


def random_rows(rng, n_rows, dtype, n_inputs=N_INPUTS):
    """Rows over the dtype's whole range, with both its ends; floats over several powers of ten."""
    if dtype.kind == "f":
        return (rng.normal(size=(n_rows, n_inputs)) * 10.0 ** rng.integers(-2, 4, n_inputs)).astype(dtype)
    info = np.iinfo(dtype)
    rows = rng.integers(info.min, info.max, (n_rows, n_inputs), dtype=dtype, endpoint=True)
    rows[0], rows[1] = info.min, info.max
    return rows


def scaler_of(rows):
    return Scaler(rows.min(axis=0).astype(np.float64), rows.max(axis=0).astype(np.float64))


def scaling_of(rows, working):
    """Minimum and scale in the dtype asked for; none of both for rows that are taken as they are."""
    if working is None:
        return None, None
    scaler = scaler_of(rows)
    return scaler.minimum.astype(working), scaler.scale.astype(working)


@pytest.fixture(params=["fused", "theano"], autouse=True)
def path(request, monkeypatch):
    """Every test here holds for the Ops of `kernels.ops`, and for what Theano makes of the model by itself."""
    if request.param == "theano":
        monkeypatch.setattr(backend, "fuses", lambda: False)


@pytest.fixture
def rng():
    return np.random.default_rng(20240229)


@pytest.fixture
def compiled(monkeypatch):
    """The calls of ``theano.function``, as a list that grows."""
    calls, original = [], theano.function

    def counted(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(theano, "function", counted)
    return calls


# ---- gradients


@pytest.fixture
def cost_and_gradients(rng):
    """An autoencoder, scaled rows, and what they give: [cost, gradients of `PARAMETERS`], ours and Theano's own."""
    autoencoder, x = random_autoencoder(rng), rng.random((11, N_INPUTS), dtype=np.float32)
    symbol = theano.tensor.fmatrix()
    cost, gradients = autoencoder.cost_and_gradients(symbol)
    theanos = theano.grad(cost, [autoencoder.shared[name] for name in PARAMETERS])
    values = theano.function([symbol], [cost, *gradients, *theanos])(x)
    return autoencoder, x, values[:4], [values[0], *values[4:]]


def test_gradients_equal_central_finite_differences(cost_and_gradients):
    autoencoder, x, (cost, *gradients), _ = cost_and_gradients
    p = float64(autoencoder.parameters())
    assert_close(cost, oracle_cost(p, x), "cpu", "float32", "cost")
    for name, gradient, expected in zip(PARAMETERS, gradients, oracle_gradients(p, x).values(), strict=True):
        assert gradient.shape == p[name].shape
        assert gradient.dtype == np.float32
        assert_close(gradient, expected, "cpu", "float32", "gradients")


def test_gradients_equal_those_that_theano_derives_from_the_cost(cost_and_gradients):
    _, _, ours, theanos = cost_and_gradients
    for gradient, expected in zip(ours, theanos, strict=True):
        assert_close(gradient, expected, "cpu", "float32", "gradients")


# ---- training steps


def step_of(autoencoder, rule="momentum", dtype="f4", resident=None, rate=0.1):
    step = TrainingStep(autoencoder, rule, 0.9, np.dtype(dtype), resident=resident)
    step.set_learning_rate(rate)
    return step


def assert_same_arrays(found, expected):
    """Bit for bit, under the same names."""
    assert list(found) == list(expected)
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_twenty_momentum_steps_equal_a_numpy_loop(rng):
    rows = random_rows(rng, 24, np.dtype("u1"))
    minimum, scale = scaling_of(rows, "float32")
    autoencoder = random_autoencoder(rng, minimum=minimum, scale=scale)
    p = float64(autoencoder.parameters())
    v = {name: np.zeros_like(array) for name, array in p.items()}
    step = step_of(autoencoder, dtype="u1")
    for number in range(20):
        minibatch = rows[rng.permutation(24)[:8]]
        rate = 0.1 if number < 10 else 0.05
        step.set_learning_rate(rate)
        x = oracle_scaled(minibatch, minimum, scale).astype(np.float64)
        assert_close(step(minibatch, with_cost=True), oracle_cost(p, x), "cpu", "float32", "cost")
        for name, gradient in oracle_gradients(p, x).items():
            v[name] = 0.9 * v[name] - rate * gradient
            p[name] = p[name] + v[name]
    for name, array in autoencoder.parameters().items():
        assert_close(array, p[name], "cpu", "float32", "parameters")
        assert_close(step.state()[f"{name}.velocity"], v[name], "cpu", "float32", "parameters")


def train_some(autoencoder, step, minibatches, with_cost=lambda number: False):
    """Parameters and state after a step on each minibatch."""
    for number, minibatch in enumerate(minibatches):
        step(minibatch, with_cost=with_cost(number))
    return autoencoder.parameters() | step.state()


@pytest.mark.parametrize("dtype", ["u1", "f4", "f8"])
def test_resident_and_streamed_rows_train_the_same_parameters_bit_for_bit(rng, dtype):
    rows = random_rows(rng, 300, np.dtype(dtype), 30)
    minimum, scale = scaler_of(rows).arrays(rows.dtype)
    numbers = [rng.permutation(300)[:64] for _ in range(12)] + [np.array([299], dtype=np.int64)]
    results = []
    for resident in (None, rows.copy()):
        autoencoder = random_autoencoder(np.random.default_rng(5), 30, 8, minimum, scale)
        step = step_of(autoencoder, dtype=dtype, resident=resident)
        minibatches = numbers if resident is not None else [rows[n] for n in numbers]
        results.append(train_some(autoencoder, step, minibatches))
    assert_same_arrays(*results)


@pytest.mark.parametrize("rule", RULES)
def test_asking_for_the_cost_does_not_change_what_is_learnt(rng, rule):
    minibatches = rng.random((12, 64, 30), dtype=np.float32)
    results = []
    for with_cost in (lambda _: False, lambda _: True, lambda number: number % 3 == 0):
        autoencoder = random_autoencoder(np.random.default_rng(5), 30, 8)
        results.append(train_some(autoencoder, step_of(autoencoder, rule), minibatches, with_cost))
    assert_same_arrays(results[1], results[0])
    assert_same_arrays(results[2], results[0])


def test_cost_is_a_float_when_asked_for_and_none_otherwise(rng):
    step, minibatch = step_of(random_autoencoder(rng)), rng.random((4, N_INPUTS), dtype=np.float32)
    assert isinstance(step(minibatch, with_cost=True), float)
    assert step(minibatch) is None


def test_a_new_step_stands_still_until_it_is_given_a_learning_rate(rng):
    autoencoder = random_autoencoder(rng)
    before = autoencoder.parameters()
    TrainingStep(autoencoder, "momentum", 0.9, np.dtype("f4"))(rng.random((4, N_INPUTS), dtype=np.float32))
    assert_same_arrays(autoencoder.parameters(), before)


@pytest.mark.parametrize("rule", RULES)
def test_training_goes_on_from_saved_state_as_if_never_interrupted(rng, rule):
    minibatches = rng.random((10, 16, N_INPUTS), dtype=np.float32)
    autoencoder = random_autoencoder(rng)
    step = step_of(autoencoder, rule)
    train_some(autoencoder, step, minibatches[:5])
    saved_parameters, saved_state = autoencoder.parameters(), step.state()
    expected = train_some(autoencoder, step, minibatches[5:])

    again = Autoencoder(N_INPUTS, N_FEATURES)
    again.set_parameters(saved_parameters)
    step = step_of(again, rule)
    step.set_state(saved_state)
    assert_same_arrays(train_some(again, step, minibatches[5:]), expected)


def test_saved_arrays_are_copies_that_training_leaves_alone(rng):
    autoencoder = random_autoencoder(rng)
    step = step_of(autoencoder)
    saved = autoencoder.parameters() | step.state()
    before = {name: array.copy() for name, array in saved.items()}
    train_some(autoencoder, step, rng.random((3, 4, N_INPUTS), dtype=np.float32))
    assert_same_arrays(saved, before)


def test_state_of_another_rule_is_refused_by_name(rng):
    step = step_of(random_autoencoder(rng))
    with pytest.raises(ValueError, match=r"found arrays \['W.mean'\], expected \['W.velocity', 'b_hidden.velocity'"):
        step.set_state({"W.mean": np.zeros((N_INPUTS, N_FEATURES))})


# ---- rows of every dtype


@pytest.mark.parametrize("working", SCALINGS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_every_dtype_are_scaled_and_encoded_as_numpy_does(rng, dtype, working):
    rows = random_rows(rng, 40, dtype)
    if working is None:
        rows //= rows.dtype.type(rows.max() // 4 or 1)  # unscaled: nothing else keeps sigmoids from saturating
    minimum, scale = scaling_of(rows, working)
    autoencoder = random_autoencoder(rng, minimum=minimum, scale=scale)
    symbol = theano.tensor.TensorType(dtype.name, (False, False))()
    x = theano.function([symbol], autoencoder.scaled(symbol))(rows)
    expected_x = oracle_scaled(rows, minimum, scale)
    assert x.dtype == np.float32
    assert_close(x, expected_x, "cpu", working or "float32", "scaled")

    p, x = float64(autoencoder.parameters()), expected_x.astype(np.float64)
    h, y = oracle_code(p, x), oracle_reconstruction(p, oracle_code(p, x))
    features = autoencoder.encode(rows)
    assert features.dtype == np.float32
    assert_close(features, h, "cpu", "float32", "features")
    symbol = theano.tensor.fmatrix()
    decoded = theano.function([symbol], autoencoder.reconstruction(symbol))(features)
    assert_close(decoded, y, "cpu", "float32", "reconstruction")
    assert_close(autoencoder.errors(rows), np.mean((x - y) ** 2, axis=1), "cpu", "float32", "cost")
    assert_close(autoencoder.cost(rows), oracle_cost(p, x), "cpu", "float32", "cost")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_models_own_scaler_and_encoder_agree_with_the_device(rng, dtype):
    rows = random_rows(rng, 40, dtype)
    rows[:, 2] = rows[0, 2]  # a constant column
    scaler = scaler_of(rows)
    autoencoder = random_autoencoder(rng, 7, 3, *scaler.arrays(dtype))
    symbol = theano.tensor.TensorType(dtype.name, (False, False))()
    x = theano.function([symbol], autoencoder.scaled(symbol))(rows)
    np.testing.assert_array_equal(x, scaler.transform(rows))
    expected = Model(scaler, autoencoder.parameters()).encode(rows)
    assert_close(autoencoder.encode(rows), expected, "cpu", "float32", "features")


# ---- tiles


@pytest.fixture
def images(rng):
    """An autoencoder of some width, and rows of three tiles and a bit."""
    rows = rng.integers(0, 256, (3 * TILE_ROWS + 5, 100), dtype=np.uint8)
    return random_autoencoder(rng, 100, 24, *scaling_of(rows, "float32")), rows


@pytest.mark.parametrize("n_rows", [0, 1, TILE_ROWS - 1, TILE_ROWS, TILE_ROWS + 1, 3 * TILE_ROWS + 5])
def test_features_and_errors_of_a_row_are_the_same_bits_however_many_rows_follow(images, n_rows):
    autoencoder, rows = images
    features, errors = autoencoder.encode(rows[:n_rows]), autoencoder.errors(rows[:n_rows])
    assert features.shape == (n_rows, 24)
    assert errors.shape == (n_rows,)
    np.testing.assert_array_equal(features, autoencoder.encode(rows)[:n_rows])
    np.testing.assert_array_equal(errors, autoencoder.errors(rows)[:n_rows])


def test_features_are_the_same_bits_however_calls_are_split_at_whole_tiles(images):
    autoencoder, rows = images
    whole = autoencoder.encode(rows)
    for cuts in ([1], [2], [3], [1, 2], [1, 3], [1, 2, 3]):
        pieces = np.split(rows, [TILE_ROWS * cut for cut in cuts])
        np.testing.assert_array_equal(np.concatenate([autoencoder.encode(piece) for piece in pieces]), whole)
    p, x = float64(autoencoder.parameters()), rows / 255
    assert_close(whole, oracle_code(p, x), "cpu", "float32", "features")


def test_features_go_where_they_are_told(images):
    autoencoder, rows = images
    out = np.full((len(rows) + 2, 24), 7, dtype=np.float32)
    returned = autoencoder.encode(rows, out[1:-1])
    assert np.shares_memory(returned, out)
    np.testing.assert_array_equal(out[1:-1], autoencoder.encode(rows))
    assert (out[[0, -1]] == 7).all()


def test_rows_are_left_as_they_were(images):
    autoencoder, rows = images
    before = rows.copy()
    autoencoder.encode(rows)
    autoencoder.cost(rows)
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_touches_no_other(rng, bad):
    rows = rng.random((TILE_ROWS + 9, 100), dtype=np.float32)
    autoencoder = random_autoencoder(rng, 100, 24)
    expected = autoencoder.encode(rows), autoencoder.errors(rows)
    spoilt, others = rows.copy(), np.delete(np.arange(len(rows)), [5, TILE_ROWS + 3])
    spoilt[[5, TILE_ROWS + 3]] = bad
    for found, clean in zip((autoencoder.encode(spoilt), autoencoder.errors(spoilt)), expected, strict=True):
        np.testing.assert_array_equal(found[others], clean[others])
    assert not np.isfinite(autoencoder.errors(spoilt)[[5, TILE_ROWS + 3]]).any()


def test_nan_in_a_row_makes_all_its_features_nan(rng):
    rows = rng.random((9, 100), dtype=np.float32)
    rows[4, 50] = np.nan
    assert np.isnan(random_autoencoder(rng, 100, 24).encode(rows)).all(axis=1).tolist() == [i == 4 for i in range(9)]


@pytest.mark.parametrize(("shift", "expected"), [(300, 1), (-300, 0)])
def test_units_far_from_zero_saturate_without_a_warning_or_nan(shift, expected):
    autoencoder = Autoencoder(2, 3)
    autoencoder.set_parameters({"W": np.zeros((2, 3)), "b_hidden": np.full(3, shift), "b_output": np.zeros(2)})
    np.testing.assert_array_equal(autoencoder.encode(np.zeros((4, 2), np.float32)), np.full((4, 3), expected))


# ---- compiling


def test_every_function_is_compiled_once_for_each_dtype(rng, compiled):
    autoencoder = random_autoencoder(rng)
    calls = {
        "encode": autoencoder.encode,
        "errors": autoencoder.errors,
        "cost": autoencoder.cost,  # by way of errors
    }
    for dtype in ("u1", "f4"):
        for rows in (np.ones((3, N_INPUTS), dtype), np.ones((5, N_INPUTS), dtype)):
            for call in calls.values():
                call(rows)
    assert len(compiled) == 4  # encode and errors, for two dtypes


def test_a_training_step_compiles_one_function_with_the_cost_and_one_without(rng, compiled):
    step = step_of(random_autoencoder(rng))
    assert compiled == []
    for with_cost in (False, False, True, True, False):
        step(np.ones((2, N_INPUTS), np.float32), with_cost=with_cost)
    assert len(compiled) == 2


def test_changing_the_parameters_or_the_learning_rate_compiles_nothing(rng, compiled):
    autoencoder, rows = random_autoencoder(rng), np.ones((2, N_INPUTS), np.float32)
    step = step_of(autoencoder)
    step(rows)
    before = autoencoder.encode(rows)
    count = len(compiled)
    autoencoder.set_parameters(random_parameters(rng))
    step.set_learning_rate(0.5)
    step(rows)
    assert not np.array_equal(autoencoder.encode(rows), before)
    assert len(compiled) == count


# ---- parameters


def test_weights_start_with_the_references_spread_and_biases_at_zero():
    autoencoder = Autoencoder(300, 100)
    autoencoder.initialize(np.random.default_rng(3))
    p = autoencoder.parameters()
    n = p["W"].size
    z = p["W"].astype(np.float64) * np.sqrt(300 + 100)  # N(0, 1); 5 standard errors of each statistic
    assert abs(z.mean()) < 5 / np.sqrt(n)
    assert abs(z.std() - 1) < 5 / np.sqrt(2 * n)
    assert abs((z**4).mean() - 3) < 5 * np.sqrt(96 / n)
    assert not p["b_hidden"].any()
    assert not p["b_output"].any()


def test_one_seed_gives_one_start_and_another_seed_another():
    starts = []
    for seed in (3, 3, 4):
        autoencoder = Autoencoder(6, 2)
        autoencoder.initialize(np.random.default_rng(seed))
        starts.append(autoencoder.parameters())
    assert_same_arrays(starts[0], starts[1])
    assert not np.array_equal(starts[0]["W"], starts[2]["W"])


def test_parameters_come_back_as_float32_in_the_order_of_their_names(rng):
    autoencoder, p = Autoencoder(N_INPUTS, N_FEATURES), random_parameters(rng)
    autoencoder.set_parameters(float64(p))
    assert tuple(autoencoder.parameters()) == PARAMETERS
    assert_same_arrays(autoencoder.parameters(), p)
    assert {array.dtype for array in autoencoder.parameters().values()} == {np.dtype("f4")}


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"b_output": None}, r"found arrays \['W', 'b_hidden'\], expected \['W', 'b_hidden', 'b_output'\]"),
        ({"gain": np.ones(3)}, r"found arrays \['W', 'b_hidden', 'b_output', 'gain'\], expected"),
        ({"W": np.ones((3, 7))}, r"array W has shape \(3, 7\), expected \(7, 3\)"),
        ({"b_hidden": np.ones(1)}, r"array b_hidden has shape \(1,\), expected \(3,\)"),
        ({"b_output": np.float32(1)}, r"array b_output has shape \(\), expected \(7,\)"),
    ],
)
def test_parameters_of_other_names_or_shapes_are_refused_by_name_and_change_nothing(rng, change, phrase):
    autoencoder = random_autoencoder(rng)
    before = autoencoder.parameters()
    values = {name: array for name, array in (random_parameters(rng) | change).items() if array is not None}
    with pytest.raises(ValueError, match=phrase):
        autoencoder.set_parameters(values)
    assert_same_arrays(autoencoder.parameters(), before)


def test_the_exported_names_exist():
    assert all(hasattr(module, name) for name in module.__all__)
