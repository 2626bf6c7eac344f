"""Tests of runs whose tasks go to other processes: the bits are equal, and no other process can connect or read."""

from __future__ import annotations

import json
import re
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Security

from shardpress.result.finished import Result
from tests.support.clusters import Cluster
from tests.support.killing import features_of
from tests.support.processes import DEADLINE, Small, ends_well

pytestmark = pytest.mark.process


def listening(pid: int) -> Iterator[tuple[int, tuple[str, int]]]:
    """Yield every address on which a process or its descendants listen."""
    with suppress(psutil.Error):  # it has exited meanwhile
        above = psutil.Process(pid)
        for process in (above, *above.children(recursive=True)):
            with suppress(psutil.Error):
                found = process.net_connections("inet")
                yield from ((process.pid, tuple(each.laddr)) for each in found if each.status == psutil.CONN_LISTEN)


def turns_away(address: tuple[str, int]) -> bool:
    """Return whether a server refuses plain connections and clients without a certificate."""
    with socket.create_connection(address, timeout=30) as plain:
        plain.sendall(bytes(16))
        with suppress(ConnectionResetError):
            assert len(plain.recv(64)) <= 7, "at most a TLS alert"
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection(address, timeout=30) as plain, context.wrap_socket(plain) as secured:
            return secured.recv(1) == b""
    except (ssl.SSLError, ConnectionResetError):
        return True


def test_local_workers_give_equal_bits_and_refuse_other_clients(small: Small, tmp_path: Path) -> None:
    process = small.program().start(tmp_path / "out", "--workers", "2")
    end = time.monotonic() + DEADLINE
    servers = dict[Any, int]()
    refused_addresses = set[Any]()
    variables = set[str]()
    while process.poll() is None and time.monotonic() < end:
        servers |= {address: pid for pid, address in listening(process.pid)}
        if len(servers) == 5:
            with suppress(psutil.Error):
                variables |= {name for pid in servers.values() for name in psutil.Process(pid).environ()}
            for address in servers.keys() - refused_addresses:
                refused_addresses.add(address)
                with suppress(ConnectionRefusedError):  # all have exited meanwhile
                    assert turns_away(address)
        time.sleep(0.02)
    output = ends_well(process)  # it ends when the last process that can write to the pipe has exited
    assert features_of(tmp_path / "out") == small.features
    assert {host for host, _ in servers} == {"127.0.0.1"}, output
    assert len(set(servers.values())) == 3, "two workers, and the process of the scheduler and of the nannies"
    assert len(refused_addresses) == 5
    assert "PATH" in variables
    assert "MALLOC_TRIM_THRESHOLD_" not in variables, "nor any other variable of Dask"
    assert [line for line in output.splitlines() if " INFO " not in line and not line.startswith("Done: ")] == []


@pytest.fixture
def certificates(tmp_path: Path) -> dict[str, str]:
    """Write certificates and return the variables of Dask's configuration that name them."""
    security = Security.temporary()
    folder = tmp_path / "tls"
    folder.mkdir()
    (folder / "ca.pem").write_text(security.tls_ca_file)
    (folder / "key.pem").write_text(security.tls_client_key)
    names = {"CA_FILE": "ca.pem"}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        names |= {f"{role}__CERT": "ca.pem", f"{role}__KEY": "key.pem"}
    return {f"DASK_DISTRIBUTED__COMM__TLS__{name}": str(folder / file) for name, file in names.items()}


def test_a_scheduler_with_certificates_refuses_other_clients(
    small: Small, tmp_path: Path, certificates: dict[str, str]
) -> None:
    with Cluster(tmp_path / "cluster", **certificates, DASK_DISTRIBUTED__COMM__DEFAULT_SCHEME="tls") as cluster:
        cluster.start_worker("w0")
        address = json.loads(cluster.file.read_text())["address"]
        assert address.startswith("tls://127.0.0.1:")
        host, port = address.removeprefix("tls://").split(":")
        assert turns_away((host, int(port)))
        refused_run = small.program().run(tmp_path / "stranger", "--scheduler", address)
        assert refused_run.code == 78
        assert refused_run.has_line(f"ConfigError: .*{re.escape(address)}.*\\bcertificate\\b")
        ended = small.program(**certificates).run(tmp_path / "out", "--scheduler", str(cluster.file))
        assert ended.code == 0, ended.lines
    assert features_of(tmp_path / "out") == small.features
    reported = Result.open(tmp_path / "out").facts.details.cluster
    assert (reported.kind, reported.address) == ("scheduler", address)
    (worker,) = reported.workers
    assert worker.name == "w0"
    n_rows = {stage: work.n_rows for stage, work in worker.stages.items()}
    assert (n_rows["scan"], n_rows["encoding"]) == (300, 300), "merged results are not counted"


def test_each_worker_computes_on_its_device(opencl: None, small: Small, tmp_path: Path) -> None:
    ended = small.program().run(tmp_path / "out", "--devices", "opencl0:0,opencl0:0", *small.with_model)
    assert ended.code == 0, ended.lines
    assert ended.has_line(r" INFO cluster: 2 workers: (0 opencl0:0 \(.*\), 1|1 opencl0:0 \(.*\), 0) opencl0:0 \(")
    assert ended.has_line(r"^Done: .* Device: opencl0:0 \(")
    workers = Result.open(tmp_path / "out").facts.details.cluster.workers
    assert [re.match(r"[^ ]+", worker.device)[0] for worker in workers] == ["opencl0:0"] * 2  # type: ignore[index]
    assert len({worker.pid for worker in workers}) == 2, "each with a context of its own"
