"""Writes a LoRA file that the LTX-Video pipelines of Diffusers load at the right strength.

The pipeline's own writer lays the file out; without the adapter configuration it stores in the
file's metadata, a loader would take alpha for the rank.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import LTXPipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from simpletuner.core.files import STAGING, staged_file
from simpletuner.models.ltxvideo.weights import ORIGINAL_PREFIX, to_original, transformer_names

_NAME = "adapter.safetensors"
_IMPLEMENTATIONS = {
    False: "https://github.com/huggingface/diffusers", True: "https://github.com/Lightricks/LTX-Video"
}  # fmt: skip


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


def save_single_file(
    path: Path, transformer: nn.Module, metadata: Mapping[str, str], beside: Path | None = None
) -> None:
    """Write a transformer as one file with the names of the original model, atomically.

    Args:
        path: The file.
        transformer: A Diffusers transformer.
        metadata: Texts for the file's header.
        beside: A single file whose other parts (the autoencoder) and texts are taken over.

    Raises:
        UserError: If the disk is full or the folder cannot be written.
    """
    model: Any = transformer
    tensors = {
        ORIGINAL_PREFIX + to_original(name): tensor.contiguous() for name, tensor in transformer.state_dict().items()
    }
    config = {key: value for key, value in dict(model.config).items() if not key.startswith("_")}
    texts = {"config": json.dumps({"transformer": {"_class_name": type(model).__name__, **config}}, default=list)}
    if beside is not None:
        with safe_open(beside, framework="pt") as handle:
            texts |= dict(handle.metadata() or {})
            own = transformer_names(handle.keys())
            tensors |= {name: handle.get_tensor(name) for name in handle.keys() if name not in own}  # noqa: SIM118
    with staged_file(path) as staging:
        try:
            save_file(tensors, staging, metadata={**texts, **metadata, "format": "pt"})
        except SafetensorError as error:
            raise OSError(errno.ENOSPC if "os error 28" in str(error) else errno.EIO, str(error)) from error


def model_spec(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The metadata other tools show (github.com/Stability-AI/ModelSpec, 1.0.1)."""
    has_original_names = not any(name.startswith("transformer.") for name in tensors)
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "ltx-video/lora",
        "modelspec.implementation": _IMPLEMENTATIONS[has_original_names],
        "modelspec.title": "LTX-Video LoRA",
        "modelspec.date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "modelspec.hash_sha256": "0x" + hash_of(tensors),
    }


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all tensor content of a safetensors file with these tensors, its header left out."""
    content = save(dict(tensors))
    return hashlib.sha256(memoryview(content)[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
