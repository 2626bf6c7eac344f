"""Preparation of rows in C (rowmath.c), which releases the GIL."""

import numpy as np

__all__ = ["prepare", "replace_by_ranks"]

def prepare(rows: np.ndarray, kind: str, target: float, takes_logarithm: bool) -> None: ...
def replace_by_ranks(rows: np.ndarray, knots: np.ndarray, ranks: np.ndarray) -> None: ...
