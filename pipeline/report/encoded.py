"""How a run has encoded its rows: what is needed to do to them again what was done before they were scaled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.model import Model
from pipeline.scan.scaler import Cleaning
from pipeline.shards.shard import Block

__all__ = ["Encoded"]


@dataclass(frozen=True)
class Encoded:
    """How rows were encoded.

    Attributes
    ----------
    missing : float or None
        What stands for a missing value, beside NaN.
    clips : bool
        Whether rows outside the model's range were moved to its edge, though the model itself does not ask for it.
    """

    model: Model
    missing: float | None = None
    clips: bool = False

    def cleaned(self, block: Block, rows: np.ndarray) -> np.ndarray:
        """Rows (n_rows, n_inputs) of a block as the encoder got them, in their own dtype."""
        scaler = self.model.scaler
        cleaned = Cleaning(scaler, self.missing).cleaned(block, rows)
        return np.clip(cleaned, *scaler.edges(cleaned.dtype)) if self.clips else cleaned
