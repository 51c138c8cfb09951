"""The largest video once before training, so that the first validation does not fail after hours.

One denoising step and one decoding of the largest size and length that will be asked for, while as much memory is
held as training will hold by then. What does not fit is an error now, with what would help.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from simpletuner.config.run_config import ValidationPrompt
from simpletuner.core.errors import UserError
from simpletuner.models.family import Autoencoder, GenerationStep
from simpletuner.runtime.host import release_memory
from simpletuner.runtime.meter import MemoryMeter
from simpletuner.validation.generate import Studio, VideoJob, make_request
from simpletuner.validation.names import Weights


@dataclass(frozen=True)
class Rehearsal:
    """What the largest video needed.

    Attributes:
        width, height, num_frames: Its size.
        denoising_bytes: Most memory in use during a step, that of the model and of training included.
        decoding_bytes: The same while it was decoded.
    """

    width: int
    height: int
    num_frames: int
    denoising_bytes: int
    decoding_bytes: int


def rehearse_largest(
    studio: Studio,
    wearing: Callable[[Weights], AbstractContextManager[None]],
    weights: Weights,
    load_autoencoder: Callable[[], Autoencoder],
    prompts: Sequence[ValidationPrompt],
    device: torch.device,
    reserved_bytes: int,
    held: Iterable[Tensor] = (),
) -> Rehearsal:
    """Make one step of the largest video and decode it.

    Args:
        studio: What will make the videos.
        wearing: Puts weights into the model for the length of a block.
        weights: Those that need the most memory of what will be shown.
        load_autoencoder: Called once; what it returns is dropped.
        prompts: What will be shown; one that begins with a picture is taken, because it needs more.
        device: Where memory is counted.
        reserved_bytes: What training will hold beside it and does not hold yet, such as the optimizer's states.
        held: What it holds already; not asked for on CUDA, whose allocator knows.

    Raises:
        UserError: If the memory of the device does not suffice.
    """
    settings = studio.settings
    width, height = max(settings.resolutions, key=lambda size: size[0] * size[1])
    prompt = max(prompts, key=lambda one: bool(one.image))
    request = make_request(VideoJob(prompt, width, height, 0, Path()), studio)
    peaks: list[int] = []
    try:
        autoencoder = load_autoencoder()
        with MemoryMeter(device, [*held, *autoencoder.weights()]) as meter:
            reserved = torch.empty(reserved_bytes, dtype=torch.uint8, device=device)

            def note(_: GenerationStep) -> None:
                peaks.append(meter.begin_anew())

            with torch.no_grad(), wearing(weights):
                studio.family.generate(
                    studio.transformer, studio.source, autoencoder, replace(request, num_inference_steps=1), note
                )
            del reserved
    except (RuntimeError, MemoryError) as error:
        if not _is_lack_of_memory(error):
            raise
        raise _does_not_fit(width, height, settings.num_frames, is_decoding=bool(peaks)) from error
    finally:
        # On the CPU it is gone with its last use, and looking for more takes as long as a small video.
        if device.type != "cpu":
            release_memory()
    return Rehearsal(width, height, settings.num_frames, max(peaks), meter.peak_bytes)


def _is_lack_of_memory(error: BaseException) -> bool:
    """CUDA has a class of errors for it, the CPU's allocator only a sentence."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)


def _does_not_fit(width: int, height: int, num_frames: int, *, is_decoding: bool) -> UserError:
    where = "decoding" if is_decoding else "denoising"
    advice = (
        "set vae_enable_tiling to true, lower validation_resolution or validation_num_video_frames"
        if is_decoding
        else "lower validation_resolution or validation_num_video_frames, or set validation_guidance to 1, which "
        "halves the work of a step"
    )
    return UserError(
        f"a validation video of {width}x{height} with {num_frames} frames does not fit into memory while {where}",
        "It was tried before training, because it would fail in the middle of it",
        f"{advice[0].upper()}{advice[1:]}; or validation_disable to true",
    )
