"""Tests of the assignment of one device to each worker, through the environment of its process."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardpress.cluster.worker_devices import device_names, worker_environment
from tests.support.cards import driver
from tests.support.helpers import refused


def test_cards_are_numbered_among_those_visible_to_the_driver() -> None:
    variables = {"CUDA_VISIBLE_DEVICES": "GPU-7a, 5"}
    assert device_names(("all",), variables) == ["cuda0", "cuda1"]
    assert [worker_environment(f"cuda{i}", 1, variables)["CUDA_VISIBLE_DEVICES"] for i in (0, 1)] == ["GPU-7a", "5"]


@pytest.mark.process
def test_all_selects_every_card_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LD_LIBRARY_PATH": "/nowhere", "PATH": "/nowhere", "CUDA_VISIBLE_DEVICES": "-1"}.items():
        monkeypatch.setenv(name, value)
    with refused(78, "CUDA"):
        device_names(("all",), {})
    monkeypatch.undo()
    driver(tmp_path, (12, 4), (9, 0), (9, 0))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert device_names(("all",), {}) == ["cuda0", "cuda1"]


def test_a_worker_sees_its_card_and_no_settings_of_dask() -> None:
    """The last flag of Theano counts, and only one card is visible."""
    inherited = {"DASK_DISTRIBUTED__WORKER__PRELOAD": "x", "HOME": "/h", "THEANO_FLAGS": "device=cuda0"}
    found = worker_environment("cuda1", 3, {**inherited, "THEANO_GPU_IS_ALREADY_ACTIVE": "Yes"})
    expected = {"HOME": "/h", "CUDA_VISIBLE_DEVICES": "1", "THEANO_FLAGS": "device=cuda0,device=cuda0"}
    assert expected.items() <= found.items()
    assert not any(name.startswith(("DASK", "THEANO_GPU")) for name in found)
