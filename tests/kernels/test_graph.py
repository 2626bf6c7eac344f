"""Tests of the graph of every kind of network on the CPU against the NumPy reference."""

import numpy as np
import pytest

from shardpress_kernels import graph
from shardpress_kernels.autoencoder import Autoencoder, theano
from shardpress_kernels.network import Head, Network, TargetLoss
from tests.support import reference
from tests.support.cases import case, each
from tests.support.networks import NETWORKS, random_parameters
from tests.support.tolerances import assert_close

pytestmark = [pytest.mark.compiler, pytest.mark.process]

LOSS = TargetLoss(weight=0.3, scale=2.5)
# All networks have 7 columns.
OTHERS = {
    "classes": Network((7, 3), gain=True, head=Head("classes", 4)),
    "numbers": Network((7, 8, 5, 3), code="linear", head=Head("numbers", 1)),
    "nested": Network((7, 5), code="linear", nested=True),
    "nested with a head": Network((7, 8, 5), "leaky-relu", gain=True, nested=True, head=Head("classes", 3)),
}


@each("name, network", (NETWORKS | OTHERS).items())
def test_networks_equal_the_reference_in_float32_throughout(rng, name, network):
    autoencoder = Autoencoder(network)
    autoencoder.set_parameters(random_parameters(rng, network))
    shared = autoencoder.shared
    rows = theano.tensor.fmatrix()
    noise = theano.tensor.TensorType("uint8", (False, False))()
    targets = theano.tensor.fvector()
    kept = theano.tensor.fvector()
    scalars = (np.float32(LOSS.weight * LOSS.scale * 7 / 2), np.float32(LOSS.scale))
    error, gradients = graph.error_and_gradients(
        network,
        rows,
        graph.masked(rows, noise, 0.3),
        shared,
        targets=graph.Targets(targets, *scalars) if network.head is not None else None,
        kept=kept if network.nested else None,
    )
    features = graph.features(network, rows, shared)
    errors = [graph.row_errors(network, rows, shared, written) for written in (None, features[::-1])]
    results = [features, *errors, error, *gradients]
    types = {variable.dtype for variable in theano.gof.graph.ancestors(results) if variable.ndim}
    assert "float64" not in types
    function = theano.function([rows, noise, targets, kept], results, on_unused_input="ignore")

    x = rng.random((11, 7), dtype=np.float32)
    hidden = rng.integers(0, 256, (11, 7), dtype=np.uint8)
    classes = np.array([-1, 0, 1, 2, 0, 1, 2, -1, 0, 1, 2], np.float32)
    numbers = np.arange(11, dtype=np.float32) % (network.n_features + 1)
    h, found_errors, errors_of_others, error, *gradients = function(x, hidden, classes, numbers)
    p = {name: array.astype(np.float64) for name, array in autoencoder.parameters().items()}
    code = reference.code(network, x, p)
    assert_close(h, code, "cpu", "float32", "features")
    assert_close(found_errors, reference.row_errors(network, x, p), "cpu", "float32", "cost")
    assert_close(errors_of_others, reference.row_errors(network, x, p, code[::-1]), "cpu", "float32", "cost")
    expected_error, expected = reference.gradients(
        network,
        x,
        reference.masked(x, hidden, 0.3),
        p,
        reference.Targets(classes, LOSS),
        numbers if network.nested else None,
    )
    assert_close(error, expected_error, "cpu", "float32", "cost")
    for gradient, parameter, array in zip(gradients, network.shapes, expected, strict=True):
        assert gradient.dtype == np.float32
        with case(name, parameter):
            assert_close(gradient, array, "cpu", "float32", "gradients")


def test_parameters_of_stacked_layers_have_distinct_names():
    network = NETWORKS["three"]
    features = graph.features(network, theano.tensor.fmatrix(), Autoencoder(network).shared)
    found = [v.name for v in theano.gof.graph.inputs([features]) if isinstance(v, theano.compile.SharedVariable)]
    assert found == ["W_1", "b_hidden_1", "W_2", "b_hidden_2", "W_3", "b_hidden_3"]
