"""What test_step_on_card.py runs on the stub of a card, in a process of its own: steps of training.

Usage: python tests/support/steps_child.py streamed|uploaded LOG, with the device in THEANO_FLAGS, and the stub's log.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np

from kernels import backend
from kernels.autoencoder import Autoencoder
from kernels.step import TrainingStep
from kernels.updates import Rule
from kernels.upload import TwoBuffers
from tests.support import device_child as child

N_PIECES, N_EACH = 4, 3


def put_by_turns() -> None:
    """What has been put stays while the next is, and makes room for the one behind that, which may be smaller."""
    buffers = TwoBuffers()
    arrays = [np.full((length, 2), number, np.uint8) for number, length in enumerate((5, 7, 4, 7))]
    first, second = map(buffers.put, arrays[:2])
    assert [np.asarray(each).tolist() for each in (first, second)] == [each.tolist() for each in arrays[:2]]
    third = buffers.put(arrays[2])
    assert np.asarray(third).tolist() == arrays[2].tolist()
    assert np.asarray(first).tolist() == [[2, 2]] * 4 + [[0, 0]], "in the first one's place"
    assert np.asarray(second).tolist() == arrays[1].tolist()
    assert np.asarray(buffers.put(arrays[3])).tolist() == arrays[3].tolist()
    assert np.asarray(second).tolist() == arrays[3].tolist()


def main(place: str, log: str) -> None:
    """Take them, the first with its cost, each behind a line in the log that says so, as when a piece is sent."""
    backend.start(require=True)
    put_by_turns()
    rows, network = child.make_rows(), child.NETWORKS["relu"]
    autoencoder = Autoencoder(network, *child.make_scaler(rows).arrays(rows.dtype))
    autoencoder.set_parameters(child.start_of(network))
    resident = None if place == "streamed" else child.Pieces(rows)
    step = TrainingStep(
        autoencoder, Rule("adam", child.DECAY), rows.dtype, resident=resident, corruption=child.CORRUPTION
    )
    step.set_learning_rate(child.RATES["adam"])
    numbers = np.concatenate([child.make_minibatches()[0]] * N_EACH)
    noise = np.concatenate([child.make_noise(i) for i in range(N_EACH)])
    with open(log, "a", buffering=1) as told:

        def pieces() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for _ in range(N_PIECES):
                told.write("piece\n")
                yield rows[numbers] if resident is None else numbers, noise

        for i, (minibatch, hidden) in enumerate(step.sent(pieces(), child.BATCH)):
            told.write("step\n")
            step(minibatch, with_cost=not i, noise=hidden)
        told.write("step\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
