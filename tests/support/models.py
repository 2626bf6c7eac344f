"""Autoencoders with random parameters, and random rows."""

from __future__ import annotations

import numpy as np

from shardpress.scan.scaler import Scaler
from shardpress_kernels.autoencoder import Autoencoder
from shardpress_kernels.network import Network
from shardpress_kernels.step import TrainingStep
from tests.support.networks import random_parameters

N_INPUTS = 7
N_FEATURES = 3
NETWORK = Network((N_INPUTS, N_FEATURES))


def float64(arrays):
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def random_autoencoder(rng, network=NETWORK, center=None, scale=None):
    autoencoder = Autoencoder(network, center, scale)
    autoencoder.set_parameters(random_parameters(rng, network))
    return autoencoder


def random_rows(rng, n_rows, dtype, n_inputs=N_INPUTS):
    """Return rows over the whole range of an integer dtype, or over several powers of ten for floats."""
    if dtype.kind == "f":
        return (rng.normal(size=(n_rows, n_inputs)) * 10.0 ** rng.integers(-2, 4, n_inputs)).astype(dtype)
    info = np.iinfo(dtype)
    rows = rng.integers(info.min, info.max, (n_rows, n_inputs), dtype=dtype, endpoint=True)
    rows[0] = info.min
    rows[1] = info.max
    return rows


def scaler_of(rows):
    return Scaler(rows.min(axis=0).astype(np.float64), rows.max(axis=0).astype(np.float64))


def scaling_of(rows, working):
    """Return the center and the scale in a dtype. Both are None if rows are not scaled."""
    if working is None:
        return None, None
    scaler = scaler_of(rows)
    return scaler.minimum.astype(working), scaler.scale.astype(working)


def step_of(autoencoder, rule="momentum", dtype="f4", resident=None, corruption=0.0):
    return TrainingStep(autoencoder, rule, np.dtype(dtype), resident, corruption)


def assert_same_arrays(found, expected):
    """Compare arrays of the same names bit for bit."""
    assert list(found) == list(expected)
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
