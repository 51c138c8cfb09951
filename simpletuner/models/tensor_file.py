"""What a safetensors file says of itself in its header: metadata, names, shapes and formats of its tensors.

Reads no weight and needs no torch, so that files can be judged before anything heavy is loaded.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from simpletuner.core.errors import UserError

_LARGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors format


@dataclass(frozen=True)
class TensorFacts:
    """Header facts of one stored tensor; `kind` is the format's word for its dtype, such as "BF16"."""

    kind: str
    shape: tuple[int, ...]


def read_header(path: Path) -> tuple[dict[str, str], dict[str, TensorFacts]]:
    """Metadata and tensor facts of a safetensors file, without reading its weights.

    Raises:
        UserError: If the file is cut off or is no safetensors file.
    """
    raw = read_header_bytes(path)
    try:
        content = json.loads(raw)
    except ValueError as error:
        raise _broken(path, "its header is damaged") from error
    metadata = content.pop("__metadata__", {})
    end = max((entry["data_offsets"][1] for entry in content.values()), default=0)
    if path.stat().st_size < 8 + len(raw) + end:
        raise _broken(path, f"it has {path.stat().st_size} bytes of {8 + len(raw) + end}")
    return metadata, {name: TensorFacts(entry["dtype"], tuple(entry["shape"])) for name, entry in content.items()}


def read_header_bytes(path: Path) -> bytes:
    """The JSON header of a safetensors file as it stands there."""
    with path.open("rb") as handle:
        prefix = handle.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < length <= _LARGEST_HEADER:
            raise _broken(path, "its header is missing")
        raw = handle.read(length)
    if len(raw) != length or not raw.startswith(b"{"):
        raise _broken(path, "its header is cut off")
    return raw


def _broken(path: Path, why: str) -> UserError:
    return UserError(f"'{path}' is no complete safetensors file: {why}", "", "Download or copy it again")
