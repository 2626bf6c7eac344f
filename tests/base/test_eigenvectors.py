"""Test that one thread computes eigenvectors."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from shardpress.base.eigenvectors import eigenvectors


def test_one_thread_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, threads that wait for each other take a hundred times as long."""
    found: list[int] = []
    compute = np.linalg.eigh

    def counted(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found.extend(each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas")
        return compute(matrix)

    monkeypatch.setattr(np.linalg, "eigh", counted)
    eigenvectors(np.eye(3))
    assert set(found) == {1}
