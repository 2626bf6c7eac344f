"""What a process keeps: one model, made once, and memory that each thread uses again."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kernels.network import Network
from pipeline.cluster.executor import compute
from pipeline.cluster.threads import threads
from pipeline.encoding import worker as module
from pipeline.encoding.worker import EncodeSettings, Worker, serving, worker_of
from pipeline.model import Model
from pipeline.output.disk import Disk
from pipeline.scan.scaler import Scaler
from pipeline.shards.shard import Block, Shard

W = np.zeros((3, 2), np.float32)
MODEL = Model(Scaler(np.zeros(3), np.ones(3)), Network((3, 2)), {"W": W, "b_hidden": W[0], "b_output": W[:, 0]})
SETTINGS = EncodeSettings("out", MODEL, "float32", 4, 8, 2)


def nothing(rows: np.ndarray, out: np.ndarray) -> None:
    pass


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What this process makes instead of compiling."""
    found: list[Any] = []

    def make(*what: Any) -> Any:
        found.append(what)
        return SimpleNamespace(set_parameters=found.append, encode_checked=nothing)

    monkeypatch.setattr(module, "_workers", {})
    monkeypatch.setattr(module, "start_device", lambda: None)
    monkeypatch.setattr(module, "autoencoder_of", make)
    return found


def test_a_model_is_made_once_however_many_threads_ask(made: list[Any]) -> None:
    with threads(4) as pool:
        found = compute([(worker_of, replace(SETTINGS, attributes={"part": i})) for i in range(20)], pool, 4)
    assert all(each is found[0] for each in found)
    assert made == [(MODEL.scaler, MODEL.network, np.dtype("float32")), MODEL.parameters]


def test_other_models_and_sizes_get_another_worker_in_place_of_the_last(made: list[Any]) -> None:
    first = worker_of(SETTINGS)
    other = replace(MODEL, parameters={**MODEL.parameters, "b_hidden": W[0] + 1})
    for settings in (replace(SETTINGS, part_rows=12), replace(SETTINGS, model=other), SETTINGS):
        assert worker_of(settings) is not first
        assert len(module._workers) == 1
    assert len(made) == 8


def test_what_a_process_has_is_not_made_anew_and_goes_in_the_end(made: list[Any]) -> None:
    disk = Disk()
    with serving(SETTINGS, nothing, disk):
        found = worker_of(SETTINGS)
        assert (found.encode, found.disk, made) == (nothing, disk, [])
    assert module._workers == {}


def test_a_thread_uses_its_memory_again(made: list[Any]) -> None:
    shards = {dtype: Shard("a.h5", "X", (9, 3), dtype, dtype) for dtype in ("float32", "uint8")}
    worker = Worker(SETTINGS, nothing, Disk())
    kept = worker.block_memory(Block(shards["float32"], 0, 4))
    again = worker.block_memory(Block(shards["float32"], 4, 7))
    assert (again.shape, np.shares_memory(kept, again)) == ((3, 3), True)
    assert worker.block_memory(Block(shards["uint8"], 0, 2)).dtype == np.uint8
    assert worker.part_memory(shards["uint8"]) is worker.part_memory(shards["float32"])
    with threads(1) as pool:
        (others,) = compute([(worker.block_memory, Block(shards["float32"], 0, 4))], pool, 1)
    assert not np.shares_memory(kept, others)
