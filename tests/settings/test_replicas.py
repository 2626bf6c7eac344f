"""How many replicas there are follows from sizes alone, and each of them has steps and meetings enough."""

from itertools import product

from pipeline.settings.config import Config
from pipeline.settings.replicas import rounds_in_epoch, shared_out
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
    (1_000, {"replicas": 8}, (1, 20)),
]


@each("n_rows, asked, expected", TABLE)
def test_what_is_asked_for_and_the_sizes_decide(n_rows, asked, expected) -> None:
    found = resolve(Config(**asked), n_rows, 784)
    assert (found.replicas, found.batch_size) == expected


def test_each_replica_takes_2000_steps_and_meets_the_others_70_times() -> None:
    for asked, n_rows, epochs, batch_size in product(
        [2, 3, 8, 64], [999, 57_000, 10**6, 10**9], [2, 20, 300], [1, 128]
    ):
        with case(asked, n_rows, epochs, batch_size):
            n, size = shared_out(asked, n_rows, epochs, batch_size, may_shrink=True)
            assert n <= asked
            assert size <= batch_size
            if n > 1:
                n_rounds = rounds_in_epoch(n, n_rows, epochs, size, 10**6)
                assert n_rounds * (epochs - 1) >= 70
                assert (epochs - 1) * n_rows >= 2000 * n * size
                assert n_rows <= n * n_rounds * 256 * size, "a share is a task of a second or less"


def test_a_share_is_no_larger_than_what_a_replica_may_hold() -> None:
    for window_rows in (1, 1000, 10**5):
        assert 8 * rounds_in_epoch(8, 10**6, 20, 128, window_rows) * window_rows >= 10**6
