"""A file made from a skeleton is the file that the skeleton was taken from, but for the values."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.encoding.template import MARK_BYTES, mark, skeleton_of

NOISE = np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8)


def laid_out(values: dict[str, np.ndarray], texts: dict[str, bytes]) -> tuple[np.ndarray, dict[str, tuple[int, int]]]:
    """A format of its own: arrays and texts between bytes of no meaning; and where the arrays stand."""
    pieces, places, at = [NOISE[:100]], {}, 100
    for i, (name, value) in enumerate(values.items()):
        places[name] = (at, value.nbytes)
        pieces += [value.reshape(-1).view(np.uint8), NOISE[: 10 * i]]
        at += value.nbytes + 10 * i
    for text in texts.values():
        pieces += [NOISE[200:300], np.frombuffer(text, np.uint8)]
    return np.concatenate(pieces), places


@pytest.mark.parametrize("seed", range(20))
def test_a_filled_skeleton_is_the_file_that_would_have_been_written(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shapes = {f"array {i}": tuple(rng.integers(0, 5, rng.integers(1, 3))) for i in range(rng.integers(1, 5))}
    lengths = {f"text {i}": int(rng.integers(MARK_BYTES, 40)) for i in range(rng.integers(1, 12))}

    def some() -> tuple[dict[str, np.ndarray], dict[str, bytes]]:
        return {name: rng.normal(size=shape) for name, shape in shapes.items()}, {
            name: rng.bytes(n) for name, n in lengths.items()
        }

    marks = {name: mark(i, n) for i, (name, n) in enumerate(lengths.items())}
    content, places = laid_out(some()[0], marks)
    skeleton = skeleton_of(content, places, marks)
    assert skeleton is not None
    for _ in range(3):
        arrays, texts = some()
        expected, _places = laid_out(arrays, texts)
        memory = rng.integers(0, 256, skeleton.n_bytes + 100).astype(np.uint8)
        skeleton.fill(memory, arrays, texts)
        np.testing.assert_array_equal(memory[: skeleton.n_bytes], expected)


def test_arrays_that_are_not_given_stay() -> None:
    content, places = laid_out({"kept": np.arange(4.0), "given": np.arange(3.0)}, {})
    skeleton = skeleton_of(content, places, {})
    assert skeleton is not None
    start, n_bytes = places["kept"]
    memory = np.full(skeleton.n_bytes, 77, dtype=np.uint8)
    skeleton.fill(memory, {"given": np.ones(3)}, {})
    assert set(memory[start : start + n_bytes]) == {77}


def test_marks_are_all_different_whatever_their_lengths() -> None:
    marks = [mark(i, n) for i in range(30) for n in range(MARK_BYTES, 40)]
    assert [len(each) for each in marks] == [*range(MARK_BYTES, 40)] * 30
    for i in range(30):
        for j in range(30):
            assert i == j or mark(i, MARK_BYTES) not in mark(j, 40)


@pytest.mark.parametrize("n", [0, 2])
def test_a_mark_that_does_not_stand_there_once_makes_no_skeleton(n: int) -> None:
    content = np.concatenate([NOISE, np.frombuffer(mark(0, 10) * n, np.uint8), NOISE])
    assert skeleton_of(content, {}, {"text": mark(0, 10)}) is None


def test_a_mark_among_an_arrays_values_does_not_count() -> None:
    values = np.frombuffer(mark(0, 16), np.uint8)
    content = np.concatenate([NOISE, values, NOISE, values])
    skeleton = skeleton_of(content, {"values": (len(NOISE), 16)}, {"text": mark(0, 16)})
    assert skeleton is not None
    assert skeleton.attributes["text"] == 2 * len(NOISE) + 16
