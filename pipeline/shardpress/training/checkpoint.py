"""State of a training run, and checkpoints from which an interrupted training run resumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import msgspec
import numpy as np

from shardpress.base.formats import pack, unpack
from shardpress.model.about import Epoch


@dataclass
class TrainingState:
    """Progress of a training run, without arrays: values that decide how it continues or that are reported.

    A checkpoint stores every field under its name.
    """

    optimizer: str  # name of the update rule, to which the stored arrays belong
    epoch: int = 0
    n_done: int = 0  # steps (or shares of replicas) of this epoch that have been taken
    costs: list[float] = field(default_factory=list)  # costs of these steps, as far as they were computed
    seconds: float = 0.0  # duration of these steps, including those in interrupted runs
    history: list[Epoch] = field(default_factory=list)
    best_cost: float | None = None  # lowest objective; None before the first one, because JSON has no infinity
    best_epoch: int = -1  # -1 for the initial parameters; the last epoch without enough validation rows
    watch: list[float | None] = field(default_factory=lambda: [None, None])  # first and last finite cost
    n_epochs: int | None = None  # number of epochs if a deadline has limited it
    ended_at: int | None = None  # steps (or shares) of the last epoch after which a deadline ended it

    def start_next_epoch(self, finished: Epoch) -> None:
        """Add a finished epoch to the history, and start to count the steps of the next one."""
        self.history.append(finished)
        self.epoch += 1
        self.n_done = 0
        self.costs = []
        self.seconds = 0.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingState:
        """Return the state that `Checkpoint.to_npz` stored as these values; raise `ValueError` for other ones."""
        names = {known.name for known in fields(cls)}
        # A missing field must not become its default.
        if set(values) != names:
            raise ValueError(f"is not a checkpoint: it has the fields {sorted(values)}, expected {sorted(names)}")
        try:
            return msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"is not a checkpoint: {error}") from error


@dataclass(frozen=True)
class Checkpoint:
    """A training run between two steps."""

    # ``parameters/...``, ``state/...`` of the update rule, ``best/...`` and ``outer/...``, all float32
    arrays: Mapping[str, np.ndarray]
    state: TrainingState
    n_steps: int  # steps of all epochs so far

    def group(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays of a group under their own names."""
        start = f"{name}/"
        return {key.removeprefix(start): array for key, array in self.arrays.items() if key.startswith(start)}

    def to_npz(self) -> bytes:
        return pack(self.arrays, {"progress": msgspec.to_builtins(self.state), "n_steps": self.n_steps})

    @classmethod
    def from_npz(cls, data: bytes) -> Checkpoint:
        """Return the checkpoint that `to_npz` wrote; raise `ValueError` for other data, or arrays with NaN or Inf."""
        arrays, about = unpack(data)
        # One NaN would make every later weight NaN, and only the next cost would show it.
        if not all(array.dtype == np.float32 and np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("holds arrays that are not finite float32 numbers")
        try:
            state = TrainingState.from_dict(about["progress"])
            n_steps = about["n_steps"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"is not a checkpoint: {error!r}") from error
        return cls(arrays, state, n_steps)


def join_groups(**groups: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of all groups under names like ``parameters/W``, as a `Checkpoint` holds them."""
    return {f"{group}/{name}": array for group, named in groups.items() for name, array in named.items()}
