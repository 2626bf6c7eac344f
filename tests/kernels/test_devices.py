"""Tests of the whole pygpu path on two emulated GPUs, compared with NumPy.

The GPUs are OpenCL on the processor, and the emulated CUDA card. With TEST_CARD=full, the machine's card replaces the
emulated card. Theano's graphs on the CPU are tested in test_step.py and test_autoencoder.py.

Sample: rows of 3 dtypes; one network of several layers on each GPU; one layer that is trained twice on the card. With
TEST_CASES=all, each GPU gets 10 dtypes, four training runs and three networks.
"""

import re
from functools import cache
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from shardpress.model.encoder import Model
from tests.support import device_child as child
from tests.support import reference
from tests.support.cases import case
from tests.support.cuda import stub
from tests.support.interpreters import run_python
from tests.support.networks import numpy_steps
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.process

OPENCL = "opencl0:0"
CUDA = "cuda"


def run(device, folder):
    """Run `device_child` on a device and return its results."""
    path = folder / "arrays.npz"
    code = f"from tests.support import device_child\nfacts |= device_child.main({str(path)!r})"
    # The emulated driver delays copies, like current drivers. Our own libraries wrap this driver.
    card = stub.card(hold="downloads") if device == CUDA else {}
    # If pocl compiles a kernel of libgpuarray for the first time, it writes the number of warnings to stderr.
    flags = {"THEANO_FLAGS": f"device={device}", "POCL_EXTRA_BUILD_FLAGS": "-w"}
    ended = run_python(code, **flags, **card)
    assert ended.stderr == ""
    with np.load(path) as stored:
        return SimpleNamespace(arrays=dict(stored), **ended.facts)


@pytest.fixture(scope="module")
def run_on(tmp_path_factory):
    """Return a function that returns the results on a device; each run takes place when it is first requested."""
    return cache(lambda device: run(device, tmp_path_factory.mktemp("run")))


def labels_of(device):
    """Return the labels of the training runs of one layer."""
    return [" ".join(training) for training in child.trainings_of(device)]


@pytest.fixture(params=[pytest.param(device, marks=pytest.mark.pygpu) for device in (OPENCL, CUDA)])
def gpu(request):
    """Return a device that is not the CPU, or skip the test with the name of the missing component."""
    request.getfixturevalue({OPENCL: "opencl", CUDA: "pygpu"}[request.param])
    return request.param


# ---- where operations ran


def products(graph):
    """Return the matrix products among operations of any kind: Dot, Dot22, Gemm, GpuGemv, BatchedDot, Ger..."""
    return [node["op"] for node in graph if re.search(r"Dot|Gem[mv]|Ger(?!m)", node["op"])]


def n_products_of(device):
    """Return the number of products of each graph.

    Each layer has one product for encoding, one for decoding, one or two for the error, and two for its gradient. A
    head has four: its outputs, the gradient of the features, and its own gradient. Theano computes the latter twice,
    because it merges one copy with the running average of adam.
    """
    found = {}
    for label in labels_of(device):
        found |= {f"step {label} with cost": 5, f"step {label} without cost": 5, f"encode {label}": 1}
    for name, network in child.networks_of(device).items():
        found[f"step {name} with cost"] = 6 * network.n_layers - 1 + 4 * (network.head is not None)
        found[f"encode {name}"] = network.output.n_layers
    return found


def test_every_product_is_compiled_for_the_device(run_on, gpu):
    assert run_on(gpu).device == gpu
    for label, n_products in n_products_of(gpu).items():
        with case(label):
            found = products(run_on(gpu).graphs[label])
            assert len(found) == n_products
            assert set(found) <= {"GpuDot22", "GpuGemm"}


def test_only_scalars_stay_on_the_cpu_and_only_rows_are_uploaded(run_on, gpu):
    transfers = {"GpuFromHost", "HostFromGpu"}
    for label, graph in run_on(gpu).graphs.items():
        others = [node for node in graph if not node["op"].startswith("Gpu") and node["op"] not in transfers]
        assert [node for node in others if node["ndim"] > 0] == [], label
        if label.startswith("step"):
            assert "float64" not in {node["dtype"] for node in graph if node["ndim"] > 0}, label
            assert [node for node in graph if node["op"] == "GpuFromHost" and node["ndim"]] == [], label
    for dtype in child.DTYPES:
        graph = run_on(gpu).graphs[f"encode {dtype}"]
        assert [node["dtype"] for node in graph if node["op"] == "GpuFromHost"] == [np.dtype(dtype).name]


# ---- results


def minibatches(n_steps):
    """Return the scaled minibatches of the training runs, in float64."""
    rows = child.make_rows()
    x = child.make_scaler(rows).transform(rows).astype(np.float64)
    return [x[numbers] for numbers in child.make_minibatches()[:n_steps]]


def targets_of(network, step):
    """Return the targets of a step for the reference; None without a head."""
    targets = child.make_targets(network, step)
    return None if targets is None else reference.Targets(targets, child.LOSS)


def trained_by_numpy(network):
    """Repeat the training of a network on corrupted rows in NumPy and float64; return parameters and costs."""
    complete = minibatches(child.N_NETWORK_STEPS)
    corrupted = [reference.masked(x, child.make_noise(step), child.CORRUPTION) for step, x in enumerate(complete)]
    more = [(targets_of(network, step), child.make_kept(network, step)) for step in range(child.N_NETWORK_STEPS)]
    pairs = zip(complete, corrupted, strict=True)
    return numpy_steps(network, child.start_of(network), pairs, "adam", child.RATES["adam"], more)


def test_costs_and_parameters_of_training_equal_numpy(run_on, gpu):
    arrays = run_on(gpu).arrays
    trained = {name: trained_by_numpy(network) for name, network in child.networks_of(gpu).items()}
    pairs = [(x, x) for x in minibatches(child.N_STEPS)]
    for label in labels_of(gpu):
        rule = label.split()[0]
        p, costs = numpy_steps(child.NETWORK, child.start_of(child.NETWORK), pairs, rule, child.RATES[rule])
        trained[label] = p, [cost for step, cost in enumerate(costs) if child.with_cost(step)]
    for label, (p, costs) in trained.items():
        with case(label):
            assert costs[-1] < 0.5 * costs[0]  # it learns
            assert_close(arrays[f"{label} costs"], costs, gpu, "cost")
            for name, expected in p.items():
                assert_close(arrays[f"{label} {name}"], expected, gpu, "parameters")


def test_features_and_errors_equal_numpy(run_on, gpu):
    rows = child.make_rows()
    x = child.make_scaler(rows).transform(rows).astype(np.float64)
    stored = run_on(gpu).arrays
    for name, network in child.networks_of(gpu).items():
        arrays = {key.removeprefix(f"{name} "): array.astype(np.float64) for key, array in stored.items()}
        with case(name):
            assert_close(arrays["features"], reference.features(network, x, arrays), gpu, "features")
            assert_close(arrays["errors"], reference.row_errors(network, x, arrays), gpu, "cost")
            decoded = reference.row_errors(network, x, arrays, arrays["features"])
            assert_close(arrays["decoded"], decoded, gpu, "cost")


def test_features_of_every_dtype_equal_the_numpy_encoder(run_on, gpu):
    for dtype in child.DTYPES:
        rows = child.make_rows(dtype)[:50]
        scaler = child.make_scaler_of(dtype, rows)
        expected = Model(scaler, child.NETWORK, child.start_of(child.NETWORK)).encode(rows)
        assert_close(run_on(gpu).arrays[f"{dtype} features"], expected, gpu, "features")


@pytest.mark.pygpu
def test_resident_and_streamed_rows_give_the_same_bits(pygpu, run_on):
    first, *others = (label for label in labels_of(CUDA) if label.startswith("momentum"))
    assert others
    for label, name in product(others, ("costs", "W", "b_hidden", "b_output", "features")):
        np.testing.assert_array_equal(run_on(CUDA).arrays[f"{label} {name}"], run_on(CUDA).arrays[f"{first} {name}"])


# ---- the fix of OpenCL reductions


def test_reductions_have_room_for_every_argument(opencl, run_on):
    code = run_on(OPENCL).reduction
    (sizes,) = re.findall(r"void \*args\[(.*)\];", code)
    indices = re.findall(r"args\[([\d+]+)\] = ", code)  # such as 7 and 7+1
    assert sum_of(sizes) == 1 + max(map(sum_of, indices)) == 5 + 2 * 2


def sum_of(expression):
    return sum(map(int, expression.split("+")))
