"""How many replicas there are follows from sizes alone, and each of them has steps and meetings enough."""

from itertools import product

from pipeline.settings.config import Config
from pipeline.settings.replicas import TrainingSizes, rounds_in_epoch, shared_out
from pipeline.settings.resolve import resolve
from tests.support.cases import case, each

# Of 784 columns: rows, what is asked for, and the replicas and the rows of their minibatches that come of it.
TABLE = [
    (60_000, {}, (1, 128)),
    (10_000_000, {}, (1, 128)),
    (20_000_000, {}, (8, 128)),
    (20_000_000, {"replicas": 1}, (1, 128)),
    (20_000_000, {"hidden": ()}, (1, 128)),
    (60_000, {"replicas": 8}, (8, 64)),
    (60_000, {"replicas": 3}, (3, 128)),
    (60_000, {"replicas": 8, "batch_size": 128}, (4, 128)),
    (60_000, {"replicas": 100}, (25, 16)),
    (60_000, {"replicas": 8, "epochs": 2}, (1, 128)),
    (60_000, {"replicas": 8, "epochs": 1}, (1, 128)),
    (60_000, {"replicas": 8, "shuffle_window": 16 * 128 * 784 * 8}, (8, 64)),
    (60_000, {"replicas": 8, "shuffle_window": 16 * 16 * 784 * 8}, (8, 16)),
    (60_000, {"replicas": 8, "shuffle_window": 15 * 16 * 784 * 8}, (1, 128)),
    (1_000, {"replicas": 8}, (1, 20)),
]


@each("n_rows, asked, expected", TABLE)
def test_what_is_asked_for_and_the_sizes_decide(n_rows, asked, expected) -> None:
    found = resolve(Config(**asked), n_rows, 784)
    assert (found.replicas, found.batch_size) == expected


def test_each_replica_takes_2000_steps_and_meets_the_others_70_times_but_not_after_few_of_them() -> None:
    sizes = product([999, 57_000, 10**6, 10**9], [2, 20, 300], [300, 10**4, 10**8])
    for asked, (n_rows, epochs, window_rows), batch_size in product([2, 3, 8, 64], sizes, [1, 128]):
        with case(asked, n_rows, epochs, window_rows, batch_size):
            sizes_of_it = TrainingSizes(n_rows, epochs, window_rows)
            n, size = shared_out(asked, batch_size, True, sizes_of_it)
            assert n <= asked
            assert size <= batch_size
            if n > 1:
                n_rounds = rounds_in_epoch(n, size, sizes_of_it)
                assert n_rounds * (epochs - 1) >= 70
                assert (epochs - 1) * n_rows >= 2000 * n * size
                assert n_rows <= n * n_rounds * min(512 * size, window_rows), "a task of a second or two"
                assert n_rows > n * (n_rounds - 1) * 16 * size
