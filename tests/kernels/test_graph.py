"""Tests of the graph of every kind of network on the CPU against the NumPy reference."""

import numpy as np
import pytest

from shardpress_kernels import graph
from shardpress_kernels.autoencoder import Autoencoder, theano
from tests.support import reference
from tests.support.cases import case, each
from tests.support.networks import NETWORKS, random_parameters
from tests.support.tolerances import assert_close

pytestmark = [pytest.mark.compiler, pytest.mark.process]


def random_model(rng, network):
    autoencoder = Autoencoder(network)
    autoencoder.set_parameters(random_parameters(rng, network))
    return autoencoder, {name: array.astype(np.float64) for name, array in autoencoder.parameters().items()}


@each("name", NETWORKS)
def test_networks_equal_the_reference_in_float32_throughout(rng, name):
    network = NETWORKS[name]
    rows = theano.tensor.fmatrix()
    autoencoder, p = random_model(rng, network)
    noise = theano.tensor.TensorType("uint8", (False, False))()
    shared = autoencoder.shared
    cost, gradients = graph.error_and_gradients(network, rows, graph.masked(rows, noise, 0.3), shared)
    h = graph._code(network, rows, shared)
    results = [h, graph._reconstruction(network, h, shared), graph.row_errors(network, rows, shared), cost, *gradients]
    results.append(graph.row_errors(network, rows, shared, h[::-1]))
    types = {variable.dtype for variable in theano.gof.graph.ancestors(results) if variable.ndim}
    assert "float64" not in types
    function = theano.function([rows, noise], results)
    x = rng.random((11, 7), dtype=np.float32)
    bytes_ = rng.integers(0, 256, (11, 7), dtype=np.uint8)
    h, y, errors, cost, *gradients, of_others = function(x, bytes_)

    a, s = reference.forward(network, x, p)
    assert_close(h, a[-1], "cpu", "float32", "features")
    assert_close(y, s[0], "cpu", "float32", "reconstruction")
    assert_close(errors, reference.row_errors(network, x, p), "cpu", "float32", "cost")
    assert_close(of_others, reference.row_errors(network, x, p, a[-1][::-1]), "cpu", "float32", "cost")
    expected_cost, expected = reference.gradients(network, x, reference.masked(x, bytes_, 0.3), p)
    assert_close(cost, expected_cost, "cpu", "float32", "cost")
    for found, gradient, parameter in zip(gradients, expected, network.shapes, strict=True):
        assert found.dtype == np.float32
        with case(parameter):
            assert_close(found, gradient, "cpu", "float32", "gradients")


def test_parameters_of_stacked_layers_have_distinct_names():
    network = NETWORKS["three"]
    autoencoder = Autoencoder(network)
    code = graph._code(network, theano.tensor.fmatrix(), autoencoder.shared)
    found = [v.name for v in theano.gof.graph.inputs([code]) if isinstance(v, theano.compile.SharedVariable)]
    assert found == ["W_1", "b_hidden_1", "W_2", "b_hidden_2", "W_3", "b_hidden_3"]
