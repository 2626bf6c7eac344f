"""Devices of local workers, and environment variables that make only one card visible to a worker process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shardpress.base.driver import find_driver
from shardpress.base.errors import ConfigError, Problem

_ALL = "all"

# Theano sets this variable after it has opened a device. Child processes that inherit it cannot open a device.
_DEVICE_IS_OPEN = "THEANO_GPU_IS_ALREADY_ACTIVE"


def device_names(devices: Sequence[str] | None, environment: Mapping[str, str]) -> list[str]:
    """Return the configured devices, with ``all`` replaced by the CUDA cards that ``CUDA_VISIBLE_DEVICES`` allows."""
    if devices is None:
        return []
    if _ALL not in devices:
        return list(devices)
    visible = _visible_cards(environment)
    if visible is None:
        driver = find_driver()
        n_cards = 0 if driver is None else len(driver.capabilities)
    else:
        n_cards = len(visible)
    if n_cards == 0:
        remedy = "Run `shardpress doctor`, or name devices like opencl0:0"
        raise ConfigError(Problem(("devices",), "all, but no CUDA card was found", remedy))
    return [f"cuda{i}" for i in range(n_cards)]


def worker_environment(device: str | None, n_threads: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables of a worker. Without a device, the given environment determines it."""
    # Remove Dask's variables, because this process ignores them as well.
    variables = {
        name: value for name, value in environment.items() if not name.startswith("DASK_") and name != _DEVICE_IS_OPEN
    }
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        variables.setdefault(name, str(n_threads))
    if device is None:
        return variables
    if device.startswith("cuda"):
        # Make only this card visible, because a process allocates memory on every visible card.
        variables["CUDA_VISIBLE_DEVICES"] = _card_identifier(device, environment)
        variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        device = "cuda0"
    add_theano_flag(variables, f"device={device}")
    return variables


def add_theano_flag(variables: dict[str, str], flag: str) -> None:
    """Append a flag to ``THEANO_FLAGS``. It overrides earlier flags with the same name."""
    flags = variables.get("THEANO_FLAGS")
    variables["THEANO_FLAGS"] = f"{flags},{flag}" if flags else flag


def _card_identifier(device: str, environment: Mapping[str, str]) -> str:
    number = int(device.removeprefix("cuda"))
    visible = _visible_cards(environment)
    if visible is None:
        return str(number)
    if number >= len(visible):
        words = f"{device}, but CUDA_VISIBLE_DEVICES={','.join(visible)} makes only {len(visible)} of the cards visible"
        raise ConfigError(Problem(("devices",), words, "Change the variable, or name another device"))
    return visible[number]


def _visible_cards(environment: Mapping[str, str]) -> list[str] | None:
    """Return the identifiers in ``CUDA_VISIBLE_DEVICES``, or None if it is not set and all cards are visible."""
    value = environment.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return None
    identifiers = [entry.strip() for entry in value.split(",")]
    return [identifier for identifier in identifiers if identifier]
