"""What can be measured of a video without a model: flicker, motion, sharpness, colour, likeness to another one.

Frames in, numbers out. None of them says whether a video is good; followed over the steps of a run they show when
something changes that eyes would notice only side by side: pictures that wash out, freeze, blur or begin to pump.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Plane = NDArray[np.float32]

_CELLS = 8  # flicker is measured on 8 x 8 cells of the picture
_BLOCK_PX = 32  # side of the blocks whose displacement is measured
_MOTION_WIDTH_PX = 256  # pictures are halved until they are not wider; motion is a matter of large structures
_LARGE_PX = 384  # wider pictures lose every second pixel before what happens between frames is measured
_MOST_FRAMES = 16  # for what a frame has by itself
_QUIET = 1e-3  # spread of luminance below which a block has no structure to follow
_SSIM_PX = 8
_C1, _C2 = 0.01**2, 0.03**2
_REC_709 = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)


def measure_video(frames: Frames, frame_rate: float) -> dict[str, float]:
    """All measures of one video; those of time are left out where there is one frame.

    What one frame has (sharpness, colour) is measured on up to 16 of them, evenly spread; what happens between frames
    on every frame, of large pictures on every second pixel.

    Args:
        frames: uint8 [F, H, W, 3] RGB.
        frame_rate: Frames per second.

    Returns:
        "sharpness", "colourfulness", "flicker", "motion"; see the functions of these names for units.
    """
    some = _spread(frames)
    found = {"sharpness": sharpness(luminance(some)), "colourfulness": colourfulness(some)}
    planes = luminance(frames[:, ::2, ::2] if frames.shape[2] > _LARGE_PX else frames)
    if len(frames) > 2:
        found["flicker"] = flicker(planes)
    if len(frames) > 1:
        found["motion"] = motion(planes, frame_rate)
    return found


def luminance(frames: Frames) -> Plane:
    """Luma float32 [F, H, W] in [0, 1] of RGB frames uint8 [F, H, W, 3]. Source: ITU-R BT.709."""
    planes: Plane = frames.astype(np.float32) @ _REC_709 / np.float32(255)
    return planes


def sharpness(planes: Plane) -> float:
    """Root mean square of the Laplacian of the luma [F, H, W]; 0 for a flat picture.

    A sine of amplitude a and w radians per pixel along one axis gives (2 - 2 cos w) a / sqrt(2).
    """
    inner = planes[:, 1:-1, 1:-1]
    bend = planes[:, :-2, 1:-1] + planes[:, 2:, 1:-1] + planes[:, 1:-1, :-2] + planes[:, 1:-1, 2:] - 4 * inner
    return float(np.sqrt(np.mean(np.square(bend))))


def colourfulness(frames: Frames) -> float:
    """Spread and mean of the opponent colours of uint8 [F, H, W, 3]: 0 is grey, above 80 is gaudy.

    Source: Hasler and Süsstrunk 2003, "Measuring colourfulness in natural images", measure M3.
    """
    red, green, blue = (frames[..., channel].astype(np.float32) for channel in range(3))
    opponents = (red - green, (red + green) / 2 - blue)
    spread = np.sqrt(sum(float(np.var(values)) for values in opponents))
    mean = np.sqrt(sum(float(np.mean(values)) ** 2 for values in opponents))
    return float(spread + 0.3 * mean)


def flicker(planes: Plane) -> float:
    """Mean amplitude of brightness that goes up and down from frame to frame, of luma [F, H, W], F of 3 or more.

    The brightness of each of 8 x 8 cells is followed; |b[t-1] - 2 b[t] + b[t+1]| / 4 is the amplitude where it
    alternates, and 0 where it stays or fades evenly.
    """
    cells = _cell_means(planes)
    bend = cells[:-2] - 2 * cells[1:-1] + cells[2:]
    return float(np.mean(np.abs(bend)) / 4)


def motion(planes: Plane, frame_rate: float) -> float:
    """Mean speed of what is seen, of luma [F, H, W], in percent of the picture's height per second.

    Each block of each pair of frames is displaced by phase correlation; blocks without structure do not count.
    Source: Kuglin and Hines 1975, "The phase correlation image alignment method".
    """
    while planes.shape[2] > _MOTION_WIDTH_PX and min(planes.shape[1:]) >= 4 * _BLOCK_PX:
        planes = _halved(planes)
    blocks = _tiles(planes, _BLOCK_PX)
    seen = blocks.std((2, 3)) > _QUIET
    pairs = np.argwhere(seen[:-1] & seen[1:])  # (frame, block) with structure before and after
    if len(pairs) == 0:
        return 0.0
    speeds = _displacements(blocks, pairs)
    return float(np.mean(speeds) / planes.shape[1] * frame_rate * 100)


def likeness(one: Frames, other: Frames) -> float:
    """Structural similarity of two videos uint8 [F, H, W, 3] of one size: 1 for equal ones, about 0 for unrelated ones.

    Mean over windows of 8 x 8 pixels, side by side, of up to 16 frames evenly spread; of videos of different length
    the shorter one counts.

    Raises:
        ValueError: If the sizes differ.
    Source: Wang et al. 2004, "Image quality assessment", equation 13.
    """
    if one.shape[1:] != other.shape[1:]:
        raise ValueError(f"videos of {one.shape[1:3]} and {other.shape[1:3]} cannot be compared")
    count = min(len(one), len(other))
    first, second = (_pixels(_tiles(luminance(_spread(video[:count])), _SSIM_PX)) for video in (one, other))
    mean_1, mean_2 = first.mean(-1), second.mean(-1)
    spread_1, spread_2 = first.var(-1), second.var(-1)
    shared = ((first - mean_1[..., None]) * (second - mean_2[..., None])).mean(-1)
    top = (2 * mean_1 * mean_2 + _C1) * (2 * shared + _C2)
    return float(np.mean(top / ((mean_1**2 + mean_2**2 + _C1) * (spread_1 + spread_2 + _C2))))


def _cell_means(planes: Plane) -> Plane:
    """Mean luma [F, cells, cells] of a raster of at most 8 x 8 cells."""
    rows, columns = (min(_CELLS, size) for size in planes.shape[1:])
    height, width = planes.shape[1] // rows * rows, planes.shape[2] // columns * columns
    cut = planes[:, :height, :width]
    cells: Plane = cut.reshape(len(cut), rows, height // rows, columns, width // columns).mean((2, 4))
    return cells


def _halved(planes: Plane) -> Plane:
    height, width = planes.shape[1] // 2 * 2, planes.shape[2] // 2 * 2
    cut = planes[:, :height, :width]
    halved: Plane = cut.reshape(len(cut), height // 2, 2, width // 2, 2).mean((2, 4))
    return halved


def _spread(frames: Frames) -> Frames:
    places = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _MOST_FRAMES)).round().astype(int))
    some: Frames = frames[places]
    return some


def _tiles(planes: Plane, side: int) -> Plane:
    """[F, tiles, side, side]; of a picture smaller than a tile the whole square that fits."""
    side = min(side, *planes.shape[1:])
    rows, columns = planes.shape[1] // side, planes.shape[2] // side
    cut = planes[:, : rows * side, : columns * side].reshape(len(planes), rows, side, columns, side)
    return cut.transpose(0, 1, 3, 2, 4).reshape(len(planes), rows * columns, side, side)


def _pixels(tiles: Plane) -> Plane:
    return tiles.reshape(*tiles.shape[:2], -1)


def _displacements(blocks: Plane, pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Pixels by which each block [F, blocks, side, side] moves from the frame named in `pairs` [N, 2] to the next."""
    side = blocks.shape[-1]
    # A soft window: what enters and leaves at the edges must not be taken for a displacement.
    window = (np.hanning(side)[:, None] * np.hanning(side)[None, :]).astype(np.float32)
    spectra = np.fft.rfft2((blocks - blocks.mean((2, 3), keepdims=True)) * window)
    frames, numbers = pairs.T
    cross = spectra[frames + 1, numbers] * spectra[frames, numbers].conj()
    surface = np.fft.irfft2(cross / (np.abs(cross) + 1e-9), s=(side, side))
    peaks = surface.reshape(len(surface), -1).argmax(1)
    rows, columns = _signed(peaks // side, side), _signed(peaks % side, side)
    return np.hypot(rows + _fraction(surface, peaks, axis=1), columns + _fraction(surface, peaks, axis=2))


def _signed(places: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    return (places + side // 2) % side - side // 2


def _fraction(surface: NDArray[np.float64], peaks: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
    """Where between pixels the peak of each block's surface [blocks, side, side] lies, by its two neighbours."""
    side = surface.shape[-1]
    number, rows, columns = np.arange(len(surface)), peaks // side, peaks % side
    if axis == 1:
        low, high = surface[number, (rows - 1) % side, columns], surface[number, (rows + 1) % side, columns]
    else:
        low, high = surface[number, rows, (columns - 1) % side], surface[number, rows, (columns + 1) % side]
    # Phase correlation of a shift between pixels leaves its energy on the two pixels around it.
    low, high = np.maximum(low, 0), np.maximum(high, 0)
    fraction: NDArray[np.float64] = (high - low) / (surface[number, rows, columns] + low + high + 1e-9)
    return fraction
