"""The seed behind every draw, a number that needs no torch; `random.py` draws tensors with it."""

from __future__ import annotations

import hashlib


def stream_seed(seed: int, stream: str, number: int) -> int:
    """A 63-bit seed for draw `number` of `stream`; equal inputs give equal seeds on any machine."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
