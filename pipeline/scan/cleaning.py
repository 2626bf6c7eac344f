"""Rows as a scaler expects them, once they are read: what is missing filled in, and values clipped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.scan.scaler import Scaler
from pipeline.shards.rows import missing_entries
from pipeline.shards.shard import Block

__all__ = ["Cleaning"]


@dataclass(frozen=True)
class Cleaning:
    """What rows are cleaned by.

    Attributes
    ----------
    missing : float or None
        A value that stands for a missing one, beside NaN.
    """

    scaler: Scaler
    missing: float | None = None

    def cleaned(self, block: Block, rows: np.ndarray) -> np.ndarray:
        """A block's rows (len(block), n_inputs), in their own dtype; the same array where there is nothing to do."""
        missed = None
        if self.scaler.fill is not None and self.missing is not None:
            missed = missing_entries(rows, self.missing, block.shard.stored_dtype)
        return self.scaler.cleaned(rows, missed)
