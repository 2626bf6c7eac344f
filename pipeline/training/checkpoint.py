"""How far a training has come, and the checkpoints from which an interrupted one goes on."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from pipeline.formats import pack, unpack

__all__ = ["Checkpoint", "Epoch", "Standing", "grouped"]

_MOST_STEPS = 10**15  # a thousand years of steps of 30 microseconds
_MOST_SECONDS = 1e10  # three hundred years


@dataclass(frozen=True)
class Epoch:
    """One line of the training's history.

    Attributes
    ----------
    epoch : int
        From 0.
    cost : float
        Mean squared error per entry of scaled rows, before each step, over the steps on which it was asked for.
    validation_cost : float or None
        The same over the validation rows at the epoch's end; None without any.
    """

    epoch: int
    cost: float
    validation_cost: float | None
    seconds: float

    def __str__(self) -> str:
        validation = "" if self.validation_cost is None else f", validation {self.validation_cost:.4g}"
        return f"cost {self.cost:.4g}{validation}"


@dataclass
class Standing:
    """How far a training has come: all that decides how it goes on, and all that it tells, beside arrays.

    A checkpoint keeps every field under its name, so that none is forgotten on the way out or back.
    """

    optimizer: str  # the update rule, whose arrays go with it
    epoch: int = 0  # under way, counted from 0
    n_done: int = 0  # of its steps
    costs: list[float] = field(default_factory=list)  # of these steps, where they were asked for
    seconds: float = 0.0  # that these steps took, in earlier sittings too: an epoch's time is that of all its steps
    history: list[Epoch] = field(default_factory=list)  # epochs that are over
    best_cost: float | None = None  # the lowest validation cost; None before there is one: JSON does not have Inf
    best_epoch: int = -1  # that one, or -1 for the start; the last one that is over without enough validation
    # The first and the last good cost, by which divergence is told; a list, as JSON gives it back.
    watch: list[float | None] = field(default_factory=lambda: [None, None])
    n_epochs: int | None = None  # that are made in all; None where that is left to the settings, or not decided yet
    # Steps (or shares) of the last epoch after which a deadline ended the training; None if that epoch is a whole one.
    ended_at: int | None = None

    def summary(self) -> dict[str, Any]:
        """Plain values for reports."""
        return {"best_epoch": self.best_epoch, "history": [asdict(epoch) for epoch in self.history]}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Standing:
        """What `dataclasses.asdict` made plain; else a `ValueError`."""
        if not isinstance(values, Mapping):
            raise ValueError(f"is no checkpoint: its progress is a {type(values).__name__}")
        names = {each.name for each in fields(cls)}
        # One that is missing must not become its default, except for those that earlier versions did not know.
        if set(values) | {"n_epochs", "ended_at"} != names:
            raise ValueError(f"is no checkpoint: it tells {sorted(values)}, expected {sorted(names)}")
        found = cls(**{**values, "history": [Epoch(**epoch) for epoch in values["history"]]})
        wrong = [name for name, is_possible in _possible(found).items() if not is_possible]
        if wrong:
            raise ValueError(f"is no checkpoint: {', '.join(wrong)} cannot be what a training has come to")
        return found


@dataclass(frozen=True)
class Checkpoint:
    """Where training stands between two steps.

    Attributes
    ----------
    arrays : mapping
        ``parameters/...``, ``state/...`` of the update rule, and ``best/...`` of the best epoch so far, all float32.
    n_steps : int
        Steps done in all.
    """

    arrays: Mapping[str, np.ndarray]
    standing: Standing
    n_steps: int

    def group(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a group under their own names."""
        start = f"{name}/"
        return {key.removeprefix(start): array for key, array in self.arrays.items() if key.startswith(start)}

    def to_npz(self) -> bytes:
        """The bytes of its file."""
        # Under the names of the first version, whose checkpoints can be gone on from.
        return pack(self.arrays, {"progress": asdict(self.standing), "n_steps": self.n_steps})

    @classmethod
    def from_npz(cls, data: bytes) -> Checkpoint:
        """What `to_npz` wrote.

        Raises
        ------
        ValueError
            When it is anything else, or an array is not finite.
        """
        arrays, about = unpack(data)
        # From one NaN every later weight is NaN, and the training would only be told so at its next cost.
        if not all(array.dtype == np.float32 and np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("holds arrays that are not finite float32 numbers")
        try:
            standing = Standing.of(about["progress"])
            n_steps = about["n_steps"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"is no checkpoint: {error!r}") from error
        if not _is_count(n_steps):
            raise ValueError("is no checkpoint: n_steps is not a possible number of steps")
        return cls(arrays, standing, n_steps)


def _possible(now: Standing) -> dict[str, bool]:
    """Return for each field whether its value is possible, whatever training it belongs to."""
    is_begun = _is_count(now.epoch) and _is_count(now.n_done)
    costs_are_possible = isinstance(now.costs, list) and all(map(_is_finite, now.costs))
    watch_is_possible = isinstance(now.watch, list) and len(now.watch) == 2
    return {
        "optimizer": isinstance(now.optimizer, str),
        "epoch": _is_count(now.epoch),
        "n_done": _is_count(now.n_done),
        "costs": is_begun and costs_are_possible and len(now.costs) <= now.n_done,
        "seconds": _is_duration(now.seconds),
        "history": len(now.history) == now.epoch and all(map(_is_possible_epoch, range(len(now.history)), now.history)),
        "best_cost": now.best_cost is None or _is_finite(now.best_cost),
        # The first version began with 0, where later ones begin with -1.
        "best_epoch": is_begun and type(now.best_epoch) is int and -1 <= now.best_epoch <= now.epoch,
        "watch": watch_is_possible and all(cost is None or _is_finite(cost) for cost in now.watch),
        "n_epochs": now.n_epochs is None or _is_count(now.n_epochs),
        "ended_at": now.ended_at is None or _is_count(now.ended_at),
    }


def _is_possible_epoch(number: int, epoch: Epoch) -> bool:
    """Return whether a line of the history is possible as that of the epoch `number`."""
    validation_cost = epoch.validation_cost
    is_numbered = _is_count(epoch.epoch) and epoch.epoch == number
    has_costs = _is_finite(epoch.cost) and (validation_cost is None or _is_finite(validation_cost))
    return is_numbered and has_costs and _is_duration(epoch.seconds)


def _is_count(value: object) -> bool:
    """Return whether it is a possible number of epochs or steps."""
    return type(value) is int and 0 <= value < _MOST_STEPS


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_duration(value: object) -> bool:
    """Return whether it is a possible time in seconds."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < _MOST_SECONDS


def grouped(**groups: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of all groups under names like ``parameters/W``, as a `Checkpoint` holds them."""
    return {f"{group}/{name}": array for group, named in groups.items() for name, array in named.items()}
