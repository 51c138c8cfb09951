"""Fingerprints: one short text that changes whenever a cached tensor would change.

A fingerprint is the SHA-256 of the canonical JSON of every fact that shapes the tensor. What does
not shape it (captions, repeats, batch size, seed) stays out, so that changing it encodes nothing
again. This module opens no file and loads no model; `store.py` keeps the entries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from simpletuner.config.catalogs.precisions import is_quantized
from simpletuner.data.sample import Sample

# Raise the number when the code that makes the tensors (decoding, geometry, pixel range, text
# preparation) gives other values for the same facts; every entry is then made again.
LATENT_RECIPE = 2
PROMPT_RECIPE = 2


def canonical_json(value: Any) -> str:
    """JSON with one spelling per value: sorted keys, no spaces, ASCII only, no NaN.

    Raises:
        ValueError: If a number is not finite.
        TypeError: If a value has no JSON form.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(facts: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of `facts`, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(facts).encode("ascii")).hexdigest()


def encoder_identity(weights: str, *, dtype: str, tiling: bool = False, precision: str = "no_change") -> str:
    """Identity of an encoder as it is run, to be given to `cache_latents` or `cache_prompts`.

    Args:
        weights: `Source.identity("autoencoder")` or `Source.identity("text")`.
        dtype: Number format of the weights while encoding, such as "bfloat16"; it rounds the result.
        precision: How its weights are stored; fewer bits give other features.
        tiling: Whether clips are encoded in tiles, which changes values near the seams.
    """
    stored = {"precision": precision} if is_quantized(precision) else {}
    return fingerprint({"weights": weights, "dtype": dtype, "tiling": tiling, **stored})


def latent_facts(sample: Sample, identity: str, stored_dtype: str = "bfloat16") -> dict[str, Any]:
    """Everything that shapes the latents of `sample`.

    The file is known by its path, size and time stamp: hashing the content of every clip at every
    start would read the whole data set.

    Args:
        sample: What is encoded.
        identity: Autoencoder as it is run, see `encoder_identity`.
        stored_dtype: Number format in which the latents are kept.
    """
    frames, crop, info = sample.frames, sample.crop, sample.info
    return {
        "kind": "latents",
        "recipe": LATENT_RECIPE,
        "autoencoder": identity,
        "pixel_range": [-1, 1],
        "posterior": "mean",
        "normalised": True,
        "stored_dtype": stored_dtype,
        "source": {
            # Not the sample's own name: it counts the excerpts of a file, and an excerpt may change its number.
            "name": f"{sample.dataset}/{sample.path}",
            "size_bytes": info.size_bytes,
            "version": info.version,
            "frame_rate": info.frame_rate,
        },
        "orientation": {"rotation": info.rotation, "sample_aspect": info.sample_aspect},
        "frames": {
            "count": frames.num_frames,
            # One frame has no speed: changing the run's rate must not encode images again.
            "rate": frames.frame_rate if frames.num_frames > 1 else 0.0,
            "start_seconds": frames.start_seconds,
        },
        "crop": {
            "scaled": [crop.scaled_width, crop.scaled_height],
            "top": crop.top,
            "left": crop.left,
            "size": [crop.width, crop.height],
        },
    }


def prompt_facts(text: str, identity: str, token_length: int) -> dict[str, Any]:
    """Everything that shapes the text features of `text`.

    Args:
        text: The final caption or prompt, after every replacement; may be empty.
        identity: Text encoder as it is run, see `encoder_identity`.
        token_length: Tokens the prompt is padded or cut to.
    """
    return {
        "kind": "prompt",
        "recipe": PROMPT_RECIPE,
        "encoder": identity,
        "token_length": token_length,
        "masking": "encoder sees padding, transformer masks it",
        "stored": "real tokens only",
        "text": text,
    }
