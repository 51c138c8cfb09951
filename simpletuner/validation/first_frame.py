"""The picture with which a validation video begins, cut to the video's size.

Any picture or clip that could be trained will do; of a clip the first frame is taken.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from simpletuner.core.errors import UserError
from simpletuner.data.decode import decode_frames, frames_to_pixels
from simpletuner.data.probe import probe
from simpletuner.data.sample import CropPlan, FramePlan, Sample, Unfit
from simpletuner.data.storage import LocalStorage


def read_first_frame(path: Path, width: int, height: int) -> Tensor:
    """Pixels [3, height, width] float32 in [-1, 1], scaled to cover the size and cut around the centre.

    Raises:
        UserError: If the file cannot be read as a picture or a clip.
    """
    storage = LocalStorage(path.parent)
    try:
        info = probe(storage, path.name)
        scale = max(width / info.width, height / info.height)
        scaled_width, scaled_height = (max(width, round(info.width * scale)), max(height, round(info.height * scale)))
        crop = CropPlan(
            scaled_width, scaled_height, (scaled_height - height) // 2, (scaled_width - width) // 2, width, height
        )
        frames = FramePlan(1, info.frame_rate or 1.0, 0.0)
        sample = Sample("validation_input", path.name, info, frames, crop, ("",), 1)
        return frames_to_pixels(decode_frames(storage, sample, [0]))[:, 0]
    except Unfit as unfit:
        raise UserError(
            f"{path}: the picture cannot be used: {unfit.reason}",
            "A video that begins with a picture needs a readable picture or clip",
            "Correct validation_input",
        ) from unfit
