"""The bytes of one cache entry: a safetensors blob that can prove what it is.

The blob carries its key's fingerprint, the facts behind it, the shapes and a checksum over every byte, so that a
truncated, damaged, exchanged or foreign one is recognised. Where blobs lie is known to `store.py`; what the tensors
mean, to `latents.py` and `prompts.py`.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

import torch
import zstandard
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from simpletuner.caching.fingerprint import canonical_json, fingerprint

FORMAT = "simpletuner-cache-2"
# An entry of the longest clips is tens of megabytes; what claims to be larger is not unpacked.
LARGEST_ENTRY_BYTES = 1 << 31
_LARGEST_HEADER_BYTES = 1 << 20
# Level 3 is where zstd's curve bends: higher levels take many times as long for 1 % of latents.
_LEVEL = 3
_MARK = b'\\"checksum\\":\\"'  # as it stands in the header, a JSON text within JSON
_DIGITS = 64
# As safetensors calls what entries hold.
_DTYPES: Final[Mapping[str, torch.dtype]] = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64, "BOOL": torch.bool,
    "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
}  # fmt: skip

Blob: TypeAlias = "bytes | bytearray | mmap.mmap"


class DamagedEntryError(Exception):
    """Bytes that must not be used as the entry they claim to be; the text says why."""


def pack_entry(
    facts: Mapping[str, Any], tensors: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None
) -> bytes:
    """The blob of an entry; equal arguments give equal bytes.

    Args:
        facts: Everything that shapes the tensors; their fingerprint is the entry's key.
        tensors: By name, in the number format in which they are kept.
        notes: JSON facts kept beside the tensors that do not shape them, such as words cut off.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    label = {
        "checksum": "0" * _DIGITS,
        "format": FORMAT,
        "fingerprint": fingerprint(facts),
        "facts": dict(facts),
        "notes": dict(notes or {}),
        "shapes": {name: list(tensor.shape) for name, tensor in plain.items()},
    }
    # One metadata key only: safetensors writes several in an order that differs between processes,
    # and two caches of the same clips must be equal byte for byte.
    blob = save(plain, metadata={"entry": canonical_json(label)})
    start = blob.index(_MARK) + len(_MARK)
    digest = hashlib.sha256(blob).hexdigest().encode("ascii")
    return b"".join((blob[:start], digest, blob[start + _DIGITS :]))


def unpack_entry(blob: Blob, digest: str, *, verify: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and notes of a blob; the tensors are views of it, unless it is `bytes`.

    Args:
        blob: All bytes, not compressed: in memory, or the memory map of a file.
        digest: Fingerprint that the entry must have.
        verify: Whether to compute the checksum (a millisecond per 1 to 2 MB); without it only the key and the
            shapes are compared.

    Raises:
        DamagedEntryError: If the bytes are not what `digest` asks for.
    """
    beginning = bytes(blob[: 8 + min(int.from_bytes(blob[:8], "little"), _LARGEST_HEADER_BYTES)])
    header = read_header(io.BytesIO(beginning), len(blob))
    notes = _notes_of(header, digest)
    if verify:
        start = _checksum_start(blob)
        if _checksum(blob, start) != blob[start : start + _DIGITS].decode("ascii", "replace"):
            raise DamagedEntryError("its checksum does not match its content")
    try:
        return load(blob) if isinstance(blob, bytes) else _views(blob, header, len(beginning)), notes
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise DamagedEntryError(f"not readable as safetensors ({error})") from error


def _views(blob: bytearray | mmap.mmap, header: Mapping[str, Any], start: int) -> dict[str, Tensor]:
    """The tensors of a blob whose table ends at `start`, without a copy."""
    found = {}
    for name, row in header.items():
        if name == "__metadata__":
            continue
        dtype, (begin, end) = _DTYPES[row["dtype"]], row["data_offsets"]
        count = math.prod(row["shape"])
        if not 0 <= begin <= end or count * dtype.itemsize != end - begin:
            raise ValueError(f"'{name}' has {end - begin} bytes for {count} values")
        flat = torch.frombuffer(blob, dtype=dtype, count=count, offset=start + begin) if count else torch.empty(0)
        found[name] = flat.to(dtype).reshape(row["shape"])
    return found


def peek_entry(handle: BinaryIO, size_bytes: int, digest: str) -> dict[str, Any]:
    """Notes of the entry that begins at `handle`; only the header is read.

    Args:
        handle: Open at the first byte.
        size_bytes: Length of the whole entry, not compressed.
        digest: Fingerprint that the entry must have.

    Raises:
        DamagedEntryError: If the header is not that of this entry, or the length is not what the header says.
    """
    return _notes_of(read_header(handle, size_bytes), digest)


def _notes_of(header: Mapping[str, Any], digest: str) -> dict[str, Any]:
    label = label_of(header)
    if label.get("fingerprint") != digest:
        raise DamagedEntryError("it belongs to another source or to other settings")
    shapes = {name: row.get("shape") for name, row in header.items() if name != "__metadata__"}
    if shapes != label.get("shapes"):
        raise DamagedEntryError("its tensors do not have the noted shapes")
    return dict(label["notes"])


def read_header(handle: BinaryIO, size_bytes: int) -> dict[str, Any]:
    """The table at the beginning of a safetensors file, once its lengths add up to `size_bytes`.

    Raises:
        DamagedEntryError: If they do not, or there is no such table.
    """
    length = int.from_bytes(handle.read(8), "little")
    if not 0 < length <= min(_LARGEST_HEADER_BYTES, size_bytes - 8):
        raise DamagedEntryError("not a readable safetensors file (no header)")
    try:
        header = json.loads(handle.read(length))
        ends = [row["data_offsets"][1] for name, row in header.items() if name != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DamagedEntryError("not a readable safetensors file (broken header)") from error
    if whole != size_bytes:
        raise DamagedEntryError(f"it has {size_bytes} bytes where its header promises {whole}")
    return dict(header)


def label_of(header: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry says about itself.

    Raises:
        DamagedEntryError: If the header belongs to no entry of this format.
    """
    try:
        label = json.loads(header["__metadata__"]["entry"])
    except (ValueError, KeyError, TypeError):
        raise DamagedEntryError("it carries no entry label") from None
    if not isinstance(label, dict) or label.get("format") != FORMAT or not isinstance(label.get("notes"), dict):
        raise DamagedEntryError(f"it is not an entry of the format {FORMAT}")
    return label


def compress(blob: bytes) -> bytes:
    """One zstd frame that states its content's size; equal input gives equal output."""
    return zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True).compress(blob)


def expand(frame: bytes | bytearray) -> bytes:
    """The content of one zstd frame.

    Raises:
        DamagedEntryError: If it is damaged, followed by other bytes, or larger than any entry can be.
    """
    size = expanded_size(frame)
    try:
        blob = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DamagedEntryError(f"its compression is damaged ({error})") from error
    if len(blob) != size:
        raise DamagedEntryError("its compression is damaged (it ends early)")
    return blob


def expanded_size(beginning: bytes | bytearray) -> int:
    """Bytes that a zstd frame holds, by its own header.

    Raises:
        DamagedEntryError: If it does not say, or names more than any entry can have.
    """
    try:
        size = int(zstandard.frame_content_size(beginning))
    except zstandard.ZstdError as error:
        raise DamagedEntryError(f"its compression is damaged ({error})") from error
    if not 0 <= size <= LARGEST_ENTRY_BYTES:
        raise DamagedEntryError("its compressed content claims an impossible size")
    return size


def expanding(handle: BinaryIO) -> BinaryIO:
    """A stream of the content of the zstd frame in `handle`, for `peek_entry`."""
    return io.BufferedReader(_Expanding(handle))


class _Expanding(io.RawIOBase):
    """zstd's reader with damage reported the way ours is."""

    def __init__(self, handle: BinaryIO) -> None:
        self._reader = zstandard.ZstdDecompressor().stream_reader(handle)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self._reader.readinto(buffer))
        except zstandard.ZstdError as error:
            raise DamagedEntryError(f"its compression is damaged ({error})") from error


def kind_of(path: Path) -> str | None:
    """The kind ("latents", "prompt") that a file states in its header; None for a file that is no entry."""
    try:
        with path.open("rb") as handle:
            if path.suffix == ".zst":
                size = expanded_size(handle.read(32))
                handle.seek(0)
                return str(label_of(read_header(expanding(handle), size))["facts"]["kind"])
            return str(label_of(read_header(handle, path.stat().st_size))["facts"]["kind"])
    except (OSError, KeyError, TypeError, DamagedEntryError):
        return None


def _checksum_start(blob: Blob) -> int:
    # The label's keys are sorted and safetensors writes the label first: the first mark is ours.
    found = blob.find(_MARK, 0)
    if found < 0:
        raise DamagedEntryError("it carries no checksum")
    return found + len(_MARK)


def _checksum(blob: Blob, start: int) -> str:
    view = memoryview(blob)
    digest = hashlib.sha256(view[:start])
    digest.update(b"0" * _DIGITS)
    digest.update(view[start + _DIGITS :])
    return digest.hexdigest()
