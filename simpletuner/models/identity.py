"""Fingerprints of components: what tells one set of weights from another without loading it.

A fingerprint covers the configuration, every safetensors header (names, shapes, formats), file
sizes and content of every tensor, so that a fine-tuned copy with the same shapes is another
component. It does not depend on where the files lie.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from simpletuner.models.tensor_file import read_header_bytes

_WHOLE_BYTES = 8 * 1024 * 1024  # files up to this size are read completely
# Of each tensor in a larger file: pieces spread evenly; statistics and norms are read completely.
_PIECES, _PIECE_BYTES = 4, 16 * 1024
# Written by whatever library saved the file last; they say nothing about the weights.
_NOT_IDENTITY = {"_name_or_path", "_diffusers_version", "transformers_version"}


def fingerprint(config: Mapping[str, Any], weights: Iterable[Path], whole_files: Iterable[Path] = ()) -> str:
    """A 32-digit fingerprint of a component.

    Args:
        config: Its configuration.
        weights: Its safetensors files, sampled.
        whole_files: Small files that belong to it (a tokenizer), read completely.
    """
    digest = hashlib.blake2b(digest_size=16)
    facts = {key: value for key, value in config.items() if key not in _NOT_IDENTITY}
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for path in weights:
        digest.update(read_header_bytes(path))
        _add_content(digest, path)
    for path in whole_files:
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _add_content(digest: Any, path: Path) -> None:
    """Small files whole; of large ones small tensors whole and pieces of every other one."""
    size = path.stat().st_size
    digest.update(size.to_bytes(8, "little"))
    with path.open("rb") as handle:
        if size <= _WHOLE_BYTES:
            digest.update(handle.read())
            return
        start = 8 + int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(start - 8))
        for name in sorted(header):
            if name == "__metadata__":
                continue
            begin, end = header[name]["data_offsets"]
            for position, length in _pieces(end - begin):
                handle.seek(start + begin + position)
                digest.update(handle.read(length))


def _pieces(size: int) -> list[tuple[int, int]]:
    """(position, length) of what is read of a tensor of `size` bytes."""
    if size <= _PIECES * _PIECE_BYTES:
        return [(0, size)]
    return [((size - _PIECE_BYTES) * number // (_PIECES - 1), _PIECE_BYTES) for number in range(_PIECES)]
