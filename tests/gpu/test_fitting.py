"""Which NVRTC and cuBLAS fit which driver: by number, by card, and by what somebody asks for."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement

from pipeline.errors import DeviceError, UsageError
from pipeline.gpu.driver import Driver
from pipeline.gpu.fitting import choose_packages, parse_version

# What there is of either.
NVRTC = {"-cu12": "12.0.76 12.0.140 12.1.105 12.2.140 12.4.127 12.6.85 12.8.93 12.9.86", "": "13.0.88 13.1.115 13.5.37"}
CUBLAS = {
    "-cu12": "12.0.2.224 12.1.3.1 12.2.5.6 12.4.5.8 12.6.4.1 12.8.5.5 12.9.3.13",
    "": "13.0.2.14 13.5.1.27 13.10.0.20",
}


def taken(requirements: tuple[str, ...]) -> list[str]:
    """What pip takes: the newest that meets each."""
    found = []
    for text, name, versions in zip(requirements, ("nvidia-cuda-nvrtc", "nvidia-cublas"), (NVRTC, CUBLAS), strict=True):
        asked = Requirement(text)
        offered = versions[asked.name.removeprefix(name)].split()
        found.append([each for each in offered if asked.specifier.contains(each)][-1])
    return found


@pytest.mark.parametrize(
    ("cuda", "card", "nvrtc", "cublas"),
    [
        ((12, 0), (9, 0), "12.0.140", "12.0.2.224"),
        ((12, 2), (8, 6), "12.2.140", "12.2.5.6"),
        ((12, 3), (8, 6), "12.2.140", "12.2.5.6"),
        ((12, 4), (7, 0), "12.4.127", "12.4.5.8"),
        ((12, 7), (8, 9), "12.6.85", "12.6.4.1"),
        ((12, 9), (10, 0), "12.9.86", "12.9.3.13"),
        ((13, 0), (12, 0), "13.0.88", "13.0.2.14"),
        ((13, 0), (7, 5), "13.0.88", "13.0.2.14"),
        ((13, 0), (7, 0), "12.9.86", "12.9.3.13"),
        ((13, 5), (9, 0), "13.5.37", "13.5.1.27"),
        ((14, 2), (9, 0), "13.5.37", "13.10.0.20"),
    ],
)
def test_it_is_the_newest_that_is_not_newer_than_the_drivers(
    cuda: tuple[int, int], card: tuple[int, int], nvrtc: str, cublas: str
) -> None:
    fits = choose_packages(Driver("/lib/libcuda.so.1", cuda, (card,)))
    assert taken(fits.requirements) == [nvrtc, cublas]
    assert f"for the driver's CUDA {cuda[0]}.{cuda[1]} (/lib/libcuda.so.1)" in fits.why


def test_of_several_cards_the_oldest_decides_and_a_driver_that_opens_none_is_taken_at_its_word() -> None:
    several = choose_packages(Driver("", (13, 0), ((12, 0), (7, 0), (9, 0))))
    assert taken(several.requirements)[0] == "12.9.86"
    assert several.why.endswith("but of CUDA 12: later ones do not compile for the card of capability 7.0")
    assert taken(choose_packages(Driver("", (13, 0))).requirements)[0] == "13.0.88"


def test_without_a_driver_every_driver_of_cuda_12_takes_it_and_cublas_knows_the_latest_cards() -> None:
    fits = choose_packages(None)
    assert taken(fits.requirements) == ["12.0.140", "12.9.3.13"]
    assert fits.why == "no driver here, so what every driver of CUDA 12.0 or later takes"


def test_what_is_asked_for_wins_and_what_the_driver_here_would_refuse_is_said() -> None:
    driver = Driver("", (12, 2), ((8, 0),))
    assert taken(choose_packages(None, (12, 4)).requirements) == ["12.4.127", "12.4.5.8"]
    assert choose_packages(driver, (12, 0)).why == "for CUDA 12.0, as asked for"
    late = choose_packages(driver, (13, 0))
    assert taken(late.requirements)[0] == "13.0.88"
    assert late.why == "for CUDA 13.0, as asked for; the driver here takes code of CUDA 12.2 at most"
    assert choose_packages(Driver("", (11, 4)), (12, 0)).requirements == choose_packages(None, (12, 0)).requirements


def test_a_driver_older_than_any_wheel_is_told_with_the_one_that_is_needed() -> None:
    with pytest.raises(DeviceError) as raised:
        choose_packages(Driver("/usr/lib/libcuda.so.1", (11, 8), ((8, 0),)))
    assert str(raised.value) == (
        "/usr/lib/libcuda.so.1: the driver takes code of CUDA 11.8, expected 12.0 or more. Install NVIDIA's driver "
        "525.60.13 or later, then type the same command again."
    )


@pytest.mark.parametrize("text", ["", "12", "12.", "12.4.1", "twelve", "12.x", "-12.4", "1²2.4", "12.4444"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected a version of CUDA, such as 12\.4"):
        parse_version(text)


def test_versions_are_read() -> None:
    assert parse_version("12.4") == (12, 4)
    assert parse_version("13.10") == (13, 10)
    with pytest.raises(UsageError, match=r"CUDA 11\.8, expected 12\.0 or later"):
        parse_version("11.8")
