"""Tests of the number of replicas: it depends only on sizes, and each replica has enough steps and rounds."""

from itertools import product

from shardpress.settings.config import Config
from shardpress.settings.replicas import TrainingSizes, fitting_replicas, rounds_in_epoch
from shardpress.settings.resolve import resolve
from tests.support.cases import case, each

# For 784 columns: number of rows, requested replicas, and resulting replicas.
TABLE = [
    (20_000_000, {}, 8),
    (20_000_000, {"hidden": ()}, 1),
    (60_000, {"replicas": 8}, 4),
    (60_000, {"replicas": 7}, 3),
    (10**8, {"replicas": 4, "batch_size": 2**28 // (8 * 784 * 16)}, 4),  # a window holds 16 steps
    (10**8, {"replicas": 4, "batch_size": 2**28 // (8 * 784 * 16) + 1}, 1),
]


@each("n_rows, requested, expected", TABLE)
def test_replicas_follow_the_request_and_the_sizes(n_rows, requested, expected) -> None:
    assert resolve(Config.of(**requested), n_rows, 784).training.replicas == expected


def test_replicas_have_enough_steps_and_rounds() -> None:
    sizes = product([999, 57_000, 10**6, 10**9], [2, 20, 300], [300, 10**4, 10**8])
    for requested, (n_rows, epochs, window_rows), batch_size in product([2, 3, 8, 64], sizes, [1, 128]):
        with case(requested, n_rows, epochs, window_rows, batch_size):
            training_sizes = TrainingSizes(n_rows, epochs, window_rows)
            n = fitting_replicas(requested, batch_size, training_sizes)
            assert n <= requested
            if n > 1:
                n_rounds = rounds_in_epoch(n, batch_size, training_sizes)
                assert n_rounds * (epochs - 1) >= 70
                assert (epochs - 1) * n_rows >= 2000 * n * batch_size
                assert n_rows <= n * n_rounds * min(512 * batch_size, window_rows), "a task of a second or two"
                assert n_rows > n * (n_rounds - 1) * 16 * batch_size
