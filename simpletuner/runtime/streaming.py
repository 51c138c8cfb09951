"""Keeps the frozen blocks of a model in RAM or on disk and brings them to the device when their turn comes.

A forward pass takes the blocks from first to last, a checkpointed backward pass from last to first; whoever is
at one group knows which is next, so that it is fetched meanwhile. Two buffers on the device take turns: a
fetched group replaces the one before the present one, so the peak is two groups in both directions, however
many there are. Weights only ever travel one way. What is trained stays on the device and is never touched.

Every block must be checkpointed: otherwise autograd would keep each block's weights until its backward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor, nn

from simpletuner.runtime.frozen_weights import FrozenWeight, Packing, frozen_weights

GROUPS_ON_DEVICE: Final = 2

# Writes one block's bytes as a file; given by the caller, because only core/files.py writes what must survive.
Save = Callable[[Path, Tensor], None]
# (buffer on the device, bytes on the host): moves a block; replaced in tests by a slow one.
Link = Callable[[Tensor, Tensor], None]


def copy_over(buffer: Tensor, stored: Tensor) -> None:
    """Copy one block's bytes to the device, without waiting where the memory is pinned."""
    buffer.copy_(stored, non_blocking=True)


class BlockStreamer:
    """Streams the frozen weights of a list of blocks through two buffers on a device.

    Attributes:
        most_live: The largest number of groups that were on the device at once; never above `GROUPS_ON_DEVICE`.
        fetches: How many groups were brought over.
        surprises: How many of them nobody had announced, so that the pass waited for the whole copy.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        device: torch.device,
        *,
        blocks_per_group: int = 1,
        use_stream: bool = False,
        folder: Path | None = None,
        save: Save | None = None,
        link: Link = copy_over,
    ) -> None:
        """Take the frozen weights of `blocks` to where they wait, and the rest of them to `device`.

        Args:
            blocks: In the order of the forward pass. Adapters must be attached already; what requires a
                gradient stays on the device.
            device: Where the model is computed.
            blocks_per_group: Blocks fetched together, at least 1.
            use_stream: Copy on a stream of its own while the device computes (CUDA only).
            folder: Keep the weights in files there instead of in RAM. Must belong to this run alone.
            save: Writes one file there; needed with `folder`.
            link: How one block's bytes are moved.
        """
        self._blocks = list(blocks)
        self._device = device
        self._size = blocks_per_group
        self._link = link
        streams = device.type == "cuda" and (use_stream or folder is not None)
        self._side = torch.cuda.Stream(device) if streams else None
        # Files are read by a thread, so that the disk works while the device computes.
        self._reader = ThreadPoolExecutor(1, "block-reader") if folder is not None else None
        self._weights = [frozen_weights(block) for block in self._blocks]
        self._packings = [Packing.of([leaf for w in own for leaf in w.leaves]) for own in self._weights]
        self._stored = [self._put_away(number, folder, save) for number in range(len(self._blocks))]
        self._slots = [self._new_slot() for _ in range(min(GROUPS_ON_DEVICE, self.groups))]
        self._live: dict[int, _Slot] = {}
        self._last: int | None = None
        self.most_live = self.fetches = self.surprises = 0
        self._forwards = [block.forward for block in self._blocks]
        for number, block in enumerate(self._blocks):
            block.forward = self._streamed(number, block.forward)  # type: ignore[method-assign]

    @property
    def groups(self) -> int:
        """Number of groups."""
        return -(-len(self._blocks) // self._size)

    @property
    def group_bytes(self) -> int:
        """Bytes of the largest group: what one buffer takes on the device."""
        return max(self._bytes_of(group) for group in range(self.groups))

    def close(self) -> None:
        """Take the streamer off; the blocks' frozen weights stay where they wait."""
        for block, forward in zip(self._blocks, self._forwards, strict=True):
            block.forward = forward  # type: ignore[method-assign]
        if self._reader is not None:
            self._reader.shutdown(wait=True)
        self._live.clear()
        self._slots.clear()

    # Where the weights wait -----------------------------------------------------------------------------

    def _put_away(self, number: int, folder: Path | None, save: Save | None) -> Tensor:
        """Pack a block's weights into one buffer in RAM or a mapped file, and let its layers refer to that."""
        packing, weights = self._packings[number], self._weights[number]
        stored = torch.empty(packing.num_bytes, dtype=torch.uint8, pin_memory=folder is None and self._pins)
        packing.fill(stored, [leaf for weight in weights for leaf in weight.leaves])
        if folder is not None:
            if save is None:
                raise ValueError("a folder needs a way to write files")
            path = folder / f"block-{number:03}.safetensors"
            save(path, stored)
            with safe_open(str(path), framework="pt", device="cpu") as file:
                stored = file.get_tensor("weights")  # mapped: its pages are read when they are copied
        kept = list(packing.views(stored))
        for weight in weights:
            count = len(weight.leaves)
            weight.wear(kept[:count])
            del kept[:count]
        self._weights[number] = frozen_weights(self._blocks[number])
        return stored

    @property
    def _pins(self) -> bool:
        return self._device.type == "cuda"

    def _bytes_of(self, group: int) -> int:
        return sum(self._packings[number].num_bytes for number in self._members(group))

    def _members(self, group: int) -> range:
        return range(group * self._size, min((group + 1) * self._size, len(self._blocks)))

    # Fetching --------------------------------------------------------------------------------------------

    def _new_slot(self) -> _Slot:
        # Not an inference tensor, even if the first pass is a validation: training saves these later.
        with torch.inference_mode(False):
            staging = None
            if self._reader is not None and self._pins:
                staging = torch.empty(self.group_bytes, dtype=torch.uint8, pin_memory=True)
            slot = _Slot(torch.empty(self.group_bytes, dtype=torch.uint8, device=self._device), staging)
        if self._side is not None:
            # Its memory may have been another tensor's, with which the device is not done yet.
            slot.left = torch.cuda.current_stream(self._device).record_event()
        return slot

    def _streamed(self, number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def compute(*args: Any, **kwargs: Any) -> Any:
            with self._worn(number):
                return forward(*args, **kwargs)

        return compute

    @contextlib.contextmanager
    def _worn(self, number: int) -> Iterator[None]:
        """Let a block compute with its weights on the device; also when it is left by an exception, as the
        recomputing pass of a checkpoint leaves its block early."""
        leaves = iter(self._bring(number))
        undo = [self._wear(weight, leaves) for weight in self._weights[number]]
        try:
            yield
        finally:
            for take_off in reversed(undo):
                take_off()

    @staticmethod
    def _wear(weight: FrozenWeight, leaves: Iterator[Tensor]) -> Callable[[], None]:
        return weight.wear([next(leaves) for _ in weight.leaves])

    def _bring(self, number: int) -> Iterator[Tensor]:
        """The leaves of a block on the device; sees to it that the next group is under way."""
        group = number // self._size
        if group not in self._live:
            self.surprises += 1
            self._fetch(group)
        if group != self._last:
            upcoming = self._predict(group)
            self._last = group
            if upcoming not in self._live:
                self._fetch(upcoming, beside=group)
        slot = self._live[group]
        slot.wait()
        offset = sum(self._packings[n].num_bytes for n in range(group * self._size, number))
        packing = self._packings[number]
        return packing.views(slot.buffer[offset : offset + packing.num_bytes])

    def _predict(self, group: int) -> int:
        """Which group will be asked for next."""
        end = self.groups - 1
        if group == end:  # here the pass turns round, or a new one begins
            return max(0, end - 1) if torch.is_grad_enabled() else 0
        backwards = group > 0 and self._last is not None and group < self._last
        return group - 1 if backwards else group + 1

    def _fetch(self, group: int, beside: int | None = None) -> None:
        """Bring a group over; what is on the device and neither this nor `beside` makes room."""
        for other in [live for live in self._live if live != beside][: len(self._live) - len(self._slots) + 1]:
            self._live.pop(other).retire(self._device)
        slot = next(slot for slot in self._slots if not slot.taken)
        slot.taken = True
        self._live[group] = slot
        self.most_live = max(self.most_live, len(self._live))
        self.fetches += 1
        if self._reader is not None:
            slot.arriving = self._reader.submit(self._move, group, slot)
        else:
            self._move(group, slot)

    def _move(self, group: int, slot: _Slot) -> None:
        stream = torch.cuda.stream(self._side) if self._side is not None else contextlib.nullcontext()
        # Plain byte buffers: nothing here belongs to a graph, whatever mode the caller is in.
        with torch.inference_mode(False), torch.no_grad(), stream:
            if self._side is not None and slot.left is not None:
                self._side.wait_event(slot.left)
            if slot.staging is not None and slot.sent is not None:
                slot.sent.synchronize()  # only the reading thread waits: its last bytes may still be on their way
            offset = 0
            for number in self._members(group):
                stored = self._stored[number]
                part = slice(offset, offset + len(stored))
                if slot.staging is not None:
                    stored = slot.staging[part].copy_(stored)
                self._link(slot.buffer[part], stored)
                offset += self._packings[number].num_bytes
            if self._side is not None:
                slot.arrived = slot.sent = self._side.record_event()


class _Slot:
    """One buffer on the device, and what has to be waited for before it is used or overwritten."""

    def __init__(self, buffer: Tensor, staging: Tensor | None) -> None:
        self.buffer = buffer
        self.staging = staging
        self.taken = False
        self.arriving: Future[None] | None = None
        self.arrived: torch.cuda.Event | None = None
        self.sent: torch.cuda.Event | None = None
        self.left: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Let what follows see the fetched bytes; the host itself waits only for a file being read."""
        if self.arriving is not None:
            self.arriving.result()
            self.arriving = None
        if self.arrived is not None:
            torch.cuda.current_stream(self.buffer.device).wait_event(self.arrived)
            self.arrived = None

    def retire(self, device: torch.device) -> None:
        """Free the slot for another group, once what the device has been told to do with it is done."""
        self.wait()
        if device.type == "cuda":
            self.left = torch.cuda.current_stream(device).record_event()
        self.taken = False


def move_resident(model: nn.Module, device: torch.device, streamed: Sequence[nn.Module]) -> None:
    """Put everything of `model` on `device` except the frozen weights of the streamed blocks, in place."""
    with torch.no_grad():
        for parameter in resident_parameters(model, streamed):
            parameter.data = parameter.data.to(device)
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(device)


def resident_parameters(model: nn.Module, streamed: Sequence[nn.Module]) -> list[nn.Parameter]:
    """The parameters that stay on the device: all that is trained, and all outside the streamed blocks."""
    away = {(id(weight.module), weight.name) for block in streamed for weight in frozen_weights(block)}
    return [
        parameter
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and (id(module), name) not in away
    ]
