"""One device for each worker: which there are, and the environment by which a process sees one and no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.errors import ConfigError
from pipeline.gpu.driver import find_driver

__all__ = ["ALL", "environment_of", "named"]

ALL = "all"

# What Theano leaves behind where it has opened a device, and by which it refuses to open one in a child.
_LEFT_BEHIND = "THEANO_GPU_IS_ALREADY_ACTIVE"


def named(devices: Sequence[str] | None, environment: Mapping[str, str]) -> list[str]:
    """The devices that the setting names; of ``all`` every CUDA card.

    Raises
    ------
    ConfigError
        When there is no card.
    """
    if devices is None or ALL not in devices:
        return list(devices or ())
    visible = _visible(environment)
    n_cards = _n_cards() if visible is None else len(visible)
    if not n_cards:
        raise ConfigError(
            "devices: all, but there is no CUDA card. See `shardpress doctor`, or name devices like opencl0:0."
        )
    return [f"cuda{i}" for i in range(n_cards)]


def environment_of(device: str | None, n_threads: int, environment: Mapping[str, str]) -> dict[str, str]:
    """What a worker's process starts with.

    Parameters
    ----------
    device : str or None
        As Theano names it; None for what the environment says.
    n_threads : int
        Of its products, where the environment does not say.

    Raises
    ------
    ConfigError
        When the card is not among those that the environment lets be seen.
    """
    # Dask's variables would have workers do what the driver, which reads none of them, does not know of.
    kept = {k: v for k, v in environment.items() if not k.startswith("DASK_") and k != _LEFT_BEHIND}
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        kept.setdefault(name, str(n_threads))
    if device is None:
        return kept
    if device.startswith("cuda"):
        # Exactly one: a process that sees its siblings' cards comes to hold memory on each of them.
        kept |= {"CUDA_VISIBLE_DEVICES": _identifier(device, environment), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        device = "cuda0"
    return {**kept, "THEANO_FLAGS": ",".join(filter(None, [kept.get("THEANO_FLAGS"), f"device={device}"]))}


def _identifier(device: str, environment: Mapping[str, str]) -> str:
    """What ``CUDA_VISIBLE_DEVICES`` calls a card, of which this process may see some only."""
    number = int(device.removeprefix("cuda"))
    visible = _visible(environment)
    if visible is None:
        return str(number)
    if number >= len(visible):
        raise ConfigError(
            f"devices: {device}, but CUDA_VISIBLE_DEVICES={','.join(visible)} lets {len(visible)} be seen"
        )
    return visible[number]


def _visible(environment: Mapping[str, str]) -> list[str] | None:
    found = environment.get("CUDA_VISIBLE_DEVICES")
    return None if found is None else [each.strip() for each in found.split(",") if each.strip()]


def _n_cards() -> int:
    driver = find_driver()
    return len(driver.capabilities) if driver else 0
