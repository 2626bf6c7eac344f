"""Tests of the choice of NVRTC and cuBLAS for a driver: by its version, by the cards, and by a requested version."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement

from shardpress.base.driver import Driver, Version
from shardpress.base.errors import DeviceError
from shardpress.setup.cuda_packages import choose_packages, parse_version

# Available versions of both packages.
NVRTC = {"-cu12": "12.0.76 12.0.140 12.1.105 12.2.140 12.4.127 12.6.85 12.8.93 12.9.86", "": "13.0.88 13.1.115 13.5.37"}
CUBLAS = {
    "-cu12": "12.0.2.224 12.1.3.1 12.2.5.6 12.4.5.8 12.6.4.1 12.8.5.5 12.9.3.13",
    "": "13.0.2.14 13.5.1.27 13.10.0.20",
}


def installed_versions(requirements: tuple[str, ...]) -> list[str]:
    """Return the versions that pip installs: the newest one for each requirement."""
    found = []
    for text, name, versions in zip(requirements, ("nvidia-cuda-nvrtc", "nvidia-cublas"), (NVRTC, CUBLAS), strict=True):
        requirement = Requirement(text)
        offered = versions[requirement.name.removeprefix(name)].split()
        found.append([each for each in offered if requirement.specifier.contains(each)][-1])
    return found


@pytest.mark.parametrize(
    ("cuda", "cards", "requested", "nvrtc", "cublas"),
    [
        ((12, 3), [(8, 6)], None, "12.2.140", "12.2.5.6"),
        ((13, 0), [(7, 5)], None, "13.0.88", "13.0.2.14"),
        ((14, 2), [(9, 0)], None, "13.5.37", "13.10.0.20"),
        ((12, 2), [(8, 0)], (13, 0), "13.0.88", "13.0.2.14"),
    ],
)
def test_newest_libraries_that_the_driver_accepts_are_chosen(
    cuda: Version, cards: list[Version], requested: Version | None, nvrtc: str, cublas: str
) -> None:
    requirements, why = choose_packages(Driver("/lib/libcuda.so.1", cuda, tuple(cards)), requested)
    assert installed_versions(requirements) == [nvrtc, cublas]
    assert "CUDA {}.{}".format(*(requested or cuda)) in why


def test_oldest_card_decides_the_version_of_cuda() -> None:
    requirements, why = choose_packages(Driver("", (13, 0), ((12, 0), (7, 0), (9, 0))))
    assert installed_versions(requirements) == ["12.9.86", "12.9.3.13"]
    assert "capability 7.0" in why


def test_libraries_without_a_driver_fit_every_cuda_12_or_the_requested_one() -> None:
    assert installed_versions(choose_packages(None)[0]) == ["12.0.140", "12.9.3.13"]
    assert installed_versions(choose_packages(None, parse_version("12.4"))[0]) == ["12.4.127", "12.4.5.8"]


def test_too_old_driver_is_refused_with_the_required_one() -> None:
    with pytest.raises(DeviceError, match=r"libcuda\.so\.1: .*CUDA 11\.8, expected 12\.0.*525\.60\.13"):
        choose_packages(Driver("/usr/lib/libcuda.so.1", (11, 8), ((8, 0),)))
