"""The stages in order: the only file that knows them all."""

from __future__ import annotations

import dataclasses
import logging
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import ledger
from pipeline.config import LEARNING_RATES, Config, plain, problems
from pipeline.encoding import encode_parts, plan_parts
from pipeline.errors import ConfigError, DataError, DeviceError, NotPermitted, TrainingDiverged, shown
from pipeline.features import index_bytes
from pipeline.gate import Shard
from pipeline.minibatches import Order, ResidentRows, Rows, StreamedRows, slab_starts, spread_rows
from pipeline.model import Model, Scaler, load_model
from pipeline.plan import Plan, make_plan
from pipeline.progress import Progress
from pipeline.scan import Scan, describe_bad_rows, scan
from pipeline.shards import open_shards, row_dtype
from pipeline.training import train

if TYPE_CHECKING:
    from kernels.autoencoder import Autoencoder
    from kernels.backend import Device

__all__ = ["Summary", "run"]

log = logging.getLogger(__name__)

_MEAN_BYTES = 2**22
_PACKAGES = ("shardpress", "numpy", "Theano", "dask", "h5py", "scikit-learn")


@dataclass(frozen=True)
class Summary:
    """What a finished run says at its end.

    Attributes
    ----------
    output : str
        Where the features are.
    n_rows, n_inputs, n_features, n_bad : int
        Rows, columns in, columns out, rows with NaN or Inf.
    n_parts : int
        Feature files.
    device : str
        Where the products ran, and why there.
    cost : float or None
        The best epoch's validation cost, or training cost without validation; None without training.
    seconds : dict of str to float
        For each stage.
    """

    output: str
    n_rows: int
    n_inputs: int
    n_features: int
    n_bad: int
    n_parts: int
    device: str
    cost: float | None
    seconds: dict[str, float]

    def __str__(self) -> str:
        stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.seconds.items())
        cost = "" if self.cost is None else f" Mean squared error {self.cost:.5f} in scaled units."
        bad = f" {self.n_bad} rows with NaN or Inf have NaN features." if self.n_bad else ""
        return (
            f"Done: {self.n_rows} rows x {self.n_inputs} columns -> {self.n_features} features in "
            f"{self.output}/index.h5 ({self.n_parts} parts).{cost}{bad} Device: {self.device}. Time: {stages}."
        )


def run(config: Config, command: Sequence[str]) -> Summary:
    """Scan, train, encode.

    Parameters
    ----------
    config : Config
    command : sequence of str
        The command line, for the outputs' attributes.

    Raises
    ------
    ShardpressError
        One of its kinds for whatever a user can mend.
    """
    _refuse(problems(config))
    shards = open_shards(config.input, config.dataset)
    n_rows, n_inputs = sum(shard.n_rows for shard in shards), shards[0].n_inputs
    model = load_model(config.model) if config.model else None
    config = _resolved(config, n_rows, n_inputs, model)
    _refuse(problems(config, n_rows, n_inputs) if model is None else _misfits(config, model, shards[0]))
    directory = Path(config.output)
    _refuse(_own_inputs(directory, shards))
    with ledger.claim(directory, config.overwrite):
        return _extract(_Job(config, command, shards, directory, _start_device(config)), model)


@dataclass(frozen=True)
class _Job:
    """What every stage needs to know; the settings have their defaults filled in."""

    config: Config
    command: Sequence[str]
    shards: Sequence[Shard]
    directory: Path
    device: Device

    def plan(self, tile_rows: int) -> Plan:
        assert self.config.n_features is not None
        on_device = self.device.used != "cpu"
        return make_plan(self.config, self.shards, self.config.n_features, tile_rows, on_device)

    def about(self, model: Model) -> dict[str, Any]:
        """Attributes of every output."""
        return {
            "command": " ".join(self.command),
            "config": asdict(self.config),
            "device": str(self.device),
            "model": model.fingerprint,
            "versions": _versions(),
        }


def _extract(job: _Job, model: Model | None) -> Summary:
    from kernels.autoencoder import TILE_ROWS

    plan = job.plan(TILE_ROWS)
    log.debug("plan: %s", plan)
    clock = _Clock()
    if model is None:
        model, autoencoder = _fit(job, plan, clock)
    else:
        autoencoder = _autoencoder(job, model.scaler)
        autoencoder.set_parameters(model.parameters)
    ledger.clear(job.directory)
    ledger.publish(job.directory / "model.h5", model.to_hdf5())
    ledger.publish(job.directory / "encoder.npz", model.to_npz())

    about = job.about(model)
    lines = _encode(job, plan, autoencoder, about)
    clock.lap("encoding")
    summary = Summary(
        output=job.config.output,
        n_rows=sum(line["n_rows"] for line in lines),
        n_inputs=model.n_inputs,
        n_features=model.n_features,
        n_bad=sum(line["n_bad"] for line in lines),
        n_parts=len(lines),
        device=str(job.device),
        cost=None if job.config.model else _best_cost(model.about["training"]),
        seconds=clock.seconds,
    )
    _report(job, model, summary)
    ledger.finish(job.directory, {**about, "n_rows": summary.n_rows, "n_features": summary.n_features, "parts": lines})
    return summary


def _report(job: _Job, model: Model, summary: Summary) -> None:
    training = {} if job.config.model else {"training": model.about["training"]}
    content = {"config": asdict(job.config), "device": asdict(job.device), **training, "summary": asdict(summary)}
    ledger.publish_json(job.directory / "report.json", content)


# -- settings ----------------------------------------------------------------------------------------------------


def _refuse(found: Sequence[str]) -> None:
    if found:
        raise ConfigError("; ".join(found))


def _resolved(config: Config, n_rows: int, n_inputs: int, model: Model | None) -> Config:
    """The settings with every default that depends on others or on the data filled in."""
    n_features = config.n_features or (model.n_features if model else min(64, max(1, n_inputs // 2)))
    rate = LEARNING_RATES[config.optimizer] if config.learning_rate is None else config.learning_rate
    batch_size = config.batch_size if config.batch_size is not None else min(128, max(16, n_rows // 50), n_rows)
    resolved = dataclasses.replace(config, n_features=n_features, learning_rate=rate, batch_size=batch_size)
    for name, value in asdict(resolved).items():
        log.info("  %-22s %s", name, plain(value))
    return resolved


def _misfits(config: Config, model: Model, shard: Shard) -> list[str]:
    """What does not fit together about an old model and new shards."""
    where = f"model={shown(config.model)}"
    found = []
    if model.n_inputs != shard.n_inputs:
        found.append(f"{where}: made for {model.n_inputs} columns, found {shard.n_inputs} in file={shown(shard.path)}")
    if model.n_features != config.n_features:
        found.append(f"{where}: gives {model.n_features} features, found n_features {config.n_features}: leave it out")
    return found


def _own_inputs(directory: Path, shards: Sequence[Shard]) -> list[str]:
    """Shards that writing to `directory` would remove."""
    inside = [shard.path for shard in shards if directory.resolve() in Path(shard.path).resolve().parents]
    return [
        f"output={shown(directory)}: holds the input file={shown(path)}, expected another --output"
        for path in inside[:1]
    ]


def _start_device(config: Config) -> Device:
    from kernels import backend
    from kernels.settings import UnsafeCompileCache

    try:
        device = backend.start(config.require_device)
    except backend.DeviceUnavailable as error:
        raise DeviceError(f"{error}. Mend it, or run on the CPU with THEANO_FLAGS=device=cpu.") from error
    except UnsafeCompileCache as error:
        raise NotPermitted(str(error)) from error
    except ValueError as error:
        raise ConfigError(f"THEANO_FLAGS or .theanorc: {error}") from error
    log.info("device: %s", device)
    return device


def _versions() -> dict[str, str]:
    import h5py

    packages = {name: version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "hdf5": h5py.version.hdf5_version, **packages}


# -- stages ------------------------------------------------------------------------------------------------------


def _scan(shards: Sequence[Shard], plan: Plan, config: Config) -> Scan:
    n_rows = sum(shard.n_rows for shard in shards)
    row_bytes = shards[0].n_inputs * np.dtype(shards[0].dtype).itemsize
    with Progress("scan", n_rows, "rows", row_bytes) as progress:
        found = scan(shards, plan.block_rows, plan.n_threads, progress.advance)
    if len(found.bad_rows):
        words = describe_bad_rows(shards, found)
        if config.on_bad_data == "raise":
            raise DataError(f"{words}, expected finite numbers. Mend the files, or use --on-bad-data skip.")
        log.warning("%s; they are left out and get NaN features", words)
    return found


def _autoencoder(job: _Job, scaler: Scaler) -> Autoencoder:
    from kernels.autoencoder import Autoencoder

    assert job.config.n_features is not None
    n_inputs = job.shards[0].n_inputs
    return Autoencoder(n_inputs, job.config.n_features, *scaler.arrays(row_dtype(job.shards)))


def _fit(job: _Job, plan: Plan, clock: _Clock) -> tuple[Model, Autoencoder]:
    """Scan and train."""
    found = _scan(job.shards, plan, job.config)
    clock.lap("scan")
    scaler = Scaler.from_scan(found)
    autoencoder = _autoencoder(job, scaler)
    try:
        training = _train(job, autoencoder, scaler, found, plan)
    except TrainingDiverged as error:
        path = job.directory / "model-last-good.h5"
        ledger.publish(path, Model(scaler, autoencoder.parameters(), {"stopped": str(error)}).to_hdf5())
        raise TrainingDiverged(f"{error} The last good weights are in {shown(path)}.") from error
    clock.lap("training")
    about = {"training": training, "config": asdict(job.config), "versions": _versions(), "device": str(job.device)}
    return Model(scaler, autoencoder.parameters(), about), autoencoder


def _train(job: _Job, autoencoder: Autoencoder, scaler: Scaler, found: Scan, plan: Plan) -> dict[str, Any]:
    from kernels.autoencoder import TrainingStep

    config, shards = job.config, job.shards
    watched = _validation(found, plan, config)
    order = Order(
        slab_starts(shards, plan.window_rows // 4), np.union1d(found.bad_rows, watched), plan.window_rows, config.seed
    )
    if not order.n_rows:
        counts = f"{found.n_rows} rows, {len(found.bad_rows)} bad, {len(watched)} for validation"
        raise DataError(f"no rows to train on: {counts}. Lower --validation-fraction.")
    rows: Rows = ResidentRows(shards, plan.n_threads) if plan.resident else StreamedRows(shards, plan.n_threads)
    validation = rows.take(watched)
    log.info(
        "training: %d rows %s, %d for validation, minibatches of %d",
        *(order.n_rows, "in memory" if plan.resident else "streamed", len(watched), config.batch_size),
    )
    autoencoder.initialize(np.random.default_rng(config.seed), _mean(scaler, rows, found, config))
    step = TrainingStep(autoencoder, config.optimizer, config.momentum, row_dtype(shards), rows.resident)
    # Now, so that the training's time and rate are its own.
    step.compile()
    autoencoder.errors(validation[:0])
    return train(autoencoder, step, rows, order, validation, config).summary()


def _validation(found: Scan, plan: Plan, config: Config) -> np.ndarray:
    """Numbers of the rows that training is watched with."""
    n_wanted = round(config.validation_fraction * found.n_rows)
    if n_wanted > plan.max_validation_rows:
        log.info("validation: %d rows instead of %d, to stay in the memory budget", plan.max_validation_rows, n_wanted)
    return spread_rows(found.n_rows, found.bad_rows, min(n_wanted, plan.max_validation_rows), config.seed)


def _mean(scaler: Scaler, rows: Rows, found: Scan, config: Config) -> np.ndarray | None:
    """The scaled rows' mean, for the start of the biases, over rows that depend on no block, thread or budget."""
    if config.biases == "zero":
        return None
    n_wanted = min(found.n_rows, max(1, _MEAN_BYTES // (8 * len(scaler.minimum))))
    sample = rows.take(spread_rows(found.n_rows, found.bad_rows, n_wanted, config.seed))
    return np.asarray(scaler.transform(sample).mean(axis=0, dtype=np.float64)) if len(sample) else None


def _encode(job: _Job, plan: Plan, autoencoder: Autoencoder, about: dict[str, Any]) -> list[dict[str, Any]]:
    """Write every part and the index over them; the manifest's line for each."""
    for dtype in sorted({shard.dtype for shard in job.shards}):
        # No rows, no work: it compiles before the progress starts to count.
        autoencoder.encode(np.empty((0, autoencoder.n_inputs), dtype=dtype))
    parts = plan_parts(job.shards, plan.part_rows)
    skip_bad = job.config.on_bad_data == "skip"
    lines = encode_parts(parts, job.directory, autoencoder.encode, autoencoder.n_features, plan, skip_bad, about)
    index = index_bytes(job.directory, [part.file for part in parts], about)
    ledger.publish(job.directory / "index.h5", index)
    return lines


def _best_cost(training: dict[str, Any]) -> float:
    best = training["history"][training["best_epoch"]]
    cost = best["cost"] if best["validation_cost"] is None else best["validation_cost"]
    return float(cost)


class _Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds[stage], self._last = now - self._last, now
