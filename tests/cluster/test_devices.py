"""Tests of the assignment of one device to each worker, through the environment of its process."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardpress.cluster.devices import device_names, worker_environment
from tests.support.cards import driver
from tests.support.helpers import refused


def test_cards_are_numbered_among_those_visible_to_the_driver() -> None:
    variables = {"CUDA_VISIBLE_DEVICES": "GPU-7a, 5"}
    assert device_names(("all",), variables) == ["cuda0", "cuda1"]
    assert [worker_environment(f"cuda{i}", 1, variables)["CUDA_VISIBLE_DEVICES"] for i in (0, 1)] == ["GPU-7a", "5"]
    with refused(78, "devices: all", "CUDA"):
        device_names(("all",), {"CUDA_VISIBLE_DEVICES": ""})


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
    inherited = {"DASK_DISTRIBUTED__WORKER__PRELOAD": "x", "HOME": "/h", "OMP_NUM_THREADS": "1"}
    found = worker_environment("cuda1", 3, {**inherited, "THEANO_FLAGS": "device=cuda0"})
    assert found == {
        "HOME": "/h",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "3",
        "CUDA_VISIBLE_DEVICES": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "THEANO_FLAGS": "device=cuda0,device=cuda0",  # the last flag counts, and only one card is visible
    }
    inherited["THEANO_GPU_IS_ALREADY_ACTIVE"] = "Yes"
    assert worker_environment(None, 3, inherited).keys() == {"HOME", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"}
