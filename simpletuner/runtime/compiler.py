"""Whether torch can compile kernels on this machine; found without importing torch."""

from __future__ import annotations

import importlib.util
import shutil

_COMPILERS = ("g++", "clang++", "c++", "cl")


def missing_compiler(device_type: str) -> str:
    """What compiling lacks, for a message; empty when nothing.

    Args:
        device_type: "cuda", "cpu", "mps" …
    """
    if device_type == "mps":
        return "Apple's chips are not among what is compiled for"
    if not any(shutil.which(name) for name in _COMPILERS):
        return "there is no C++ compiler (g++ or clang++)"
    if device_type == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package triton is missing"
    return ""
