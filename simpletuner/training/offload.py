"""Which blocks of a model are streamed, and where they wait meanwhile.

The options of group offload and of block swap end in the same streamer (`runtime/streaming.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save as serialize
from torch import Tensor, nn

from simpletuner.config.sections.memory import MemorySection
from simpletuner.core.files import write_atomic
from simpletuner.runtime.streaming import BlockStreamer, move_resident


class Movable(Protocol):
    """What is beside the transformer's own tree."""

    def move(self, device: torch.device) -> None:
        """Put it on `device`, in place."""


def stream_blocks(
    transformer: nn.Module, block_list: str, adapter: Movable, memory: MemorySection, device: torch.device, scratch: str
) -> BlockStreamer:
    """Bring a transformer with its adapter from the CPU to `device`, all but the blocks that are streamed.

    Args:
        transformer: On the CPU, frozen, quantized if wanted, adapter attached.
        block_list: Name of its list of repeated blocks.
        adapter: What is trained or used; it goes to the device.
        memory: Says which blocks are streamed and how.
        device: Where the model is computed.
        scratch: What tells this run from all others that may use the same folder on disk, such as its output_dir.

    Raises:
        UserError: If the disk is full or the folder cannot be written.
    """
    blocks = list(transformer.get_submodule(block_list))  # type: ignore[call-overload]
    streamed = blocks[len(blocks) - memory.musubi_blocks_to_swap :] if memory.musubi_blocks_to_swap else blocks
    move_resident(transformer, device, streamed)
    adapter.move(device)
    return BlockStreamer(
        streamed,
        device,
        blocks_per_group=memory.blocks_per_group,
        use_stream=memory.group_offload_use_stream,
        folder=scratch_folder(memory, scratch),
        save=_save_block,
    )


def scratch_folder(memory: MemorySection, scratch: str) -> Path | None:
    """This run's own folder below `group_offload_to_disk_path`; the same one at each start of the run."""
    if not memory.group_offload_to_disk_path:
        return None
    digest = hashlib.sha256(scratch.encode()).hexdigest()[:16]
    return Path(memory.group_offload_to_disk_path).expanduser() / f"blocks-{digest}"


def clear_scratch(folder: Path | None) -> None:
    """Remove the streamed files of a run; what cannot be removed is overwritten at its next start."""
    if folder is None:
        return
    with contextlib.suppress(OSError):
        for file in folder.glob("block-*.safetensors"):
            file.unlink()
        folder.rmdir()


def _save_block(path: Path, stored: Tensor) -> None:
    write_atomic(path, serialize({"weights": stored}))
