"""Tests of the mathematics that runs in NumPy on any device: the losses of a head, and the share of hidden entries."""

import numpy as np

from shardpress_kernels.hostmath import target_losses, threshold
from shardpress_kernels.network import Head
from tests.support.cases import each


def loss_of(outputs, target):
    """Return the loss of one row, as `shardpress_kernels.network` defines it."""
    if len(outputs) == 1:
        return 0 if np.isnan(target) else (outputs[0] - target) ** 2 / 2
    return 0 if target < 0 else -np.log(np.exp(outputs[int(target)]) / np.exp(outputs).sum())


@each("head", [Head("classes", 4), Head("numbers", 1)])
def test_losses_equal_their_formulas_and_do_not_overflow(rng, head):
    targets = rng.integers(0, head.n_outputs, 50).astype(np.float32)
    targets[::3] = -1 if head.kind == "classes" else np.nan
    z = rng.normal(size=(50, head.n_outputs))
    expected = [loss_of(outputs, target) for outputs, target in zip(z, targets, strict=True)]
    np.testing.assert_allclose(target_losses(head, z, targets), expected, rtol=1e-12, atol=1e-15)
    assert np.isfinite(target_losses(head, 1e4 * z, targets)).all()


@each("corruption, n_hidden", [(0.0, 0), (1 / 256, 1), (0.25, 64), (1.0, 256)])
def test_corruption_is_the_share_of_bytes_of_noise_that_hide_an_entry(corruption, n_hidden):
    assert np.count_nonzero(np.arange(256) < threshold(corruption)) == n_hidden
