"""Fingerprints of components: what tells one set of weights from another without loading it.

A fingerprint covers the configuration, every safetensors header (names, shapes, formats), file
sizes and content sampled evenly over each file, so that a fine-tuned copy with the same shapes is
another component. It does not depend on where the files lie.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from simpletuner.models.ltxvideo.component_files import read_header_bytes

_WHOLE_BYTES = 8 * 1024 * 1024  # files up to this size are read completely
_CHUNKS = 256
_CHUNK_BYTES = 16 * 1024
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
    size = path.stat().st_size
    digest.update(size.to_bytes(8, "little"))
    with path.open("rb") as handle:
        if size <= _WHOLE_BYTES:
            digest.update(handle.read())
            return
        for number in range(_CHUNKS):
            handle.seek((size - _CHUNK_BYTES) * number // (_CHUNKS - 1))
            digest.update(handle.read(_CHUNK_BYTES))
