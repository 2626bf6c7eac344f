"""Preparation of rows in C (rowmath.c), which releases the GIL."""

import numpy as np

__all__ = ["prepare"]

def prepare(rows: np.ndarray, kind: str, target: float, takes_logarithm: bool) -> None: ...
