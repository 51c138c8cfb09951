"""Tensor names of the original single files and of the Diffusers layout, both ways.

Knows names only; `source.py` finds the files and `transformer.py` loads them.
"""

from __future__ import annotations

from collections.abc import Iterable

ORIGINAL_PREFIX = "model.diffusion_model."

_TO_DIFFUSERS = {
    "patchify_proj": "proj_in",
    "adaln_single": "time_embed",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}
_TO_ORIGINAL = {new: old for old, new in _TO_DIFFUSERS.items()}


def is_original(names: Iterable[str]) -> bool:
    """Whether these are names of an original file (the Diffusers layout has none of the old words)."""
    return any(name.startswith(ORIGINAL_PREFIX) or "patchify_proj" in name for name in names)


def to_diffusers(name: str) -> str:
    """A transformer tensor's or module's Diffusers name, from its original one (prefix optional)."""
    return _translate(name.removeprefix(ORIGINAL_PREFIX), _TO_DIFFUSERS)


def to_original(name: str) -> str:
    """The original name, without the file prefix, from the Diffusers one."""
    return _translate(name, _TO_ORIGINAL)


def transformer_names(names: Iterable[str]) -> dict[str, str]:
    """Which tensors of a single file belong to the transformer: name in the file -> Diffusers name.

    A file may also hold the autoencoder (`vae.`); if anything carries the original prefix, only
    that part is the transformer.
    """
    names = list(names)
    prefixed = [name for name in names if name.startswith(ORIGINAL_PREFIX)]
    return {name: to_diffusers(name) for name in prefixed or names if not name.startswith("vae.")}


def _translate(name: str, words: dict[str, str]) -> str:
    # Whole path components only: `norm_q` must not be found inside another word.
    return ".".join(words.get(part, part) for part in name.split("."))
