"""What a few trained frames tell of a clip: black, static, blurred, flat, flickering; and which clips show the same.

Arrays in, verdicts out: nothing here opens a file or knows of torch. A clip is looked at once (`look_at`), which
leaves a record of about 3 kB; everything else is computed from these records, for any number of clips.
`looks.py` decodes the frames.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Plane = NDArray[np.float32]
FlagKind = Literal["black", "partly black", "low contrast", "static", "blurred", "flicker"]

LOOK_RECIPE = 1  # raise it when `look_at` gives other numbers for the same frames
MOMENTS = 13  # frames spread over the window; one in 0.4 s of a clip of 5 s
RUN = 7  # consecutive frames in the middle, for what happens from frame to frame
THUMB_ROWS, THUMB_COLUMNS = 8, 9  # 8 rows of 9 cells give 64 comparisons of neighbours
CELLS = (6, 24)  # fewest and most rows and columns of the grid on which motion is measured
CELL_PIXELS = 300  # a cell has about so many, where the picture is large enough
TILES = 4  # rows and columns of the grid in which the sharpest part is looked for

# Limited-range black decodes to 0, badly tagged black to 16; noise of a dark sensor reaches some levels more.
BLACK_LEVEL = 24.0
BLACK_PERCENTILE = 99.5  # a logo or a star in 0.5 % of the picture does not make it a picture
# Fog and snow span 60 levels and more from darkest to brightest; below this a picture is a flat colour.
LOW_CONTRAST_LEVELS = 28.0
# Means over the pixels of a cell: grain averages out to less than 1 level, key frames pulse by up to 2,
# while a lip or a leaf that moves changes its cell by 5 and more.
STATIC_LEVELS = 2.5
# Energy of the finest edges over that of edges eight times as wide, in the best of those tiles that have most wide
# edges, in the best frame. Natural pictures look alike at all scales (D. J. Field, 1987): in focus they have 0.04 to
# 2, also after strong compression; a Gaussian blur of 3 px leaves below 0.02, compression noise included.
BLUR_RATIO = 0.02
COARSE_STEP = 8
EDGE_TILES = 4  # the background may be out of focus, and noise of the coding shows where nothing else is
COARSE_LEAST = 10.0  # levels squared; a tile with less has no edges that could be sharp
SHADES_LEVELS = 60.0  # a picture that spans more has an edge somewhere, unless it is blurred beyond recognition
# Rounding to 8 bits is noise of 1/12 per channel; luma mixes three, the Laplacian sums squares of its weights (20).
ROUNDING_VARIANCE = 20 * (0.299**2 + 0.587**2 + 0.114**2) / 12
# Second differences of the mean brightness with changing sign: fades, cuts and explosions have one, lamps and
# broken frame orders have several in a row.
FLICKER_LEVELS = 6.0
FLICKER_TIMES = 3

# Of 64 bits. Encoding anew at a tenth of the rate flips 0 to 7; frames of different scenes differ in 20 to 40.
DUPLICATE_BITS = 8
# Root mean square difference of two thumbnails as a share of their own contrast, with limits in levels. Encoding
# anew leaves 1 to 4 levels, another scene 30 and more; needed beside the bits, because plain pictures have too few
# edges to be told apart by them.
DUPLICATE_CONTRAST, DUPLICATE_LEVELS = 0.2, (2.5, 9.0)
# Share of the moments that have a partner, in the clip with more and in the one with fewer: a shifted start loses
# some at one end, and one black frame has a partner in every black clip.
DUPLICATE_SHARES = (0.6, 0.4)
BANDS, BAND_BITS = 4, 16  # two hashes that differ in at most 3 bits share at least one whole band
# Of the hashes that share a band so many neighbours by brightness are compared: plain pictures all share one.
BAND_NEIGHBOURS = 24
BRIGHTNESS_LEVELS = 6.0
LOOKS_AT_ONCE = 2048


@dataclass(frozen=True)
class Look:
    """What is kept of the frames of one clip or picture.

    Attributes:
        thumbs: Means of the cells of each moment: uint8 [moments, 8, 9, 3].
        brightest: Level of the 99.5th percentile of each moment.
        contrast: Levels between the 1st and the 99th percentile of each moment, in the colour with most.
        motion: Largest change of one cell's brightness between any two moments, in levels; 0 for a picture.
        sharpness: Energy of the finest edges over that of coarse ones, in the sharpest tile; infinite for a picture
            too plain to tell.
        flicker: Greatest number of alternations in a row of the mean brightness from frame to frame.
    """

    thumbs: Frames
    brightest: tuple[float, ...]
    contrast: tuple[float, ...]
    motion: float
    sharpness: float
    flicker: int

    def as_record(self) -> dict[str, Any]:
        """JSON-ready values; `look_of_record` reads them."""
        return {
            "recipe": LOOK_RECIPE,
            "thumbs": base64.b64encode(self.thumbs.tobytes()).decode("ascii"),
            "brightest": [round(level, 2) for level in self.brightest],
            "contrast": [round(level, 2) for level in self.contrast],
            "motion": round(self.motion, 3),
            "sharpness": round(self.sharpness, 6) if math.isfinite(self.sharpness) else None,
            "flicker": self.flicker,
        }


@dataclass(frozen=True)
class Flag:
    """One doubt about a clip: its kind, and a sentence with the measured value and the limit."""

    kind: FlagKind
    reason: str


def look_of_record(record: dict[str, Any]) -> Look | None:
    """The look that `as_record` wrote; None if another recipe made it."""
    if record.get("recipe") != LOOK_RECIPE:
        return None
    thumbs = np.frombuffer(base64.b64decode(record["thumbs"]), dtype=np.uint8)
    return Look(
        thumbs.reshape(-1, THUMB_ROWS, THUMB_COLUMNS, 3),
        tuple(record["brightest"]),
        tuple(record["contrast"]),
        float(record["motion"]),
        math.inf if record["sharpness"] is None else float(record["sharpness"]),
        int(record["flicker"]),
    )


def look_indices(num_frames: int) -> tuple[int, ...]:
    """Numbers of the frames `look_at` wants of a window of `num_frames`: spread moments and a run in the middle."""
    moments = {round(place * (num_frames - 1) / (MOMENTS - 1)) for place in range(MOMENTS)}
    return tuple(sorted(moments | set(_run(num_frames))))


def look_at(frames: Frames, num_frames: int, enlargement: float = 1.0) -> Look:
    """Measure the frames `look_indices(num_frames)` of a window.

    Args:
        frames: uint8 [len(indices), H, W, 3], RGB, as they are trained.
        num_frames: Frames of the whole window.
        enlargement: How much larger than in the source they are shown; an enlarged clip is told as such and is
            not called blurred for it.
    """
    indices = look_indices(num_frames)
    wanted = sorted({round(place * (num_frames - 1) / (MOMENTS - 1)) for place in range(MOMENTS)})
    moments = [frames[indices.index(number)] for number in wanted]
    planes = [_brightness(picture) for picture in moments]
    step = max(1, round(enlargement))
    run = [float(_brightness(frames[indices.index(number)]).mean()) for number in _run(num_frames)]
    measured = [_sharpness(_shrink(plane, step)) for plane in planes]
    spans = [np.percentile(picture, (1, 99), axis=(0, 1)) for picture in moments]
    rows = round(min(max((planes[0].size / CELL_PIXELS) ** 0.5, CELLS[0]), CELLS[1]))
    cells = np.stack([_means(plane, rows, rows) for plane in planes])
    return Look(
        thumbs=np.stack([_thumb(picture) for picture in moments]),
        brightest=tuple(float(np.percentile(plane, BLACK_PERCENTILE)) for plane in planes),
        contrast=tuple(float((high - low).max()) for low, high in spans),
        motion=float((cells.max(axis=0) - cells.min(axis=0)).max()) if num_frames > 1 else 0.0,
        sharpness=max((value for value in measured if value is not None), default=math.inf),
        flicker=_alternations(run),
    )


def find_flags(look: Look) -> tuple[Flag, ...]:
    """Every doubt about one clip, the gravest first; a black clip is not called static and blurred too."""
    black = sum(level <= BLACK_LEVEL for level in look.brightest)
    moments = len(look.brightest)
    if black == moments:
        brightest = max(look.brightest)
        return (Flag("black", f"no picture is brighter than level {brightest:.0f} of 255"),)
    flags = []
    if black:
        flags.append(Flag("partly black", f"{black} of {moments} pictures looked at show nothing"))
    flat = max(look.contrast) <= LOW_CONTRAST_LEVELS
    if flat:
        spans = f"{max(look.contrast):.0f} of 255 levels"
        flags.append(Flag("low contrast", f"nearly one colour: the pictures span at most {spans}"))
    if moments > 1 and look.motion <= STATIC_LEVELS:
        change = f"{look.motion:.1f} of 255 levels"
        flags.append(Flag("static", f"nothing moves: no part of the picture changes by more than {change}"))
    if look.sharpness < BLUR_RATIO and not flat:
        measured = f"sharpness {look.sharpness:.3f}, clips in focus have 0.04 and more"
        flags.append(Flag("blurred", f"even its sharpest part has no fine edges ({measured})"))
    if look.flicker >= FLICKER_TIMES:
        flags.append(Flag("flicker", f"the brightness goes up and down in {look.flicker} frames in a row"))
    return tuple(flags)


def hash_thumbs(thumbs: Frames) -> NDArray[np.uint64]:
    """64-bit difference hashes [N] of thumbnails uint8 [N, 8, 9, 3]: bit = a cell is brighter than its right one.

    Source: N. Krawetz, "Kind of Like That" (2013).
    """
    levels = thumbs.astype(np.int32) @ np.array((299, 587, 114))
    bits = (levels[:, :, :-1] > levels[:, :, 1:]).reshape(len(thumbs), -1)
    packed: NDArray[np.uint64] = np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)
    return packed


def find_near_duplicates(looks: Sequence[Look], sources: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Groups of clips that show the same: positions in `looks`, ascending, each group with at least two.

    Two clips are near-duplicates if most of their moments have a partner in the other one, alike in hash and
    thumbnail; so a copy that starts a little later or was encoded at another rate is found. Time grows with the
    number of clips, not with its square.

    Args:
        looks: Records of all clips.
        sources: What each was cut from; windows of one file are not duplicates of each other.
    """
    if not looks:
        return ()
    leaders = list(range(len(looks)))

    def leader(clip: int) -> int:
        while leaders[clip] != clip:
            leaders[clip] = leaders[leaders[clip]]
            clip = leaders[clip]
        return clip

    for one, other in _candidates(looks):
        first, second = sorted((leader(one), leader(other)))
        if first != second and sources[one] != sources[other] and _are_alike(looks[one], looks[other]):
            leaders[second] = first
    groups: dict[int, list[int]] = {}
    for clip in range(len(looks)):
        groups.setdefault(leader(clip), []).append(clip)
    return tuple(tuple(members) for members in groups.values() if len(members) > 1)


# Measures ---------------------------------------------------------------------------------------


def _run(num_frames: int) -> range:
    first = max(0, (num_frames - RUN) // 2)
    return range(first, min(num_frames, first + RUN))


def _brightness(picture: Frames) -> Plane:
    """Luma [H, W] float32 of an RGB picture, weights of ITU-R BT.601."""
    plane: Plane = picture.astype(np.float32) @ np.array((0.299, 0.587, 0.114), dtype=np.float32)
    return plane


def _means(plane: NDArray, rows: int, columns: int) -> Plane:
    """Means of the cells of a grid: [H, W, …] -> [rows, columns, …]; cells of odd sizes overlap by a line."""
    height, width = plane.shape[:2]
    tops = [row * height // rows for row in range(rows)]
    lefts = [column * width // columns for column in range(columns)]
    # A picture smaller than the grid repeats its lines.
    sums = np.add.reduceat(np.add.reduceat(plane.astype(np.float32), tops, axis=0), lefts, axis=1)
    high = np.maximum(1, np.diff([*tops, height])).reshape(-1, 1, *[1] * (plane.ndim - 2))
    wide = np.maximum(1, np.diff([*lefts, width])).reshape(1, -1, *[1] * (plane.ndim - 2))
    means: Plane = (sums / (high * wide)).astype(np.float32)
    return means


def _thumb(picture: Frames) -> Frames:
    return np.rint(_means(picture, THUMB_ROWS, THUMB_COLUMNS)).astype(np.uint8)


def _shrink(plane: Plane, step: int) -> Plane:
    """Means of squares of `step` pixels; lines left over at the end are dropped."""
    step = max(1, min(step, *plane.shape))
    height, width = plane.shape[0] // step, plane.shape[1] // step
    whole = plane[: height * step, : width * step]
    means: Plane = whole.reshape(height, step, width, step).mean(axis=(1, 3))
    return means


def _sharpness(plane: Plane) -> float | None:
    """Energy of the Laplacian at full size over that at an eighth of it, in the sharpest tile with wide edges."""
    step = max(2, min(COARSE_STEP, min(plane.shape) // (4 * TILES)))
    fine = np.maximum(_edge_energy(plane) - ROUNDING_VARIANCE, 0).flatten()
    coarse = _edge_energy(_shrink(plane, step)).flatten()
    tiles = [tile for tile in np.argsort(coarse)[-EDGE_TILES:] if coarse[tile] >= COARSE_LEAST]
    if not tiles:  # nothing but soft shades: hopelessly blurred, or too plain to tell
        return 0.0 if float(np.ptp(plane)) >= SHADES_LEVELS else None
    return max(float(fine[tile] / coarse[tile]) for tile in tiles)


def _edge_energy(plane: Plane) -> Plane:
    """Variance of the Laplacian in each of `TILES` x `TILES` tiles; the border repeats its pixels."""
    wide = np.pad(plane, 1, mode="edge")
    neighbours = wide[:-2, 1:-1] + wide[2:, 1:-1] + wide[1:-1, :-2] + wide[1:-1, 2:]
    laplacian = neighbours - 4 * plane
    mean = _means(laplacian, TILES, TILES)
    return _means(np.square(laplacian), TILES, TILES) - np.square(mean)


def _alternations(levels: Sequence[float]) -> int:
    """Longest row of second differences of at least `FLICKER_LEVELS` whose sign changes each time."""
    longest = row = 0
    previous = 0.0
    for before, now, after in zip(levels, levels[1:], levels[2:], strict=False):
        bend = (2 * now - before - after) / 2
        if abs(bend) < FLICKER_LEVELS:
            row, previous = 0, 0.0
            continue
        row = row + 1 if bend * previous < 0 else 1
        previous = bend
        longest = max(longest, row)
    return longest


# Near duplicates --------------------------------------------------------------------------------


def _candidates(looks: Sequence[Look]) -> list[tuple[int, int]]:
    """Pairs of clips that have a moment alike in hash and brightness, each pair once."""
    owners = np.repeat(np.arange(len(looks)), [len(look.thumbs) for look in looks])
    hashes, brightness = _hashes_and_brightness(looks)
    found = [np.empty(0, dtype=np.int64)]
    for band in range(BANDS):
        keys = ((hashes >> np.uint64(band * BAND_BITS)) & np.uint64((1 << BAND_BITS) - 1)).astype(np.uint16)
        order = np.lexsort((brightness, keys))
        for distance in range(1, min(BAND_NEIGHBOURS, len(order) - 1) + 1):
            one, other = order[:-distance], order[distance:]
            close = (keys[one] == keys[other]) & (brightness[other] - brightness[one] <= BRIGHTNESS_LEVELS)
            one, other = one[close], other[close]
            alike = np.bitwise_count(hashes[one] ^ hashes[other]) <= DUPLICATE_BITS
            first, second = owners[one[alike]], owners[other[alike]]
            pairs = np.minimum(first, second) * len(looks) + np.maximum(first, second)
            found.append(np.unique(pairs[first != second]))
    return [divmod(int(pair), len(looks)) for pair in np.unique(np.concatenate(found))]


def _hashes_and_brightness(looks: Sequence[Look]) -> tuple[NDArray[np.uint64], Plane]:
    """Hash and mean level of every moment, some clips at a time: all thumbnails at once would take gigabytes."""
    hashes, brightness = [], []
    for first in range(0, len(looks), LOOKS_AT_ONCE):
        thumbs = np.concatenate([look.thumbs for look in looks[first : first + LOOKS_AT_ONCE]])
        hashes.append(hash_thumbs(thumbs))
        brightness.append(thumbs.mean(axis=(1, 2, 3), dtype=np.float32))
    return np.concatenate(hashes), np.concatenate(brightness)


def _are_alike(one: Look, other: Look) -> bool:
    if (len(one.thumbs) == 1) != (len(other.thumbs) == 1):
        return False  # a picture may be a frame of a clip; that is no copy
    first, second = one.thumbs.astype(np.float32)[:, None], other.thumbs.astype(np.float32)[None]
    apart = np.sqrt(np.square(first - second).mean(axis=(2, 3, 4)))
    contrast = np.minimum(first.std(axis=(2, 3, 4)), second.std(axis=(2, 3, 4)))
    bits = np.bitwise_count(hash_thumbs(one.thumbs)[:, None] ^ hash_thumbs(other.thumbs)[None])
    alike = (apart <= np.clip(DUPLICATE_CONTRAST * contrast, *DUPLICATE_LEVELS)) & (bits <= DUPLICATE_BITS)
    shares = sorted((float(alike.any(axis=1).mean()), float(alike.any(axis=0).mean())), reverse=True)
    return all(share >= least for share, least in zip(shares, DUPLICATE_SHARES, strict=True))
