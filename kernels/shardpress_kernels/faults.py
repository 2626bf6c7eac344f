"""Kinds of device errors, recognized by their text, because Theano, pygpu and libgpuarray have no classes for them."""

from __future__ import annotations

_OUT_OF_MEMORY = (
    "out of memory",
    "out_of_memory",
    "out_of_resources",
    "allocation_failure",  # OpenCL
    "resource allocation failed",  # libgpuarray's text for cuBLAS
)
# Errors that leave "the process in an inconsistent state" (cuda.h): all later calls fail.
_LOST_CUDA = (
    "ecc_uncorrectable",
    "nvlink_uncorrectable",
    "hardware_stack_error",
    "external_device",
    "device_unavailable",
    "illegal_address",
    "illegal_instruction",
    "misaligned_address",
    "invalid_address_space",
    "invalid_pc",
    "launch_failed",
    "launch_timeout",
    "assert",
    "context_is_destroyed",
    "deinitialized",
    "unknown",
    "contained",
)
_LOST = (
    *(f"cuda_error_{name}" for name in _LOST_CUDA),
    "(cublas) execution failed",
    "(cublas) internal error",
    "cl_device_not_available",
)
_HINTS = {
    "libcuda": "no NVIDIA driver was found (does nvidia-smi work?)",
    "libnvrtc": "the CUDA compiler library is missing (shardpress setup-gpu installs it)",
    "libcublas": "cuBLAS is missing (shardpress setup-gpu installs it)",
    "Missing Blas": "no BLAS for this device (OpenCL needs libclblast.so, CUDA libcublas.so)",
    "INVALID_OPTION": "libgpuarray alone does not support this card (shardpress setup-gpu installs a fix)",
}
"""Hint at the usual cause, by a part of the error's text."""


class OutOfDeviceMemory(RuntimeError):
    """The memory of the device is too small for its data."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports a lack of memory."""
    if isinstance(error, (MemoryError, OutOfDeviceMemory)):
        return True
    text = str(error).lower()
    return any(sign in text for sign in _OUT_OF_MEMORY)


def is_lost(error: BaseException) -> bool:
    """Return whether an error means that this process can no longer use its device or read the device's memory."""
    text = str(error).lower()
    return any(sign in text for sign in _LOST)


def explain(error: BaseException) -> str:
    """Return the text of an error of the GPU stack on one line, after a hint at the usual cause."""
    text = " ".join(_text_of(error).split()) or type(error).__name__
    for sign, hint in _HINTS.items():
        if sign in text:
            return f"{hint}; {text}"
    return text


def _text_of(error: BaseException) -> str:
    if error.args and isinstance(error.args[0], bytes):  # pygpu's errors
        return error.args[0].decode(errors="replace")
    return str(error)
