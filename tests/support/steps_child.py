"""Take training steps on the emulated card, in a separate process for test_step_on_card.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from shardpress_kernels import backend
from shardpress_kernels.autoencoder import Autoencoder
from shardpress_kernels.network import Network
from shardpress_kernels.step import TrainingStep
from shardpress_kernels.upload import TwoBuffers
from tests.support import device_child as child
from tests.support.steps import take_step

N_EACH = 3
STEPS_PER_CALL = ((1, 2), (1, 1, 1), (3,), (2, 1))  # number of steps in each piece


def make_others(network: Network) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the noise, the targets and the numbers of features that the decoder gets, for the rows of a piece."""
    each = [(child.make_noise(i), child.make_targets(network, i), child.make_kept(network, i)) for i in range(N_EACH)]
    noise, targets, kept = (np.concatenate(arrays) for arrays in zip(*each, strict=True))
    return noise, targets, kept


def check_alternating_uploads() -> None:
    """Check that uploaded data stay unchanged while the next piece is uploaded, also if a later piece is smaller."""
    buffers = TwoBuffers()
    arrays = [np.full((length, 2), number, np.uint8) for number, length in enumerate((5, 7, 4, 7))]
    first, second = map(buffers.put, arrays[:2])
    assert [np.asarray(each).tolist() for each in (first, second)] == [each.tolist() for each in arrays[:2]]
    third = buffers.put(arrays[2])
    assert np.asarray(third).tolist() == arrays[2].tolist()
    assert np.asarray(first).tolist() == [[2, 2]] * 4 + [[0, 0]], "the third piece reuses the memory of the first one"
    assert np.asarray(second).tolist() == arrays[1].tolist()
    assert np.asarray(buffers.put(arrays[3])).tolist() == arrays[3].tolist()
    assert np.asarray(second).tolist() == arrays[3].tolist()


def check_steps_in_one_call(step: TrainingStep, autoencoder: Autoencoder, rows: np.ndarray, is_resident: bool) -> None:
    """Check that several steps in one call give the same bits as single calls, also with a smaller last minibatch."""
    numbers = np.concatenate(child.make_minibatches()[:N_EACH])[:-17]
    noise, targets, kept = (array[:-17] for array in make_others(autoencoder.network))
    piece = numbers if is_resident else rows[numbers]
    rates = [0.02, 0.01, 0.005]
    start = autoencoder.parameters()
    state = step.state()

    def take_one_by_one() -> None:
        for i, rate in enumerate(rates):
            batch = slice(i * child.BATCH, (i + 1) * child.BATCH)
            take_step(step, piece[batch], rate, noise=noise[batch], targets=targets[batch], kept=kept[batch])

    def take_in_calls(*calls: list[float]) -> None:
        step.begin(piece, noise, child.BATCH, targets, kept)
        for each in calls:
            step.take(each)

    def state_after(take: Callable[[], None]) -> dict[str, bytes]:
        autoencoder.set_parameters(start)
        step.set_state(state)
        take()
        return {name: array.tobytes() for name, array in (autoencoder.parameters() | step.state()).items()}

    expected = state_after(take_one_by_one)
    assert any(expected[name] != array.tobytes() for name, array in start.items())
    assert state_after(lambda: take_in_calls(rates)) == expected
    assert state_after(lambda: take_in_calls(rates[:1], rates[1:])) == expected
    assert state_after(lambda: take_in_calls(rates[::-1])) != expected, "so each step has its own rate"


def take_steps(place: str, log: str) -> None:
    """Take the steps, the first one with its cost. Mark each step and each upload in the log."""
    rows = child.make_rows()
    network = child.NETWORKS["leaky"]  # as in test_devices.py, so that its code is compiled only once
    autoencoder = Autoencoder(network, *child.make_scaler(rows).arrays(rows.dtype))
    autoencoder.set_parameters(child.start_of(network))
    resident = None if place == "streamed" else child.Pieces(rows)
    step = TrainingStep(autoencoder, "adam", rows.dtype, resident, child.CORRUPTION, child.LOSS)
    numbers = np.concatenate([child.make_minibatches()[0]] * N_EACH)
    noise, targets, kept = make_others(network)
    piece = rows[numbers] if resident is None else numbers
    rate = child.RATES["adam"]
    with open(log, "a", buffering=1) as file:
        for i, at_once in enumerate(STEPS_PER_CALL):
            file.write(f"{place} piece\n")
            step.begin(piece, noise, child.BATCH, targets, kept)
            for j, n in enumerate(at_once):
                file.write(f"{place} steps\n")
                step.take([rate] * n, with_cost=i + j == 0)
        file.write(f"{place} steps\n")
    check_steps_in_one_call(step, autoencoder, rows, is_resident=resident is not None)


def main(log: str) -> None:
    """Take steps on streamed and on uploaded rows, and mark them in the log of the emulated card."""
    backend.start(require=True)
    check_alternating_uploads()
    for place in ("streamed", "uploaded"):
        take_steps(place, log)
