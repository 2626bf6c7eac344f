"""What test_step_on_card.py runs on the stub of a card, in a process of its own: steps of training.

Usage: python tests/support/steps_child.py streamed|uploaded N LOG, with the device in THEANO_FLAGS, and the stub's log.
"""

from __future__ import annotations

import sys

from kernels import backend
from kernels.autoencoder import Autoencoder
from kernels.step import TrainingStep
from kernels.updates import Rule
from tests.support import device_child as child


def main(place: str, n_steps: str, log: str) -> None:
    """Take them, the first with its cost, each behind a line in the log that says so."""
    backend.start(require=True)
    rows, network = child.make_rows(), child.NETWORKS["relu"]
    autoencoder = Autoencoder(network, *child.make_scaler(rows).arrays(rows.dtype))
    autoencoder.set_parameters(child.start_of(network))
    resident = None if place == "streamed" else child.Pieces(rows)
    step = TrainingStep(
        autoencoder, Rule("adam", child.DECAY), rows.dtype, resident=resident, corruption=child.CORRUPTION
    )
    step.set_learning_rate(child.RATES["adam"])
    numbers = child.make_minibatches()[0]
    minibatch = rows[numbers] if resident is None else numbers
    with open(log, "a", buffering=1) as told:
        for i in range(int(n_steps)):
            told.write("step\n")
            step(minibatch, with_cost=not i, noise=child.make_noise(i))
        told.write("step\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
