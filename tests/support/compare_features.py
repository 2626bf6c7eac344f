"""Compare features from a device and from the CPU for the same model, and print the largest difference.

Usage: python -m tests.support.compare_features DEVICE_FEATURES CPU_FEATURES DEVICE
"""

from __future__ import annotations

import sys

import numpy as np

from shardpress.result.features import open_features
from tests.support.tolerances import assert_close


def main(of_device: str, of_cpu: str, device: str) -> None:
    """Print the largest difference. Fail if it exceeds the tolerance of the device."""
    found, expected = (open_features(path).features.compute() for path in (of_device, of_cpu))
    print(f"{len(found)} rows: features differ by {np.abs(found - expected).max():.2g} at most")
    assert_close(found, expected, device, "features")


if __name__ == "__main__":
    main(*sys.argv[1:])
