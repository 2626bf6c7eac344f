"""Instruction sets of x86-64, and settings that restrict all libraries to one of them, for tests and benchmarks."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class InstructionSet:
    """Names of an instruction set in several programs.

    Attributes
    ----------
    needs : tuple of str
        Features that the processor must have, as named in ``/proc/cpuinfo``.
    march : str
        Flags of gcc.
    openblas, torch, onednn, mkl, xla : str
        Values of the variables that select kernels in OpenBLAS, PyTorch, oneDNN, MKL and XLA.
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
_CPUINFO = Path("/proc/cpuinfo")

INSTRUCTION_SETS = {
    "sse2": InstructionSet(("sse2",), "-march=x86-64", "Prescott", "default", "SSE41", "SSE4_2", "SSE4_2"),
    "avx2": InstructionSet(_V3, "-march=x86-64-v3", "Haswell", "avx2", "AVX2", "AVX2", "AVX2"),
    "avxvnni": InstructionSet(
        (*_V3, "avx_vnni"), "-march=x86-64-v3 -mavxvnni", "Haswell", "avx2", "AVX2_VNNI", "AVX2", "AVX2"
    ),
    "avx512": InstructionSet(_V4, "-march=x86-64-v4", "SkylakeX", "avx512", "AVX512_CORE", "AVX512", "AVX512"),
    "avx512vnni": InstructionSet(
        needs=(*_V4, "avx512_vnni"),
        march="-march=x86-64-v4 -mavx512vnni",
        openblas="SkylakeX",
        torch="avx512",
        onednn="AVX512_CORE_VNNI",
        mkl="AVX512_E1",
        xla="AVX512_VNNI",
    ),
}


def missing(name: str) -> list[str]:
    """Return the features that this machine's processor lacks for an instruction set."""
    features = _CPUINFO.read_text().split()
    return [need for need in INSTRUCTION_SETS[name].needs if need not in features]


def settings(name: str) -> str:
    """Return the text of a configuration file of Theano."""
    return f"[gcc]\ncxxflags = {_compiler_flags(name)}\n"


def limits(name: str) -> dict[str, str]:
    """Return the environment in which our kernels, OpenBLAS, PyTorch and XLA use only an instruction set."""
    own = INSTRUCTION_SETS[name]
    return {
        "THEANO_FLAGS": f"gcc.cxxflags={_compiler_flags(name)}",
        "OPENBLAS_CORETYPE": own.openblas,
        "ATEN_CPU_CAPABILITY": own.torch,
        "ONEDNN_MAX_CPU_ISA": own.onednn,
        "MKL_ENABLE_INSTRUCTIONS": own.mkl,
        "XLA_FLAGS": f"--xla_cpu_max_isa={own.xla}",
    }


def hide(name: str, folder: Path) -> Path | None:
    """Compile a library that hides instructions above AVX2 or AVX-VNNI from a process when it is preloaded.

    JAX's matrix products query the processor, and no variable limits them.

    Returns
    -------
    Path or None
        None for other instruction sets, and if the processor cannot hide them.
    """
    if name not in ("avx2", "avxvnni") or "cpuid_fault" not in _CPUINFO.read_text().split():
        return None
    library = folder / f"cpuid-{name}.so"
    options = ["-DKEEP_AVX_VNNI"] if name == "avxvnni" else []
    source = Path(__file__).with_name("cpuid.c")
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", *options, "-o", str(library), str(source)], check=True)
    return library


def _compiler_flags(name: str) -> str:
    """Return the usual flags with another -march; Theano adds its own only if there is none."""
    from shardpress_kernels.theanoflags import compiler_flags

    return f"{compiler_flags()} -mtune=native {INSTRUCTION_SETS[name].march}"
