"""What befalls a device, by the words of Theano, pygpu and libgpuarray, who have no classes for it."""

from __future__ import annotations

__all__ = ["OutOfDeviceMemory", "explain", "is_lost", "is_out_of_memory"]

_NO_MEMORY = (
    *("out of memory", "out_of_memory", "out_of_resources"),
    *("allocation_failure", "resource allocation failed"),  # of OpenCL, and of cuBLAS in libgpuarray's words
)
# By cuda.h, what leaves "the process in an inconsistent state": no later call will succeed.
_LOST = (
    *("ecc_uncorrectable", "nvlink_uncorrectable", "hardware_stack_error", "external_device", "device_unavailable"),
    *("illegal_address", "illegal_instruction", "misaligned_address", "invalid_address_space", "invalid_pc"),
    *("launch_failed", "launch_timeout", "assert", "context_is_destroyed", "deinitialized", "unknown", "contained"),
)
_OTHERS_OF_LOSS = ("(cublas) execution failed", "(cublas) internal error", "cl_device_not_available")


class OutOfDeviceMemory(RuntimeError):
    """The device has no memory left for what it is given."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    words = str(error).lower()
    return isinstance(error, (MemoryError, OutOfDeviceMemory)) or any(sign in words for sign in _NO_MEMORY)


def is_lost(error: BaseException) -> bool:
    """Whether an error says that this process can no longer use its device, nor read what it holds."""
    words = str(error).lower()
    return any(sign in words for sign in (*(f"cuda_error_{each}" for each in _LOST), *_OTHERS_OF_LOSS))


def explain(error: BaseException) -> str:
    """The GPU stack's words on one line, with what usually helps."""
    raw = error.args[0] if error.args else ""  # pygpu puts bytes there
    words = " ".join((raw.decode(errors="replace") if isinstance(raw, bytes) else str(error)).split())
    words = words or type(error).__name__
    hints = {
        "libcuda": "no NVIDIA driver was found (is nvidia-smi there?)",
        "libnvrtc": "the CUDA compiler library is missing (shardpress setup-gpu installs it)",
        "libcublas": "cuBLAS is missing (shardpress setup-gpu installs it)",
        "Missing Blas": "no BLAS for this device (OpenCL needs libclblast.so, CUDA libcublas.so)",
        "INVALID_OPTION": "libgpuarray cannot name this card alone (shardpress setup-gpu installs what mends it)",
    }
    for sign, hint in hints.items():
        if sign in words:
            return f"{hint}; {words}"
    return words
