"""What training gives, and the checkpoints from which an interrupted one goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.formats import pack, unpack

if TYPE_CHECKING:
    from kernels.autoencoder import Autoencoder
    from kernels.step import TrainingStep

__all__ = ["Checkpoint", "Epoch", "Trained", "flat"]

# What a checkpoint tells beside its arrays.
_PROGRESS = ("optimizer", "epoch", "n_done", "costs", "seconds", "history", "best_cost", "best_epoch", "watch")


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
    seconds : float
    """

    epoch: int
    cost: float
    validation_cost: float | None
    seconds: float

    def __str__(self) -> str:
        validation = "" if self.validation_cost is None else f", validation {self.validation_cost:.4g}"
        return f"cost {self.cost:.4g}{validation}"


@dataclass(frozen=True)
class Trained:
    """What training gives.

    Attributes
    ----------
    parameters : mapping
        The best epoch's, as `kernels.autoencoder.Autoencoder.parameters` returns them.
    history : tuple of Epoch
    best_epoch : int
        The one with the lowest validation cost; the last one without validation.
    """

    parameters: Mapping[str, np.ndarray]
    history: tuple[Epoch, ...]
    best_epoch: int

    def summary(self) -> dict[str, Any]:
        """Plain values for reports."""
        return {"best_epoch": self.best_epoch, "history": [asdict(epoch) for epoch in self.history]}


@dataclass(frozen=True)
class Checkpoint:
    """Where training stands between two steps.

    Attributes
    ----------
    arrays : mapping
        ``parameters/...``, ``state/...`` of the update rule, and ``best/...`` of the best epoch so far, all float32.
    progress : dict
        Plain values: the epoch, the steps done in it, costs, history.
    n_steps : int
        Steps done in all.
    """

    arrays: Mapping[str, np.ndarray]
    progress: dict[str, Any]
    n_steps: int

    def group(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a group under their own names."""
        start = f"{name}/"
        return {key.removeprefix(start): array for key, array in self.arrays.items() if key.startswith(start)}

    def to_npz(self) -> bytes:
        """The bytes of its file."""
        return pack(self.arrays, {"progress": self.progress, "n_steps": self.n_steps})

    @classmethod
    def from_npz(cls, data: bytes) -> Checkpoint:
        """What `to_npz` wrote.

        Raises
        ------
        ValueError
            When it is anything else, or an array is not finite.
        """
        arrays, about = unpack(data)
        if not all(array.dtype == np.float32 and np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("holds arrays that are not finite float32 numbers")
        try:
            progress, n_steps = dict(about["progress"]), int(about["n_steps"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"is no checkpoint: {error!r}") from error
        if set(progress) != set(_PROGRESS):
            raise ValueError(f"is no checkpoint: it tells {sorted(progress)}, expected {sorted(_PROGRESS)}")
        return cls(arrays, progress, n_steps)

    def check_fits(self, autoencoder: Autoencoder, step: TrainingStep) -> None:
        """Raise `ValueError` when its arrays are not those of this model and its update rule."""
        own = flat(autoencoder.parameters(), step.state(), autoencoder.parameters())
        found, expected = ({name: array.shape for name, array in arrays.items()} for arrays in (self.arrays, own))
        if found != expected:
            raise ValueError(f"holds arrays of shapes {found}, expected {expected}")


def flat(
    parameters: Mapping[str, np.ndarray], state: Mapping[str, np.ndarray], best: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The arrays of all groups under one name each."""
    groups = {"parameters": parameters, "state": state, "best": best}
    return {f"{group}/{name}": array for group, named in groups.items() for name, array in named.items()}
