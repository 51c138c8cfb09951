"""Large safetensors files, written and read tensor by tensor, so that none of it is in memory twice.

Each tensor is proven by its CRC-32: enough against a disk that forgot something, and several times as fast as the
SHA-256 of small entries, which matters for files of many gigabytes.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

# The names of number formats in a safetensors header.
_FORMATS = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_ALIGNMENT = 8


class DamagedFileError(Exception):
    """A file that must not be used; the text says why."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Write a safetensors file, one tensor after the other.

    Args:
        path: The file; give a staging path, it is not written atomically here.
        tensors: By name, on any device.

    Returns:
        CRC-32 of the bytes of each tensor.
    """
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        shape = list(tensor.shape)
        header[name] = {"dtype": _FORMATS[tensor.dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    checksums = {}
    with path.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            content = _bytes_of(tensor)
            checksums[name] = zlib.crc32(content)
            handle.write(content)
    return checksums


def read_tensors(path: Path, checksums: Mapping[str, int]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file one by one, on the CPU, each proven to be the bytes that were written.

    Raises:
        DamagedFileError: If a tensor is missing, left over or changed; those before it have been given.
    """
    try:
        with safe_open(path, framework="pt") as handle, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - it is no mapping
            if tensors.keys() != checksums.keys():
                raise DamagedFileError("its tensors are not those that were noted")
            found = pool.map(lambda tensor: zlib.crc32(_bytes_of(tensor)), tensors.values())
            for (name, tensor), checksum in zip(tensors.items(), found, strict=True):
                if checksum != checksums[name]:
                    raise DamagedFileError(f"'{name}' has changed since it was written (its CRC-32 differs)")
                yield name, tensor
    except (OSError, SafetensorError) as error:
        raise DamagedFileError(f"it cannot be read ({error})") from error


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    array: Any = flat.view(torch.uint8).numpy() if flat.numel() else b""
    return memoryview(array)
