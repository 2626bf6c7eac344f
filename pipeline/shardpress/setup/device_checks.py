"""Checks that the CPU and the chosen device compute correctly.

A child process opens the device as a run does, and compares the features of a small model with those of NumPy. It has a
time limit, because a driver can hang or crash the process that calls it.
"""

from __future__ import annotations

import configparser
import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress

from shardpress.base.childprocess import collect_reports, report
from shardpress.base.errors import ConfigError
from shardpress.base.packages import complaint, missing_proc
from shardpress.setup.cuda import cuda_checks
from shardpress.setup.diagnosis import Check
from shardpress_kernels.theanofiles import is_set_up

_SECONDS = 300.0  # time limit for a device, which may have to compile
_WIDTHS = (96, 32, 8)
# Tolerance for float32 on any device: see docs/gpu.md. A wrong library or kernel causes far larger differences.
_TOLERANCE = 1e-4
_WRONG_FEATURES = "update the driver and the library that computes matrix products, or use another device"


def device_checks() -> Iterator[Check]:
    """Yield the checks of the CPU, of the driver and libraries for CUDA, and of the chosen device."""
    if missing_proc():  # without /proc Theano cannot read our settings; `machine_checks` reports the problem
        return
    chosen = _chosen_device()
    cpu = _check_device("cpu")
    yield cpu
    yield from cuda_checks(chosen.startswith("cuda"))
    if chosen != "cpu" and not cpu.is_setting:  # the chosen device would report the same error
        yield _check_device(chosen)


def _chosen_device() -> str:
    """Return the device of THEANO_FLAGS or .theanorc, read without Theano."""
    in_flags = re.findall(r"(?:^|[,\s])device\s*=\s*([^,\s]+)", os.environ.get("THEANO_FLAGS", ""))
    if in_flags:
        return str(in_flags[-1])
    paths = os.environ.get("THEANORC", "~/.theanorc").split(os.pathsep)
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    with suppress(configparser.Error, UnicodeDecodeError):
        parser.read(map(os.path.expanduser, paths))
    return parser.get("global", "device", fallback="cpu")


def _check_device(device: str) -> Check:
    if not is_set_up():
        finding = "Theano is not set up in this Python: features can be read, but no run is possible"
        return Check(device, "fail", finding, complaint(), is_setting=True)
    flags = filter(None, [os.environ.get("THEANO_FLAGS"), f"device={device}"])  # later flags override earlier flags
    facts = collect_reports(__name__, _SECONDS, {**os.environ, "THEANO_FLAGS": ",".join(flags)})
    if "failed" in facts:
        return Check(device, "fail", facts["failed"], is_setting=facts.get("code") == ConfigError.exit_code)
    difference = facts["difference"]
    if not difference <= _TOLERANCE:
        finding = f"its features differ from the features of NumPy by {difference:.1g}, expected at most {_TOLERANCE}"
        return Check(device, "fail", finding, _WRONG_FEATURES)
    return Check(device, "pass", f"{facts['name']}: features agree with NumPy within {difference:.0e}")


# -- in the child ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Report facts about the device of THEANO_FLAGS."""
    logging.disable(logging.CRITICAL)
    from shardpress.base.errors import ShardpressError
    from shardpress.model.device import start_device, theanos_errors

    try:
        with theanos_errors():
            device = start_device(is_required=True)
            report(name=device.name, difference=_difference_from_numpy())
    except ShardpressError as error:
        report(failed=str(error), code=error.exit_code)
    report(done=True)


def _difference_from_numpy() -> float:
    """Return the largest difference between the features of a small model on the device and those of NumPy."""
    import numpy as np

    from shardpress.model.device import autoencoder_of
    from shardpress.model.encoder import Model
    from shardpress.model.scaler import Scaler
    from shardpress_kernels.network import Network

    network = Network(_WIDTHS)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (300, network.n_inputs)).astype(np.uint8)
    parameters = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in network.shapes.items()}
    model = Model(Scaler(rows.min(axis=0), rows.max(axis=0)), network, parameters)
    autoencoder = autoencoder_of(model.scaler, network, rows.dtype)
    autoencoder.set_parameters(parameters)
    return float(np.abs(autoencoder.encode(rows) - model.encode(rows)).max())
