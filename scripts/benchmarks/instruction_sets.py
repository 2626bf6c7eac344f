"""Instruction sets of x86-64, and how to have all that computes keep to one: for the tests and the benchmark."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["INSTRUCTION_SETS", "InstructionSet", "hide", "limits", "missing", "settings"]


@dataclass(frozen=True)
class InstructionSet:
    """What is told to whom.

    Attributes
    ----------
    needs : tuple of str
        What the processor must have, as the kernel names it.
    march : str
        gcc's flags.
    openblas, torch, onednn, mkl, xla : str
        The kernels of OpenBLAS, and the most that PyTorch, its two libraries and XLA may take.
    """

    needs: tuple[str, ...]
    march: str
    openblas: str
    torch: str
    onednn: str
    mkl: str
    xla: str


_V3 = ("avx2", "fma", "bmi2")
_V4 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")

INSTRUCTION_SETS = {
    "sse2": InstructionSet(("sse2",), "-march=x86-64", "Prescott", "default", "SSE41", "SSE4_2", "SSE4_2"),
    "avx2": InstructionSet(_V3, "-march=x86-64-v3", "Haswell", "avx2", "AVX2", "AVX2", "AVX2"),
    "avxvnni": InstructionSet(
        (*_V3, "avx_vnni"), "-march=x86-64-v3 -mavxvnni", "Haswell", "avx2", "AVX2_VNNI", "AVX2", "AVX2"
    ),
    "avx512": InstructionSet(_V4, "-march=x86-64-v4", "SkylakeX", "avx512", "AVX512_CORE", "AVX512", "AVX512"),
    "avx512vnni": InstructionSet(
        (*_V4, "avx512_vnni"),
        "-march=x86-64-v4 -mavx512vnni",
        "SkylakeX",
        "avx512",
        "AVX512_CORE_VNNI",
        "AVX512_E1",
        "AVX512_VNNI",
    ),
}


def missing(name: str) -> list[str]:
    """What this machine's processor lacks of an instruction set."""
    there = Path("/proc/cpuinfo").read_text().split()
    return [need for need in INSTRUCTION_SETS[name].needs if need not in there]


def settings(name: str) -> str:
    """The text of a configuration file of Theano's."""
    return f"[gcc]\ncxxflags = {_flags(name)}\n"


def limits(name: str) -> dict[str, str]:
    """The environment in which our kernels, OpenBLAS, PyTorch and JAX keep to an instruction set."""
    own = INSTRUCTION_SETS[name]
    return {
        "THEANO_FLAGS": f"gcc.cxxflags={_flags(name)}",
        "OPENBLAS_CORETYPE": own.openblas,
        "ATEN_CPU_CAPABILITY": own.torch,
        "ONEDNN_MAX_CPU_ISA": own.onednn,
        "MKL_ENABLE_INSTRUCTIONS": own.mkl,
        "XLA_FLAGS": f"--xla_cpu_max_isa={own.xla}",
    }


def hide(name: str, folder: Path) -> Path | None:
    """A library that, preloaded, hides from a process what goes beyond AVX2, or beyond AVX-VNNI.

    For what no variable of `limits` reaches: JAX's own library of products asks the processor, and takes what it finds.

    Returns
    -------
    Path or None
        Nothing for other instruction sets, and where the processor cannot be kept from answering.
    """
    if name not in ("avx2", "avxvnni") or "cpuid_fault" not in Path("/proc/cpuinfo").read_text().split():
        return None
    library = folder / f"cpuid-{name}.so"
    keep = ["-DKEEP_AVX_VNNI"] if name == "avxvnni" else []
    source = Path(__file__).with_name("cpuid.c")
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", *keep, "-o", str(library), str(source)], check=True)
    return library


def _flags(name: str) -> str:
    """What gcc is told as a rule, but for the processor: Theano adds its own only where no -march stands."""
    from kernels.flags import compiler_flags

    return f"{compiler_flags()} -mtune=native {INSTRUCTION_SETS[name].march}"
