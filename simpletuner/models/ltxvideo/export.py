"""Writes a LoRA file that the LTX-Video pipelines of Diffusers load at the right strength.

The pipeline's own writer lays the file out; without the adapter configuration it stores in the
file's metadata, a loader would take alpha for the rank.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import tempfile
from pathlib import Path
from typing import Any

from diffusers import LTXPipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from simpletuner.core.files import STAGING, staged_file

_NAME = "adapter.safetensors"


def save_adapter(
    path: Path, tensors: dict[str, Tensor], adapter_config: dict[str, Any], metadata: dict[str, str]
) -> None:
    """Write one LoRA file, atomically.

    Args:
        path: The file, best called `pytorch_lora_weights.safetensors`.
        tensors: `<layer>.lora_A.weight` [r, in] and `<layer>.lora_B.weight` [out, r].
        adapter_config: Rank, alpha and layers, as `models.adapters.lora.adapter_config` gives them.
        metadata: Further file metadata; it may replace the `modelspec.*` entries, but not the layout's.

    Raises:
        UserError: If the disk is full or the folder cannot be written.
    """
    with staged_file(path) as staging:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=STAGING) as scratch:
            try:
                LTXPipeline.save_lora_weights(
                    scratch,
                    transformer_lora_layers=tensors,
                    transformer_lora_adapter_metadata=adapter_config,
                    weight_name=_NAME,
                )
            except SafetensorError as error:
                # The library wraps the system's error in one of its own that is no OSError.
                raise OSError(errno.ENOSPC if "os error 28" in str(error) else errno.EIO, str(error)) from error
            written = Path(scratch) / _NAME
            with safe_open(written, framework="pt") as handle:
                layout = handle.metadata()
            stored = load_file(written)
        staging.write_bytes(save(stored, metadata={**model_spec(stored), **metadata, **layout}))


def model_spec(tensors: dict[str, Tensor]) -> dict[str, str]:
    """The metadata other tools show (github.com/Stability-AI/ModelSpec, 1.0.1)."""
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "ltx-video/lora",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": "LTX-Video LoRA",
        "modelspec.date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "modelspec.hash_sha256": "0x" + hashlib.sha256(save(tensors)).hexdigest(),
    }
