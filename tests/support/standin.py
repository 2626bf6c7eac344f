"""Run the whole program in a tenth of a second.

NumPy replaces the device, parts are tiny, and nothing is synced. All other code is the real program, from the command
line to the commit. The stand-in computes a real autoencoder. Equal rows give bitwise equal results, regardless of block
size, threads and interruptions.
"""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest

from shardpress.model.device import DeviceAutoencoder, DeviceStep
from shardpress.output import journal
from shardpress.output.disk import Disk
from shardpress.result.finished import INDEX, Result
from shardpress.result.records import stretches_of
from shardpress.run import budget, encoding_stage, engine
from shardpress.run import plan as planning
from shardpress.settings.flags import parse
from shardpress.shards import digests
from shardpress_kernels.backend import Device
from shardpress_kernels.network import Network, TargetLoss
from shardpress_kernels.rules import DECAY
from tests.support import reference
from tests.support.fields import is_size, run_with_sizes, set_fields, set_sizes
from tests.support.helpers import write_shard

TILE_ROWS = 4
BLOCK_ROWS = 8
PART_BYTES = 4 * TILE_ROWS * 4 * 2  # four tiles of two features


class Autoencoder:
    """Replacement for `shardpress_kernels.autoencoder.Autoencoder` with the methods that the pipeline uses."""

    def __init__(
        self,
        network: Network,
        center: np.ndarray,
        scale: np.ndarray,
        limits: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        self.network = network
        self.n_features = network.n_features
        self._center = center
        self._scale = scale
        self._limits = limits
        self.set_parameters({name: np.zeros(shape) for name, shape in network.shapes.items()})

    def parameters(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in self._parameters.items()}

    def set_parameters(self, values: Mapping[str, np.ndarray]) -> None:
        self._parameters = {name: np.array(array, dtype=np.float32) for name, array in values.items()}

    def scaled(self, rows: np.ndarray) -> np.ndarray:
        return ((rows.astype(self._center.dtype) - self._center) * self._scale).astype(np.float32)

    def code(self, rows: np.ndarray) -> np.ndarray:
        return self.encode(rows).astype(np.float64)

    def code_of_scaled(self, x: np.ndarray) -> np.ndarray:
        # Do not use BLAS, because its rounding would depend on the number of rows.
        sums = (x[:, :, None] * self._parameters["W"]).sum(axis=1) + self._parameters["b_hidden"]
        return 1 / (1 + np.exp(-sums))

    def encode(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        out = np.empty((len(rows), self.n_features), dtype=np.float32) if out is None else out
        with np.errstate(all="ignore"):  # skipped rows may contain NaN and Inf
            out[:] = self.code_of_scaled(self.scaled(rows))
        return out

    def ignores_positions(self, dtype: np.dtype) -> bool:
        return True

    def encode_checked(self, rows: np.ndarray, out: np.ndarray) -> np.ndarray:
        self.encode(rows, out)
        assert self._limits is not None
        low, high = self._limits
        return np.flatnonzero(~((rows >= low) & (rows <= high)).all(axis=1))

    def errors(self, rows: np.ndarray, features: np.ndarray | None = None) -> np.ndarray:
        with np.errstate(invalid="ignore", over="ignore"):
            x = self.scaled(rows)
            code = self.code_of_scaled(x) if features is None else features
            products = code[:, None, :] * self._parameters["W"]
            reconstruction = products.sum(axis=2) + self._parameters["b_output"]
            return ((reconstruction - x) ** 2).mean(axis=1)

    def cost(self, rows: np.ndarray) -> float:
        return float(self.errors(rows).mean(dtype=np.float64))


class TrainingStep:
    """Replacement for the `TrainingStep` of the kernels: every rule is plain momentum, and no entry is corrupted."""

    def __init__(
        self,
        autoencoder: Autoencoder,
        rule: str,
        dtype: np.dtype,
        resident: np.ndarray | None = None,
        corruption: float = 0.0,
        loss: TargetLoss | None = None,
    ) -> None:
        self._loss = loss
        self._autoencoder = autoencoder
        self._resident = resident
        parameters = autoencoder.parameters()
        self.set_state({f"{name}_velocity": np.zeros_like(array) for name, array in parameters.items()})
        self._minibatches: Iterator[np.ndarray] = iter(())
        self._targets: Iterator[np.ndarray] = iter(())

    def compile(self) -> None:
        pass

    def n_at_once(self, batch_size: int) -> int:
        return 3  # more than one, as on a device

    def begin(
        self,
        minibatches: np.ndarray,
        noise: np.ndarray | None,
        batch_size: int,
        targets: np.ndarray | None = None,
        kept: np.ndarray | None = None,
    ) -> None:
        assert kept is None, "the stand-in cannot train nested features"
        starts = range(0, len(minibatches), batch_size)
        self._minibatches = iter([minibatches[i : i + batch_size] for i in starts])
        if targets is not None:
            assert targets.shape == minibatches.shape[:1]
            self._targets = iter([targets[i : i + batch_size] for i in starts])

    def take(self, learning_rates: Sequence[float], with_cost: bool = False) -> float | None:
        cost = None
        for rate in learning_rates:
            cost = self.take_one(next(self._minibatches), rate, with_cost)
        return cost

    def state(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in self._state.items()}

    def set_state(self, values: Mapping[str, np.ndarray]) -> None:
        self._state = {name: np.array(array, dtype=np.float32) for name, array in values.items()}

    def take_one(self, minibatch: np.ndarray, learning_rate: float, with_cost: bool) -> float | None:
        """Take a step on one minibatch. Tests replace this method to count steps, or to make them fail."""
        rows = minibatch if self._resident is None else self._resident[minibatch]
        network = self._autoencoder.network
        x = self._autoencoder.scaled(rows).astype(np.float64)
        parameters = self._autoencoder.parameters()
        targets = None if self._loss is None else reference.Targets(next(self._targets), self._loss)
        cost, gradients = reference.gradients(network, x, x, parameters, targets)
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            velocity = self._state[f"{name}_velocity"]
            velocity[...] = np.float32(DECAY) * velocity - np.float32(learning_rate / 2) * gradient.astype(np.float32)
            parameter += velocity
        self._autoencoder.set_parameters(parameters)
        return cost if with_cost else None


# Settings that the stand-in supports, with the initialization of earlier versions.
NETWORK = {
    **{"hidden": "none", "code_activation": "sigmoid", "corruption": "0", "scale": "range"},
    "learning_rate": "0.003",
}
FIELDS = {"decoder_gain": False, "start": "random"}


# mypy compares the stand-ins with the protocols.
_AUTOENCODER: type[DeviceAutoencoder] = Autoencoder
_STEP: type[DeviceStep] = TrainingStep


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the stand-ins."""
    for name, standin in (
        ("shardpress_kernels.autoencoder", Autoencoder),
        ("shardpress_kernels.step", TrainingStep),
    ):
        module = ModuleType(name)
        setattr(module, standin.__name__, standin)
        monkeypatch.setitem(sys.modules, name, module)
    for setting, value in NETWORK.items():  # command-line flags override these
        monkeypatch.setenv(f"SHARDPRESS_{setting.upper()}", value)
    set_fields(monkeypatch, **FIELDS)
    set_sizes(monkeypatch, block_rows=BLOCK_ROWS)
    for starter in (engine, planning):
        monkeypatch.setattr(starter, "start_device", lambda is_required=False: Device("cpu", "cpu", "stand-in"))
    monkeypatch.setattr(budget, "TILE_ROWS", TILE_ROWS)
    monkeypatch.setattr(digests, "UNIT_ROWS", TILE_ROWS)
    monkeypatch.setattr(budget, "_PART_BYTES", PART_BYTES)
    monkeypatch.setattr(encoding_stage, "_LEAST_FILES", 2)  # so that three files give two parts
    monkeypatch.setattr(journal, "_SECONDS", math.inf)  # so that equal runs make equal calls, however long they take


class UnsyncedDisk(Disk):
    """Disk that skips syncs, which matter only after a power failure."""

    def sync(self, descriptor: int) -> None:
        os.fstat(descriptor)

    def sync_directory(self, path: Path) -> None:
        os.stat(path)


class Workspace:
    """A folder with small shards of the given sizes, and runs over them."""

    def __init__(self, folder: Path, *sizes: int) -> None:
        self.folder = folder
        self.shards = folder / "shards"
        self.shards.mkdir()
        rng = np.random.default_rng(0)
        for i, size in enumerate(sizes):
            self.add_shard(f"{i}.h5", rng.normal(size=(size, 4)).astype(np.float32))

    def add_shard(self, name: str, rows: np.ndarray) -> Path:
        return Path(write_shard(self.shards / name, rows, extras={"y": np.arange(len(rows))}))

    def arguments(self, output: Path, *flags: str) -> list[str]:
        """Return the command line of a run."""
        settings = ["--n-features", "2", "--epochs", "2", "--batch-size", "20", "--threads", "1"]
        return ["--input", str(self.shards), "--output", str(output), *settings, *flags]

    def plan(self, output: Path, *flags: str) -> planning.Plan:
        """Return the plan of a run."""
        arguments = self.arguments(output, *(flag for flag in flags if not is_size(flag)))
        return planning.make_plan(parse(arguments, os.environ, ""))

    def run(self, output: Path, *flags: str, disk: Disk | None = None) -> int:
        """Run the program and return its exit code. Flags can be sizes such as ``block_rows=4``."""
        with redirect_stdout(io.StringIO()):
            return run_with_sizes(self.arguments(output, *flags), disk or UnsyncedDisk())

    def run_on(self, inputs: Sequence[Path], output: Path, *flags: str) -> int:
        """Run the program on other files or directories, and return its exit code."""
        arguments = ["--input", *map(str, inputs), *self.arguments(output, *flags)[2:]]
        with redirect_stdout(io.StringIO()):
            return run_with_sizes(arguments, UnsyncedDisk())


def features_of(output: Path) -> bytes:
    """Return the bytes of the model, the features, the valid rows and the labels of a finished run."""
    return bits_of(output, ["features", "valid", "y"])


def bits_of(output: Path, names: Sequence[str]) -> bytes:
    """Return the bytes of the model and of some datasets. Check that the index has the values of the parts."""
    result = Result.open(output)
    stretches = stretches_of(result.ranges)
    bits = [result.encoder.encode()]
    with h5py.File(output / INDEX) as index:
        for name in names:
            values = b"".join(_values(output / part.file, name, first, n) for part, first, n in stretches)
            assert index[name][()].tobytes() == values, f"{name}: index and parts differ"
            bits.append(f"{name} {index[name].dtype} {index[name].shape}".encode() + values)
    return b"".join(bits)


def _values(part: Path, name: str, first: int, n_rows: int) -> bytes:
    with h5py.File(part) as file:
        return bytes(file[name][first : first + n_rows].tobytes())
